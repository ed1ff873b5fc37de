"""LAION-CLAP from disk: equal to the stock path, whatever the batch, the file format or the package the weights came from."""

import shutil

import numpy as np
import pytest
import torch
from clap_packages import sounds
from hub_clap_models import save_tiny_laion_clap, save_tiny_laion_clap_checkpoint

from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.features.base import EncoderOptions
from qamdetr.features.laion_clap import SAMPLE_RATE_HZ, open_laion_clap

QUERY = "a dog barks twice, then silence"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_laion_clap(tmp_path_factory.mktemp("laion"))


@pytest.fixture(scope="module")
def opened(folder):
    return open_laion_clap(folder, EncoderOptions())


@pytest.fixture(scope="module")
def samples():
    return sounds(SAMPLE_RATE_HZ, 3.3).numpy()


@torch.inference_mode()
@pytest.mark.parametrize("fusion", [False, True])
def test_equals_the_stock_path(tmp_path, samples, fusion):
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    folder = save_tiny_laion_clap(tmp_path, fusion=fusion)
    opened = open_laion_clap(folder, EncoderOptions(batch_clips=2))
    model, extractor = ClapModel.from_pretrained(folder), ClapFeatureExtractor.from_pretrained(folder)
    windows = [samples[begin : begin + SAMPLE_RATE_HZ] for begin in range(0, len(samples), SAMPLE_RATE_HZ)]
    inputs = extractor(windows, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
    # The stock processor calls one clip of a fused batch longer than it is, at random.
    pooled = model.audio_model(inputs["input_features"].float(), is_longer=torch.zeros(len(windows), 1, dtype=torch.bool)).pooler_output
    expected = model.audio_projection(pooled)
    ours = opened.audio.encode_audio(samples)
    assert ours.shape == (4, 16) == (4, opened.audio.dim)
    assert ours.dtype == torch.float32
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # the input matters
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)

    tokens = AutoTokenizer.from_pretrained(folder)([QUERY], return_tensors="pt")
    output = model.text_model(**tokens)
    features = opened.text.encode_text(QUERY)
    torch.testing.assert_close(features.tokens, output.last_hidden_state[0], atol=1e-5, rtol=1e-5)
    expected = torch.nn.functional.normalize(model.text_projection(output.pooler_output)[0], dim=-1)
    torch.testing.assert_close(features.pooled, expected, atol=1e-5, rtol=1e-5)


def test_query_features_have_offsets_and_a_unit_vector_in_the_audio_space(opened):
    features = opened.text.encode_text(QUERY)
    assert features.tokens.shape == (len(features.offsets), opened.text.dim)
    assert features.offsets[0] == features.offsets[-1] == (0, 0)
    assert [QUERY[begin:end] for begin, end in features.offsets[1:4]] == ["a", "dog", "barks"]
    assert features.pooled.shape == (opened.audio.dim,)
    assert features.pooled.norm().item() == pytest.approx(1, abs=1e-5)


def test_batches_do_not_change_values_and_runs_repeat(folder, opened, samples):
    alone = open_laion_clap(folder, EncoderOptions(batch_clips=1)).audio.encode_audio(samples)
    together = opened.audio.encode_audio(samples)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)
    assert torch.equal(opened.audio.encode_audio(samples), together)
    torch.testing.assert_close(opened.audio.encode_audio(samples[SAMPLE_RATE_HZ : 2 * SAMPLE_RATE_HZ]), together[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 480, SAMPLE_RATE_HZ - 1, SAMPLE_RATE_HZ, SAMPLE_RATE_HZ + 1])
