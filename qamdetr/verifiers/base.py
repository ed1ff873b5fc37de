"""What all verifiers share: how they are registered and made, the crop around a candidate, and answers that are kept.

A verifier is one file: a class under `@verifier`, whose `verify` scores candidates. Importing the file is enough to use it by name.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import numpy as np

from qamdetr.audio import Sound
from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.features.store import content_key
from qamdetr.files import cache_folder
from qamdetr.types import Candidate, Recording, TextFeatures, Window
from qamdetr.verifiers.prompt import clean_query

_log = logging.getLogger(__name__)

DEFAULT_VERIFIER = "none"

CONTEXT_SHARE = 0.5  # of the window's length, by which the crop is wider on both sides
SAMPLE_RATE_HZ = 16_000
MAX_CROP_SECONDS = 300.0  # what Qwen2.5-Omni's feature extractor takes (`chunk_length` of the published checkpoints)
MIN_CROP_SECONDS = 0.1  # shorter crops, around windows of milliseconds, would leave the audio encoder without a single output
_CHANGED_SECONDS = 1.0  # manifests round durations; a file that differs by more is not the one that was encoded
_WAIT_SECONDS = 10.0  # for another process that writes answers
_KEEP = "INSERT OR REPLACE INTO answers VALUES (?, ?)"


class Verifier:
    """Looks at each candidate once more and says how likely it is the moment of the query."""

    name: str  # what the user calls it
    label: str  # what the page calls it
    needs_audio: bool  # whether it listens to the recording's file, or does with the encoded clips

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

        `recording.path` leads to the sound; `text` is the encoded query, main stream first; the candidates are the decoder's top-K. Where
        it fails, half-way with a `PartialAnswersError`, the caller keeps the decoder's ranking.
        """
        raise NotImplementedError


class PartialAnswersError(QamDetrError):
    """A verifier failed, but not before it had scored some of the candidates: `scores`, by their place in what was asked."""

    def __init__(self, message: str, scores: Mapping[int, float]) -> None:
        super().__init__(message)
        self.scores = dict(scores)


VERIFIERS: dict[str, type[Verifier]] = {}
"""Every verifier by name; `none` is not among them."""

_Class = TypeVar("_Class", bound=type[Verifier])


def verifier(name: str, *, label: str, hears: bool) -> Callable[[_Class], _Class]:
    """Register a class as the verifier `name`; answers of those that hear are kept, since they take long."""

    def register(cls: _Class) -> _Class:
        cls.name, cls.label, cls.needs_audio = name, label, hears
        VERIFIERS[name] = cls
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
    made = VERIFIERS[name](settings)
    return CachedVerifier(made, cache_dir(settings)) if made.needs_audio else made


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
    _file_state(recording)
    sound = Sound(recording.path, **recording.choice)
    length = sound.duration_seconds
    if abs(length - recording.duration_seconds) > _CHANGED_SECONDS:
        raise QamDetrError(f"{recording.path} lasts {length:.1f} s, but {recording.duration_seconds:.1f} s were encoded; encode it again.")
    crops = []
    for candidate in candidates:
        start, end = crop_bounds(candidate.window, min(recording.duration_seconds, length), max_seconds)
        samples = sound.part(recording.start_seconds + start, recording.start_seconds + end, rate_hz=SAMPLE_RATE_HZ)
        first, last = (min(max(seconds, start), end) - start for seconds in candidate.window)
        crops.append(Crop(samples, (first, last)))
    return crops


def crop_bounds(window: Window, duration_seconds: float, max_seconds: float = MAX_CROP_SECONDS) -> Window:
    """Widen a window by 50 % of its length on both sides, cut at the recording's ends.

    Where that is longer than the model can listen to, both sides of the context shrink alike and the window stays whole.

    Source: report section 2.3.
    """
    length = window[1] - window[0]
    if length > max_seconds:
        what = f"A candidate lasts {length:.1f} s; the verifier can listen to {max_seconds:g} s at most"
        raise QamDetrError(what, "use verifier 'pocket', or lower inference.section_clips")
    start, end = max(0.0, window[0] - CONTEXT_SHARE * length), min(duration_seconds, window[1] + CONTEXT_SHARE * length)
    if end - start > max_seconds:
        share = (max_seconds - length) / (end - start - length)
        start, end = window[0] - share * (window[0] - start), window[1] + share * (end - window[1])
    if end - start < MIN_CROP_SECONDS:
        start = max(0.0, min((start + end - MIN_CROP_SECONDS) / 2, duration_seconds - MIN_CROP_SECONDS))
        end = start + MIN_CROP_SECONDS
    return start, end


