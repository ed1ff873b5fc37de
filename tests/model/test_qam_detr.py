"""The whole network: every switch, padding, negatives, bypass, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qamdetr.config import LossConfig, ModelConfig
from qamdetr.errors import ConfigError
from qamdetr.features.pipeline import prepare
from qamdetr.kernels import speed_up
from qamdetr.model.losses import compute_losses
from qamdetr.model.qam_detr import QamDetr
from qamdetr.types import Targets, TextFeatures

AUDIO = {"main": 12, "extra": 5}
TEXT = {"main": 12, "words": 7}
SMALL = {"dim": 16, "num_heads": 4, "ffn_dim": 32, "mamba_state": 4, "num_moment_queries": 5}
PLAIN = {"fusion": "text_to_audio", "encoder": "transformer", "global_token": True, "multiscale": False, "quality": False}
BASELINE = ModelConfig({"main": 12}, {"main": 12}, **PLAIN, **SMALL)
# The six rows of the report's Table 1, each adding to the one before.
TABLE_1 = {"baseline": BASELINE}
TABLE_1["bimamba"] = replace(BASELINE, encoder="bimamba")
TABLE_1["quality"] = replace(TABLE_1["bimamba"], quality=True)
TABLE_1["multiscale"] = replace(TABLE_1["quality"], multiscale=True)
TABLE_1["three_way"] = replace(TABLE_1["multiscale"], fusion="three_way", global_token=False)
TABLE_1["multi_feature"] = FULL = replace(TABLE_1["three_way"], audio_streams=AUDIO, text_streams=TEXT)
CONFIGS = {
    **TABLE_1,
    "similarity": replace(FULL, similarity=True),
    "transformer_full": replace(FULL, encoder="transformer"),
    "dense": replace(FULL, decoder="dense", decoder_layers=1),
    "one_decoder_layer": replace(FULL, decoder_layers=1),
    "three_decoder_layers": replace(FULL, decoder_layers=3, encoder_layers=1, multiscale_strides=(3,)),
}
ENCODERS = ["baseline", "similarity", "transformer_full", "multiscale"]


def make_items(clips, tokens):
    generator = torch.Generator().manual_seed(0)

    def features(rows, streams):
        return {name: torch.randn(rows, width, generator=generator) for name, width in streams.items()}

    audio, text = [features(count, AUDIO) for count in clips], []
    for count in tokens:
        offsets = tuple((3 * index, 3 * index + 2) for index in range(count))
        pooled = torch.nn.functional.normalize(torch.randn(12, generator=generator), dim=0)
        text.append({name: TextFeatures(tokens, offsets, pooled) for name, tokens in features(count, TEXT).items()})
    return audio, text


def make_batch(clips=(9, 24, 17), tokens=(3, 6, 4)):
    return prepare(*make_items(clips, tokens))


def make_targets(batch):
    labels = torch.zeros(batch.audio_mask.shape)
    labels[0, 2:5], labels[1, 3:5], labels[1, 10:14] = 1.0, 1.0, 1.0
    spans_cxw = torch.tensor([[3.5 / 9, 3 / 9], [4 / 24, 2 / 24], [12 / 24, 4 / 24]])
    return Targets(spans_cxw, (1, 2, 0), labels, torch.tensor([1, 2, -1]))


def make_model(config):
    """A model as training leaves it: nothing at exactly zero."""
    torch.manual_seed(0)
    model = QamDetr(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


def tensors(output):
    found = {"saliency": output.saliency}
    for index, layer in enumerate((*output.auxiliary, output.decoder)):
        found |= {f"logits{index}": layer.logits, f"spans{index}": layer.spans_cxw}
        if layer.quality_logits is not None:
            found[f"quality{index}"] = layer.quality_logits
    return found


def assert_equal(actual, expected, atol=1e-5):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, atol=atol, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_switch_trains_and_every_parameter_learns(name):
    model, batch = make_model(CONFIGS[name]).train(), make_batch()
    targets = make_targets(batch)
    output = model(batch, targets.negative_index)
    parts = compute_losses(output, batch, targets, LossConfig())
    parts["total"].backward()
    assert bool(torch.isfinite(parts["total"]))
    assert ("quality" in parts) == CONFIGS[name].quality
    assert len(output.auxiliary) == CONFIGS[name].decoder_layers - 1
    idle = [key for key, parameter in model.named_parameters() if parameter.grad is None or not bool(parameter.grad.any())]
    assert idle == []


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_network_that_is_sped_up_answers_the_same(name):
    model, batch = make_model(CONFIGS[name]), make_batch()
    expected = tensors(model(batch))
    assert_equal(tensors(speed_up(model)(batch)), expected)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_an_item_gives_the_same_output_alone_and_in_a_padded_batch_whatever_stands_in_the_padding(name):
    model, lengths = make_model(CONFIGS[name]), [9, 24, 1, 17]
    audio, text = make_items(lengths, [3, 6, 4, 1])
    batch = prepare(audio, text)
    fill = lambda streams, mask: {key: value.masked_fill(~mask[..., None], 3.0) for key, value in streams.items()}  # noqa: E731
    filled = replace(batch, audio=fill(batch.audio, batch.audio_mask), text=fill(batch.text, batch.text_mask))
    together = tensors(model(filled))
    for item, count in enumerate(lengths):
        alone = tensors(model(prepare([audio[item]], [text[item]])))
        own = {key: value[item : item + 1, :count] if key == "saliency" else value[item : item + 1] for key, value in together.items()}
        assert_equal(own, alone)


@pytest.mark.parametrize("name", ["baseline", "similarity", "dense"])
@torch.no_grad()
def test_negative_pairs_are_the_audio_with_the_other_text(name):
    model, batch = make_model(CONFIGS[name]), make_batch()
    output, plain = model(batch, torch.tensor([2, -1, 0])), model(batch)
    other, pooled = torch.tensor([2, 1, 0]), batch.text_pooled
    text, mask = {name: rows[other] for name, rows in batch.text.items()}, batch.text_mask[other]
    swapped = model(replace(batch, text=text, text_mask=mask, text_pooled=None if pooled is None else pooled[other]))
    torch.testing.assert_close(output.negative_saliency, swapped.saliency[[0, 2]], atol=1e-5, rtol=1e-5)
    assert torch.equal(output.negative_mask, batch.audio_mask[[0, 2]])
    assert_equal(tensors(output), tensors(plain))
    if name == "dense":
        torch.testing.assert_close(output.negative_decoder.logits, swapped.decoder.logits[[0, 2]], atol=1e-5, rtol=1e-5)
    else:
        assert output.negative_decoder is None
    assert plain.negative_saliency is plain.negative_decoder is None
    assert model(batch, torch.full((3,), -1)).negative_saliency is None


@torch.no_grad()
def test_each_bypass_changes_the_answer_and_names_itself():
    model, batch = make_model(FULL), make_batch()
    assert model.bypassable == {"three_way", "multiscale", "quality", "audio/extra", "text/words"}
    whole = tensors(model(batch))
    bypassed = {name: tensors(model(batch, bypass={name})) for name in model.bypassable}
    for name in model.bypassable - {"quality"}:
        assert not torch.allclose(bypassed[name]["spans1"], whole["spans1"], atol=1e-5), name
    assert_equal(bypassed["quality"], {key: value for key, value in whole.items() if "quality" not in key})
    for scale in model.multiscale.scales:
        scale.zero_()
    assert_equal(bypassed["multiscale"], tensors(model(batch)))


@torch.no_grad()
def test_similarity_is_the_cosine_and_survives_input_dropout():
    model, batch = make_model(replace(CONFIGS["similarity"], input_dropout=0.999, dropout=0.0)), make_batch()
    seen, outputs = [], []
    model.similarity.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.train()
    for pooled in (batch.text_pooled, -batch.text_pooled):  # with all other input dropped, the cosine still gets through
        torch.manual_seed(0)
        outputs.append(model(replace(batch, text_pooled=pooled)).saliency)
    assert float((outputs[0] - outputs[1])[batch.audio_mask].abs().min()) > 0
    cosine = torch.nn.functional.cosine_similarity(batch.audio["main"][1, :, :12], batch.text_pooled[1][None], dim=-1)
    torch.testing.assert_close(seen[0][1, :, 0], cosine, atol=1e-5, rtol=1e-5)


def ask(config, **changes):
    return QamDetr(config)(replace(make_batch(), **changes))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: QamDetr(FULL)(make_batch(), bypass={"audio/main"}), "cannot bypass 'audio/main'; it can bypass audio/extra, "),
        (lambda: QamDetr(BASELINE)(make_batch(), bypass={"quality"}), "cannot bypass 'quality'; it can"),
        (lambda: ask(CONFIGS["similarity"], text_pooled=None), r"model\.similarity=false"),
        (lambda: ask(CONFIGS["similarity"], text_pooled=torch.zeros(3, 6)), "have 6 columns and clips of 'main' have 12"),
        (lambda: ask(replace(FULL, audio_streams={"main": 12, "wavlm_base": 8})), "audio stream 'wavlm_base' but got main, extra"),
        (lambda: ask(replace(FULL, audio_streams={"main": 8})), "has 14 columns but the model takes 10"),
        (lambda: QamDetr(replace(FULL, dim=18)), r"model\.dim is 18"),
        (lambda: QamDetr(replace(FULL, num_heads=3)), r"model\.num_heads \(3\)"),
        (lambda: QamDetr(replace(FULL, multiscale_strides=(1, 4))), r"model\.multiscale_strides is \[1, 4\]"),
    ],
)
def test_impossible_configurations_unknown_bypasses_and_batches_of_another_combo_are_refused(attempt, message):
    with pytest.raises(ConfigError, match=message):
        attempt()


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_one_recording_asked_several_queries_gives_what_each_pair_gives(name):
    model, negative_index = make_model(CONFIGS[name]), torch.tensor([2, -1, 0])
    audio, text = make_items([21], [3, 6, 4])
    shared, pairs = model(prepare(audio, text), negative_index), model(prepare(audio * 3, text), negative_index)
    assert_equal(tensors(shared), tensors(pairs))
    torch.testing.assert_close(shared.negative_saliency, pairs.negative_saliency, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(pairs.saliency[0], pairs.saliency[1], atol=1e-3)  # the queries do say different things
