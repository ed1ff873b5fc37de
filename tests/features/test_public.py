"""Public feature files: what is in them comes out; gaps, damage and wrong contents give one clear line."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from public_files import write_audio_file, write_text_file

from qamdetr.errors import DataError
from qamdetr.features.public import PublicFeatures


def test_audio_and_text_come_back_as_they_are(tmp_path: Path) -> None:
    rows = write_audio_file(tmp_path / "clap", "-0awng.26x", 7)
    tokens = write_text_file(tmp_path / "clap_text", "-0awng.26x_1", 5)
    audio, text = PublicFeatures.of_audio(tmp_path / "clap", 6), PublicFeatures.of_text(tmp_path / "clap_text", 6)
    assert torch.equal(audio.read("-0awng.26x"), torch.from_numpy(rows))
    assert torch.equal(text.read("-0awng.26x_1"), torch.from_numpy(tokens))
    assert (audio.num_rows("-0awng.26x"), text.num_rows("-0awng.26x_1")) == (7, 5)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_other_floats_orders_and_compression_are_read(tmp_path: Path, dtype: str, save) -> None:
    rows = np.asfortranarray(np.random.default_rng(0).standard_normal((4, 3)).astype(dtype))
    save(tmp_path / "a.npz", features=rows, other=np.zeros(2))
    files = PublicFeatures.of_audio(tmp_path, 3)
    assert files.num_rows("a") == 4
    assert torch.equal(files.read("a"), torch.from_numpy(rows.astype(np.float32)))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"last_hidden_state": np.zeros((2, 3), np.float32)}, r"no array `features`, only last_hidden_state; name the folder"),
        ({}, r"no array `features`, only nothing"),
        ({"features": np.zeros((1, 2, 3), np.float32)}, r"shape \[1, 2, 3\].*shape \[rows, 3\]"),
        ({"features": np.zeros((0, 3), np.float32)}, r"shape \[0, 3\].*at least one row"),
        ({"features": np.zeros((2, 3), np.int64)}, r"int64.*floating point"),
        ({"features": np.zeros((2, 4), np.float32)}, r"is 4 wide, the model expects 3"),
        ({"features": np.array([[object()] * 3])}, r"cannot be read|object"),
    ],
)
def test_a_file_with_other_contents_is_told_in_one_line(tmp_path: Path, arrays: dict, told: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    files = PublicFeatures.of_audio(tmp_path, 3)
    for read in (files.read, files.num_rows):
        with pytest.raises(DataError, match=rf"a\.npz.*({told})") as caught:
            read("a")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    rows = np.zeros((2, 3))
    rows[1, 2] = value
    np.savez(tmp_path / "a.npz", features=rows)
    with pytest.raises(DataError, match=r"a\.npz: `features` holds NaN or infinite values"):
        PublicFeatures.of_audio(tmp_path, 3).read("a")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_byte_anywhere_is_either_harmless_or_told(tmp_path: Path, save) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 2)).astype(np.float32)
    path = tmp_path / "a.npz"
    save(path, features=rows)
    whole = path.read_bytes()
    files = PublicFeatures.of_audio(tmp_path, 2)
    told = 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        for read in (files.num_rows, files.read):
            try:
                found = read("a")
            except DataError as error:
                told += 1
                assert "\n" not in str(error)
                continue
            assert read != files.read or torch.equal(found, torch.from_numpy(rows))
    assert told > rows.nbytes  # at the least every byte of the numbers


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_file_is_told(tmp_path: Path, share: float) -> None:
    write_audio_file(tmp_path, "a", 50)
    path = tmp_path / "a.npz"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"a\.npz cannot be read .*download"):
        PublicFeatures.of_audio(tmp_path, 6).num_rows("a")


def test_a_bare_array_and_a_missing_file_are_told(tmp_path: Path) -> None:
    with (tmp_path / "bare.npz").open("wb") as file:
        np.save(file, np.zeros((2, 6), np.float32))
    files = PublicFeatures.of_audio(tmp_path, 6)
    with pytest.raises(DataError, match=r"bare\.npz cannot be read"):
        files.read("bare")
    with pytest.raises(DataError, match=r"gone\.npz does not exist"):
        files.read("gone")


def test_the_number_of_rows_needs_the_header_alone(tmp_path: Path) -> None:
    """The numbers of this file are not there at all."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("features.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (300, 6)})
    files = PublicFeatures.of_audio(tmp_path, 6)
    assert files.num_rows("a") == 300
    with pytest.raises(DataError, match="cannot be read"):
        files.read("a")


def test_missing_names_come_once_and_in_order(tmp_path: Path) -> None:
    for vid in ("a", "b.1", "deep/c"):
        write_audio_file((tmp_path / vid).parent, Path(vid).name, 2)
    files = PublicFeatures.of_audio(tmp_path, 6)
    assert files.missing(["z", "a", "b.1", "y", "z", "deep/c", "deep/d"]) == ["z", "y", "deep/d"]
    assert PublicFeatures.of_audio(tmp_path / "nowhere", 6).missing(["a"]) == ["a"]
