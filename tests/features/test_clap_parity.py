"""Our reading of the packages' checkpoints against the packages' own networks: equal numbers from raw audio."""

import numpy as np
import pytest
import torch
from clap_packages import laion_audio_settings, package_module, projection, sounds
from hub_clap_models import randomise, save_tiny_gpt2_tokenizer, save_tiny_roberta_tokenizer

from qamdetr.features.base import EncoderOptions
from qamdetr.features.laion_clap import open_laion_clap
from qamdetr.features.ms_clap import open_ms_clap

TOLERANCE = 1e-4
QUERY = "a dog barks, then birds sing"


@torch.inference_mode()
@pytest.mark.slow
@pytest.mark.parametrize("filters_stored", [True, False])
def test_ms_clap_equals_the_package(tmp_path, filters_stored):
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
    opened = open_ms_clap(tmp_path, EncoderOptions(batch_clips=2))

    samples = sounds(44_100, 2.0)
    expected = wrapper(samples.reshape(2, 44_100))["embedding"]
    assert (expected[0] - expected[1]).abs().max() > 100 * TOLERANCE  # the input matters
    torch.testing.assert_close(opened.audio.encode_audio(samples.numpy()), expected, atol=TOLERANCE, rtol=0)

    # As `CLAPWrapper.preprocess_text` pads: to 77, with "!" (0), masked.
    ids = tokenizer.encode(QUERY + " <|endoftext|>").ids
    padded = torch.tensor([ids + [0] * (77 - len(ids))])
    mask = (torch.arange(77) < len(ids))[None].long()
    expected = gpt2(input_ids=padded, attention_mask=mask).last_hidden_state[0, : len(ids)]
    torch.testing.assert_close(opened.text.encode_text(QUERY).tokens, expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
@pytest.mark.slow
@pytest.mark.parametrize(("size", "fused"), [("tiny", False), ("base", False), ("tiny", True)])
def test_laion_clap_equals_the_package(tmp_path, size, fused):
    from transformers import ClapFeatureExtractor, RobertaConfig, RobertaModel

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
    opened = open_laion_clap(path, EncoderOptions(batch_clips=2))

    samples = sounds(48_000, 2.3)
    windows = [samples[begin : begin + 48_000] for begin in range(0, len(samples), 48_000)]
    longer = torch.zeros(len(windows), dtype=torch.bool)
    if fused:
        extractor = ClapFeatureExtractor(frequency_min=50)
        mels = extractor([window.numpy() for window in windows], sampling_rate=48_000, truncation="fusion", return_tensors="pt")
        inputs = {"mel_fusion": mels["input_features"].float(), "longer": longer}
    else:  # `training.data.get_audio_features` with "repeatpad"
        inputs = {"waveform": torch.stack([_repeatpad(window) for window in windows]), "longer": longer}
    expected = audio_projection(htsat(inputs, device="cpu")["embedding"])
    assert (expected[0] - expected[1]).abs().max() > 100 * TOLERANCE  # the input matters
    torch.testing.assert_close(opened.audio.encode_audio(samples.numpy()), expected, atol=TOLERANCE, rtol=0)

    output = roberta(torch.tensor([tokenizer.encode(QUERY).ids]))
    features = opened.text.encode_text(QUERY)
    torch.testing.assert_close(features.tokens, output.last_hidden_state[0], atol=TOLERANCE, rtol=0)
    pooled = torch.nn.functional.normalize(text_projection(output.pooler_output)[0], dim=-1)
    torch.testing.assert_close(features.pooled, pooled, atol=TOLERANCE, rtol=0)


def _repeatpad(window: torch.Tensor) -> torch.Tensor:
    repeated = window.repeat(int(480_000 / len(window)))
    return torch.nn.functional.pad(repeated, (0, 480_000 - len(repeated)))
