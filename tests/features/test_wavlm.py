"""WavLM per second: what Transformers' own pieces give, however long the recording is."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_models import AUDIO_DIMS, save_tiny_wavlm

from qamdetr.errors import CheckpointError
from qamdetr.features.base import EncoderOptions
from qamdetr.features.wavlm import SAMPLE_RATE_HZ, open_wavlm

NAMES = ("wavlm_base", "wavlm_base_plus", "wavlm_large")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wavlm")
    return {name: save_tiny_wavlm(root / name, name) for name in NAMES}


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.05 + 0.1 * rng.standard_normal(num_samples)).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_each_second_is_what_the_stock_extractor_and_model_give(folders: dict[str, Path], name: str) -> None:
    from transformers import Wav2Vec2FeatureExtractor, WavLMModel

    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folders[name])
    model = WavLMModel.from_pretrained(folders[name]).eval()
    samples = noise(3 * SAMPLE_RATE_HZ + 5000)
    expected = []
    for begin in range(0, len(samples), SAMPLE_RATE_HZ):
        ready = extractor(samples[begin : begin + SAMPLE_RATE_HZ], sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        with torch.inference_mode():
            expected.append(model(ready.input_values).last_hidden_state.mean(dim=1)[0])
    encoder = open_wavlm(folders[name], EncoderOptions(batch_clips=2), name=name).audio
    features = encoder.encode_audio(samples)
    assert features.dtype == torch.float32
    assert features.shape == (4, AUDIO_DIMS[name]) == (4, encoder.dim)
    assert torch.allclose(features, torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize("name", ["wavlm_base", "wavlm_large"])
@pytest.mark.parametrize("num_samples", [1, 399, 400, 401, SAMPLE_RATE_HZ - 1, SAMPLE_RATE_HZ, SAMPLE_RATE_HZ + 1])
def test_every_length_has_a_row_per_begun_second(folders: dict[str, Path], name: str, num_samples: int) -> None:
    features = open_wavlm(folders[name], EncoderOptions(), name=name).audio.encode_audio(noise(num_samples))
    assert features.shape == (math.ceil(num_samples / SAMPLE_RATE_HZ), AUDIO_DIMS[name])
    assert bool(torch.isfinite(features).all())


def test_batches_change_nothing_and_silence_stays_finite(folders: dict[str, Path]) -> None:
    samples = np.concatenate([noise(5 * SAMPLE_RATE_HZ), np.zeros(2 * SAMPLE_RATE_HZ, dtype=np.float32)])
    rows = [open_wavlm(folders["wavlm_large"], EncoderOptions(batch_clips=n), name="w").audio.encode_audio(samples) for n in (1, 3, 16)]
    assert bool(torch.isfinite(rows[0]).all())
    assert torch.allclose(rows[0], rows[1], atol=1e-5)
    assert torch.allclose(rows[0], rows[2], atol=1e-5)


def test_only_the_large_model_forgets_the_level(folders: dict[str, Path]) -> None:
    samples = noise(SAMPLE_RATE_HZ)
    for name, forgets in (("wavlm_base", False), ("wavlm_large", True)):
        encoder = open_wavlm(folders[name], EncoderOptions(), name=name).audio
        shifted = encoder.encode_audio(0.5 * samples + 0.2)
        assert torch.allclose(shifted, encoder.encode_audio(samples), atol=1e-3) == forgets, name


def test_bfloat16_is_near_and_has_another_fingerprint(folders: dict[str, Path]) -> None:
    samples = noise(2 * SAMPLE_RATE_HZ + 100)
    full = open_wavlm(folders["wavlm_base"], EncoderOptions(), name="wavlm_base")
    half = open_wavlm(folders["wavlm_base"], EncoderOptions(dtype=torch.bfloat16), name="wavlm_base")
    expected, found = full.audio.encode_audio(samples), half.audio.encode_audio(samples)
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99
    assert not torch.equal(found, expected)
    assert full.fingerprint != half.fingerprint


def test_the_fingerprint_follows_weights_and_settings_not_files(folders: dict[str, Path], tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return open_wavlm(folder, EncoderOptions(), name="wavlm_base").fingerprint

    first = fingerprint(folders["wavlm_base"])
    moved = shutil.copytree(folders["wavlm_base"], tmp_path / "moved")
    from transformers import WavLMModel

    model = WavLMModel.from_pretrained(moved)
    torch.save(model.state_dict(), moved / "pytorch_model.bin")
    (moved / "model.safetensors").unlink()
    assert fingerprint(moved) == first == fingerprint(folders["wavlm_base"])
    assert fingerprint(folders["wavlm_base_plus"]) != first
    settings = moved / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace('"do_normalize": false', '"do_normalize": true'))
    assert fingerprint(moved) != first


def test_folders_that_do_not_hold_a_whole_model_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def opened(folder: Path) -> None:
        open_wavlm(folder, EncoderOptions(), name="wavlm_base")

    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty cannot be read as the encoder wavlm_base .*another kind of model"):
        opened(tmp_path / "empty")
    broken = shutil.copytree(folders["wavlm_base"], tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(CheckpointError, match="broken cannot be read"):
        opened(broken)
    partial = shutil.copytree(folders["wavlm_base"], tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    removed = next(name for name in weights if name.startswith("encoder.layers.1."))
    del weights[removed]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"lacks 1 weights of the encoder wavlm_base, such as {removed}"):
        opened(partial)
    shutil.copy(folders["wavlm_large"] / "config.json", partial / "config.json")
    with pytest.raises(CheckpointError, match="partial"):
        opened(partial)


def test_the_version_changes_with_any_weight_and_with_the_settings(folders: dict[str, Path], tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    def version(folder: Path) -> str:
        return open_wavlm(folder, EncoderOptions(), name="wavlm_base").fingerprint

    original = version(folders["wavlm_base"])
    settings = shutil.copytree(folders["wavlm_base"], tmp_path / "settings")
    config = json.loads((settings / "config.json").read_text())
    (settings / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    assert version(settings) != original
    nudged = shutil.copytree(folders["wavlm_base"], tmp_path / "nudged")
    weights = load_file(nudged / "model.safetensors")
    name = max(weights, key=lambda key: weights[key].numel())
    flat = weights[name].reshape(-1)
    flat[len(flat) // 2 + 1] += 0.01  # between the values that are read one by one
    save_file(weights, nudged / "model.safetensors", metadata={"format": "pt"})
    assert version(nudged) != original


def test_weights_of_another_size_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    import json

    folder = shutil.copytree(folders["wavlm_base"], tmp_path / "unfit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": config["intermediate_size"] + 4}))
    with pytest.raises(CheckpointError, match=r"weights of the encoder wavlm_base, such as .*, have other sizes than its config.json says"):
        open_wavlm(folder, EncoderOptions(), name="wavlm_base")
