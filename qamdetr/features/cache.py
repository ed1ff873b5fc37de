"""The feature cache: what the frozen encoders gave for each recording and query, so that training never runs an encoder."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qamdetr.errors import DataError
from qamdetr.types import TextFeatures

_KEY_BLOCK_BYTES = 1 << 16
_NAMES_SHOWN = 10
EXTRACT_REMEDY = "run `python -m qamdetr extract` on the manifest"


def content_key(path: Path) -> str:
    """Return 16 hex digits that change with the content of a file: audio, or features.

    Hashes the size and three 64 KiB blocks (begin, middle, end), which is instant even for thousands of long recordings; a FLAC
    header alone already holds a checksum of all its samples.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        size = path.stat().st_size
        digest = blake2b(str(size).encode(), digest_size=8)
        with path.open("rb") as file:
            for begin in (0, size // 2, max(size - _KEY_BLOCK_BYTES, 0)):
                file.seek(begin)
                digest.update(file.read(_KEY_BLOCK_BYTES))
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}; check the path.") from error
    return digest.hexdigest()


def list_recordings(audio_dir: Path) -> dict[str, Path]:
    """Map each `vid` (file name without its suffix) to its audio file; empty when the folder is not there."""
    if not audio_dir.is_dir():
        return {}
    return {path.stem: path for path in sorted(audio_dir.iterdir()) if path.is_file() and not path.name.startswith(".")}


