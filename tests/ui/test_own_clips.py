from __future__ import annotations

import csv

import pytest
from own_sounds import make_clips

from qamdetr.errors import DataError
from qamdetr.synthesis.sources import read_library, spoken
from qamdetr.ui.own_clips import divide, read_clips, write_clips


@pytest.mark.parametrize(
    ("name", "words"),
    [("dog_barking-02", "dog barking"), ("Rain.on (roof) 3", "rain on roof"), ("clap2", "clap"), ("007", "007"), ("Straße 1", "straße")],
)
def test_names_of_files_become_words(name, words):
    assert spoken(name) == words


def test_without_a_table_subfolders_and_names_say_what_is_heard(tmp_path):
    make_clips(tmp_path, {"A low_tone": 200}, per_sound=2)
    (tmp_path / "A low_tone" / "0.wav").rename(tmp_path / "door_slam_1.wav")
    (tmp_path / "notes.txt").touch()
    clips = read_clips(f" {tmp_path} ")
    assert not clips.has_table
    assert sorted(clips.groups) == ["a low tone", "door slam"]


def test_a_table_counts_and_its_captions_and_licences_come_along(tmp_path):
    make_clips(tmp_path / "in", {"low": 200, "high": 900}, per_sound=2)
    rows = [[f"{sound}/{n}.wav", f"tone/{sound}", f"a {sound} tone"] for sound in ("low", "high") for n in range(2)]
    with (tmp_path / "in" / "clips.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["File_Name", "group", "caption_1"], *rows])
    (tmp_path / "in" / "groups.csv").write_text("group,caption\ntone,any tone\ntone/low,a deep tone\n")
    (tmp_path / "in" / "attribution.csv").write_text("file,licence\nlow/0.wav,CC0\n")
    clips = read_clips(str(tmp_path / "in"))
    write_clips(clips.groups["tone/low"], clips.folder, tmp_path / "out")
    library = read_library(tmp_path / "out", None)
    assert library.captions["tone"] == ("any tone",)
    assert library.captions["tone/low"] == ("a deep tone", "a low tone")
    assert [source.get("license") for source in library.sources.values()] == ["CC0", None]
    assert all(clip.active for clip in library.clips)


def test_each_sound_keeps_one_clip_in_five_back(tmp_path):
    make_clips(tmp_path, {"low": 200, "high": 900}, per_sound=10)
    make_clips(tmp_path, {"only": 500}, per_sound=1)
    clips = read_clips(str(tmp_path))
    learnt, kept = divide(clips)
    assert {row["file_name"] for row in learnt} | {row["file_name"] for row in kept} == {row["file_name"] for row in clips.rows}
    assert {row["group"] for row in learnt if row in kept} == {"only"}
    assert [sum(row["group"] == "low" for row in part) for part in (learnt, kept)] == [8, 2]


@pytest.mark.parametrize(("make", "told"), [(lambda p: p / "no", "no folder"), (lambda p: p, "0 clips"), (lambda p: "", "no folder")])
def test_what_is_no_folder_of_clips_is_one_line(make, told, tmp_path):
    with pytest.raises(DataError, match=told) as caught:
        read_clips(str(make(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_table_without_file_names_is_one_line(tmp_path):
    (tmp_path / "clips.csv").write_text("name,caption\nx.wav,a dog\n")
    with pytest.raises(DataError, match="file_name"):
        read_clips(str(tmp_path))
