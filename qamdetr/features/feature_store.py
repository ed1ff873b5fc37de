"""One interface to the features of a data set: each stream from its own place, public files or the project's own cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from torch import Tensor

from qamdetr.config import DataConfig, ModelConfig
from qamdetr.data.manifest import QueryEntry
from qamdetr.errors import ConfigError, DataError
from qamdetr.features.cache import FeatureCache, count_names
from qamdetr.features.encoder_record import EncoderRecord, extract_remedy
from qamdetr.features.public import PublicFeatures
from qamdetr.types import TextFeatures

MAX_DIFFERENCE_CLIPS = 2
"""Sources round the end of a recording differently; streams that differ by more belong to different audio."""

_DOWNLOAD_REMEDY = "download them or correct the folder"


@dataclass(frozen=True)
class Gap:
    """What one place lacks: names of recordings and of queries (public files: their `qid`), and how to mend it."""

    place: str
    recordings: tuple[str, ...]
    queries: tuple[str, ...]
    remedy: str


class FeatureStore:
    """Features of the recordings and queries of one manifest, streams by name, in the model's order (main stream first).

    Streams named in `data.audio_features` and `data.text_features` come from folders of public files, all others from the cache of
    `data.combo`. With public files alone, neither a cache nor audio is needed. Public text has neither character offsets nor a pooled
    vector, so an auxiliary stream beside it is averaged over the whole query, and `model.similarity` cannot be used with it.
    """

    def __init__(self, model: ModelConfig, data: DataConfig, recordings: Mapping[str, Path] | None = None) -> None:
        """Find out where each stream lies; nothing is read yet.

        Args:
            model: Names and widths of the streams.
            data: Folders and combo.
            recordings: `vid` -> audio file, where the audio is at hand; see `FeatureCache`.

        Raises:
            ConfigError: A folder for a stream that the model does not have.
        """
        for kind, folders, streams in (
            ("audio", data.audio_features, model.audio_streams),
            ("text", data.text_features, model.text_streams),
        ):
            unknown = sorted(set(folders) - set(streams))
            if unknown:
                raise ConfigError(f"data.{kind}_features names {unknown[0]!r}; model.{kind}_streams has only {', '.join(streams)}.")
        self._audio_widths, self._text_widths = dict(model.audio_streams), dict(model.text_streams)
        self._public_audio = {
            name: PublicFeatures.of_audio(Path(folder), model.audio_streams[name]) for name, folder in data.audio_features.items()
        }
        self._public_text = {
            name: PublicFeatures.of_text(Path(folder), model.text_streams[name]) for name, folder in data.text_features.items()
        }
        self._cached_audio = tuple(name for name in model.audio_streams if name not in data.audio_features)
        self._cached_text = tuple(name for name in model.text_streams if name not in data.text_features)
        self._cache = FeatureCache(
            Path(data.feature_dir), data.combo, recordings, audio_streams=self._cached_audio, text_streams=self._cached_text
        )
        # What the configuration says of the encoders, for a message that names the command.
        self._planned = EncoderRecord("", data.encoder_models, data.encoder_dtype)
        self._num_clips: dict[str, int] = {}

    def num_clips(self, vid: str) -> int:
        """Clips of a recording, read from headers alone and remembered.

        Raises:
            DataError: Missing or damaged files, or streams that differ by more than `MAX_DIFFERENCE_CLIPS`.
        """
        if vid not in self._num_clips:
            lengths = {name: files.num_rows(vid) for name, files in self._public_audio.items()}
            if self._cached_audio:
                lengths[self._cached_audio[0]] = self._cache.num_clips(vid)
            self._num_clips[vid] = _shortest(vid, lengths)
        return self._num_clips[vid]

    def audio(self, vid: str) -> dict[str, Tensor]:
        """Return stream -> `(clips, dim_s)` float32, all streams cut to the shortest.

        Raises:
            DataError: As `num_clips`, and values that are not finite.
        """
        cached = self._cache.audio(vid) if self._cached_audio else {}
        streams = {name: self._public_audio[name].read(vid) if name in self._public_audio else cached[name] for name in self._audio_widths}
        shortest = _shortest(vid, {name: rows.shape[0] for name, rows in streams.items()})
        return {name: rows[:shortest] for name, rows in streams.items()}

    def text(self, entry: QueryEntry) -> dict[str, TextFeatures]:
        """Return stream -> features of a query; public files are found by its `qid`, the cache's by its wording.

        Raises:
            DataError: Missing or damaged files, or values that are not finite.
        """
        cached = self._cache.text(entry.query) if self._cached_text else {}
        return {
            name: TextFeatures(self._public_text[name].read(entry.qid), ()) if name in self._public_text else cached[name]
            for name in self._text_widths
        }

    def missing(self, entries: Sequence[QueryEntry]) -> list[Gap]:
        """List what `entries` need and is not there, place by place; empty when everything is."""
        vids, qids = [entry.vid for entry in entries], [entry.qid for entry in entries]
        recordings = self._cache.missing_audio(vids) if self._cached_audio else []
        queries = self._cache.missing_text(entry.query for entry in entries) if self._cached_text else []
        remedy = extract_remedy(self._cache.directory, self._planned)
        gaps = [Gap(str(self._cache.directory), tuple(recordings), tuple(queries), remedy)]
        for name, files in self._public_audio.items():
            gaps.append(Gap(_place("audio", name, files), tuple(files.missing(vids)), (), _DOWNLOAD_REMEDY))
        for name, files in self._public_text.items():
            gaps.append(Gap(_place("text", name, files), (), tuple(files.missing(qids)), _DOWNLOAD_REMEDY))
        return [gap for gap in gaps if gap.recordings or gap.queries]

    def check_widths(self, entry: QueryEntry) -> None:
        """Compare the width of each stream, on one recording and query, with what the model expects.

        Raises:
            DataError: A stream is missing, damaged or of another width.
        """
        audio = {name: rows.shape[1] for name, rows in self.audio(entry.vid).items()}
        text = {name: features.tokens.shape[1] for name, features in self.text(entry).items()}
        for kind, wanted, found in (("audio", self._audio_widths, audio), ("text", self._text_widths, text)):
            for name, width in wanted.items():
                if found[name] != width:
                    raise DataError(
                        f"{kind} stream {name!r} in {self._cache.directory} is {found[name]} wide, the model expects {width}; "
                        f"set model.{kind}_streams or choose the combo that fits."
                    )

    def check_values(self, entries: Sequence[QueryEntry]) -> None:
        """Read every recording and query of `entries` once, and compare the widths.

        Raises:
            DataError: As `audio`, `text` and `check_widths`.
        """
        self.check_widths(entries[0])
        for vid in dict.fromkeys(entry.vid for entry in entries):
            self.audio(vid)
        # Public text is stored by qid, the cache's by wording.
        for entry in entries if self._public_text else {entry.query: entry for entry in entries}.values():
            self.text(entry)

    def content(self, entries: Sequence[QueryEntry]) -> str:
        """Return 16 hex digits that change with the content of any file that `entries` need, wherever the files lie."""
        vids, qids = sorted({entry.vid for entry in entries}), sorted({entry.qid for entry in entries})
        keys: list[str] = []
        for streams, names in ((self._public_audio, vids), (self._public_text, qids)):
            keys += [f"{stream} {streams[stream].checksum(name):08x}" for stream in sorted(streams) for name in names]
        if self._cached_audio:
            keys += [self._cache.audio_checksum(vid) for vid in vids]
        if self._cached_text:
            keys += [self._cache.text_checksum(query) for query in sorted({entry.query for entry in entries})]
        return blake2b(" ".join(keys).encode(), digest_size=8).hexdigest()

    @property
    def made_by(self) -> EncoderRecord:
        """What the cache notes of its encoders; an empty record where all streams are public, or nobody noted it."""
        return self._cache.made_by if self._cached_audio or self._cached_text else EncoderRecord()

    def encoder_version(self, entries: Sequence[QueryEntry]) -> str:
        """Name what made the features: the cache's encoder version, `public-` and 16 hex digits, or both joined by `+`.

        Public files do not say which encoder made them. Their digits are a hash of streams and of the values of three recordings and
        three queries of `entries` (first, middle and last by name): the same wherever the files lie and however they are compressed,
        another one for features that were made otherwise, and for another data set.
        """
        parts = [self.made_by.fingerprint]
        if self._public_audio or self._public_text:
            digest = blake2b(digest_size=8)
            for files_of, names in (
                (self._public_audio, sorted({entry.vid for entry in entries})),
                (self._public_text, sorted({entry.qid for entry in entries})),
            ):
                for stream in sorted(files_of):
                    for name in (names[0], names[len(names) // 2], names[-1]):
                        rows = files_of[stream].read(name)
                        digest.update(f"{stream} {tuple(rows.shape)} ".encode() + rows.numpy().tobytes())
            parts.append(f"public-{digest.hexdigest()}")
        return "+".join(filter(None, parts))


def require_features(sets: Iterable[tuple[FeatureStore, Sequence[QueryEntry]]]) -> None:
    """Check before training that every feature of every set is there.

    Raises:
        DataError: Names, in one line, what each place lacks for all sets together: counts whole, the first names of each.
    """
    joined: dict[str, Gap] = {}
    for store, entries in sets:
        for gap in store.missing(entries):
            known = joined.get(gap.place, gap)
            recordings = tuple(dict.fromkeys(known.recordings + gap.recordings))
            queries = tuple(dict.fromkeys(known.queries + gap.queries))
            joined[gap.place] = Gap(gap.place, recordings, queries, gap.remedy)
    if joined:
        raise DataError("; ".join(map(_describe, joined.values())) + ".")


def _describe(gap: Gap) -> str:
    counts = [count_names(gap.recordings, "recording"), count_names(gap.queries, "query")]
    return f"{gap.place} lacks features of {' and '.join(filter(None, counts))}: {gap.remedy}"


def _place(kind: str, stream: str, files: PublicFeatures) -> str:
    where = f"{files.folder}" if files.folder.is_dir() else f"{files.folder}, which is no folder"
    return f"data.{kind}_features.{stream} ({where})"


def _shortest(vid: str, lengths: Mapping[str, int]) -> int:
    shortest, longest = min(lengths.values()), max(lengths.values())
    if longest - shortest > MAX_DIFFERENCE_CLIPS:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(
            f"The streams of recording {vid!r} differ by more than {MAX_DIFFERENCE_CLIPS} clips ({listed}); one of them belongs to "
            "another file: extract or download it again."
        )
    return shortest
