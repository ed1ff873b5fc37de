"""Fill the feature store: run encoders once over recordings and queries; stopping and starting again loses nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from qamdetr.audio import Sound
from qamdetr.errors import AudioError, DataError, QamDetrError
from qamdetr.features.base import Streams
from qamdetr.features.store import StreamFiles, StreamVersion, audio_key

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """The part of the work that one of several processes does: every `count`-th item, from `index` on."""

    index: int = 0
    count: int = 1


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
    on_skip: Callable[[str], None] = _log.warning,
    show_progress: bool = True,
) -> ExtractionReport:
    """Encode what the store does not hold yet of every recording (`vid`, audio file) and query; what cannot be encoded is skipped.

    `share` is cut from the whole lists, so that processes cannot meet in an item. `on_skip` is told at once what is skipped and why.
    """
    share = share or Share()
    paths = dict(sorted(dict(recordings).items())[share.index :: share.count])
    encoders = {**streams.audio, **streams.text}
    versions = {
        name: StreamVersion(name, each.fingerprint, each.source, each.dtype, each.options.clip_seconds) for name, each in encoders.items()
    }
    audio = {name: StreamFiles.claimed(feature_dir, versions[name], "audio", paths) for name in streams.audio}
    text = {name: StreamFiles.claimed(feature_dir, versions[name], "text", paths) for name in streams.text}
    of = f" (process 1 of {share.count})" if share.count > 1 else ""
    # Of several processes the first draws for all; a log file gets a line now and then, not ten a second.
    bars: dict[str, Any] = {"file": sys.stderr, "mininterval": 0.1 if sys.stderr.isatty() else 10.0}
    hidden = not show_progress or share.index > 0
    skipped: list[tuple[str, str]] = []

    def encode_query(query: str, names: Sequence[str]) -> None:
        for name in names:
            text[name].write(query, streams.text[name].encode_text(query))

    def encode_recording(vid: str, names: Sequence[str]) -> None:
        key = audio_key(paths[vid])
        recording = streams.encode(Sound(paths[vid]), names)
        if audio_key(paths[vid]) != key:
            raise AudioError(f"{paths[vid]} changed while it was read", "extract again when it is complete")
        for note in recording.notes:
            _log.warning("%s: %s", paths[vid], note)
        for name, rows in recording.streams.items():
            audio[name].write(vid, rows)

    def fill(noun: str, files: Mapping[str, StreamFiles], names: Sequence[str], encode: Callable[[str, Sequence[str]], None]) -> list[int]:
        """Encode and store what lacks; returns how many are new, and were there. A store that cannot be written to stops all."""
        missing = {stream: set(each.missing(names)) for stream, each in files.items()}
        lacking = {name: [stream for stream in files if name in missing[stream]] for name in names}
        lacking = {name: wanted for name, wanted in lacking.items() if wanted}
        counts = [len(lacking), len(names) - len(lacking)]
        for name, wanted in tqdm(lacking.items(), desc=f"{noun}{of}", unit=noun, disable=hidden or not lacking, **bars):
            try:
                encode(name, wanted)
            except DataError:  # noqa: PERF203 - encoding takes far longer
                raise
            except QamDetrError as error:
                counts[0] -= 1
                skipped.append((name, f"query {name!r}: {error}" if files is text else str(error)))
                on_skip(skipped[-1][1])
        return counts

    new_queries, cached_queries = fill("queries", text, sorted(set(queries))[share.index :: share.count], encode_query)
    new, cached = fill("recordings", audio, [*paths], encode_recording)
    return ExtractionReport(new, new_queries, cached, cached_queries, tuple(skipped))
