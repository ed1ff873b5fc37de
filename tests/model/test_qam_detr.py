"""The whole network: every switch, padding, negatives, bypass, and a training step that learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qamdetr.config import LossConfig, ModelConfig
from qamdetr.errors import ConfigError
from qamdetr.features.pipeline import prepare
from qamdetr.model.losses import compute_losses
from qamdetr.model.qam_detr import QamDetr
from qamdetr.spans import iou, span_cxw_to_xx
from qamdetr.types import Batch, ModelOutput, Targets, TextFeatures

AUDIO = {"main": 12, "extra": 5}
TEXT = {"main": 12, "words": 7}
SMALL = {"dim": 16, "num_heads": 4, "ffn_dim": 32, "mamba_state": 4, "num_moment_queries": 5}
BASELINE = ModelConfig(
    {"main": 12},
    {"main": 12},
    fusion="text_to_audio",
    encoder="transformer",
    global_token=True,
    multiscale=False,
    quality=False,
    **SMALL,
)
# The six rows of the report's Table 1, each adding to the one before.
TABLE_1 = {"baseline": BASELINE}
TABLE_1["bimamba"] = replace(BASELINE, encoder="bimamba")
TABLE_1["quality"] = replace(TABLE_1["bimamba"], quality=True)
TABLE_1["multiscale"] = replace(TABLE_1["quality"], multiscale=True)
TABLE_1["three_way"] = replace(TABLE_1["multiscale"], fusion="three_way", global_token=False)
TABLE_1["multi_feature"] = replace(TABLE_1["three_way"], audio_streams=AUDIO, text_streams=TEXT)
FULL = TABLE_1["multi_feature"]
OTHERS = {
    "similarity": replace(FULL, similarity=True),
    "transformer_full": replace(FULL, encoder="transformer"),
    "one_decoder_layer": replace(FULL, decoder_layers=1),
    "three_decoder_layers": replace(FULL, decoder_layers=3, encoder_layers=1, multiscale_strides=(3,)),
}
CONFIGS = {**TABLE_1, **OTHERS}
ENCODERS = {name: CONFIGS[name] for name in ("baseline", "similarity", "transformer_full")}


def make_items(clips: list[int], tokens: list[int], seed: int = 0) -> tuple[list[dict], list[dict]]:
    generator = torch.Generator().manual_seed(seed)
    audio = [{name: torch.randn(count, width, generator=generator) for name, width in AUDIO.items()} for count in clips]
    text = []
    for count in tokens:
        offsets = tuple((3 * index, 3 * index + 2) for index in range(count))
        pooled = torch.nn.functional.normalize(torch.randn(12, generator=generator), dim=0)
        text.append({name: TextFeatures(torch.randn(count, width, generator=generator), offsets, pooled) for name, width in TEXT.items()})
    return audio, text


def make_batch(clips: tuple[int, ...] = (9, 24, 17), tokens: tuple[int, ...] = (3, 6, 4), seed: int = 0) -> Batch:
    return prepare(*make_items(list(clips), list(tokens), seed))


def make_targets(batch: Batch) -> Targets:
    labels = torch.zeros(batch.audio_mask.shape)
    labels[0, 2:5], labels[1, 3:5], labels[1, 10:14] = 1.0, 1.0, 1.0
    spans_cxw = torch.tensor([[3.5 / 9, 3 / 9], [4 / 24, 2 / 24], [12 / 24, 4 / 24]])
    return Targets(spans_cxw, (1, 2, 0), labels, torch.tensor([1, 2, -1]))


def make_model(config: ModelConfig, *, noise: float = 0.05) -> QamDetr:
    """A model as training leaves it: nothing at exactly zero."""
    torch.manual_seed(0)
    model = QamDetr(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model


def tensors(output: ModelOutput) -> dict[str, torch.Tensor]:
    found = {"saliency": output.saliency}
    for index, layer in enumerate((*output.auxiliary, output.decoder)):
        found |= {f"logits{index}": layer.logits, f"spans{index}": layer.spans_cxw}
        if layer.quality_logits is not None:
            found[f"quality{index}"] = layer.quality_logits
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_every_switch_trains_and_every_parameter_learns(name):
    model, batch = make_model(CONFIGS[name]), make_batch()
    targets = make_targets(batch)
    output = model(batch, targets.negative_index)
    parts = compute_losses(output, batch, targets, LossConfig())
    parts["total"].backward()
    assert bool(torch.isfinite(parts["total"]))
    assert ("quality" in parts) == CONFIGS[name].quality
    assert len(output.auxiliary) == CONFIGS[name].decoder_layers - 1
    idle = [key for key, parameter in model.named_parameters() if parameter.grad is None or not bool(parameter.grad.any())]
    assert idle == []


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_an_item_gives_the_same_output_alone_and_in_a_padded_batch(name):
    model = make_model(ENCODERS[name]).eval()
    audio, text = make_items([9, 24, 1, 17], [3, 6, 4, 1])
    together = tensors(model(prepare(audio, text)))
    for item, count in enumerate([9, 24, 1, 17]):
        alone = tensors(model(prepare([audio[item]], [text[item]])))
        for key, value in alone.items():
            batched = together[key][item, :count] if key == "saliency" else together[key][item]
            torch.testing.assert_close(batched, value[0], atol=1e-5, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing(name):
    model, batch = make_model(ENCODERS[name]).eval(), make_batch()
    before = tensors(model(batch))

    def widen(streams: dict[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
        return {key: torch.cat([value, value.new_full((3, rows, value.shape[-1]), 3.0)], dim=1) for key, value in streams.items()}

    wider = replace(
        batch,
        audio=widen(batch.audio, 7),
        audio_mask=torch.nn.functional.pad(batch.audio_mask, (0, 7)),
        text=widen(batch.text, 2),
        text_mask=torch.nn.functional.pad(batch.text_mask, (0, 2)),
    )
    after = tensors(model(wider))
    after["saliency"] = after["saliency"][:, :24]
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, atol=1e-5, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ["baseline", "similarity"])
@torch.no_grad()
def test_negative_pairs_are_the_audio_with_the_other_text(name):
    model, batch = make_model(CONFIGS[name]).eval(), make_batch()
    output = model(batch, torch.tensor([2, -1, 0]))
    swapped = model(batch.with_text_of(torch.tensor([2, 1, 0])))
    assert output.negative_saliency.shape == (2, 24)
    torch.testing.assert_close(output.negative_saliency, swapped.saliency[[0, 2]], atol=1e-5, rtol=1e-5)
    assert torch.equal(output.negative_mask, batch.audio_mask[[0, 2]])
    plain = model(batch)
    for key, value in tensors(plain).items():
        torch.testing.assert_close(tensors(output)[key], value, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_negatives_asked_or_found_gives_none():
    model, batch = make_model(FULL).eval(), make_batch()
    for index in (None, torch.full((3,), -1)):
        output = model(batch, index)
        assert output.negative_saliency is None
        assert output.negative_mask is None


def test_decoder_never_runs_on_negative_pairs():
    model, batch = make_model(FULL), make_batch()
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0]))
    model(batch, torch.tensor([1, 2, 0]))
    assert seen == [3]


@torch.no_grad()
def test_outputs_have_the_promised_ranges_and_shapes():
    output = make_model(FULL).eval()(make_batch())
    assert output.decoder.logits.shape == (3, 5, 2)
    assert output.decoder.quality_logits.shape == (3, 5)
    assert bool(((output.decoder.spans_cxw >= 0) & (output.decoder.spans_cxw <= 1)).all())
    assert bool((output.saliency[0, 9:] == torch.finfo(torch.float32).min).all())
    assert set(output.gates) == {"audio/extra", "text/words"}
    assert all(0 <= gate <= 1 for gate in output.gates.values())


@torch.no_grad()
def test_each_bypass_changes_the_answer_and_names_itself():
    model, batch = make_model(FULL).eval(), make_batch()
    assert model.bypassable == {"three_way", "multiscale", "quality", "audio/extra", "text/words"}
    whole = tensors(model(batch))
    for name in model.bypassable - {"quality"}:
        assert not torch.allclose(tensors(model(batch, bypass={name}))["spans1"], whole["spans1"], atol=1e-5), name
    without = model(batch, bypass=frozenset({"quality"}))
    assert without.decoder.quality_logits is None
    torch.testing.assert_close(without.decoder.spans_cxw, whole["spans1"])


@torch.no_grad()
def test_bypassing_multiscale_is_a_zero_scale():
    model, batch = make_model(FULL).eval(), make_batch()
    bypassed = tensors(model(batch, bypass={"multiscale"}))
    for scale in model.multiscale.scales:
        scale.zero_()
    for key, value in tensors(model(batch)).items():
        torch.testing.assert_close(bypassed[key], value)


@pytest.mark.parametrize(("config", "name"), [(FULL, "audio/main"), (FULL, "encoder"), (BASELINE, "three_way"), (BASELINE, "quality")])
def test_unknown_bypass_is_refused_with_the_known_ones(config, name):
    model = QamDetr(config)
    with pytest.raises(ConfigError, match=f"cannot bypass {name!r}; it can bypass"):
        model(make_batch(), bypass={name})


@torch.no_grad()
def test_similarity_is_the_cosine_and_is_not_washed_out():
    model, batch = make_model(OTHERS["similarity"]).eval(), make_batch()
    seen = []
    model.similarity.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    before = model(batch).saliency
    cosine = torch.nn.functional.cosine_similarity(batch.audio["main"][1, :, :12], batch.text_pooled[1][None], dim=-1)
    torch.testing.assert_close(seen[0][1, :, 0], cosine, atol=1e-5, rtol=1e-5)
    other = model(replace(batch, text_pooled=-batch.text_pooled)).saliency
    assert float((other - before)[batch.audio_mask].abs().mean()) > 1e-3


def test_similarity_survives_input_dropout():
    """In training mode with all other input dropped, the cosine still gets through."""
    model, batch = make_model(replace(OTHERS["similarity"], input_dropout=0.999, dropout=0.0)).train(), make_batch()
    torch.manual_seed(0)
    before = model(batch).saliency
    torch.manual_seed(0)
    after = model(replace(batch, text_pooled=-batch.text_pooled)).saliency
    assert float((after - before)[batch.audio_mask].detach().abs().min()) > 0


def test_similarity_needs_a_joint_space():
    model, batch = QamDetr(OTHERS["similarity"]), make_batch()
    with pytest.raises(ConfigError, match=r"model\.similarity=false"):
        model(replace(batch, text_pooled=None))
    with pytest.raises(ConfigError, match="have 6 columns and clips of 'main' have 12"):
        model(replace(batch, text_pooled=batch.text_pooled[:, :6]))


def test_batch_of_another_combo_is_refused():
    with pytest.raises(ConfigError, match="audio stream 'wavlm_base'"):
        QamDetr(replace(FULL, audio_streams={"main": 12, "wavlm_base": 8}))(make_batch())
    with pytest.raises(ConfigError, match="has 14 columns but the model takes 10"):
        QamDetr(replace(FULL, audio_streams={"main": 8}))(make_batch())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 18}, r"model\.dim is 18"),
        ({"num_heads": 3}, r"model\.num_heads \(3\)"),
        ({"decoder_layers": 0}, r"model\.decoder_layers is 0"),
        ({"num_moment_queries": 0}, r"model\.num_moment_queries is 0"),
        ({"multiscale_strides": (1, 4)}, r"model\.multiscale_strides is \[1, 4\]"),
        ({"multiscale_strides": ()}, r"model\.multiscale_strides is \[\]"),
        ({"audio_streams": {}}, r"at least one stream"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        QamDetr(replace(FULL, **change))


def test_baseline_has_the_size_of_the_official_one():
    streams = {"ms_clap": 768}
    config = ModelConfig(
        streams, streams, fusion="text_to_audio", encoder="transformer", global_token=True, multiscale=False, quality=False
    )
    size = sum(parameter.numel() for parameter in QamDetr(config).parameters())
    # 7,123,237 there, 8,704 of them in text positions that it never uses.
    assert size == pytest.approx(7.12e6, rel=0.01)


@pytest.mark.parametrize("name", ["baseline", "multi_feature"])
def test_training_finds_the_moments_of_three_items(name):
    """A few steps on one batch must put a confident span on every moment and saliency on their clips."""
    torch.manual_seed(0)
    model, batch = QamDetr(replace(CONFIGS[name], dropout=0.0, input_dropout=0.0)), make_batch()
    targets = make_targets(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        compute_losses(model(batch, targets.negative_index), batch, targets, LossConfig())["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        output = model.eval()(batch)
    foreground = output.decoder.logits.softmax(-1)[..., 0]
    owners = [item for item, count in enumerate(targets.num_spans) for _ in range(count)]
    for span, item in zip(targets.spans_cxw, owners, strict=True):
        confident = output.decoder.spans_cxw[item][foreground[item] > 0.5]
        assert float(iou(span_cxw_to_xx(confident), span_cxw_to_xx(span)).max()) > 0.7
    inside = targets.saliency > 0
    for item in (0, 1):
        outside = ~inside[item] & batch.audio_mask[item]
        assert float(output.saliency[item][inside[item]].min()) > float(output.saliency[item][outside].max())
    assert float(foreground[2].max()) < 0.5


@pytest.mark.parametrize("name", CONFIGS)
def test_one_recording_asked_several_queries_gives_what_each_pair_gives(name):
    torch.manual_seed(0)
    model = QamDetr(CONFIGS[name]).eval()
    audio, text = make_items([21], [3, 6, 4])
    with torch.no_grad():
        shared, pairs = model(prepare(audio, text)), model(prepare(audio * 3, text))
    torch.testing.assert_close(shared.decoder.spans_cxw, pairs.decoder.spans_cxw, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shared.decoder.logits, pairs.decoder.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shared.saliency, pairs.saliency, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(pairs.saliency[0], pairs.saliency[1], atol=1e-3)  # the queries do say different things


def test_negative_pairs_of_one_recording():
    torch.manual_seed(0)
    model = QamDetr(CONFIGS["similarity"]).eval()
    audio, text = make_items([21], [3, 6, 4])
    negative_index = torch.tensor([2, -1, 0])
    with torch.no_grad():
        shared, pairs = model(prepare(audio, text), negative_index), model(prepare(audio * 3, text), negative_index)
    torch.testing.assert_close(shared.negative_saliency, pairs.negative_saliency, rtol=1e-4, atol=1e-5)
