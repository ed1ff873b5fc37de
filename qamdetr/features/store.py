"""Features on disk, so that training never runs an encoder: what the project's encoders gave, and the files that the field publishes.

Both are folders of one stream, with one `.npz` for each recording (its array `(rows, dim)` is called `features`) or query
(`last_hidden_state`). Own ones are `{feature_dir}/{stream}-{version}/{vid}.{key of the audio's content}.npz` and, with offsets and pooled
vector, `.../text/{hash of the query}.npz`, so that versions cannot mix and combos share streams; public ones `{vid}.npz`, `qid{qid}.npz`.
Source: Zenodo records 18358706 (CASTELLA), 17129257 (Clotho-Moment) and 20450254 (DCASE 2026 evaluation).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shlex
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from qamdetr.config import DataConfig, ModelConfig
from qamdetr.errors import AudioError, ConfigError, DataError, QamDetrError
from qamdetr.features.bank import bank_sentences
from qamdetr.features.base import COMBOS, OPEN, join_fingerprints, joint_of, own_hop
from qamdetr.features.hub import one_line
from qamdetr.files import write_whole
from qamdetr.types import TextFeatures

Kind = Literal["audio", "text"]

MAX_DIFFERENCE_CLIPS = 2  # sources round the end of a recording differently; streams that differ by more belong to different audio
KEPT_BYTES = 1 << 28  # of features that a store keeps in memory; an epoch reads a recording once for each of its queries
_RECORD_FILE = "encoder.json"
_NO_AUDIO = "0" * 16
_NAMES_SHOWN = 10
_STEM_LETTERS = 120
_SAMPLE_BYTES = 1 << 16
_NOUNS = {"audio": ("recording", "recordings"), "text": ("query", "queries")}


def content_key(path: Path) -> str:
    """Return 16 hex digits that change with any byte of a file (BLAKE2b; about a second per GB)."""
    digest = blake2b(digest_size=8)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def quick_key(path: Path) -> str:
    """Return 16 hex digits of a file's size and of 64 KiB at its begin, middle and end: as fast for a long file, but not every edit."""
    size = path.stat().st_size
    digest = blake2b(str(size).encode(), digest_size=8)
    with path.open("rb") as file:
        for begin in (0, size // 2, max(size - _SAMPLE_BYTES, 0)):
            file.seek(begin)
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def audio_key(path: Path) -> str:
    """Return the content key of a recording, hashed again only where its size or times moved; raises `AudioError` if it cannot be read."""
    try:
        status = path.stat()
        # What sets the time of an edit back (`cp -p`, `touch -r`) moves the one that the file system alone sets.
        return _hashed(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    except OSError as error:
        raise AudioError(f"Cannot read {path}: {error.strerror or error}", "check the path") from error


@functools.cache
def _hashed(path: Path, *_looks: int) -> str:
    return content_key(path)


@dataclass(frozen=True)
class StreamVersion:
    """The encoder that made a stream's features, as `encoder.json` beside them names it; see `base.Stream`."""

    stream: str
    fingerprint: str
    source: str = ""
    dtype: str = ""
    clip_seconds: float = 1.0

    @property
    def folder(self) -> str:
        """Name of the folder for its features."""
        return f"{self.stream}-{quote(self.fingerprint[:16], safe='')}"


def versions_of(feature_dir: Path, stream: str) -> list[StreamVersion]:
    """List the versions of a stream whose features lie in a folder."""
    paths = sorted(feature_dir.glob(f"{stream}-*/{_RECORD_FILE}"))
    found = [StreamVersion(**json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return [version for version in found if version.stream == stream]


class StreamFiles:
    """The files of one stream and modality in one folder.

    Own ones (`is_own`) are found by `vid` and the recording's audio, where that is at hand, and by a query's wording; published ones by
    `vid` and `qid`.
    """

    def __init__(
        self, folder: Path, kind: Kind, dim: int = 0, *, recordings: Mapping[str, Path] | None = None, remedy: str = "extract again"
    ) -> None:
        """Name a folder, of own files with the `recordings` that are at hand; arrays must have `dim` columns (0 = any)."""
        self.folder, self.kind, self.dim, self.is_own, self._recordings = folder, kind, dim, recordings is not None, recordings
        self.remedy = remedy if self.is_own else "download it, or correct the folder in the configuration"
        self._key = "features" if kind == "audio" else "last_hidden_state"

    @classmethod
    def claimed(cls, feature_dir: Path, version: StreamVersion, kind: Kind, recordings: Mapping[str, Path]) -> StreamFiles:
        """Make the folder of an encoder's features, and note there what it is."""
        folder = feature_dir / version.folder
        if version not in versions_of(feature_dir, version.stream):  # the same version from another place is noted anew
            _write(folder / _RECORD_FILE, json.dumps(asdict(version)).encode())
        return cls(folder, kind, recordings=recordings)

    def path_of(self, name: str) -> Path | None:
        """Return the file of a recording or query, there or not; None where its audio cannot be read, or nothing has its name."""
        if self._recordings is None:
            return self.folder / f"{'qid' if self.kind == 'text' else ''}{name}.npz"
        if self.kind == "text":
            return self.folder / "text" / f"{blake2b(name.encode(), digest_size=16).hexdigest()}.npz"
        if name in self._recordings:
            with contextlib.suppress(AudioError):
                return self.folder / f"{_spell(name)}.{audio_key(self._recordings[name])}.npz"
            return None
        versions = self._by_name.get(_spell(name), [])
        if len(versions) > 1:
            raise DataError(f"{self.folder} holds {len(versions)} versions of {name!r}", "name the audio folder to tell which is meant")
        return versions[0] if versions else None

    @functools.cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        listed: dict[str, list[Path]] = {}
        for path in self.folder.glob("*.npz"):
            listed.setdefault(path.name[: -len(f".{_NO_AUDIO}.npz")], []).append(path)
        return listed

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that have no whole file, each once; contents are not read."""
        paths = {name: self.path_of(name) for name in names}
        return [name for name, path in paths.items() if path is None or not zipfile.is_zipfile(path)]

    def num_rows(self, name: str) -> int:
        """Clips or tokens of a file, read from the array's header alone."""
        with self._archive(name) as (path, archive), archive.zip.open(f"{self._key}.npy") as member:
            version = npy.read_magic(member)
            shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(member)
            self._check(path, shape, dtype)
        return int(shape[0])

    def checksum(self, name: str) -> str:
        """CRC-32 of the arrays, read from the archive's directory alone."""
        with self._archive(name) as (_, archive):
            return " ".join(f"{member.filename} {member.CRC:08x}" for member in archive.zip.infolist())

    def audio(self, vid: str) -> Tensor:
        """Return the features of a recording, `(clips, dim)` float32."""
        return self._read(vid)[self._key]

    def text(self, name: str) -> TextFeatures:
        """Return the features of a query; public files have neither offsets nor a pooled vector."""
        arrays = self._read(name)
        offsets = arrays["offsets"].int().tolist() if "offsets" in arrays else []
        return TextFeatures(arrays[self._key], tuple((begin, end) for begin, end in offsets), arrays.get("pooled"))

    def write(self, name: str, features: Tensor | TextFeatures) -> None:
        """Store features of a recording or query, in half precision: its rounding (2^-11) is far below the noise of the encoders.

        A `DataError` is about the store; any other `QamDetrError` is about these features alone.
        """
        arrays: dict[str, Tensor | None] = {}
        if isinstance(features, TextFeatures):
            arrays = {"offsets": torch.tensor(features.offsets, dtype=torch.int32).reshape(-1, 2), "pooled": features.pooled}
            features = features.tokens
        arrays[self._key] = features
        path = self.path_of(name) or self.folder / f"{_spell(name)}.{_NO_AUDIO}.npz"
        held = {key: value.detach().cpu() for key, value in arrays.items() if value is not None}
        stored: dict[str, Any] = {key: (value.half() if value.is_floating_point() else value).numpy() for key, value in held.items()}
        if not all(np.isfinite(value).all() for value in stored.values()):
            where = f"{path.parent.name}/{path.name}"
            raise QamDetrError(f"Features for {where} hold values that are not finite in float16", "look at the encoder's output")
        packed = io.BytesIO()
        np.savez(packed, **stored)
        _write(path, packed.getvalue())

    def _read(self, name: str) -> dict[str, Tensor]:
        rows = {}
        with self._archive(name) as (path, archive):
            for key in {self._key, "offsets", "pooled"} & {*archive.files}:
                array = archive[key]
                if key == self._key:
                    self._check(path, array.shape, array.dtype)
                with np.errstate(over="ignore"):  # a double too large becomes infinite, which the last line refuses
                    rows[key] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64 if key == "offsets" else np.float32))
            if not all(bool(torch.isfinite(value).all()) for value in rows.values()):
                raise DataError(f"{path}: `{self._key}` holds NaN or infinite values", self.remedy)
        return rows

    @contextlib.contextmanager
    def _archive(self, name: str) -> Iterator[tuple[Path, Any]]:
        """Open a file that holds the array; whatever goes wrong while it is open becomes one line."""
        path = self.path_of(name)
        if path is None or not path.exists():
            raise DataError(f"No features of the {_NOUNS[self.kind][0]} {name!r} in {self.folder}", self.remedy)
        try:
            with np.load(path) as archive:
                if self._key not in archive.files:
                    what = f"{path} has no array `{self._key}`, only {', '.join(archive.files) or 'nothing'}"
                    raise DataError(what, "name the folder that holds this stream's own files")
                yield path, archive
        except DataError:
            raise
        except Exception as error:  # zipfile, zlib, tokenize and NumPy raise classes of their own on damaged files
            raise DataError(f"{path} cannot be read ({one_line(error)})", f"delete it and {self.remedy}") from error

    def _check(self, path: Path, shape: Sequence[int], dtype: np.dtype) -> None:
        if len(shape) != 2 or shape[0] == 0 or dtype.kind != "f" or (self.dim and shape[1] != self.dim):
            wanted = f"floating point numbers of shape [rows, {self.dim or 'dim'}], at least one row"
            remedy = f"{self.remedy}, or correct the stream's width in the model section"
            raise DataError(f"{path}: `{self._key}` is {dtype} of shape {list(shape)}; it must be {wanted}", remedy)


class FeatureStore:
    """Features of recordings and queries, streams by name, in the model's order (main stream first).

    Streams named in `data.audio_features` and `data.text_features` come from folders of public files, all others from `data.feature_dir`.
    Recordings are given by `vid`, queries as `qid` -> wording. Reading raises `DataError` for missing or damaged files, other widths than
    the model's, values that are not finite, streams of different lengths.
    """

    def __init__(self, model: ModelConfig, data: DataConfig, recordings: Mapping[str, Path] | None = None) -> None:
        """Find out where each stream lies; no features are read yet. `recordings` (`vid` -> audio file) tell those of one name apart."""
        self.data, self.clip_seconds = data, model.clip_seconds
        self._joint_name = joint_of(data.combo) if OPEN in model.audio_streams else ""
        self._num_clips: dict[str, int] = {}
        self._kept: dict[tuple[str, ...], Any] = {}
        self._room_bytes = KEPT_BYTES
        sides = (("audio", model.audio_streams, data.audio_features), ("text", model.text_streams, data.text_features))
        for kind, widths, public in sides:
            if unknown := sorted(set(public) - set(widths)):
                raise ConfigError(f"data.{kind}_features names {unknown[0]!r}; model.{kind}_streams has only {', '.join(widths)}.")
        self._own = {name: self._choose(self._real(name)) for _, widths, public in sides for name in widths if name not in public}

        def files(kind: Kind, name: str, dim: int, public: Mapping[str, str]) -> StreamFiles:
            if name in public:
                return StreamFiles(Path(public[name]), kind, dim)
            return StreamFiles(Path(data.feature_dir) / self._own[name].folder, kind, dim, recordings=recordings or {}, remedy=self.remedy)

        self._audio = {name: files("audio", name, dim, data.audio_features) for name, dim in model.audio_streams.items()}
        self._text = {name: files("text", name, dim, data.text_features) for name, dim in model.text_streams.items()}
        # What stands as `OPEN` gives the vectors of whole queries, and of the bank, in its joint space.
        self._joint: StreamFiles | None = None
        if self._joint_name:
            folder = Path(data.feature_dir) / self._choose(self._joint_name).folder
            self._joint = StreamFiles(folder, "text", recordings=recordings or {}, remedy=self.remedy)

    def _real(self, name: str) -> str:
        """Return the stream of the encoder that stands as a stream of the model."""
        return self._joint_name if name == OPEN else name

    @functools.cached_property
    def bank(self) -> Tensor | None:
        """The bank in the joint space of `OPEN`, `(sentences, dim)`; None of models that do not read that."""
        return None if self._joint is None else torch.stack([self._pooled(sentence) for sentence in bank_sentences()])

    def _pooled(self, query: str) -> Tensor:
        assert self._joint is not None
        pooled = self._joint.text(query).pooled
        if pooled is None:
            raise DataError(f"{self._joint.folder} holds no vectors of whole queries", "choose an encoder with a joint space")
        return pooled

    def num_clips(self, vid: str) -> int:
        """Clips of a recording, read from headers alone and remembered."""
        if vid not in self._num_clips:
            self._num_clips[vid] = _shortest(vid, {name: files.num_rows(vid) for name, files in self._audio.items()})
        return self._num_clips[vid]

    def audio(self, vid: str) -> dict[str, Tensor]:
        """Return stream -> `(clips, dim_s)` float32, all streams cut to the shortest; read once, as far as memory is allowed for it."""
        if (vid,) in self._kept:
            return self._kept[vid,]  # type: ignore[no-any-return]
        streams = {name: files.audio(vid) for name, files in self._audio.items()}
        shortest = _shortest(vid, {name: rows.shape[0] for name, rows in streams.items()})
        streams = {name: rows[:shortest] for name, rows in streams.items()}
        self._keep((vid,), streams, streams.values())
        return streams

    def text(self, query: str, qid: str) -> dict[str, TextFeatures]:
        """Return stream -> features of a query, read once."""
        if (query, qid) in self._kept:
            return self._kept[query, qid]  # type: ignore[no-any-return]
        streams = {name: files.text(query if files.is_own else qid) for name, files in self._text.items()}
        if self._joint is not None:
            main = next(iter(streams))
            streams[main] = replace(streams[main], pooled=self._pooled(query))
        self._keep((query, qid), streams, [text.tokens for text in streams.values()])
        return streams

    def _keep(self, name: tuple[str, ...], streams: Mapping[str, object], tensors: Iterable[Tensor]) -> None:
        """Remember what was read; once memory is full, the rest is read each time: in a random order no choice is better."""
        self._room_bytes -= sum(tensor.nbytes for tensor in tensors)
        if self._room_bytes >= 0:
            self._kept[name] = streams

    def check(self, vids: Iterable[str], queries: Mapping[str, str]) -> None:
        """Read every recording and query once."""
        for vid in dict.fromkeys(vids):
            self.audio(vid)
        for qid, query in queries.items():
            self.text(query, qid)

    def wanted(self, vids: Iterable[str], queries: Mapping[str, str]) -> list[tuple[str, StreamFiles, list[str]]]:
        """List each stream with its files and the names that recordings or queries have there, sorted."""
        audio = [(name, files, sorted(set(vids))) for name, files in sorted(self._audio.items())]
        texts = sorted(self._text.items())
        if self._joint is not None:
            audio = [*audio, (OPEN, self._joint, sorted({*queries.values(), *bank_sentences()}))]
        return [*audio, *((name, files, sorted(set(queries.values() if files.is_own else queries))) for name, files in texts)]

    def content(self, vids: Iterable[str], queries: Mapping[str, str]) -> str:
        """Return 16 hex digits that change with the content of any file that these need, wherever the files lie."""
        digest = blake2b(digest_size=8)
        for name, files, wanted in self.wanted(vids, queries):
            for each in wanted:
                digest.update(f"{name} {files.checksum(each)} ".encode())
        return digest.hexdigest()

    @property
    def settings(self) -> tuple[dict[str, str], str]:
        """Stream -> hub id or folder (empty = the default) of the big encoders that made own features, and their type; empty for none."""
        made = {name: version for name, version in self._own.items() if version.dtype}
        dtypes = {version.dtype for version in made.values()}
        if len(dtypes) > 1:
            told = ", ".join(f"{name} {version.dtype}" for name, version in made.items())
            raise DataError(f"The features in {self.data.feature_dir} are of different types ({told})", "extract all with one --dtype")
        return {name: version.source for name, version in made.items()}, next(iter(dtypes), "")

    @property
    def remedy(self) -> str:
        """Say which command fills the own folders, with the settings that filled them so far."""
        data, own = self.data, self._own
        dtype = next((version.dtype for version in own.values() if version.dtype), data.encoder_dtype)
        models = {**{name: version.source for name, version in own.items()}, **data.encoder_models}
        options = ["--combo", data.combo, "--manifest", "JSONL", "--feature-dir", data.feature_dir]
        options += ["--dtype", dtype] if dtype != "float32" else []
        options += ["--clip-seconds", f"{self.clip_seconds:g}"] if self.clip_seconds != 1.0 else []
        for name, source in sorted(models.items()):
            options += ["--encoder", f"{name}={source}"] if source else []
        return f"run `{shlex.join(['python', '-m', 'qamdetr', 'extract', *options])}`"

    def encoder_version(self, vids: Iterable[str], queries: Mapping[str, str]) -> str:
        """Name what made the features: the version of the combo's encoders, `public-` and 16 hex digits, or both joined by `+`.

        Public files do not say which encoder made them: their digits are of the values of three recordings and three queries.
        """
        parts = []  # a combo whose other streams are not here is told by those that are read
        made = {name: version.fingerprint for name, version in self._own.items() if version.fingerprint and name != OPEN}
        if made:
            streams = {name for names in COMBOS.get(self.data.combo, ()) for name in names}
            whole = {name: self._choose(name).fingerprint for name in streams}
            parts.append(join_fingerprints(whole if whole and all(whole.values()) else made))
        public = [each for each in self.wanted(vids, queries) if not each[1].is_own]
        digest = blake2b(digest_size=8)
        for stream, files, names in public:
            for name in (names[0], names[len(names) // 2], names[-1]):
                rows = files.audio(name)
                digest.update(f"{stream} {tuple(rows.shape)} ".encode() + rows.numpy().tobytes())
        return "+".join([*parts, f"public-{digest.hexdigest()}"] if public else parts)

    def _choose(self, stream: str) -> StreamVersion:
        """Pick the version of a stream that a configuration means; one without fingerprint where there is none."""
        data, hop = self.data, own_hop(stream, self.clip_seconds)
        found = [version for version in versions_of(Path(data.feature_dir), stream) if version.clip_seconds == hop]
        wanted = (data.encoder_models.get(stream, ""), data.encoder_dtype)
        fitting = [version for version in found if (version.source, version.dtype or data.encoder_dtype) == wanted]
        if len(found) > 1 and len(fitting) != 1:
            what = f"{data.feature_dir} holds {len(found)} versions of stream {stream!r} ({', '.join(version.folder for version in found)})"
            raise DataError(what, "delete those that are not wanted, or tell them apart by data.encoder_models and data.encoder_dtype")
        return (fitting if len(found) > 1 else [*found, StreamVersion(stream, "")])[0]


def require_features(sets: Iterable[tuple[FeatureStore, Iterable[str], Mapping[str, str]]]) -> None:
    """Check before training that every feature of every set (store, recordings, queries) is there; all that is not is one `DataError`."""
    gaps: dict[tuple[str, str], dict[Kind, set[str]]] = {}
    for store, vids, queries in sets:
        for stream, files, wanted in store.wanted(vids, queries):
            where = f"{files.folder}{'' if files.folder.is_dir() else ', which is no folder'}"
            public = (f"data.{files.kind}_features.{stream} ({where})", "download them or correct the folder")
            if lacking := files.missing(wanted):
                place = (store.data.feature_dir, store.remedy) if files.is_own else public
                gaps.setdefault(place, {}).setdefault(files.kind, set()).update(lacking)
    lines = []
    for (where, remedy), gap in gaps.items():
        counts = " and ".join(_count_names(sorted(names), kind) for kind, names in gap.items())
        lines.append(f"{where} lacks features of {counts}: {remedy}")
    if lines:
        raise DataError("; ".join(lines) + ".")


def _count_names(names: Sequence[str], kind: Kind) -> str:
    shown = ", ".join(map(repr, names[:_NAMES_SHOWN]))
    return f"{len(names)} {_NOUNS[kind][len(names) != 1]} ({shown}{', …' if len(names) > _NAMES_SHOWN else ''})"


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror or error}", "free some space or choose another folder") from error


def _spell(vid: str) -> str:
    """Write a vid as a part of a file name; what would be too long for file systems ends in a hash of the whole."""
    name = vid.encode(errors="surrogateescape")  # names of files need not be UTF-8
    stem = quote(name, safe="")
    return stem if len(stem) <= _STEM_LETTERS else f"{stem[:_STEM_LETTERS]}~{blake2b(name, digest_size=8).hexdigest()}"


def _shortest(vid: str, lengths: Mapping[str, int]) -> int:
    shortest, longest = min(lengths.values()), max(lengths.values())
    if longest - shortest > MAX_DIFFERENCE_CLIPS:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        what = f"The streams of recording {vid!r} differ by more than {MAX_DIFFERENCE_CLIPS} clips ({listed}); one is another file's"
        raise DataError(what, "extract or download it again")
    return shortest


def describe_settings(models: Mapping[str, str], dtype: str) -> str:
    """Say them in words: `bfloat16, laion_clap=/models/clap, ms_clap=default`."""
    return ", ".join([dtype, *(f"{stream}={model or 'default'}" for stream, model in sorted(models.items()))])
