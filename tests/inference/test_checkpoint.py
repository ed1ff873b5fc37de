"""Checkpoint folders in and out, and what a user reads when one does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_system import save_tiny, tiny_config, tiny_model

import qamdetr.config
from qamdetr.errors import CheckpointError
from qamdetr.inference.checkpoint import available_checkpoints, load_checkpoint, save_checkpoint


def test_saving_and_loading_are_inverse_and_half_precision_halves_the_file(tmp_path):
    config = tiny_config(beta=0.45, found_threshold=0.2)
    model = tiny_model(config)
    save_checkpoint(tmp_path / "a" / "b", model, config, "# A card")
    save_checkpoint(tmp_path / "half", model, config, half=True)
    loaded, loaded_config = load_checkpoint(tmp_path / "a" / "b")
    weights, halves = loaded.state_dict(), load_checkpoint(tmp_path / "half")[0].state_dict()
    assert replace(loaded_config, weights_sha256="") == config
    assert not loaded.training
    assert weights.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
        assert value.dtype == halves[name].dtype
        assert torch.allclose(value, halves[name], atol=2e-3)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("a/b", "half")]
    assert sizes[1] < 0.75 * sizes[0]
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["README.md", "config.yaml", "model.safetensors"]


def test_weights_too_large_for_half_precision_are_refused(tmp_path):
    config = tiny_config()
    model = tiny_model(config)
    with torch.no_grad():
        next(model.parameters()).fill_(1e6)
    with pytest.raises(CheckpointError, match=r"does not fit float16 \(largest value 1e\+06, limit 65504\); save with half=False"):
        save_checkpoint(tmp_path, model, config, half=True)


def test_names_are_looked_up_and_listed_and_missing_files_named(tmp_path, monkeypatch):
    monkeypatch.setattr(qamdetr.config, "CHECKPOINT_DIR", tmp_path)
    with pytest.raises(CheckpointError, match=f"none in {tmp_path}"):
        load_checkpoint()
    for name in ("one", "two"):
        save_tiny(tmp_path / name)
    assert available_checkpoints() == ["one", "two"]
    assert load_checkpoint("two")[1].inference == tiny_config().inference
    with pytest.raises(CheckpointError, match="No checkpoint ''; give a checkpoint folder or one of the names here: one, two"):
        load_checkpoint("")


def change_weights(folder, change):
    """Save other weights, as another program would: without a word in the configuration."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def change_config(folder, change):
    values = yaml.safe_load((folder / "config.yaml").read_text())
    change(values)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def flip(folder, place):
    """Flip one bit, so many bytes before the end of the weights."""
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-place] ^= 4
    (folder / "model.safetensors").write_bytes(bytes(content))


def no_hash_and_nan(folder):
    change_config(folder, lambda values: values.pop("weights_sha256"))
    load_checkpoint(folder)  # a checkpoint from before the hash
    change_weights(folder, lambda weights: weights[FIRST].fill_(float("nan")))


FIRST = "audio.gate_logits.mel_stats"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: change_weights(folder, lambda w: w.pop(FIRST)), f"the weights of 1 parameters are missing, such as {FIRST}"),
        (lambda folder: change_weights(folder, lambda w: w.update(a=torch.ones(1))), "the weights of 1 parameters are unknown, such as a"),
        (lambda folder: change_weights(folder, lambda w: w.update({FIRST: torch.ones(9)})), f"{FIRST} has shape (9,), the configuration"),
        (lambda folder: change_weights(folder, lambda w: w[FIRST].add_(1)), "model.safetensors is not what was saved; its hash is"),
        (lambda folder: flip(folder, 1), "is not what was saved"),
        (no_hash_and_nan, f"{FIRST} holds values that are not finite"),
        (lambda folder: (folder / "config.yaml").write_text("model: " + "[" * 5000), "config.yaml is not valid YAML"),
        (lambda folder: change_config(folder, lambda c: c["model"].update(dim=4096, ffn_dim=16384)), "has shape"),
        (lambda folder: change_config(folder, lambda c: c["model"].update(num_moment_queries=10**9)), "it must be from 1 to 1000"),
    ],
)  # fmt: skip
def test_damage_is_one_clear_line(tmp_path, damage, message):
    folder = save_tiny(tmp_path / "a")
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_shipped_checkpoints_have_their_hash():
    assert all(load_checkpoint(name)[1].weights_sha256 for name in available_checkpoints())