def test_any_length_has_a_clip_for_each_second_begun(opened, samples, length):
    features = opened.audio.encode_audio(samples[:length])
    assert features.shape == (-(-length // SAMPLE_RATE_HZ), 16)
    assert features.isfinite().all()


def test_bfloat16_is_close_but_not_equal(folder, opened, samples):
    small = open_laion_clap(folder, EncoderOptions(dtype=torch.bfloat16))
    ours, exact = small.audio.encode_audio(samples), opened.audio.encode_audio(samples)
    assert ours.dtype == torch.float32
    assert torch.cosine_similarity(ours, exact).min() > 0.999
    assert not torch.equal(ours, exact)
    tokens, exact_tokens = small.text.encode_text(QUERY).tokens, opened.text.encode_text(QUERY).tokens
    assert tokens.dtype == torch.float32
    assert torch.cosine_similarity(tokens, exact_tokens).min() > 0.99
    assert small.fingerprint != opened.fingerprint


def test_the_device_is_respected(folder):
    with pytest.raises((RuntimeError, NotImplementedError)):  # "meta" holds no numbers, so that only a model moved there fails
        open_laion_clap(folder, EncoderOptions(device="meta")).audio.encode_audio(np.zeros(100, np.float32))


def test_package_checkpoint_gives_the_same_features(tmp_path, opened, samples):
    package = open_laion_clap(save_tiny_laion_clap_checkpoint(tmp_path), EncoderOptions())
    torch.testing.assert_close(package.audio.encode_audio(samples), opened.audio.encode_audio(samples), atol=1e-5, rtol=1e-5)
    ours, expected = package.text.encode_text(QUERY), opened.text.encode_text(QUERY)
    torch.testing.assert_close(ours.tokens, expected.tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.pooled, expected.pooled, atol=1e-5, rtol=1e-5)
    assert ours.offsets == expected.offsets


def test_package_checkpoint_alone_takes_the_tokeniser_of_the_hub(tmp_path, monkeypatch):
    checkpoint = save_tiny_laion_clap_checkpoint(tmp_path / "both")
    hub = tmp_path / "hub"
    hub.mkdir()
    (tmp_path / "both" / "tokenizer.json").rename(hub / "tokenizer.json")
    asked = []
    monkeypatch.setattr("qamdetr.features.laion_clap.locate", lambda name: asked.append(name) or hub)
    assert open_laion_clap(checkpoint, EncoderOptions()).text.encode_text(QUERY).offsets[1] == (0, 1)
    assert asked == ["roberta_tokenizer"]


def test_fingerprint_follows_weights_not_files(tmp_path, opened):
    as_bin = save_tiny_laion_clap(tmp_path / "bin", safe=False)
    assert not (as_bin / "model.safetensors").exists()
    assert open_laion_clap(as_bin, EncoderOptions()).fingerprint == opened.fingerprint
    assert open_laion_clap(as_bin, EncoderOptions(batch_clips=3)).fingerprint == opened.fingerprint
    other = save_tiny_laion_clap(tmp_path / "other", seed=7)
    assert open_laion_clap(other, EncoderOptions()).fingerprint != opened.fingerprint


def test_too_long_a_query_is_refused(opened):
    with pytest.raises(QamDetrError, match="at most 64"):
        opened.text.encode_text("a dog barks " * 40)


def _damage_weights(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


def _drop_a_weight(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["audio_projection.linear1.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _other_rate(folder):
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace("48000", "16000"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "lacks config.json"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "lacks preprocessor_config.json"),
        (lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "vocab.json")], "lacks tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot be read"),
        (_damage_weights, "cannot be read"),
        (_drop_a_weight, "audio_projection.linear1.weight"),
        (_other_rate, "16000 Hz"),
    ],
)
def test_damaged_folders_give_one_line(tmp_path, folder, damage, words):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    damage(broken)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_laion_clap(broken, EncoderOptions())
    assert "\n" not in str(caught.value)
    assert str(broken) in str(caught.value)


def test_missing_sources_give_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks config\.json"):
        open_laion_clap(tmp_path / "nowhere", EncoderOptions())
    with pytest.raises(CheckpointError, match=r"nothing\.pt"):
        open_laion_clap(tmp_path / "nothing.pt", EncoderOptions())
