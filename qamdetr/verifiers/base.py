"""What all verifiers share: how they are registered and made, the crop around a candidate, and answers that are kept.

A verifier is one file: a class under `@verifier`, whose `verify` scores candidates. Importing the file is enough to use it by name.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import numpy as np

from qamdetr.audio import Sound
from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.features.store import content_key
from qamdetr.types import Candidate, Recording, TextFeatures, Window
from qamdetr.verifiers.prompt import clean_query

_log = logging.getLogger(__name__)

DEFAULT_VERIFIER = "none"

CONTEXT_SHARE = 0.5
"""The crop is the window widened on both sides by this share of its length."""

SAMPLE_RATE_HZ = 16_000

MAX_CROP_SECONDS = 300.0
"""What Qwen2.5-Omni's feature extractor takes (`chunk_length` of the published checkpoints)."""

MIN_CROP_SECONDS = 0.1
"""Shorter crops, around windows of milliseconds, would leave the audio encoder without a single output."""

_CHANGED_SECONDS = 1.0
"""Manifests round durations; a file that differs by more is not the one that was encoded."""

_ANSWERS_FILE = "answers.sqlite"
_WAIT_SECONDS = 10.0
"""How long one process waits for another that writes answers."""


class Verifier:
    """Looks at each candidate once more and says how likely it is the moment of the query.

    Attributes:
        name: What the user calls it.
        needs_audio: Whether it listens to the recording's file, or does with the encoded clips.
        settings: Of the checkpoint or the system.
    """

    name: str
    needs_audio: bool

    def __init__(self, settings: VerifierConfig | None = None) -> None:
        """Take the settings; models are loaded when they are first asked."""
        self.settings = settings or VerifierConfig()

    @property
    def identity(self) -> str:
        """Changes whenever the same crop and query could get another answer: name, weights, prompt."""
        return self.name

    def check(self) -> None:
        """Find out, before there is anything to verify, whether it can work at all, and raise if not; loads no model."""

    def verify(self, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Return one score in [0, 1] per candidate: the normalised probability that it is the moment of the query.

        Args:
            recording: The encoded recording; `path` leads to its sound.
            query: The user's sentence.
            text: The encoded query, main stream first.
            candidates: The top-K of the decoder.

        Raises:
            PartialAnswersError: It failed half-way.
            QamDetrError: It cannot do its work; the caller keeps the decoder's ranking.
        """
        raise NotImplementedError


class PartialAnswersError(QamDetrError):
    """A verifier failed, but not before it had scored some of the candidates: `scores`, by their place in what was asked."""

    def __init__(self, message: str, scores: Mapping[int, float]) -> None:
        super().__init__(message)
        self.scores = dict(scores)


@dataclass(frozen=True)
class VerifierInfo:
    """What is known of a verifier before it is made: its label on the page, whether it listens to the sound, and its class."""

    label: str
    hears: bool
    make: Callable[[VerifierConfig], Verifier]


VERIFIERS: dict[str, VerifierInfo] = {}
"""Every verifier by name; `none` is not among them."""

_Class = TypeVar("_Class", bound=type[Verifier])


def verifier(name: str, *, label: str, hears: bool) -> Callable[[_Class], _Class]:
    """Register a class as the verifier `name`; answers of those that hear are kept, since they take long."""

    def register(cls: _Class) -> _Class:
        cls.name, cls.needs_audio = name, hears
        VERIFIERS[name] = VerifierInfo(label, hears, cls)
        return cls

    return register


def verifier_names() -> tuple[str, ...]:
    """All names that `make_verifier` takes."""
    return (DEFAULT_VERIFIER, *VERIFIERS)


def check_verifier(name: str) -> None:
    """Refuse a name that `make_verifier` does not take."""
    if name not in verifier_names():
        raise QamDetrError(f"Verifier {name!r} is not known; choose one of {', '.join(verifier_names())}.")


def make_verifier(name: str, settings: VerifierConfig | None = None) -> Verifier | None:
    """Make a verifier by name; `none` gives None. Models are loaded when they are first asked, so this is quick."""
    check_verifier(name)
    if name == DEFAULT_VERIFIER:
        return None
    settings = settings or VerifierConfig()
    made = VERIFIERS[name].make(settings)
    return CachedVerifier(made, cache_dir(settings)) if VERIFIERS[name].hears else made


class Verifiers:
    """Makes verifiers by name with the same settings, each once: what a large one has loaded stays loaded."""

    def __init__(self, settings: VerifierConfig) -> None:
        self._settings = settings
        self._made: dict[str, Verifier | None] = {}
        self._lock = threading.Lock()

    def get(self, name: str) -> Verifier | None:
        """Return a verifier; `none` gives None."""
        with self._lock:
            if name not in self._made:
                self._made[name] = make_verifier(name, self._settings)
            return self._made[name]


class WrappedVerifier(Verifier):
    """A verifier that changes how `inner` is asked and is `inner` in all else; what it adds is its `verify`."""

    def __init__(self, inner: Verifier) -> None:
        super().__init__(inner.settings)
        self.inner, self.name, self.needs_audio = inner, inner.name, inner.needs_audio

    @property
    def identity(self) -> str:
        """As `inner`."""
        return self.inner.identity

    def check(self) -> None:
        """As `inner`."""
        self.inner.check()


@dataclass(frozen=True)
class Crop:
    """One candidate with its surroundings."""

    samples: np.ndarray  # `(n,)` float32 mono at 16 kHz
    window: Window  # the candidate, in seconds from the begin of the crop

    @property
    def duration_seconds(self) -> float:
        """Length of the crop."""
        return len(self.samples) / SAMPLE_RATE_HZ


def read_crops(recording: Recording, candidates: Sequence[Candidate], max_seconds: float = MAX_CROP_SECONDS) -> list[Crop]:
    """Cut one crop per candidate out of the recording's file; `max_seconds` is what the model can listen to at once."""
    bounds = [crop_bounds(candidate.window, recording.duration_seconds, max_seconds) for candidate in candidates]
    _file_state(recording)
    sound = Sound(recording.path, **recording.choice)
    length = sound.duration_seconds
    if abs(length - recording.duration_seconds) > _CHANGED_SECONDS:
        raise QamDetrError(f"{recording.path} lasts {length:.1f} s, but {recording.duration_seconds:.1f} s were encoded; encode it again.")
    crops = []
    for candidate, bound in zip(candidates, bounds, strict=True):
        end = min(bound[1], length)
        start = max(0.0, min(bound[0], end - MIN_CROP_SECONDS))
        samples = sound.part(start + recording.start_seconds, end + recording.start_seconds, rate_hz=SAMPLE_RATE_HZ)
        crops.append(Crop(samples, (min(max(candidate.start_seconds, start), end) - start, min(candidate.end_seconds, end) - start)))
    return crops


def crop_window(window: Window, duration_seconds: float) -> Window:
    """Widen a window by 50 % of its length on both sides, cut at the recording's ends.

    Source: report section 2.3.
    """
    start, end = window
    margin = CONTEXT_SHARE * (end - start)
    return max(0.0, start - margin), min(duration_seconds, end + margin)


def crop_bounds(window: Window, duration_seconds: float, max_seconds: float = MAX_CROP_SECONDS) -> Window:
    """Start and end of the crop in the recording: the window with its context.

    Where that is longer than the model can listen to, both sides of the context shrink alike and the window stays whole: nothing that
    the model is asked about is ever cut off.
    """
    start, end = crop_window(window, duration_seconds)
    if end - start > max_seconds:
        room = max_seconds - (window[1] - window[0])
        if room < 0:
            raise QamDetrError(
                f"A candidate lasts {window[1] - window[0]:.1f} s; the verifier can listen to {max_seconds:g} s at most; "
                "use verifier 'pocket', or lower inference.section_clips."
            )
        share = room / ((window[0] - start) + (end - window[1]))
        start, end = window[0] - share * (window[0] - start), window[1] + share * (end - window[1])
    if end - start < MIN_CROP_SECONDS:
        start = max(0.0, min((start + end - MIN_CROP_SECONDS) / 2, duration_seconds - MIN_CROP_SECONDS))
        end = start + MIN_CROP_SECONDS
    return start, end


def _file_state(recording: Recording) -> tuple[str, int, int]:
    """Path, size and time of the last change of the recording's file."""
    if not recording.path:
        raise QamDetrError(
            f"The recording {recording.name!r} has no file to listen to; encode it from a file, or use verifier 'pocket' or 'none'."
        )
    try:
        state = Path(recording.path).stat()
    except OSError as error:
        reason = error.strerror or error
        raise QamDetrError(f"{recording.path} cannot be listened to ({reason}); put the file back and encode it again.") from error
    return recording.path, state.st_size, state.st_mtime_ns


# Size and time of the last change make the key: a file that is replaced is read anew.
@functools.lru_cache(maxsize=256)
def _digest(path: str, size: int, changed: int) -> str:
    try:
        return content_key(Path(path))
    except OSError as error:
        raise QamDetrError(f"{path} cannot be read ({error.strerror or error}); check the file.") from error


def cache_dir(settings: VerifierConfig) -> Path:
    """Where answers are kept: `verifier.cache_dir`, `$QAMDETR_CACHE/verifier`, or `qamdetr/verifier` in the user's cache folder."""
    if settings.cache_dir:
        return Path(settings.cache_dir).expanduser()
    own = os.environ.get("QAMDETR_CACHE")
    if own:
        return Path(own).expanduser() / "verifier"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qamdetr" / "verifier"


class CachedVerifier(WrappedVerifier):
    """Answers from `folder` what `inner` has answered before, and asks `inner` for the rest.

    An answer is known by the recording's content, the crop and the window to a millisecond, the query as it stands in the prompt, and the
    identity of `inner`. Only a hash of these and the score are stored. Processes and threads may share the folder. A cache that cannot be
    read or written is noted in the log and done without.
    """

    def __init__(self, inner: Verifier, folder: Path) -> None:
        super().__init__(inner)
        self.folder = folder

    def verify(self, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Score candidates; where `inner` fails half-way, what it did answer is kept for the next time."""
        keys = self._keys(recording, query, candidates)
        scores = self._read(keys)
        missing = [index for index, key in enumerate(keys) if key not in scores]
        if missing:
            try:
                answers = self.inner.verify(recording, query, text, [candidates[index] for index in missing])
            except PartialAnswersError as error:
                self._write({keys[missing[place]]: score for place, score in error.scores.items()})
                raise
            found = {keys[index]: answer for index, answer in zip(missing, answers, strict=True)}
            self._write(found)
            scores |= found
        return [scores[key] for key in keys]

    def _keys(self, recording: Recording, query: str, candidates: Sequence[Candidate]) -> list[str]:
        part = [repr(sorted(recording.choice.items()))] if recording.choice else []
        shared = (self.identity, _digest(*_file_state(recording)), clean_query(query), *part)
        keys = []
        for candidate in candidates:
            times = (*candidate.window, *crop_bounds(candidate.window, recording.duration_seconds))
            parts = (*shared, *(f"{seconds:.3f}" for seconds in times))
            keys.append(blake2b("\n".join(parts).encode(), digest_size=20).hexdigest())
        return keys

    def _read(self, keys: Sequence[str]) -> dict[str, float]:
        try:
            with self._opened() as database:
                marks = ",".join("?" * len(keys))
                rows = database.execute(f"SELECT key, score FROM answers WHERE key IN ({marks})", list(keys)).fetchall()
        except (sqlite3.Error, OSError) as error:
            _log.warning("The answers in %s cannot be read (%s); the verifier is asked again.", self.folder / _ANSWERS_FILE, error)
            return {}
        return {key: score for key, score in rows if isinstance(score, float) and 0 <= score <= 1}

    def _write(self, scores: Mapping[str, float]) -> None:
        file = self.folder / _ANSWERS_FILE
        try:
            with self._opened() as database:
                database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", list(scores.items()))
        except (sqlite3.Error, OSError) as error:
            _log.warning("Answers cannot be kept in %s (%s); delete that file, or choose verifier.cache_dir.", file, error)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Connect anew for each use, which is safe in any thread and after a fork; the block is one transaction."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.folder / _ANSWERS_FILE, timeout=_WAIT_SECONDS)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID")
            yield database
