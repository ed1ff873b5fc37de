"""Fill the feature store: run encoders once over recordings and queries; stopping and starting again loses nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from qamdetr.audio import Sound, stated_seconds
from qamdetr.errors import AudioError, DataError, FeatureValuesError, QamDetrError
from qamdetr.features.base import Streams
from qamdetr.features.store import AudioKeys, StreamFiles, StreamVersion

_LOG_SECONDS = 10.0
_Item = TypeVar("_Item")
_log = logging.getLogger(__name__)


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
    """How many were encoded now, how many were there already, and `(name, reason)` of each that could not be encoded."""

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
    streams: Streams,
    *,
    share: Share | None = None,
    seconds: Mapping[str, float] | None = None,
    on_skip: Callable[[str], None] = _log.warning,
    show_progress: bool = True,
) -> ExtractionReport:
    """Encode what the store does not hold yet of every recording (`vid`, audio file) and query; what cannot be encoded is skipped.

    `share` is cut from the whole lists, so that processes cannot meet in an item. `seconds` are lengths of recordings where they are known,
    for the progress bar's time left alone. `on_skip` is told at once what is skipped and why.
    """
    share = share or Share()
    paths = dict(share.of(sorted(dict(recordings).items())))
    keys = AudioKeys(feature_dir, paths)
    encoders = {**streams.audio, **streams.text}
    versions = {name: StreamVersion(name, each.fingerprint, each.source, each.dtype) for name, each in encoders.items()}
    audio = {name: StreamFiles.claimed(feature_dir, versions[name], "audio", keys) for name in streams.audio}
    text = {name: StreamFiles.claimed(feature_dir, versions[name], "text", keys) for name in streams.text}
    of = f" (process 1 of {share.count})" if share.count > 1 else ""
    # Of several processes the first draws for all; a log file gets a line now and then, not ten a second.
    bars: dict[str, Any] = {"file": sys.stderr, "mininterval": 0.1 if sys.stderr.isatty() else _LOG_SECONDS}
    hidden = not show_progress or share.index > 0
    skipped: list[tuple[str, str]] = []

    def encode_query(query: str, names: Sequence[str]) -> None:
        for name, features in {name: streams.text[name].encode_text(query) for name in names}.items():
            text[name].write(query, features)

    def encode_recording(vid: str, names: Sequence[str]) -> None:
        stamp = keys.stamp(vid)
        recording = streams.encode(Sound(paths[vid]), names)
        if keys.stamp(vid) != stamp:
            raise AudioError(f"{paths[vid]} changed while it was read", "extract again when it is complete")
        for note in recording.notes:
            _log.warning("%s: %s", paths[vid], note)
        for name, rows in recording.streams.items():
            audio[name].write(vid, rows)

    def done(encode: Callable[[str, Sequence[str]], None], name: str, names: Sequence[str], told: str = "") -> bool:
        """Encode and store an item; False where it had to be skipped. A store that cannot be written to stops all."""
        try:
            encode(name, names)
        except QamDetrError as error:
            if isinstance(error, DataError) and not isinstance(error, FeatureValuesError):
                raise
            skipped.append((name, f"{told}{error}"))
            on_skip(skipped[-1][1])
            return False
        return True

    wanted = share.of(sorted(set(queries)))
    lacking = _lacking(text, wanted)
    bar = tqdm(lacking.items(), desc=f"queries{of}", unit="query", disable=hidden or not lacking, **bars)
    new_queries = sum(done(encode_query, query, names, f"query {query!r}: ") for query, names in bar)
    report = ExtractionReport(queries=new_queries, cached_queries=len(wanted) - len(lacking))

    lacking = _lacking(audio, paths)
    known = seconds or {}
    lengths = {} if hidden else {vid: known.get(vid) or stated_seconds(paths[vid]) or 0.0 for vid in lacking}
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
    new = 0
    with tqdm(total=sum(lengths.values()), bar_format=bar_format, smoothing=0.1, disable=hidden or not lacking, **bars) as bar:
        for number, (vid, names) in enumerate(lacking.items()):
            bar.set_description_str(f"recordings{of} {number}/{len(lacking)}", refresh=number == 0)
            new += done(encode_recording, vid, names)
            bar.set_description_str(f"recordings{of} {number + 1}/{len(lacking)}", refresh=False)
            bar.update(lengths.get(vid, 0.0))
    return report + ExtractionReport(new, 0, len(paths) - len(lacking), 0, tuple(skipped))


def _lacking(files: Mapping[str, StreamFiles], names: Iterable[str]) -> dict[str, list[str]]:
    """Return recording or query -> the streams that are not there; audio that cannot be read is told when its turn comes."""
    missing = {stream: set(each.missing(names)) for stream, each in files.items()}
    lacking = {name: [stream for stream in files if name in missing[stream]] for name in names}
    return {name: streams for name, streams in lacking.items() if streams}
