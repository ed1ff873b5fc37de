"""How far the encoding of a recording is, and how long it will still take: judged by how long earlier ones took on this machine."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from qamdetr.audio import stated_seconds
from qamdetr.features.base import OnStage
from qamdetr.types import Recording
from qamdetr.ui.presenters import View, busy_view

DECODE = "decode"
"""The stage before the first stream: reading and decoding the file."""

SHORTEST_MEASURED_SECONDS = 10.0
"""Shorter recordings say little: what is done once per file outweighs the rest."""

POLL_SECONDS = 0.5
"""Between two looks at the work; slow enough for a phone, fast enough to seem alive."""


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
        self._rates: dict[tuple[str, str], float] = {}

    def note(self, encoder: str, stage: str, work_seconds: float, duration_seconds: float) -> None:
        """Take in a measurement; recordings under `SHORTEST_MEASURED_SECONDS` count for nothing."""
        if duration_seconds >= SHORTEST_MEASURED_SECONDS:
            rate = work_seconds / duration_seconds
            earlier = self._rates.get((encoder, stage), rate)
            self._rates[encoder, stage] = (earlier + rate) / 2

    def expected_seconds(self, encoder: str, stage: str, duration_seconds: float) -> float | None:
        """Say how long a stage will take; None where it was never measured."""
        rate = self._rates.get((encoder, stage))
        return None if rate is None else rate * duration_seconds


class EncodingRun:
    """One recording that is being encoded in a thread of its own, and how far it is."""

    def __init__(self, retriever: Encodes, path: Path, pace: EncodingPace, clock: Callable[[], float] = time.monotonic) -> None:
        self._retriever = retriever
        self._path = path
        self._pace = pace
        self._clock = clock
        self._streams = list(retriever.encoder.audio)
        self._done = threading.Event()
        self._recording: Recording | None = None
        self._error: BaseException | None = None
        self._duration_seconds = stated_seconds(path)
        self._stages: list[tuple[str, float]] = []

    def run(self) -> Recording:
        """Encode here and now.

        Raises:
            AudioError: The file cannot be used.
        """
        self._stages = [(DECODE, self._clock())]
        recording = self._retriever.encode(self._path, on_stage=self._enter)
        self._note(recording.duration_seconds)
        return recording

    def views(self, title: str) -> Iterator[View]:
        """Encode in a thread; yields what the page shows meanwhile, until it is done.

        Args:
            title: Name of the recording.
        """
        self._stages = [(DECODE, self._clock())]
        context = contextvars.copy_context()  # a borrowed GPU is booked on the visitor whose request this is
        threading.Thread(target=context.run, args=(self._work,), name="qamdetr-encode", daemon=True).start()
        yield self.view(title)
        while not self._done.wait(POLL_SECONDS):
            yield self.view(title)

    def result(self) -> Recording:
        """Return the encoded recording after `views` ended.

        Raises:
            Exception: Whatever the encoding failed with.
        """
        if self._error is not None:
            raise self._error
        if self._recording is None:
            raise RuntimeError("The recording is still being encoded.")
        return self._recording

    def view(self, title: str) -> View:
        """Say which stage is on, the share that is done and the time left; both are None where no measurement tells."""
        stage, entered = self._stages[-1]
        text = f"Reading “{title}” …"
        if stage != DECODE:
            number = f", {len(self._stages) - 1} of {len(self._streams)}" if len(self._streams) > 1 else ""
            text = f"Listening to “{title}”: stream {stage}{number} …"
        share, left = self._estimate(stage, self._clock() - entered)
        return busy_view(text, share, left)

    def _estimate(self, stage: str, elapsed_seconds: float) -> tuple[float | None, float | None]:
        if self._duration_seconds is None:
            return None, None
        encoder = self._retriever.encoder.fingerprint
        entered = {name for name, _ in self._stages}
        expected = {name: self._pace.expected_seconds(encoder, name, self._duration_seconds) for name in (DECODE, *self._streams)}
        known = {name: seconds for name, seconds in expected.items() if seconds is not None}
        if len(known) < len(expected) or not sum(known.values()):
            return None, None
        waiting = sum(seconds for name, seconds in known.items() if name not in entered)
        left = max(known[stage] - elapsed_seconds, 0.0) + waiting
        # A stage that takes longer than it ever did has no time left that anybody knows.
        overdue = elapsed_seconds > 1.5 * known[stage] + 1.0
        return 1.0 - left / sum(known.values()), None if overdue else left

    def _work(self) -> None:
        try:
            self._recording = self.run()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def _enter(self, stream: str, duration_seconds: float) -> None:
        self._duration_seconds = duration_seconds
        self._stages.append((stream, self._clock()))

    def _note(self, duration_seconds: float) -> None:
        """Remember how long each stage took."""
        ends = [*(entered for _, entered in self._stages[1:]), self._clock()]
        for (stage, begin), end in zip(self._stages, ends, strict=True):
            self._pace.note(self._retriever.encoder.fingerprint, stage, end - begin, duration_seconds)
