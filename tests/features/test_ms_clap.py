"""MS-CLAP from its published file's layout: windows, features and queries as the public files have them."""

import pytest
import torch
from clap_packages import sounds
from hub_clap_models import save_tiny_ms_clap

from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.features.base import EncoderOptions
from qamdetr.features.ms_clap import SAMPLE_RATE_HZ, WEIGHTS_FILE, open_ms_clap

QUERY = "a dog barks twice, then silence"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_ms_clap(tmp_path_factory.mktemp("msclap"))


@pytest.fixture(scope="module")
def opened(folder):
    return open_ms_clap(folder, EncoderOptions())


@pytest.fixture(scope="module")
def samples():
    return sounds(SAMPLE_RATE_HZ, 3.3).numpy()


def test_whole_seconds_stand_alone_and_the_rest_is_filled_with_itself(opened, samples):
    features = opened.audio.encode_audio(samples)
    assert features.shape == (4, 64) == (4, opened.audio.dim)
    assert (features[0] - features[1]).abs().max() > 1e-3  # the input matters
    for clip in range(3):
        alone = opened.audio.encode_audio(samples[clip * SAMPLE_RATE_HZ : (clip + 1) * SAMPLE_RATE_HZ])
        torch.testing.assert_close(alone[0], features[clip], atol=1e-5, rtol=0)
    rest = torch.from_numpy(samples[3 * SAMPLE_RATE_HZ :])
    filled = torch.cat([rest] * 4)[:SAMPLE_RATE_HZ].numpy()
    torch.testing.assert_close(opened.audio.encode_audio(filled)[0], features[3], atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 512, SAMPLE_RATE_HZ - 1, SAMPLE_RATE_HZ + 1])
def test_any_length_has_a_clip_for_each_second_begun(opened, samples, length):
    features = opened.audio.encode_audio(samples[:length])
    assert features.shape == (-(-length // SAMPLE_RATE_HZ), 64)
    assert features.isfinite().all()


def test_batches_do_not_change_values_and_runs_repeat(folder, opened, samples):
    together = opened.audio.encode_audio(samples)
    torch.testing.assert_close(open_ms_clap(folder, EncoderOptions(batch_clips=2)).audio.encode_audio(samples), together, atol=1e-5, rtol=0)
    assert torch.equal(opened.audio.encode_audio(samples), together)


def test_bfloat16_is_close_but_not_equal(folder, opened, samples):
    small = open_ms_clap(folder, EncoderOptions(dtype=torch.bfloat16))
    ours, exact = small.audio.encode_audio(samples), opened.audio.encode_audio(samples)
    assert ours.dtype == small.text.encode_text(QUERY).tokens.dtype == torch.float32
    assert torch.cosine_similarity(ours, exact).min() > 0.999
    assert not torch.equal(ours, exact)
    assert torch.cosine_similarity(small.text.encode_text(QUERY).tokens, opened.text.encode_text(QUERY).tokens).min() > 0.99


def test_query_has_the_end_token_but_offsets_of_the_users_words_alone(opened):
    features = opened.text.encode_text(QUERY)
    assert features.tokens.shape == (len(features.offsets), opened.text.dim)
    assert [QUERY[begin:end] for begin, end in features.offsets[:3]] == ["a", "dog", "barks"]
    # " <|endoftext|>": the blank and the end.
    assert features.offsets[-2:] == ((0, 0), (0, 0))
    assert features.offsets[-3][1] == len(QUERY)
    assert features.pooled is None
    # GPT-2 looks back only: what follows does not change a token, what comes before does.
    longer = opened.text.encode_text(QUERY + " and rain")
    torch.testing.assert_close(longer.tokens[:5], features.tokens[:5], atol=1e-5, rtol=0)
    assert not torch.allclose(longer.tokens[-1], features.tokens[-1], atol=1e-3)


def test_too_long_a_query_is_refused(opened):
    with pytest.raises(QamDetrError, match="at most 77"):
        opened.text.encode_text("a dog barks " * 40)


def test_file_and_folder_are_the_same_and_fingerprints_follow_the_weights(tmp_path, folder, opened):
    assert open_ms_clap(folder / WEIGHTS_FILE, EncoderOptions()).fingerprint == opened.fingerprint
    assert open_ms_clap(folder, EncoderOptions(dtype=torch.bfloat16)).fingerprint != opened.fingerprint
    assert open_ms_clap(save_tiny_ms_clap(tmp_path, seed=5), EncoderOptions()).fingerprint != opened.fingerprint


def test_without_a_tokeniser_beside_it_takes_that_of_the_hub(tmp_path, monkeypatch):
    folder = save_tiny_ms_clap(tmp_path / "both")
    hub = tmp_path / "hub"
    hub.mkdir()
    (folder / "tokenizer.json").rename(hub / "tokenizer.json")
    asked = []
    monkeypatch.setattr("qamdetr.features.ms_clap.locate", lambda name: asked.append(name) or hub)
    assert open_ms_clap(folder, EncoderOptions()).text.encode_text(QUERY).offsets[0] == (0, 1)
    assert asked == ["gpt2"]


def _resave(change):
    def damage(path):
        content = torch.load(path, weights_only=True)
        change(content["model"])
        torch.save(content, path)

    return damage


def _rename(state):
    state["audio_encoder.base.htsat.layers.0.blocks.0.attn.extra.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "name that file or the folder"),
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no weights"),
        (lambda path: torch.save([1, 2], path), "holds no weights"),
        (_resave(lambda state: state.pop("audio_encoder.base.htsat.norm.bias")), "1 weights missing, 0 unknown"),
        (_resave(_rename), "0 weights missing, 1 unknown"),
        (_resave(lambda state: [state.pop(name) for name in list(state) if "htsat" in name]), "no HTSAT"),
        (_resave(lambda state: [state.pop(name) for name in list(state) if "caption" in name]), "no GPT-2"),
    ],
)
def test_missing_and_damaged_files_give_one_line(tmp_path, damage, words):
    folder = save_tiny_ms_clap(tmp_path)
    damage(folder / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_ms_clap(folder, EncoderOptions())
    assert "\n" not in str(caught.value)
