"""A run becomes a shipped checkpoint: float16 weights that load, the encoder's version, metrics on the card."""

from __future__ import annotations

from pathlib import Path

from qamdetr.inference.checkpoint import load_checkpoint
from qamdetr.training.loop import train
from recipes.publish import publish


def test_publishing_keeps_the_model_and_says_how_good_it_is(toy_config, tmp_path: Path) -> None:
    run = train(toy_config(epochs=1), tmp_path / "run", command="test")
    metrics = publish(run.directory, tmp_path / "shipped")
    _, shipped = load_checkpoint(tmp_path / "shipped")
    assert shipped.data.combo == "toy"
    card = (tmp_path / "shipped" / "README.md").read_text(encoding="utf-8")
    assert f"| R1@0.7 | {metrics['R1@0.7']:g} |" in card
    full, half = (folder / "model.safetensors" for folder in (run.best_dir, tmp_path / "shipped"))
    assert half.stat().st_size < 0.6 * full.stat().st_size
