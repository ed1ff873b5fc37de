"""Extraction: encodes what is new, skips what is there, reports what cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qamdetr.errors import AudioError, DataError
from qamdetr.features.cache import FeatureCache
from qamdetr.features.extract import extract
from qamdetr.types import Recording, TextFeatures


class CountingEncoder:
    """Encodes a file to its size; remembers what it was asked for; cannot read files that begin with `bad`."""

    name = "counting"

    def __init__(self, fingerprint: str = "v1") -> None:
        self.fingerprint = fingerprint
        self.asked: list[str] = []

    def encode_recording(self, path: str | Path) -> Recording:
        path = Path(path)
        self.asked.append(path.stem)
        if path.stem.startswith("bad"):
            raise AudioError(f"{path} is corrupt; convert it again.")
        return Recording(path.name, str(path), 2.0, {"size": torch.full((2, 1), float(path.stat().st_size))}, np.zeros((2, 1)))

    def encode_query(self, query: str) -> dict[str, TextFeatures]:
        self.asked.append(query)
        return {"size": TextFeatures(torch.full((1, 1), float(len(query))), ((0, len(query)),))}


@pytest.fixture
def recordings(tmp_path: Path) -> list[tuple[str, Path]]:
    for name in ("one", "bad", "two"):
        (tmp_path / f"{name}.wav").write_bytes(name.encode())
    return [(name, tmp_path / f"{name}.wav") for name in ("one", "bad", "two", "gone")]


def test_encodes_once_and_goes_on_past_what_it_cannot_read(recordings: list[tuple[str, Path]], tmp_path: Path) -> None:
    encoder = CountingEncoder()
    report = extract(recordings, ["a dog", "a cat", "a dog"], tmp_path / "features", encoder, show_progress=False)
    assert (report.recordings, report.queries) == (2, 2)
    assert [vid for vid, _ in report.unreadable] == ["gone", "bad"]
    assert "does not exist" in report.unreadable[0][1]
    cache = FeatureCache(tmp_path / "features", "counting", dict(recordings))
    assert cache.audio("two")["size"].unique().tolist() == [3.0]
    assert cache.text("a cat")["size"].tokens.tolist() == [[5.0]]


def test_a_second_run_encodes_only_what_is_new(recordings: list[tuple[str, Path]], tmp_path: Path) -> None:
    extract(recordings, ["a dog"], tmp_path / "features", CountingEncoder(), show_progress=False)
    dict(recordings)["two"].write_bytes(b"changed")
    encoder = CountingEncoder()
    extract(recordings, ["a dog", "a cow"], tmp_path / "features", encoder, show_progress=False)
    assert encoder.asked == ["a cow", "bad", "two"]


def test_another_version_of_the_encoder_is_refused(recordings: list[tuple[str, Path]], tmp_path: Path) -> None:
    extract(recordings[:1], [], tmp_path / "features", CountingEncoder(), show_progress=False)
    with pytest.raises(DataError, match="version v1"):
        extract(recordings[:1], [], tmp_path / "features", CountingEncoder("v2"), show_progress=False)
