"""What both CLAPs share: the log-mel front end, the reading of the packages' checkpoints, and equal numbers to the packages themselves."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from clap_packages import laion_audio_settings, package_module, projection, sounds
from hub_models import (
    encode_samples,
    original_htsat_names,
    randomise,
    save_tiny_gpt2_tokenizer,
    save_tiny_roberta_tokenizer,
    tiny_audio_settings,
    tiny_clap,
)

from qamdetr.errors import CheckpointError
from qamdetr.features.base import STREAMS, EncoderOptions
from qamdetr.features.clap import (
    LaionClap,
    convert_htsat,
    convert_laion_clap,
    fill,
    htsat_config,
    is_fused,
    mel_filters,
    read_checkpoint,
)

TOLERANCE = 1e-4
QUERY = "a dog barks, then birds sing"


@pytest.fixture(scope="module")
def stock():
    from transformers import ClapFeatureExtractor

    return ClapFeatureExtractor(frequency_min=50)


def windows() -> dict[str, np.ndarray]:
    whole = sounds(48_000, 1.0).numpy()
    spike = np.zeros(48_000, np.float32)
    spike[[0, 47_999]] = 0.5
    silence = np.zeros(48_000, np.float32)
    parts = {"half": whole[:24_000], "odd": whole[:12_345], "nearly whole": whole[:47_999], "one sample": whole[-1:]}
    return {"whole": whole, "silence": silence, "ends that do not meet": spike, **parts}


@pytest.mark.parametrize("name", list(windows()))
@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
def test_log_mels_equal_the_stock_extractor(stock, name: str, truncation: str) -> None:
    samples = windows()[name]
    expected = stock(samples, sampling_rate=48_000, truncation=truncation, padding="repeatpad", return_tensors="pt")["input_features"][0]
    encoder = object.__new__(LaionClap)
    encoder._filters = mel_filters(48_000, htk=truncation == "fusion")
    ours = encoder.log_mels(torch.from_numpy(samples)[None])[0]
    assert ours.shape == (1001, 64)
    for channel in expected:  # fusion: four equal ones
        difference_db = (ours - channel).abs()
        # Where partial waves cancel, single precision shows; the packages' own front ends run in it too.
        assert difference_db.max() < 0.02
        assert (difference_db > 1e-3).float().mean() < 5e-3


@pytest.mark.parametrize("fusion", [False, True])
def test_sizes_and_names_of_an_original_htsat_are_told_from_its_weights(fusion: bool) -> None:
    from transformers import ClapAudioConfig, ClapAudioModel

    settings = tiny_audio_settings()
    encoder = ClapAudioModel(ClapAudioConfig(**settings)).audio_encoder
    randomise(encoder, 3)
    original = original_htsat_names(encoder.state_dict())
    told = htsat_config(original)
    for name in ("patch_embeds_hidden_size", "depths", "num_attention_heads", "hidden_size"):
        assert getattr(told, name) == settings[name], name
    converted = convert_htsat(original)
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in converted.items())
    assert all(name.endswith("relative_position_index") for name in encoder.state_dict() if name not in converted)
    state = original_htsat_names(tiny_clap(fusion=fusion).audio_model.audio_encoder.state_dict())
    assert is_fused(state) is fusion
    assert not any("fusion" in name or "mel_conv2d" in name for name in convert_htsat(state))


def test_another_text_network_is_refused_and_half_precision_is_read() -> None:
    with pytest.raises(CheckpointError, match="no RoBERTa"):
        convert_laion_clap({"text_branch.transformer.resblocks.0.weight": torch.zeros(1)})
    model = torch.nn.Linear(2, 3)
    fill(model, {"weight": torch.ones(3, 2, dtype=torch.float16), "bias": torch.zeros(3)})
    assert torch.equal(model.weight, torch.ones(3, 2))


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_open_with_the_scores_of_training_in_them(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.pt"
    content = {"epoch": 2, "best": np.float64(0.5), "count": np.int64(3), "state_dict": {"module.weight": torch.arange(3.0)}}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_checkpoint(path, "state_dict")["weight"], torch.arange(3.0))
    if not zipped:  # as written under NumPy 1; a zip's sums would not fit any more
        path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert torch.equal(read_checkpoint(path, "state_dict")["weight"], torch.arange(3.0))


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "more": functools.partial(print, "sprung")}, tmp_path / "trap.pt")
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        read_checkpoint(tmp_path / "trap.pt", "state_dict")


@torch.inference_mode()
@pytest.mark.slow
@pytest.mark.parametrize("filters_stored", [True, False])
def test_ms_clap_equals_the_package(tmp_path: Path, filters_stored: bool) -> None:
    from transformers import GPT2Config, GPT2Model

    tokenizer = save_tiny_gpt2_tokenizer(tmp_path)
    with package_module("msclap", "models", "htsat") as module:
        wrapper = module.HTSATWrapper(44_100, 1024, 320, 64, 50, 8000, 527, 768).eval()
    gpt2 = GPT2Model(GPT2Config(vocab_size=tokenizer.get_vocab_size(), n_embd=128, n_layer=2, n_head=2)).eval()
    randomise(wrapper.htsat, 1)
    randomise(gpt2, 2)
    state = {f"audio_encoder.base.{name}": value for name, value in wrapper.state_dict().items()}
    state |= {f"audio_encoder.projection.{name}": torch.ones(4) for name in ("linear1.weight", "linear2.weight", "layer_norm.weight")}
    state |= {f"caption_encoder.base.{name}": value for name, value in gpt2.state_dict().items()}
    # Old versions of Transformers stored the causal mask.
    state |= {"caption_encoder.base.h.0.attn.bias": torch.ones(1, 1, 4, 4), "caption_encoder.base.h.0.attn.masked_bias": torch.tensor(-1e4)}
    if not filters_stored:
        state = {name: value for name, value in state.items() if "_extractor." not in name}
    torch.save({"model": {**state, "logit_scale": torch.tensor(1.0)}}, tmp_path / "CLAP_weights_2023.pth")
    encoder = STREAMS["ms_clap"](tmp_path, EncoderOptions(batch_clips=2))

    samples = sounds(44_100, 2.0)
    expected = wrapper(samples.reshape(2, 44_100))["embedding"]
    assert (expected[0] - expected[1]).abs().max() > 100 * TOLERANCE  # the input matters
    torch.testing.assert_close(encode_samples(encoder, samples.numpy()), expected, atol=TOLERANCE, rtol=0)
    # As `CLAPWrapper.preprocess_text` pads: to 77, with "!" (0), masked.
    ids = tokenizer.encode(QUERY + " <|endoftext|>").ids
    padded, mask = torch.tensor([ids + [0] * (77 - len(ids))]), (torch.arange(77) < len(ids))[None].long()
    expected = gpt2(input_ids=padded, attention_mask=mask).last_hidden_state[0, : len(ids)]
    torch.testing.assert_close(encoder.encode_text(QUERY).tokens, expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
@pytest.mark.slow
@pytest.mark.parametrize(("size", "fused"), [("tiny", False), ("base", False), ("tiny", True)])
def test_laion_clap_equals_the_package(tmp_path: Path, stock, size: str, fused: bool) -> None:
    from transformers import RobertaConfig, RobertaModel

    tokenizer = save_tiny_roberta_tokenizer(tmp_path)
    with package_module("laion_clap", "clap_module", "htsat") as module:
        htsat = module.create_htsat_model(laion_audio_settings(size), enable_fusion=fused, fusion_type="aff_2d" if fused else "None").eval()
    text_settings = {"vocab_size": tokenizer.get_vocab_size(), "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text_settings |= {"intermediate_size": 96, "max_position_embeddings": 82, "layer_norm_eps": 1e-5, "type_vocab_size": 1}
    roberta = RobertaModel(RobertaConfig(**text_settings)).eval()
    audio_projection, text_projection = projection(htsat.num_features, 24), projection(128, 24)
    parts = {"audio_branch": htsat, "text_branch": roberta, "audio_projection": audio_projection, "text_projection": text_projection}
    state = {"module.logit_scale_a": torch.tensor(1.0), "module.logit_scale_t": torch.tensor(1.0)}
    for number, (name, part) in enumerate(parts.items()):
        randomise(part, number)
        state |= {f"module.{name}.{key}": value for key, value in part.state_dict().items()}
    state["module.text_branch.embeddings.position_ids"] = torch.arange(82)[None]
    path = tmp_path / "630k-audioset-best.pt"
    torch.save({"epoch": 1, "name": "run", "best": np.float64(0.3), "state_dict": state, "optimizer": {"state": {}}}, path)
    encoder = STREAMS["laion_clap"](path, EncoderOptions(batch_clips=2))

    samples = sounds(48_000, 2.3)
    seconds = [samples[begin : begin + 48_000] for begin in range(0, len(samples), 48_000)]
    longer = torch.zeros(len(seconds), dtype=torch.bool)
    if fused:
        mels = stock([second.numpy() for second in seconds], sampling_rate=48_000, truncation="fusion", return_tensors="pt")
        inputs = {"mel_fusion": mels["input_features"].float(), "longer": longer}
    else:  # `training.data.get_audio_features` with "repeatpad"
        repeated = [second.repeat(int(480_000 / len(second))) for second in seconds]
        padded = [torch.nn.functional.pad(second, (0, 480_000 - len(second))) for second in repeated]
        inputs = {"waveform": torch.stack(padded), "longer": longer}
    expected = audio_projection(htsat(inputs, device="cpu")["embedding"])
    assert (expected[0] - expected[1]).abs().max() > 100 * TOLERANCE  # the input matters
    torch.testing.assert_close(encode_samples(encoder, samples.numpy()), expected, atol=TOLERANCE, rtol=0)
    output = roberta(torch.tensor([tokenizer.encode(QUERY).ids]))
    features = encoder.encode_text(QUERY)
    torch.testing.assert_close(features.tokens, output.last_hidden_state[0], atol=TOLERANCE, rtol=0)
    pooled = torch.nn.functional.normalize(text_projection(output.pooler_output)[0], dim=-1)
    torch.testing.assert_close(features.pooled, pooled, atol=TOLERANCE, rtol=0)
