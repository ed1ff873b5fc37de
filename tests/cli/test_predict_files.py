"""`predict --format zip, zip-flac, png and svg`: files, not text."""

from __future__ import annotations

import zipfile

import pytest
from tiny_system import write_sound


@pytest.mark.parametrize(("name", "ending"), [("zip", ".wav"), ("zip-flac", ".flac")])
def test_moments_become_an_archive(tmp_path, predict, name, ending):
    sounds = [write_sound(tmp_path / "a.wav", 8), write_sound(tmp_path / "b.flac", 5)]
    target = tmp_path / "out.zip"
    status, out, _ = predict(*sounds, "--query", "a dog", "--top-k", 2, "--all", "--format", name, "--output", target)
    assert (status, out) == (0, "")
    with zipfile.ZipFile(target) as archive:
        names = archive.namelist()
    assert names[0] == "moments.csv"
    assert len(names) == 5
    assert all(name.endswith(ending) for name in names[1:])


@pytest.mark.parametrize(("name", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_figure_of_several_queries(tmp_path, predict, name, magic):
    target = tmp_path / f"figure.{name}"
    sound = write_sound(tmp_path / "a.wav", 8)
    assert predict(sound, "--query", "a dog", "--query", "a bell", "--format", name, "--output", target)[:2] == (0, "")
    assert target.read_bytes().startswith(magic)


def test_mistakes_are_told_before_anything_is_encoded(tmp_path, predict, encoder):
    sounds = [write_sound(tmp_path / name, 3) for name in ("a.wav", "b.wav")]
    for args, words in (
        ((sounds[0], "--query", "a dog", "--format", "zip"), "say with --output PATH"),
        ((*sounds, "--query", "a dog", "--format", "png", "--output", tmp_path / "x.png"), "A figure shows one recording; 2 were given"),
        ((sounds[0], *["--query", "a dog"] * 17, "--format", "svg", "--output", tmp_path / "x.svg"), "room for 16 queries; 17 were given"),
    ):
        status, out, err = predict(*args)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err
    assert encoder.encoded == []
