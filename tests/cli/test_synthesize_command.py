"""`synthesize`: every option reaches the recipe."""

from __future__ import annotations

from qamdetr import cli
from qamdetr.synthesis import SceneRecipe


def test_synthesize_hands_every_option_to_the_recipe(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("qamdetr.synthesis.synthesize.synthesize", lambda *args: asked.append(args) or tmp_path / "o" / "manifest.jsonl")
    options = ["--clips", "c", "--output", "o", "--num-scenes", "3", "--min-snr-db", "-2.5", "--name", "café"]
    assert cli.main(["synthesize", *options]) == 0
    assert asked == [("c", None, "o", SceneRecipe(num_scenes=3, min_snr_db=-2.5, name="café"))]
    assert capsys.readouterr().out == f"{tmp_path / 'o' / 'manifest.jsonl'}\n"