class FeatureCache:
    """Features of one combo in a folder: `audio/{vid}.{audio key}.safetensors` and `text/{hash of the query}.safetensors`.

    The audio key stands in the file name: changed audio is simply "not extracted yet", and two sets that share recording names share
    a cache without harm. Where the audio itself is not at hand, the only file of that `vid` is taken.

    Stored as float16: half the disk and reading time, with a rounding error (2^-11) far below the noise of the encoders; read back
    as float32. Written to a temporary file first, then renamed: a file that is there is whole.
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
        self._audio_files: dict[str, Path] = {}

    def claim(self, fingerprint: str) -> None:
        """Bind the cache to one version of the encoders, so that features of two versions never mix.

        Raises:
            DataError: The cache holds features of another version.
        """
        path = self.directory / "encoder.json"
        if path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
            if known != fingerprint:
                raise DataError(
                    f"{self.directory} holds features of encoder version {known}, the encoder here is {fingerprint}; "
                    "delete that folder or choose another feature folder."
                )
            return
        _write_atomically(path, json.dumps({"fingerprint": fingerprint}).encode())

    @property
    def fingerprint(self) -> str:
        """Version of the encoders whose features lie here; empty when nobody claimed the cache."""
        path = self.directory / "encoder.json"
        return str(json.loads(path.read_text(encoding="utf-8"))["fingerprint"]) if path.is_file() else ""

    def has_audio(self, vid: str) -> bool:
        """Whether the features of a recording, as its audio is now, lie here."""
        path = self._find_audio(vid)
        return path is not None and path.is_file()

    def has_text(self, query: str) -> bool:
        """Whether the features of a query lie here."""
        return self._text_path(query).is_file()

    def write_audio(self, vid: str, streams: Mapping[str, Tensor]) -> None:
        """Store the streams of a recording, each `(clips, dim_s)`, main stream first.

        Raises:
            DataError: Values that are not finite in float16, or the disk refuses.
        """
        key = content_key(self.recordings[vid]) if vid in self.recordings else "0" * 16
        path = self.directory / "audio" / f"{quote(vid, safe='')}.{key}.safetensors"
        _write_tensors(path, streams, {"vid": vid, "streams": json.dumps(list(streams))})
        self._audio_files[vid] = path

    def write_text(self, query: str, streams: Mapping[str, TextFeatures]) -> None:
        """Store the text streams of a query, main stream first.

        Raises:
            DataError: As `write_audio`.
        """
        tensors: dict[str, Tensor] = {}
        for name, features in streams.items():
            tensors[f"{name}.tokens"] = features.tokens
            tensors[f"{name}.offsets"] = torch.tensor(features.offsets, dtype=torch.int32).reshape(-1, 2)
            if features.pooled is not None:
                tensors[f"{name}.pooled"] = features.pooled
        _write_tensors(self._text_path(query), tensors, {"query": query, "streams": json.dumps(list(streams))})

    def audio_checksum(self, vid: str) -> str:
        """16 hex digits of the stored features of a recording; see `content_key`.

        Raises:
            DataError: They are not here.
        """
        return content_key(self._audio_path(vid))

    def text_checksum(self, query: str) -> str:
        """16 hex digits of the stored features of a query.

        Raises:
            DataError: They are not here.
        """
        return content_key(self._text_path(query))

    def num_clips(self, vid: str) -> int:
        """Clips of a recording, read from the file's header alone."""
        with _opened(self._audio_path(vid)) as file:
            name = (self.audio_streams or _stream_names(file))[0]
            return int(file.get_slice(name).get_shape()[0])

    def audio(self, vid: str) -> dict[str, Tensor]:
        """Return stream -> `(clips, dim_s)` float32 of a recording, main stream first.

        Raises:
            DataError: Missing or damaged file, a missing stream, NaN or infinite values, streams of different lengths.
        """
        path = self._audio_path(vid)
        with _opened(path) as file:
            streams = {name: _read(file, path, name) for name in self.audio_streams or _stream_names(file)}
        lengths = {name: value.shape[0] for name, value in streams.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{path}: streams differ in clips ({lengths}); delete the file and {EXTRACT_REMEDY}.")
        return streams

    def text(self, query: str) -> dict[str, TextFeatures]:
        """Return stream -> features of a query, main stream first.

        Raises:
            DataError: As `audio`.
        """
        path = self._text_path(query)
        if not path.is_file():
            raise DataError(f"No features of the query {query!r} in {self.directory}; {EXTRACT_REMEDY}.")
        result: dict[str, TextFeatures] = {}
        with _opened(path) as file:
            for name in self.text_streams or _stream_names(file):
                tokens = _read(file, path, f"{name}.tokens")
                offsets = _read(file, path, f"{name}.offsets").int().tolist()
                pooled = _read(file, path, f"{name}.pooled") if f"{name}.pooled" in file.keys() else None  # noqa: SIM118 - not a dict
                result[name] = TextFeatures(tokens, tuple((begin, end) for begin, end in offsets), pooled)
        return result

    def missing_audio(self, vids: Iterable[str]) -> list[str]:
        """Those of `vids` whose features are not here, each once."""
        return [vid for vid in dict.fromkeys(vids) if not self.has_audio(vid)]

    def missing_text(self, queries: Iterable[str]) -> list[str]:
        """Those of `queries` whose features are not here, each once."""
        return [query for query in dict.fromkeys(queries) if not self.has_text(query)]

    def _find_audio(self, vid: str) -> Path | None:
        """Path of the features as the audio is now; without audio, of the only features of that name."""
        if vid not in self._audio_files:
            stem = quote(vid, safe="")
            folder = self.directory / "audio"
            if vid in self.recordings:
                self._audio_files[vid] = folder / f"{stem}.{content_key(self.recordings[vid])}.safetensors"
            else:
                # `quote` leaves no glob characters, so the pattern means itself; the key holds no dot.
                matches = [path for path in folder.glob(f"{stem}.*.safetensors") if path.name.count(".") == stem.count(".") + 2]
                if len(matches) > 1:
                    raise DataError(
                        f"{folder} holds {len(matches)} versions of {vid!r}; name the audio folder so that the right one is known."
                    )
                if not matches:
                    return None
                self._audio_files[vid] = matches[0]
        return self._audio_files[vid]

    def _audio_path(self, vid: str) -> Path:
        path = self._find_audio(vid)
        if path is None or not path.is_file():
            raise DataError(f"No features of the recording {vid!r} in {self.directory}; {EXTRACT_REMEDY}.")
        return path

    def _text_path(self, query: str) -> Path:
        return self.directory / "text" / f"{blake2b(query.encode(), digest_size=16).hexdigest()}.safetensors"


def count_names(names: Sequence[str], noun: str) -> str:
    """Say how many there are and name the first, for a message: `2 queries ('a dog', 'rain')`; empty for none."""
    if not names:
        return ""
    plural = noun if len(names) == 1 else {"query": "queries"}.get(noun, noun + "s")
    shown = ", ".join(map(repr, names[:_NAMES_SHOWN]))
    return f"{len(names)} {plural} ({shown}{', …' if len(names) > _NAMES_SHOWN else ''})"


def _opened(path: Path) -> Any:  # noqa: ANN401 - safetensors has no types
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it and {EXTRACT_REMEDY}.") from error


def _stream_names(file: Any) -> tuple[str, ...]:  # noqa: ANN401 - safetensors has no types
    return tuple(json.loads(file.metadata()["streams"]))


def _read(file: Any, path: Path, name: str) -> Tensor:  # noqa: ANN401 - safetensors has no types
    if name not in file.keys():  # noqa: SIM118 - not a dict
        raise DataError(
            f"{path} has no stream {name.partition('.')[0]!r}, only {', '.join(_stream_names(file))}; choose a combo that has it."
        )
    tensor: Tensor = file.get_tensor(name).float()
    if not bool(torch.isfinite(tensor).all()):
        raise DataError(f"{path}: stream {name!r} holds NaN or infinite values; delete the file and {EXTRACT_REMEDY}.")
    return tensor


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        half = tensor.detach().cpu().half() if tensor.is_floating_point() else tensor.cpu()
        if not bool(torch.isfinite(half).all()):
            raise DataError(f"Features {name!r} for {path.name} hold values that are not finite in float16; look at the encoder's output.")
        stored[name] = half.contiguous()
    _write_atomically(path, save(stored, metadata))


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DataError(f"Cannot write {path}: {error.strerror or error}; free some space or choose another folder.") from error
