"""The feature cache: what the frozen encoders gave for each recording and query, so that training never runs an encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from qamdetr.errors import AudioError, DataError
from qamdetr.features.audio_key import AudioIdentity
from qamdetr.features.cache_index import AudioIndex
from qamdetr.features.encoder_record import RECORD_FILE, EncoderRecord, extract_remedy, read_record, write_record
from qamdetr.features.feature_files import FeatureFile, cannot_write, write_features
from qamdetr.files import remove_abandoned
from qamdetr.types import TextFeatures

_NAMES_SHOWN = 10


class FeatureCache:
    """Features of one combo in a folder: `audio/{vid}.{key of the audio}.safetensors`, `text/{hash of the query}.safetensors`.

    The key is a hash of the whole audio file: changed audio is simply "not extracted yet", and two sets that share recording names share
    a cache without harm. A file's header also holds the audio's size, times and a sample of it, and audio that still has all of these is
    not hashed again (`audio_key.AudioStamp`). Where the audio itself is not at hand, the only file of that `vid` is taken.

    `encoder.json` names the version of the encoders, their models and their type (`encoder_record`); each file holds the version too, and
    a checksum of each tensor that is compared when it is read. Files of earlier versions of this program lack all of this; they are taken
    to be of the folder's encoders, and their audio is hashed each time.
    """

    def __init__(
        self,
        feature_dir: Path,
        combo: str,
        recordings: Mapping[str, Path] | None = None,
        *,
        audio_streams: Sequence[str] = (),
        text_streams: Sequence[str] = (),
    ) -> None:
        """Open (or begin) the cache of `combo` under `feature_dir`.

        Args:
            feature_dir: Parent of the caches of all combos.
            combo: Name of the combo, also the name of its folder.
            recordings: `vid` -> audio file, where the audio is at hand.
            audio_streams: Streams to read and their order (main first); empty = all, as the encoder gave them.
            text_streams: Likewise for queries.
        """
        self.directory = feature_dir / combo
        self.recordings = dict(recordings or {})
        self.audio_streams = tuple(audio_streams)
        self.text_streams = tuple(text_streams)
        self._record = EncoderRecord()
        self._index = AudioIndex(self.directory / "audio", self.recordings)

    def claim(self, fingerprint: str, *, models: Mapping[str, str] | None = None, dtype: str = "") -> None:
        """Bind the cache to one version of the encoders, so that features of two versions never mix.

        Args:
            fingerprint: The version.
            models: See `EncoderRecord`; the same version from another place is noted, so that the record tells where it lies now.
            dtype: Likewise.

        Raises:
            DataError: The cache holds features of another version, or cannot be written.
        """
        wanted = EncoderRecord(fingerprint, dict(models or {}), dtype)
        is_new = not self.fingerprint
        is_moved = self.fingerprint == fingerprint and bool(dtype) and self.made_by != wanted
        if is_new or is_moved:
            try:
                write_record(self.directory, wanted, replace=is_moved)
            except OSError as error:
                if is_new:
                    raise cannot_write(self.directory / RECORD_FILE, error) from error
            self._record = EncoderRecord()
        if self.fingerprint != fingerprint:
            theirs, ours = (f" ({record.settings})" if record.settings else "" for record in (self.made_by, wanted))
            raise DataError(
                f"{self.directory} holds features of encoder version {self.fingerprint}{theirs}, the encoder here is {fingerprint}{ours}; "
                "delete that folder or choose another feature folder."
            )

    def remove_abandoned(self) -> None:
        """Remove what killed runs left half-written."""
        for folder in (self.directory, self.directory / "audio", self.directory / "text"):
            remove_abandoned(folder)

    @property
    def made_by(self) -> EncoderRecord:
        """The encoders whose features lie here; an empty record when nobody claimed the cache.

        Raises:
            DataError: `encoder.json` is damaged.
        """
        if not self._record.fingerprint:
            self._record = read_record(self.directory)
        return self._record

    @property
    def fingerprint(self) -> str:
        """Version of the encoders whose features lie here; empty when nobody claimed the cache.

        Raises:
            DataError: `encoder.json` is damaged.
        """
        return self.made_by.fingerprint

    def has_audio(self, vid: str, *, verify: bool = False) -> bool:
        """Whether the features of a recording, as its audio is now, lie here.

        Args:
            vid: The recording.
            verify: Read them whole, and count damaged ones as missing; else their header alone is read.

        Raises:
            AudioError: The audio cannot be read.
        """
        path = self._index.find(vid)
        return path is not None and self._is_usable(path) and not (verify and _fails(self.audio, vid))

    def has_text(self, query: str, *, verify: bool = False) -> bool:
        """Whether the features of a query lie here; `verify` as in `has_audio`."""
        return self._is_usable(self._text_path(query)) and not (verify and _fails(self.text, query))

    def identify(self, vid: str) -> AudioIdentity | None:
        """Read a recording's audio, before it is encoded, to know afterwards what was encoded; None where it is not at hand.

        Raises:
            AudioError: The audio cannot be read.
        """
        return self._index.identify(vid)

    def write_audio(self, vid: str, streams: Mapping[str, Tensor], identity: AudioIdentity | None = None) -> None:
        """Store the streams of a recording, each `(clips, dim_s)`, main stream first.

        Args:
            vid: The recording.
            streams: Its features.
            identity: What `identify` gave before the audio was read; None reads it now.

        Raises:
            FeatureValuesError: Values that are not finite in float16.
            AudioError: The audio cannot be read, or changed since `identify`.
            DataError: The disk refuses.
        """
        if identity is None:
            identity = self.identify(vid)
        elif not self._index.is_still(vid, identity):
            raise AudioError(f"{self.recordings[vid]} changed while it was read; extract again when it is complete.")
        stamp = identity.stamp if identity else None
        path = self._index.place(vid, identity)
        write_features(path, streams, streams=list(streams), encoder=self.fingerprint, stamp=stamp, vid=vid)
        self._index.add(vid, path)

    def write_text(self, query: str, streams: Mapping[str, TextFeatures]) -> None:
        """Store the text streams of a query, main stream first.

        Raises:
            FeatureValuesError: Values that are not finite in float16.
            DataError: The disk refuses.
        """
        tensors: dict[str, Tensor] = {}
        for name, features in streams.items():
            tensors[f"{name}.tokens"] = features.tokens
            tensors[f"{name}.offsets"] = torch.tensor(features.offsets, dtype=torch.int32).reshape(-1, 2)
            if features.pooled is not None:
                tensors[f"{name}.pooled"] = features.pooled
        write_features(self._text_path(query), tensors, streams=list(streams), encoder=self.fingerprint, query=query)

    def note_stamp(self, vid: str) -> None:
        """See `AudioIndex.note_stamp`.

        Raises:
            DataError: The features are damaged.
        """
        self._index.note_stamp(vid)

    def audio_checksum(self, vid: str) -> str:
        """16 hex digits of the stored features of a recording.

        Raises:
            DataError: They are not here.
        """
        with self._open_audio(vid) as file:
            return file.checksum

    def text_checksum(self, query: str) -> str:
        """16 hex digits of the stored features of a query.

        Raises:
            DataError: They are not here.
        """
        with self._open_text(query) as file:
            return file.checksum

    def num_clips(self, vid: str) -> int:
        """Clips of a recording, read from the file's header alone."""
        with self._open_audio(vid) as file:
            return file.rows((self.audio_streams or file.streams)[0])

    def audio(self, vid: str) -> dict[str, Tensor]:
        """Return stream -> `(clips, dim_s)` float32 of a recording, main stream first.

        Raises:
            DataError: Missing or damaged file, other encoders, a missing stream, NaN or infinite values, streams of different lengths.
        """
        with self._open_audio(vid) as file:
            streams = {name: file.read(name) for name in self.audio_streams or file.streams}
        lengths = {name: value.shape[0] for name, value in streams.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{file.path}: streams differ in clips ({lengths}); {extract_remedy(self.directory, verify=True)}.")
        return streams

    def text(self, query: str) -> dict[str, TextFeatures]:
        """Return stream -> features of a query, main stream first.

        Raises:
            DataError: As `audio`.
        """
        result: dict[str, TextFeatures] = {}
        with self._open_text(query) as file:
            for name in self.text_streams or file.streams:
                offsets = file.read(f"{name}.offsets").tolist()
                pooled = file.read(f"{name}.pooled") if f"{name}.pooled" in file else None
                result[name] = TextFeatures(file.read(f"{name}.tokens"), tuple((begin, end) for begin, end in offsets), pooled)
        return result

    def missing_audio(self, vids: Iterable[str]) -> list[str]:
        """Those of `vids` whose features are not here, each once."""
        return [vid for vid in dict.fromkeys(vids) if not self.has_audio(vid)]

    def missing_text(self, queries: Iterable[str]) -> list[str]:
        """Those of `queries` whose features are not here, each once."""
        return [query for query in dict.fromkeys(queries) if not self.has_text(query)]

    def _is_usable(self, path: Path) -> bool:
        if not path.is_file():
            return False
        try:
            with FeatureFile(path) as file:
                return self._is_ours(file)
        except DataError:
            return False

    def _is_ours(self, file: FeatureFile) -> bool:
        return not file.encoder or not self.fingerprint or file.encoder == self.fingerprint

    def _open_audio(self, vid: str) -> FeatureFile:
        path = self._index.find(vid)
        if path is None or not path.is_file():
            raise DataError(f"No features of the recording {vid!r} in {self.directory}; {extract_remedy(self.directory)}.")
        return self._open(path)

    def _open_text(self, query: str) -> FeatureFile:
        path = self._text_path(query)
        if not path.is_file():
            raise DataError(f"No features of the query {query!r} in {self.directory}; {extract_remedy(self.directory)}.")
        return self._open(path)

    def _open(self, path: Path) -> FeatureFile:
        file = FeatureFile(path)
        if not self._is_ours(file):
            raise DataError(
                f"{path} holds features of encoder version {file.encoder}, the others in {self.directory} are of {self.fingerprint}; "
                f"{extract_remedy(self.directory)}."
            )
        return file

    def _text_path(self, query: str) -> Path:
        return self.directory / "text" / f"{blake2b(query.encode(), digest_size=16).hexdigest()}.safetensors"


def _fails(read: Callable[[str], object], name: str) -> bool:
    try:
        read(name)
    except DataError:
        return True
    return False


def count_names(names: Sequence[str], noun: str) -> str:
    """Say how many there are and name the first, for a message: `2 queries ('a dog', 'rain')`; empty for none."""
    if not names:
        return ""
    plural = noun if len(names) == 1 else {"query": "queries"}.get(noun, noun + "s")
    shown = ", ".join(map(repr, names[:_NAMES_SHOWN]))
    return f"{len(names)} {plural} ({shown}{', …' if len(names) > _NAMES_SHOWN else ''})"
