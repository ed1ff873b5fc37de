from __future__ import annotations

import json

import pytest

from qamdetr.errors import DataError
from qamdetr.ui.examples import ASSETS_DIR, load_examples


def write(folder, entries):
    (folder / "examples.json").write_text(json.dumps(entries), encoding="utf-8")


def entry(file="yard.ogg"):
    return {
        "file": file,
        "title": "A yard",
        "queries": [{"query": "A dog barks ", "windows": [[1, 2.5]]}, {"query": "rain", "windows": []}],
    }


def test_reads_queries_with_their_windows(tmp_path):
    (tmp_path / "yard.ogg").touch()
    write(tmp_path, [entry()])
    (example,) = load_examples(tmp_path)
    assert example.title == "A yard"
    assert example.path == tmp_path / "yard.ogg"
    assert list(example.truth) == ["A dog barks", "rain"]


def test_truth_is_known_for_its_own_queries_only(tmp_path):
    (tmp_path / "yard.ogg").touch()
    write(tmp_path, [entry()])
    (example,) = load_examples(tmp_path)
    assert example.windows_of(" a DOG barks") == ((1.0, 2.5),)
    assert example.windows_of("rain") == ()
    assert example.windows_of("a cat") is None


def test_no_listing_means_no_examples(tmp_path):
    assert load_examples(tmp_path) == []


def test_missing_audio_and_broken_listings_are_named(tmp_path):
    write(tmp_path, [entry("gone.ogg")])
    with pytest.raises(DataError, match=r"gone\.ogg"):
        load_examples(tmp_path)
    write(tmp_path, [{"file": "yard.ogg"}])
    with pytest.raises(DataError, match="title"):
        load_examples(tmp_path)


def test_examples_of_the_project_are_whole():
    for example in load_examples(ASSETS_DIR):
        assert example.truth, f"{example.title} offers no query"
        assert all(0 <= start < end for windows in example.truth.values() for start, end in windows)
