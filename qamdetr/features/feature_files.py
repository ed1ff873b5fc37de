"""One file of the feature cache: safetensors with checksums, and with facts about where the features come from in its header.

Floating-point tensors are stored as float16: half the disk and reading time, with a rounding error (2^-11) far below the noise of the
encoders; they are read back as float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qamdetr.errors import DataError, FeatureValuesError
from qamdetr.features.audio_key import AudioStamp, quick_key
from qamdetr.features.encoder_record import extract_remedy
from qamdetr.files import write_whole

if TYPE_CHECKING:
    from typing_extensions import Self  # in `typing` from Python 3.11 on


class FeatureFile:
    """A file opened for reading: the header at once, tensors when asked for. Use it in a `with`.

    Attributes:
        path: The file.
        streams: Names of its streams, main stream first.
        encoder: Version of the encoders that made it; empty where it was written before versions were noted.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and read its header.

        Raises:
            DataError: Missing or damaged.
        """
        self.path = path
        try:
            self._file = _open(path)
            self._facts: dict[str, str] = self._file.metadata() or {}
            self.streams: tuple[str, ...] = tuple(json.loads(self._facts["streams"]))
            self._checksums: dict[str, str] | None = json.loads(self._facts.get("checksums", "null"))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(str(error)) from error
        self._names = frozenset(self._file.keys())
        self.encoder = self._facts.get("encoder", "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.__exit__(kind, error, trace)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def rows(self, name: str) -> int:
        """Length of a tensor, from the header alone."""
        self._require(name)
        return int(self._file.get_slice(name).get_shape()[0])

    def read(self, name: str) -> Tensor:
        """Read a tensor, as float32 unless it holds integers.

        Raises:
            DataError: Not there, damaged, or with NaN or infinite values.
        """
        self._require(name)
        tensor = self._stored(name)
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(f"{self.path}: stream {name!r} holds NaN or infinite values; {self._remedy}.")
        return tensor.float() if tensor.is_floating_point() else tensor

    @property
    def stamp(self) -> AudioStamp | None:
        """What the recording's file looked like when it was encoded; None where that was not noted."""
        try:
            times = int(self._facts["audio_modified_ns"]), int(self._facts.get("audio_changed_ns", "0"))
            return AudioStamp(int(self._facts["audio_bytes"]), *times, self._facts["audio_sample"])
        except (KeyError, ValueError):
            return None

    @property
    def checksum(self) -> str:
        """16 hex digits of streams and values, wherever and whenever they were written.

        Raises:
            DataError: The file cannot be read.
        """
        if self._checksums is None:
            try:
                return quick_key(self.path)
            except OSError as error:
                raise self._damaged(str(error)) from error
        return blake2b(json.dumps([self.streams, sorted(self._checksums.items())]).encode(), digest_size=8).hexdigest()

    def contents(self) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """Tensors as they are stored, and the header's facts; None for a file without checksums.

        Raises:
            DataError: The file is damaged.
        """
        if self._checksums is None:
            return None
        return {name: self._stored(name).clone() for name in sorted(self._names)}, dict(self._facts)

    def _stored(self, name: str) -> Tensor:
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise self._damaged(str(error)) from error
        if self._checksums is not None and self._checksums.get(name) != _tensor_checksum(tensor):
            raise self._damaged(f"the checksum of {name!r} is wrong")
        return tensor

    def _require(self, name: str) -> None:
        if name not in self._names:
            raise DataError(
                f"{self.path} has no stream {name.partition('.')[0]!r}, only {', '.join(self.streams)}; choose a combo that has it."
            )

    def _damaged(self, reason: str) -> DataError:
        return DataError(f"{self.path} cannot be read ({reason}); {self._remedy}.")

    @property
    def _remedy(self) -> str:
        return f"{extract_remedy(self.path.parent.parent, verify=True)}, which makes damaged files again"


def write_features(
    path: Path, tensors: Mapping[str, Tensor], *, streams: list[str], encoder: str, stamp: AudioStamp | None = None, **facts: str
) -> None:
    """Write tensors with their checksums; the file appears whole or not at all.

    Args:
        path: The file.
        tensors: By name; floating-point ones are stored as float16.
        streams: Names of the streams, main stream first.
        encoder: Version of the encoders.
        stamp: What the recording's file looked like before it was read.
        facts: More about the features, for whoever looks into the file.

    Raises:
        FeatureValuesError: Values that are not finite in float16.
        DataError: The disk refuses.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        half = tensor.detach().cpu().half() if tensor.is_floating_point() else tensor.cpu()
        if not bool(torch.isfinite(half).all()):
            raise FeatureValuesError(
                f"Features {name!r} for {path.name} hold values that are not finite in float16; look at the encoder's output."
            )
        stored[name] = half.contiguous()
    checksums = {name: _tensor_checksum(tensor) for name, tensor in stored.items()}
    # A header is UTF-8, names of files need not be.
    facts = {name: text.encode(errors="backslashreplace").decode() for name, text in facts.items()}
    header = {**facts, "streams": json.dumps(streams), "encoder": encoder, "checksums": json.dumps(checksums)}
    try:
        write_whole(path, save(stored, {**header, **(_stamp_facts(stamp) if stamp else {})}))
    except OSError as error:
        raise cannot_write(path, error) from error


def _open(path: Path) -> Any:  # noqa: ANN401 - safetensors has no types
    return safe_open(path, framework="pt")


def restamp(path: Path, stamp: AudioStamp) -> None:
    """Note another stamp in a file; one that was written before there were stamps stays as it is.

    Raises:
        DataError: The file is damaged.
        OSError: The disk refuses.
    """
    with FeatureFile(path) as file:
        contents = file.contents()
    if contents:
        tensors, facts = contents
        write_whole(path, save(tensors, {**facts, **_stamp_facts(stamp)}))


def cannot_write(path: Path, error: OSError) -> DataError:
    """Say in one line that the disk refused."""
    return DataError(f"Cannot write {path}: {error.strerror or error}; free some space or choose another folder.")


def _stamp_facts(stamp: AudioStamp) -> dict[str, str]:
    return {
        "audio_bytes": str(stamp.size_bytes),
        "audio_modified_ns": str(stamp.modified_ns),
        "audio_changed_ns": str(stamp.changed_ns),
        "audio_sample": stamp.sample,
    }


def _tensor_checksum(tensor: Tensor) -> str:
    digest = blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=8)
    digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
