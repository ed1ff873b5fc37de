"""How far the encoding of a recording is, and how long it will still take; and its end, when nobody waits for it any more."""

from __future__ import annotations

import contextvars
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qamdetr.audio import stated_seconds
from qamdetr.features.base import OnStage
from qamdetr.progress import heard_by
from qamdetr.types import Recording
from qamdetr.ui.lines import Line
from qamdetr.ui.presenters import View, busy_view

DECODE = "decode"
"""The stage before the first stream: reading and decoding the file."""

SHORTEST_MEASURED_SECONDS = 10.0
"""Shorter recordings say little: what is done once per file outweighs the rest."""

POLL_SECONDS = 0.5
"""Between two looks at the work; slow enough for a phone, fast enough to seem alive."""

TELLING_SHARE = 0.02
"""So much of a stage has to be seen before its own pace says more than that of earlier recordings."""


class StoppedError(Exception):
    """Ends the work of a run that nobody waits for any more."""


class StreamEncoders(Protocol):
    """What is needed of the encoders of a model."""

    @property
    def fingerprint(self) -> str:
        """Tells these encoders from others."""
        ...

    @property
    def audio(self) -> Mapping[str, object]:
        """Audio stream -> encoder."""
        ...


class Encodes(Protocol):
    """What is needed of a retriever here."""

    @property
    def encoder(self) -> StreamEncoders:
        """The encoders that it reads."""
        ...

    def encode(self, path: str | Path, on_stage: OnStage | None = None) -> Recording:
        """Read and encode an audio file."""
        ...


class EncodingPace:
    """Seconds of work per second of audio, for each stage of each set of encoders, as measured so far; threads may share one."""

    def __init__(self) -> None:
        self._rates: dict[tuple[str, str], dict[int, float]] = {}

    def note(self, encoder: str, stage: str, work_seconds: float, duration_seconds: float) -> None:
        """Take in a measurement; recordings under `SHORTEST_MEASURED_SECONDS` count for nothing."""
        if duration_seconds >= SHORTEST_MEASURED_SECONDS:
            rate = work_seconds / duration_seconds
            rates = self._rates.setdefault((encoder, stage), {})
            earlier = rates.get(_octave(duration_seconds), rate)
            rates[_octave(duration_seconds)] = (earlier + rate) / 2

    def expected_seconds(self, encoder: str, stage: str, duration_seconds: float) -> float | None:
        """Say how long a stage will take, by the recordings nearest in length; None where it was never measured."""
        rates = dict(self._rates.get((encoder, stage), {}))
        if not rates:
            return None
        wanted = _octave(max(duration_seconds, SHORTEST_MEASURED_SECONDS))
        return rates[min(rates, key=lambda octave: abs(octave - wanted))] * duration_seconds


def _octave(duration_seconds: float) -> int:
    """Lengths of one octave have a pace in common: what is done once per file, and the machine's memory, make the others differ."""
    return round(math.log2(duration_seconds))


@dataclass
class _Stage:
    """One stage of the work: when it began, and what was told of it first and last, as `(share, when)`."""

    name: str
    begin: float
    first: tuple[float, float] | None = None
    last: tuple[float, float] | None = None

    def hear(self, share: float, now: float) -> None:
        self.first = self.first or (share, now)
        self.last = (share, now)

    def seconds_left(self, now: float) -> float | None:
        """Say how long the stage will still take, by its own pace so far; None where that says nothing yet."""
        if self.first is None or self.last is None or self.last[0] - self.first[0] < TELLING_SHARE:
            return None
        share, when = self.last
        pace = (when - self.first[1]) / (share - self.first[0])
        return max(pace * (1.0 - share) - (now - when), 0.0)