def _file_state(recording: Recording) -> tuple[str, int, int]:
    """Path, size and time of the last change of the recording's file."""
    if not recording.path:
        what = f"The recording {recording.name!r} has no file to listen to"
        raise QamDetrError(what, "encode it from a file, or use verifier 'pocket' or 'none'")
    try:
        state = Path(recording.path).stat()
    except OSError as error:
        what = f"{recording.path} cannot be listened to ({error.strerror or error})"
        raise QamDetrError(what, "put the file back and encode it again") from error
    return recording.path, state.st_size, state.st_mtime_ns


# Size and time of the last change make the key: a file that is replaced is read anew.
@functools.lru_cache(maxsize=256)
def _digest(path: str, size: int, changed: int) -> str:
    return content_key(Path(path))


def cache_dir(settings: VerifierConfig) -> Path:
    """Where answers are kept: `verifier.cache_dir`, `$QAMDETR_CACHE/verifier`, or `qamdetr/verifier` in the user's cache folder."""
    if settings.cache_dir:
        return Path(settings.cache_dir).expanduser()
    return cache_folder("verifier")


class CachedVerifier(WrappedVerifier):
    """Answers from `folder`, which processes may share, what `inner` has answered before, and asks `inner` for the rest.

    Stored are the score and a hash of the recording's content, the crop and the window to a millisecond, the query as it stands in the
    prompt, and the identity of `inner`. A cache that cannot be read or written is noted in the log and done without.
    """

    def __init__(self, inner: Verifier, folder: Path) -> None:
        super().__init__(inner)
        self.folder = folder

    def verify(self, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Score candidates; where `inner` fails half-way, what it did answer is kept for the next time."""
        keys = self._keys(recording, query, candidates)
        scores = dict(self._run("SELECT key, score FROM answers WHERE key = ?", [(key,) for key in keys]))
        missing = [place for place, key in enumerate(keys) if key not in scores]
        if missing:
            try:
                answers = self.inner.verify(recording, query, text, [candidates[place] for place in missing])
            except PartialAnswersError as error:
                self._run(_KEEP, [(keys[missing[place]], score) for place, score in error.scores.items()])
                raise
            found = [(keys[place], score) for place, score in zip(missing, answers, strict=True)]
            self._run(_KEEP, found)
            scores |= found
        return [scores[key] for key in keys]

    def _keys(self, recording: Recording, query: str, candidates: Sequence[Candidate]) -> list[str]:
        # Page and command line allow other lengths; that decides whether a recording is heard, and not what of it.
        choice = sorted((name, value) for name, value in recording.choice.items() if name != "max_seconds")
        shared = (self.identity, _digest(*_file_state(recording)), clean_query(query), *([repr(choice)] if choice else []))
        keys = []
        for candidate in candidates:
            times = (*candidate.window, *crop_bounds(candidate.window, recording.duration_seconds))
            parts = (*shared, *(f"{seconds:.3f}" for seconds in times))
            keys.append(blake2b("\n".join(parts).encode(), digest_size=20).hexdigest())
        return keys

    def _run(self, statement: str, rows: Sequence[tuple[str | float, ...]]) -> list[tuple[str, float]]:
        """Run a statement for each row, in one transaction. Connecting anew each time is safe in any thread and after a fork."""
        file = self.folder / "answers.sqlite"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(file, timeout=_WAIT_SECONDS)) as database, database:
                database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID")
                return [found for row in rows for found in database.execute(statement, row)]
        except (sqlite3.Error, OSError) as error:
            remedy = "delete that file, or choose verifier.cache_dir"
            _log.warning("Answers cannot be read from or kept in %s (%s), so the verifier is asked anew; %s.", file, error, remedy)
            return []
