"""Remembers a verifier's answers on disk, so that no crop is listened to twice for the same question."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from qamdetr.types import Candidate, Recording, TextFeatures
from qamdetr.verifiers.base import PartialAnswersError, WrappedVerifier
from qamdetr.verifiers.crops import crop_bounds, recording_digest
from qamdetr.verifiers.prompt import clean_query

_log = logging.getLogger(__name__)

_FILE = "answers.sqlite"
_WAIT_SECONDS = 10.0
"""How long one process waits for another that writes."""


def default_cache_dir() -> Path:
    """`$QAMDETR_CACHE/verifier`, else `qamdetr/verifier` in the user's cache folder."""
    own = os.environ.get("QAMDETR_CACHE")
    if own:
        return Path(own).expanduser() / "verifier"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qamdetr" / "verifier"


@dataclass(frozen=True)
class CachedVerifier(WrappedVerifier):
    """Answers from `folder` what `inner` has answered before, and asks `inner` for the rest.

    An answer is known by the recording's content, the crop and the window to a millisecond, the query as it stands in the prompt, and the
    identity of `inner`. Only a hash of these and the score are stored. Processes and threads may share the folder. A cache that cannot be
    read or written is noted in the log and done without.
    """

    folder: Path

    def verify(self, recording: Recording, query: str, text: Mapping[str, TextFeatures], candidates: Sequence[Candidate]) -> list[float]:
        """Score candidates; see `Verifier`. Where `inner` fails half-way, what it did answer is kept for the next time.

        Raises:
            QamDetrError: As `inner`.
        """
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
        shared = (self.identity, recording_digest(recording), clean_query(query))
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
            _log.warning("The answers in %s cannot be read (%s); the verifier is asked again.", self.folder / _FILE, error)
            return {}
        return {key: score for key, score in rows if isinstance(score, float) and 0 <= score <= 1}

    def _write(self, scores: Mapping[str, float]) -> None:
        try:
            with self._opened() as database:
                database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", list(scores.items()))
        except (sqlite3.Error, OSError) as error:
            _log.warning("Answers cannot be kept in %s (%s); delete that file, or choose verifier.cache_dir.", self.folder / _FILE, error)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Connect anew for each use, which is safe in any thread and after a fork; the block is one transaction."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.folder / _FILE, timeout=_WAIT_SECONDS)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID")
            yield database
