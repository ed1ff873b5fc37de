"""Sizes told from weights, names translated, and files read without running what may hide in them."""

import numpy as np
import pytest
import torch
from clap_packages import laion_audio_settings, package_module
from hub_clap_models import original_htsat_names, randomise, tiny_audio_settings, tiny_clap

from qamdetr.errors import CheckpointError
from qamdetr.features.package_weights import convert_htsat, convert_laion_clap, fill, htsat_config, is_fused, read_checkpoint


def test_sizes_come_from_the_weights():
    from transformers import ClapAudioConfig, ClapAudioModel

    settings = tiny_audio_settings() | {"window_size": 4, "mlp_ratio": 2.0, "num_mel_bins": 32}
    state = original_htsat_names(ClapAudioModel(ClapAudioConfig(**settings)).audio_encoder.state_dict())
    told = htsat_config(state)
    for name in ("patch_embeds_hidden_size", "depths", "num_attention_heads", "hidden_size", "window_size", "mlp_ratio", "num_mel_bins"):
        assert getattr(told, name) == settings[name], name


@pytest.mark.slow
@pytest.mark.parametrize(("size", "width", "depths"), [("tiny", 96, [2, 2, 6, 2]), ("base", 128, [2, 2, 12, 2])])
def test_tiny_and_base_of_the_package_are_told_apart(size, width, depths):
    with package_module("laion_clap", "clap_module", "htsat") as module:
        state = module.create_htsat_model(laion_audio_settings(size)).state_dict()
    told = htsat_config(state)
    assert (told.patch_embeds_hidden_size, told.depths, told.num_attention_heads) == (width, depths, [4, 8, 16, 32])


def test_names_go_there_and_back():
    from transformers import ClapAudioConfig, ClapAudioModel

    encoder = ClapAudioModel(ClapAudioConfig(**tiny_audio_settings())).audio_encoder
    randomise(encoder, 3)
    state = encoder.state_dict()
    converted = convert_htsat(original_htsat_names(state))
    assert set(state) - set(converted) == {name for name in state if name.endswith("relative_position_index")}
    assert set(converted) <= set(state)
    for name, value in converted.items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("fusion", [False, True])
def test_fusion_is_told_by_names_and_left_out(fusion):
    model = tiny_clap(fusion=fusion)
    state = original_htsat_names(model.audio_model.audio_encoder.state_dict())
    assert is_fused(state) is fusion
    assert not any("fusion" in name or "mel_conv2d" in name for name in convert_htsat(state))


def test_other_networks_are_refused():
    with pytest.raises(CheckpointError, match="no HTSAT"):
        htsat_config({"conv_block1.conv1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no RoBERTa"):
        convert_laion_clap({"text_branch.transformer.resblocks.0.weight": torch.zeros(1)})


def test_incomplete_weights_are_refused():
    model = torch.nn.Linear(2, 3)
    with pytest.raises(CheckpointError, match="1 weights missing, 1 unknown, such as bias"):
        fill(model, {"weight": torch.zeros(3, 2), "other": torch.zeros(1)})
    fill(model, {"weight": torch.ones(3, 2, dtype=torch.float16), "bias": torch.zeros(3)})
    assert torch.equal(model.weight, torch.ones(3, 2))


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_open_with_the_scores_of_training_in_them(tmp_path, zipped):
    path = tmp_path / "a.pt"
    content = {"epoch": 2, "best": np.float64(0.5), "count": np.int64(3), "state_dict": {"module.weight": torch.arange(3.0)}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_checkpoint(path, "state_dict")["weight"], torch.arange(3.0))
    # As written under NumPy 1.
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    if not zipped:  # a zip's sums would not fit any more
        assert torch.equal(read_checkpoint(path, "state_dict")["weight"], torch.arange(3.0))


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("sprung",))

    torch.save({"state_dict": {"weight": torch.zeros(1)}, "more": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        read_checkpoint(tmp_path / "trap.pt", "state_dict")
