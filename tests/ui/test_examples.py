from __future__ import annotations

import json

import pytest
import soundfile

from qamdetr.config import InferenceConfig
from qamdetr.errors import DataError
from qamdetr.ui.examples import ASSETS_DIR, Example, load_examples


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


def test_a_title_is_a_name_and_a_description(tmp_path):
    whole = Example(tmp_path, "An empty room, nothing to find", {})
    assert (whole.name, whole.description) == ("An empty room", "Nothing to find.")
    bare = Example(tmp_path, "A yard", {})
    assert (bare.name, bare.description) == ("A yard", "")


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
        length = soundfile.info(str(example.path)).duration
        assert all(0 <= start < end <= length for windows in example.truth.values() for start, end in windows)


def test_examples_of_the_project_are_of_several_kinds():
    examples = load_examples(ASSETS_DIR)
    assert len({example.name for example in examples}) == len({example.path.stem for example in examples}) == len(examples) >= 4
    lengths = [soundfile.info(str(example.path)).duration for example in examples]
    assert max(lengths) > InferenceConfig().section_clips, "one is longer than what the network reads at once"
    assert any(not any(example.truth.values()) for example in examples), "one holds nothing that is asked for"
