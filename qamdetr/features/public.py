"""Feature files as the field publishes them: one folder per stream, one `.npz` file per recording or query."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from qamdetr.errors import DataError

_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class PublicFeatures:
    """The files of one stream in one folder: `{prefix}{name}.npz`, each with one array `(rows, dim)`.

    Source: Zenodo records 18358706 (CASTELLA), 17129257 (Clotho-Moment) and 20450254 (DCASE 2026 evaluation).
    """

    def __init__(self, folder: Path, *, prefix: str, key: str, dim: int) -> None:
        """Name a folder; nothing is read yet.

        Args:
            folder: Where the files lie.
            prefix: What stands before the name in a file's name.
            key: Name of the array in each file.
            dim: Columns that the array must have.
        """
        self.folder = folder
        self.dim = dim
        self._prefix = prefix
        self._key = key

    @classmethod
    def of_audio(cls, folder: Path, dim: int) -> PublicFeatures:
        """`{vid}.npz` with `features`, `(clips, dim)`."""
        return cls(folder, prefix="", key="features", dim=dim)

    @classmethod
    def of_text(cls, folder: Path, dim: int) -> PublicFeatures:
        """`qid{qid}.npz` with `last_hidden_state`, `(tokens, dim)`, unpadded."""
        return cls(folder, prefix="qid", key="last_hidden_state", dim=dim)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that have no file, each once; the folder is listed once, which is fast for many names."""
        try:
            present = {path.name for path in self.folder.iterdir()}
        except OSError:  # not there, or not a folder
            present = set()
        # The list does not show a name with a slash, which lies in a folder below.
        return [name for name in dict.fromkeys(names) if f"{self._prefix}{name}.npz" not in present and not self._path(name).is_file()]

    def num_rows(self, name: str) -> int:
        """Clips or tokens of a file, read from the array's header alone.

        Raises:
            DataError: As `read`, as far as the header shows it.
        """
        path = self._path(name)
        with self._member(path) as member:
            version = npy.read_magic(member)
            if version not in _HEADER_READERS:
                raise ValueError(f"array format {version} is unknown")
            shape, _, dtype = _HEADER_READERS[version](member)
        self._check(path, shape, dtype)
        return int(shape[0])

    def checksum(self, name: str) -> int:
        """CRC-32 of the array, read from the archive's directory alone.

        Raises:
            DataError: As `read`, as far as the directory shows it.
        """
        with self._archive(self._path(name)) as archive:
            return archive.getinfo(f"{self._key}.npy").CRC

    def read(self, name: str) -> Tensor:
        """Return the array of a file, `(rows, dim)` float32.

        Raises:
            DataError: A missing or damaged file, one without the array, another shape or type, NaN or infinite values.
        """
        path = self._path(name)
        with self._member(path) as member:
            array = npy.read_array(member, allow_pickle=False)
        self._check(path, array.shape, array.dtype)
        with np.errstate(over="ignore"):  # a double too large becomes infinite, which the next line refuses
            rows = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        if not bool(torch.isfinite(rows).all()):
            raise DataError(f"{path}: `{self._key}` holds NaN or infinite values; download or extract the file again.")
        return rows

    def _path(self, name: str) -> Path:
        return self.folder / f"{self._prefix}{name}.npz"

    @contextlib.contextmanager
    def _member(self, path: Path) -> Iterator[IO[bytes]]:
        """Open the array inside a file."""
        with self._archive(path) as archive, archive.open(f"{self._key}.npy") as member:
            yield member

    @contextlib.contextmanager
    def _archive(self, path: Path) -> Iterator[zipfile.ZipFile]:
        """Open a file that holds the array; whatever goes wrong while it is open becomes one line."""
        try:
            with zipfile.ZipFile(path) as archive:
                held = [name.removesuffix(".npy") for name in archive.namelist()]
                if self._key not in held:
                    raise DataError(
                        f"{path} has no array `{self._key}`, only {', '.join(held) or 'nothing'}; "
                        "name the folder that holds this stream's own files."
                    )
                yield archive
        except DataError:
            raise
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist; download it, or correct the folder in the configuration.") from error
        except Exception as error:  # zipfile, zlib, tokenize and NumPy raise classes of their own on damaged files
            reason = " ".join(str(error).split())[:160]
            raise DataError(f"{path} cannot be read ({reason}); download or extract the file again.") from error

    def _check(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if len(shape) != 2 or shape[0] == 0 or dtype.kind != "f":
            raise DataError(
                f"{path}: `{self._key}` is {dtype} of shape {list(shape)}; it must be floating point numbers of shape [rows, {self.dim}], "
                "at least one row: download or extract the file again."
            )
        if shape[1] != self.dim:
            raise DataError(
                f"{path}: `{self._key}` is {shape[1]} wide, the model expects {self.dim}; correct the stream's width in the model section "
                "or its folder in the data section."
            )
