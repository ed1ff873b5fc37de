"""Fill the feature cache: run a combo's encoders once over recordings and queries; stopping and starting again loses nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from qamdetr.errors import AudioError
from qamdetr.features.cache import FeatureCache
from qamdetr.types import Recording, TextFeatures

_log = logging.getLogger(__name__)


class Encoder(Protocol):
    """What extraction needs of a combo of encoders (`features.encoders.load_combo` gives one)."""

    @property
    def name(self) -> str:
        """Name of the combo."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the encoders' weights or code would give other features."""
        ...

    def encode_recording(self, path: str | Path) -> Recording:
        """Encode an audio file."""
        ...

    def encode_query(self, query: str) -> Mapping[str, TextFeatures]:
        """Encode a query."""
        ...


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction did.

    Attributes:
        recordings, queries: How many were encoded now; those already in the cache are not counted.
        unreadable: `(vid, reason)` of each recording that was skipped.
    """

    recordings: int
    queries: int
    unreadable: tuple[tuple[str, str], ...]


def extract(
    recordings: Iterable[tuple[str, Path]], queries: Iterable[str], feature_dir: Path, combo: Encoder, *, show_progress: bool = True
) -> ExtractionReport:
    """Encode every recording and query that the cache does not hold yet.

    Args:
        recordings: `(vid, audio file)`; repeated ones are encoded once.
        queries: Query texts; repeated ones are encoded once.
        feature_dir: Folder of the caches; the combo's features go to `feature_dir/{combo.name}`.
        combo: The encoders.
        show_progress: Draw progress bars with the time left, on stderr.

    Raises:
        DataError: The cache belongs to another version of the encoders, or cannot be written.
    """
    paths = dict(recordings)
    cache = FeatureCache(feature_dir, combo.name, paths)
    cache.claim(combo.fingerprint)
    new_queries = [query for query in dict.fromkeys(queries) if not cache.has_text(query)]
    with torch.inference_mode():
        for query in tqdm(new_queries, desc="queries", unit="query", disable=not show_progress):
            cache.write_text(query, combo.encode_query(query))
        encoded, unreadable = _extract_audio(paths, cache, combo, show_progress=show_progress)
    return ExtractionReport(encoded, len(new_queries), unreadable)


def _extract_audio(
    paths: Mapping[str, Path], cache: FeatureCache, combo: Encoder, *, show_progress: bool
) -> tuple[int, tuple[tuple[str, str], ...]]:
    absent = [(vid, f"{path} does not exist") for vid, path in paths.items() if not path.is_file()]
    todo: Sequence[str] = [vid for vid, path in paths.items() if path.is_file() and not cache.has_audio(vid)]
    failed: list[tuple[str, str]] = []
    for vid in tqdm(todo, desc="recordings", unit="recording", disable=not show_progress):
        try:
            streams = combo.encode_recording(paths[vid]).streams
        except AudioError as error:
            failed.append((vid, str(error)))
            continue
        cache.write_audio(vid, streams)
    for vid, reason in (*absent, *failed):
        _log.warning("Skipped %s: %s", vid, reason)
    return len(todo) - len(failed), (*absent, *failed)
