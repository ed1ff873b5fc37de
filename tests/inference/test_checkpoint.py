"""Checkpoint folders in and out, and what a user reads when one does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_system import save_tiny, tiny_config, tiny_model

import qamdetr.config
from qamdetr.errors import CheckpointError
from qamdetr.inference.checkpoint import available_checkpoints, load_pretrained, save_pretrained


@pytest.fixture
def checkpoint_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(qamdetr.config, "CHECKPOINT_DIR", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_saving_and_loading_are_inverse(tmp_path):
    config = tiny_config(beta=0.45, found_threshold=0.2)
    model = tiny_model(config)
    save_pretrained(tmp_path / "a" / "b", model, config, half=False)
    loaded, loaded_config = load_pretrained(tmp_path / "a" / "b")
    assert loaded_config == config
    assert not loaded.training
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["config.yaml", "model.safetensors"]


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path):
    config = tiny_config()
    model = tiny_model(config)
    save_pretrained(tmp_path / "full", model, config, half=False)
    save_pretrained(tmp_path / "half", model, config, half=True)
    full, half = (tmp_path / name / "model.safetensors" for name in ("full", "half"))
    assert half.stat().st_size < 0.75 * full.stat().st_size
    weights = load_pretrained(tmp_path / "half")[0].state_dict()
    assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())
    assert all(torch.allclose(value, weights[name], atol=2e-3) for name, value in model.state_dict().items())


def test_a_weight_too_large_for_half_is_refused(tmp_path):
    config = tiny_config()
    model = tiny_model(config)
    with torch.no_grad():
        next(model.parameters()).fill_(1e6)
    with pytest.raises(CheckpointError, match=r"does not fit float16 \(largest value 1e\+06, limit 65504\); save with half=False"):
        save_pretrained(tmp_path, model, config, half=True)


def test_names_are_looked_up_and_listed(checkpoint_dir):
    save_tiny(checkpoint_dir / "one")
    save_tiny(checkpoint_dir / "two")
    (checkpoint_dir / "encoder").mkdir()
    assert available_checkpoints() == ["one", "two"]
    assert load_pretrained("two")[1] == tiny_config()
    for wrong in ("three", ""):
        with pytest.raises(CheckpointError, match=f"No checkpoint '{wrong}'; give a checkpoint folder or one of the names here: one, two"):
            load_pretrained(wrong)


def test_without_any_checkpoint_the_message_says_where_it_looked(checkpoint_dir):
    with pytest.raises(CheckpointError, match=r"none in .*checkpoints"):
        load_pretrained()


def test_missing_files_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors and config\.yaml missing"):
        load_pretrained(tmp_path / "empty")
    save_tiny(tmp_path / "a")
    (tmp_path / "a" / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"not a QAM-DETR checkpoint: config\.yaml missing"):
        load_pretrained(tmp_path / "a")


def test_weights_that_do_not_fit_the_configuration_are_named(tmp_path):
    folder = save_tiny(tmp_path / "a")
    file = folder / "model.safetensors"
    weights = load_file(file)
    name = min(weights)

    save_file({key: value for key, value in weights.items() if key != name}, file)
    with pytest.raises(CheckpointError, match=f"lacks weights for 1 parameters, such as {name}"):
        load_pretrained(folder)
    save_file({**weights, "stranger": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="has unknown weights for 1 parameters, such as stranger"):
        load_pretrained(folder)
    save_file({**weights, name: torch.zeros(99)}, file)
    with pytest.raises(CheckpointError, match=rf"{name} has shape \(99,\), the configuration makes"):
        load_pretrained(folder)


def test_damaged_files_are_one_clear_line(tmp_path):
    folder = save_tiny(tmp_path / "a")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged") as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.yaml").write_text("model: {dim: 17}")
    with pytest.raises(CheckpointError, match=r"model\.dim is 17"):
        load_pretrained(folder)
    (folder / "config.yaml").write_text("model: {size: 17}")
    with pytest.raises(CheckpointError, match=r"Unknown key 'model\.size'"):
        load_pretrained(folder)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    config = tiny_config()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Cannot write checkpoint"):
        save_pretrained(tmp_path / "file" / "sub", tiny_model(config), replace(config), half=False)