class EncodingRun:
    """One recording that is being encoded in a thread of its own, and how far it is."""

    def __init__(
        self, retriever: Encodes, path: Path, pace: EncodingPace, line: Line | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin nothing yet.

        Args:
            retriever: Whose encoders are used.
            path: The file.
            pace: What was measured so far; takes in what this run measures.
            line: Where `views` waits for its turn; None = it need not wait.
            clock: Seconds that pass.
        """
        self._retriever = retriever
        self._path = path
        self._pace = pace
        self._line = line or Line(1, 0)
        self._clock = clock
        self._streams = list(retriever.encoder.audio)
        self._lock = threading.Lock()
        self._watchers = 0
        self._begun = False
        self._left = threading.Event()
        self._done = threading.Event()
        self._before = 0
        self._recording: Recording | None = None
        self._error: BaseException | None = None
        self._duration_seconds = stated_seconds(path)
        self._stages: list[_Stage] = [_Stage(DECODE, clock())]
        self._shown_share = 0.0

    @property
    def over(self) -> bool:
        """Whether it has ended, or is about to because nobody waits for it."""
        return self._done.is_set() or self._left.is_set()

    def run(self) -> Recording:
        """Encode here and now.

        Raises:
            AudioError: The file cannot be used.
            StoppedError: Those who watched have left.
        """
        self._stages = [_Stage(DECODE, self._clock())]
        with heard_by(self._hear):
            recording = self._retriever.encode(self._path, on_stage=self._enter)
        self._note(recording.duration_seconds)
        return recording

    def views(self, title: str) -> Iterator[View]:
        """Encode in a thread; yields what the page shows meanwhile, until it is done.

        Several may watch one run. When the last of them leaves before the end (closes the iterator), the work stops.

        Args:
            title: Name of the recording.
        """
        with self._lock:
            self._watchers += 1
            begin, self._begun = not self._begun, True
        try:
            if begin:
                context = contextvars.copy_context()  # a borrowed GPU is booked on the visitor whose request this is
                threading.Thread(target=context.run, args=(self._work,), name="qamdetr-encode", daemon=True).start()
            yield self.view(title)
            while not self._done.wait(POLL_SECONDS):
                yield self.view(title)
        finally:
            with self._lock:
                self._watchers -= 1
                if not self._watchers:
                    self._left.set()

    def result(self) -> Recording:
        """Return the encoded recording after `views` ended.

        Raises:
            StoppedError: Those who watched before have left.
            Exception: Whatever the encoding failed with.
        """
        if self._error is not None:
            raise self._error
        if self._recording is None:
            raise RuntimeError("The recording is still being encoded.")
        return self._recording

    def view(self, title: str) -> View:
        """Say which stage is on, the share that is done and the time left; both are None where no measurement tells."""
        if self._before:
            others = "1 other recording" if self._before == 1 else f"{self._before} other recordings"
            return busy_view(f"“{title}” waits for its turn: {others} first …", cancel=True)
        stage = self._stages[-1]
        text = f"Reading “{title}” …"
        if stage.name != DECODE:
            number = f", {len(self._stages) - 1} of {len(self._streams)}" if len(self._streams) > 1 else ""
            text = f"Listening to “{title}”: stream {stage.name}{number} …"
        share, left = self._estimate(stage, self._clock())
        return busy_view(text, share, left, cancel=True)

    def _estimate(self, stage: _Stage, now: float) -> tuple[float | None, float | None]:
        if self._duration_seconds is None:
            return None, None
        encoder = self._retriever.encoder.fingerprint
        entered = {entry.name for entry in self._stages}
        expected = {name: self._pace.expected_seconds(encoder, name, self._duration_seconds) for name in (DECODE, *self._streams)}
        known = {name: seconds for name, seconds in expected.items() if seconds is not None}
        if len(known) < len(expected) or not sum(known.values()):
            return None, None
        elapsed = now - stage.begin
        stage_left = stage.seconds_left(now)
        # Of a stage that tells nothing and takes longer than it ever did, nobody knows how far it is.
        if stage_left is None and elapsed > 1.5 * known[stage.name] + 1.0:
            return None, None
        if stage_left is None:
            stage_left = max(known[stage.name] - elapsed, 0.0)
        left = stage_left + sum(seconds for name, seconds in known.items() if name not in entered)
        spent = now - self._stages[0].begin
        self._shown_share = max(self._shown_share, spent / (spent + left) if spent + left else 0.0)
        return self._shown_share, left

    def _work(self) -> None:
        try:
            with self._line.ticket() as ticket:
                for self._before in ticket.until_turn(POLL_SECONDS):
                    self._stop_if_left()
                self._before = 0
                self._recording = self.run()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def _stop_if_left(self) -> None:
        if self._left.is_set():
            raise StoppedError

    def _hear(self, share: float | None) -> None:
        self._stop_if_left()
        if share is not None:
            self._stages[-1].hear(share, self._clock())

    def _enter(self, stream: str, duration_seconds: float) -> None:
        self._stop_if_left()
        self._duration_seconds = duration_seconds
        self._stages.append(_Stage(stream, self._clock()))

    def _note(self, duration_seconds: float) -> None:
        """Remember how long each stage took."""
        ends = [*(stage.begin for stage in self._stages[1:]), self._clock()]
        for stage, end in zip(self._stages, ends, strict=True):
            self._pace.note(self._retriever.encoder.fingerprint, stage.name, end - stage.begin, duration_seconds)
