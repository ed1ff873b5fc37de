"""Fill the feature cache: run a combo's encoders once over recordings and queries; stopping and starting again loses nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from tqdm import tqdm

from qamdetr.audio import stated_seconds
from qamdetr.audio_blocks import MAX_SECONDS
from qamdetr.errors import AudioError, DataError, FeatureValuesError, QamDetrError
from qamdetr.features.cache import FeatureCache
from qamdetr.types import Recording, TextFeatures

_GUESSED_BYTES_PER_SECOND = 16_000.0  # 128 kbit/s, usual where the length does not stand at the beginning of the file
_LOG_SECONDS = 10.0
_Item = TypeVar("_Item")
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
class Share:
    """The part of the work that one of several processes does: every `count`-th item, from `index` on."""

    index: int = 0
    count: int = 1

    def of(self, items: Iterable[_Item]) -> list[_Item]:
        """Take this process's part of what every process lists in the same order."""
        return list(items)[self.index :: self.count]


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction did.

    Attributes:
        recordings, queries: How many were encoded now.
        cached_recordings, cached_queries: How many were in the cache already.
        skipped: `(name, reason)` of each recording and query that could not be encoded.
    """

    recordings: int = 0
    queries: int = 0
    cached_recordings: int = 0
    cached_queries: int = 0
    skipped: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: ExtractionReport) -> ExtractionReport:
        return ExtractionReport(**{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)})


def extract(
    recordings: Iterable[tuple[str, Path]],
    queries: Iterable[str],
    feature_dir: Path,
    combo: Encoder,
    *,
    models: Mapping[str, str] | None = None,
    dtype: str = "",
    verify: bool = False,
    share: Share | None = None,
    seconds: Mapping[str, float] | None = None,
    on_skip: Callable[[str], None] = _log.warning,
    show_progress: bool = True,
) -> ExtractionReport:
    """Encode every recording and query that the cache does not hold yet; what cannot be encoded is skipped.

    Args:
        recordings: `(vid, audio file)`; repeated ones are encoded once.
        queries: Query texts; repeated ones are encoded once.
        feature_dir: Folder of the caches; the combo's features go to `feature_dir/{combo.name}`.
        combo: The encoders.
        models: What `combo` was opened with, noted in the cache for training and serving; see `EncoderRecord`.
        dtype: Likewise.
        verify: Read all of what is there, and encode again what is damaged; else a file is known by its header.
        share: Which part is this process's; None for all. It is cut from the whole lists, so processes cannot meet in an item.
        seconds: Lengths of recordings, where they are known; others are read from the files' headers. They only serve the progress bar.
        on_skip: Is told at once what is skipped and why.
        show_progress: Draw progress bars with the time left, on stderr.

    Raises:
        DataError: The cache belongs to another version of the encoders, or cannot be written.
    """
    share = share or Share()
    paths = dict(share.of(sorted(dict(recordings).items())))
    cache = FeatureCache(feature_dir, combo.name, paths)
    cache.claim(combo.fingerprint, models=models, dtype=dtype)
    cache.remove_abandoned()
    bars = _Bars(share, show=show_progress)
    with torch.inference_mode():
        wanted = share.of(sorted(set(queries)))
        looked_at = bars.over(wanted, "verifying queries", "query", show=verify)
        new_queries = [query for query in looked_at if not cache.has_text(query, verify=verify)]
        report = replace(_extract_text(new_queries, cache, combo, on_skip, bars), cached_queries=len(wanted) - len(new_queries))
        looked_at = bars.over([*paths], "verifying recordings", "recording", show=verify)
        known = {vid for vid in looked_at if _is_cached(vid, paths[vid], cache, verify=verify)}
        new = {vid: path for vid, path in paths.items() if vid not in known}
        return report + replace(_extract_audio(new, cache, combo, on_skip, bars, seconds or {}), cached_recordings=len(known))


def _extract_text(
    queries: Sequence[str], cache: FeatureCache, combo: Encoder, on_skip: Callable[[str], None], bars: _Bars
) -> ExtractionReport:
    skipped: list[tuple[str, str]] = []
    for query in bars.over(queries, "queries", "query"):
        try:
            features = combo.encode_query(query)
        except QamDetrError as error:
            skipped.append((query, f"query {query!r}: {error}"))
            on_skip(skipped[-1][1])
            continue
        cache.write_text(query, features)
    return ExtractionReport(queries=len(queries) - len(skipped), skipped=tuple(skipped))


def _extract_audio(
    paths: Mapping[str, Path],
    cache: FeatureCache,
    combo: Encoder,
    on_skip: Callable[[str], None],
    bars: _Bars,
    seconds: Mapping[str, float],
) -> ExtractionReport:
    skipped: list[tuple[str, str]] = []
    with bars.of_audio(paths, seconds) as bar:
        for vid, path in paths.items():
            reason = _encode(vid, path, cache, combo)
            if reason:
                skipped.append((vid, reason))
                on_skip(reason)
            bar.finish(vid, skipped=bool(reason))
    return ExtractionReport(recordings=len(paths) - len(skipped), skipped=tuple(skipped))


def _encode(vid: str, path: Path, cache: FeatureCache, combo: Encoder) -> str:
    """Encode and store a recording; returns why that was not possible, or nothing."""
    try:
        identity = cache.identify(vid)
        cache.write_audio(vid, combo.encode_recording(path).streams, identity)
    except (AudioError, FeatureValuesError) as error:
        return str(error)
    return ""


def _is_cached(vid: str, path: Path, cache: FeatureCache, *, verify: bool) -> bool:
    """Whether a recording need not be encoded; one that cannot be read is told when its turn comes."""
    try:
        if not path.is_file() or not cache.has_audio(vid, verify=verify):
            return False
        cache.note_stamp(vid)
    except (AudioError, DataError):
        return False
    return True


class _Bars:
    """Progress bars of the first process; the others stay silent."""

    def __init__(self, share: Share, *, show: bool) -> None:
        self._hidden = not show or share.index > 0
        self._of = f" (process 1 of {share.count})" if share.count > 1 else ""
        # A log file gets a line now and then, not ten a second.
        self._interval = 0.1 if sys.stderr.isatty() else _LOG_SECONDS

    def over(self, names: Sequence[str], what: str, unit: str, *, show: bool = True) -> Iterable[str]:
        return tqdm(
            names,
            desc=f"{what}{self._of}",
            unit=unit,
            disable=self._hidden or not show or not names,
            mininterval=self._interval,
            file=sys.stderr,
        )

    def of_audio(self, paths: Mapping[str, Path], seconds: Mapping[str, float]) -> _AudioBar:
        hidden = self._hidden or not paths
        return _AudioBar({} if hidden else _lengths(paths, seconds), len(paths), self._of, self._interval, hidden=hidden)


class _AudioBar:
    """Counts recordings, but measures the time left by their lengths: an hour takes longer than ten seconds."""

    def __init__(self, lengths: Mapping[str, float], total: int, of: str, interval: float, *, hidden: bool) -> None:
        self._lengths, self._of = lengths, of
        self._total, self._done = total, 0
        self._seconds = sum(lengths.values())
        self._bar = tqdm(
            total=self._seconds,
            desc=self._describe(),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]",
            disable=hidden,
            mininterval=interval,
            smoothing=0.1,
            file=sys.stderr,
        )

    def __enter__(self) -> _AudioBar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def finish(self, vid: str, *, skipped: bool) -> None:
        """Count a recording; one that was skipped cost no time, and counting its length would tell too short a time left."""
        self._done += 1
        self._bar.set_description_str(self._describe(), refresh=False)
        length = self._lengths.get(vid, 0.0)
        if skipped:
            self._seconds -= length
            self._bar.total = self._seconds
            self._bar.refresh()
        else:
            self._bar.update(length)

    def _describe(self) -> str:
        return f"recordings{self._of} {self._done}/{self._total}"


def _lengths(paths: Mapping[str, Path], seconds: Mapping[str, float]) -> dict[str, float]:
    """Length of each recording in seconds; where neither the caller nor the file's header says it, a guess by the file's size."""
    known = {vid: seconds.get(vid) or stated_seconds(path) for vid, path in paths.items()}
    sizes = {vid: path.stat().st_size if path.is_file() else 0 for vid, path in paths.items()}
    measured = [vid for vid, length in known.items() if length]
    rate = sum(sizes[vid] for vid in measured) / max(sum(known[vid] or 0.0 for vid in measured), 1.0)
    rate = rate or _GUESSED_BYTES_PER_SECOND
    return {vid: min(length or sizes[vid] / rate, MAX_SECONDS) for vid, length in known.items()}
