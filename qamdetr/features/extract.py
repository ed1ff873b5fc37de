"""Fill the feature store: run encoders once over recordings and queries; stopping and starting again loses nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from qamdetr.audio import MAX_SECONDS, Sound, stated_seconds
from qamdetr.errors import AudioError, FeatureValuesError, QamDetrError
from qamdetr.features.base import Stream, Streams
from qamdetr.features.store import AudioKeys, StreamFiles, StreamVersion

_GUESSED_BYTES_PER_SECOND = 16_000.0  # 128 kbit/s, usual where the length does not stand at the beginning of the file
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
    """Encode what the store does not hold yet of every recording and query; what cannot be encoded is skipped.

    Args:
        recordings: `(vid, audio file)`; repeated ones are encoded once.
        queries: Query texts; likewise.
        feature_dir: Folder of the features.
        streams: The encoders.
        share: Which part is this process's; None for all. It is cut from the whole lists, so processes cannot meet in an item.
        seconds: Lengths of recordings, where they are known; others are read from the files' headers, for the progress bar alone.
        on_skip: Is told at once what is skipped and why.
        show_progress: Draw progress bars with the time left, on stderr.
    """
    share = share or Share()
    paths = dict(share.of(sorted(dict(recordings).items())))
    keys = AudioKeys(feature_dir, paths)
    audio = {name: StreamFiles.claimed(feature_dir, _version(encoder), "audio", keys) for name, encoder in streams.audio.items()}
    text = {name: StreamFiles.claimed(feature_dir, _version(encoder), "text", keys) for name, encoder in streams.text.items()}
    of = f" (process 1 of {share.count})" if share.count > 1 else ""
    # Of several processes the first draws for all; a log file gets a line now and then, not ten a second.
    bars: dict[str, Any] = {"file": sys.stderr, "mininterval": 0.1 if sys.stderr.isatty() else _LOG_SECONDS}
    hidden = not show_progress or share.index > 0

    skipped: list[tuple[str, str]] = []

    def skip(name: str, reason: str) -> None:
        skipped.append((name, reason))
        on_skip(reason)

    wanted = share.of(sorted(set(queries)))
    lacking = _lacking(text, wanted)
    for query in tqdm(lacking, desc=f"queries{of}", unit="query", disable=hidden or not lacking, **bars):
        reason = _encode_query(query, {name: text[name] for name in lacking[query]}, streams)
        if reason:
            skip(query, f"query {query!r}: {reason}")
    report = ExtractionReport(queries=len(lacking) - len(skipped), cached_queries=len(wanted) - len(lacking), skipped=tuple(skipped))

    skipped.clear()
    lacking = _lacking(audio, paths)
    lengths = {} if hidden else _lengths({vid: paths[vid] for vid in lacking}, seconds or {})
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
    with tqdm(total=sum(lengths.values()), bar_format=bar_format, smoothing=0.1, disable=hidden or not lacking, **bars) as bar:
        for number, (vid, names) in enumerate(lacking.items()):
            bar.set_description_str(f"recordings{of} {number}/{len(lacking)}", refresh=number == 0)
            reason = _encode(vid, names, keys, audio, streams)
            bar.set_description_str(f"recordings{of} {number + 1}/{len(lacking)}", refresh=False)
            if reason:
                skip(vid, reason)
                bar.total = (bar.total or 0.0) - lengths.get(vid, 0.0)  # it cost no time: counting it would tell too short a time left
            else:
                bar.update(lengths.get(vid, 0.0))
    return report + ExtractionReport(len(lacking) - len(skipped), 0, len(paths) - len(lacking), 0, tuple(skipped))


def _lacking(files: Mapping[str, StreamFiles], names: Iterable[str]) -> dict[str, list[str]]:
    """Return recording or query -> the streams that are not there; audio that cannot be read is told when its turn comes."""
    missing = {stream: set(each.missing(names)) for stream, each in files.items()}
    lacking = {name: [stream for stream in files if name in missing[stream]] for name in names}
    return {name: streams for name, streams in lacking.items() if streams}


def _version(encoder: Stream) -> StreamVersion:
    return StreamVersion(encoder.name, encoder.fingerprint, encoder.source, encoder.dtype)


def _encode_query(query: str, text: Mapping[str, StreamFiles], streams: Streams) -> str:
    """Encode and store a query; returns why that was not possible, or nothing."""
    try:
        encoded = {name: streams.text[name].encode_text(query) for name in text}
    except QamDetrError as error:
        return str(error)
    try:
        for name, features in encoded.items():
            text[name].write_text(query, features)
    except FeatureValuesError as error:
        return str(error)
    return ""


def _encode(vid: str, names: Sequence[str], keys: AudioKeys, audio: Mapping[str, StreamFiles], streams: Streams) -> str:
    """Encode and store a recording; returns why that was not possible, or nothing."""
    path = keys.recordings[vid]
    try:
        stamp = keys.stamp(vid)
        recording = streams.encode(Sound(path), names)
        if keys.stamp(vid) != stamp:
            raise AudioError(f"{path} changed while it was read", "extract again when it is complete")
        for note in recording.notes:
            _log.warning("%s: %s", path, note)
        for name, rows in recording.streams.items():
            audio[name].write_audio(vid, rows)
    except (AudioError, FeatureValuesError) as error:
        return str(error)
    return ""


def _lengths(paths: Mapping[str, Path], seconds: Mapping[str, float]) -> dict[str, float]:
    """Length of each recording in seconds; where neither the caller nor the file's header says it, a guess by the file's size."""
    known = {vid: seconds.get(vid) or stated_seconds(path) for vid, path in paths.items()}
    sizes = {vid: path.stat().st_size if path.is_file() else 0 for vid, path in paths.items()}
    measured = [vid for vid, length in known.items() if length]
    rate = sum(sizes[vid] for vid in measured) / max(sum(known[vid] or 0.0 for vid in measured), 1.0)
    rate = rate or _GUESSED_BYTES_PER_SECOND
    return {vid: min(length or sizes[vid] / rate, MAX_SECONDS) for vid, length in known.items()}
