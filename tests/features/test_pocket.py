"""Tests of the pocket encoders: shapes, padding, gain, storage; and of the shipped weights where they are present."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from qamdetr.config import CHECKPOINT_DIR
from qamdetr.errors import CheckpointError, ConfigError, QamDetrError
from qamdetr.features import encoders, pocket, pocket_audio
from qamdetr.features.encoders import load_combo
from qamdetr.features.pocket_audio import (
    FRAMES_PER_CLIP,
    MEL_STATS_DIM,
    SAMPLE_RATE_HZ,
    MelStatsEncoder,
    PocketAudioConfig,
    PocketAudioEncoder,
    PocketAudioModel,
    log_mel,
    mel_power,
)
from qamdetr.features.pocket_text import MAX_TOKENS, PocketTextConfig, PocketTextEncoder, PocketTextModel, pack_state, unpack_state

needs_weights = pytest.mark.skipif(
    not (CHECKPOINT_DIR / "pocket-encoder" / "audio.safetensors").is_file(), reason="needs the shipped pocket encoder"
)


@pytest.fixture(scope="module")
def audio_encoder() -> PocketAudioEncoder:
    torch.manual_seed(0)
    return PocketAudioEncoder(PocketAudioModel(PocketAudioConfig(channels=(4, 8, 8, 16), dim=16)))


@pytest.fixture(scope="module")
def text_encoder() -> PocketTextEncoder:
    torch.manual_seed(0)
    words = {"[UNK]": 0, "a": 1, "dog": 2, "barks": 3}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PocketTextEncoder(
        PocketTextModel(PocketTextConfig(vocab_size=4, embedding_dim=8, dim=16, ffn_dim=16, sentence_dim=24)), tokenizer
    )


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE_HZ))).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 1.001, 7.5])
def test_one_row_per_started_second(audio_encoder: PocketAudioEncoder, seconds: float) -> None:
    samples = noise(seconds)
    clips = int(np.ceil(len(samples) / SAMPLE_RATE_HZ))
    assert audio_encoder.encode_audio(samples).shape == (clips, 16)
    assert MelStatsEncoder().encode_audio(samples).shape == (clips, MEL_STATS_DIM)


def test_sounding_seconds_have_unit_length_and_silent_ones_point_nowhere(audio_encoder: PocketAudioEncoder) -> None:
    samples = np.concatenate([noise(2), np.zeros(2 * SAMPLE_RATE_HZ, dtype=np.float32), 0.1 * noise(1)])
    lengths = audio_encoder.encode_audio(samples).norm(dim=-1)
    assert torch.allclose(lengths, torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0]), atol=1e-5)


def test_a_very_quiet_recording_is_not_taken_for_silence(audio_encoder: PocketAudioEncoder) -> None:
    vectors = audio_encoder.encode_audio(1e-4 * noise(3))
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(3), atol=1e-5)


def test_digital_silence_gives_finite_features(audio_encoder: PocketAudioEncoder) -> None:
    silence = np.zeros(3 * SAMPLE_RATE_HZ, dtype=np.float32)
    assert torch.isfinite(audio_encoder.encode_audio(silence)).all()
    assert torch.isfinite(MelStatsEncoder().encode_audio(silence)).all()


def test_sections_agree_with_one_pass(audio_encoder: PocketAudioEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    power = mel_power(torch.from_numpy(noise(25)))
    with torch.inference_mode():
        whole = audio_encoder.model(log_mel(power).unsqueeze(0))[0]
    monkeypatch.setattr(pocket_audio, "_SECTION_CLIPS", 10)
    assert torch.allclose(audio_encoder.encode_mels(power), whole, atol=1e-5)


def test_mel_power_finds_the_band_of_a_tone() -> None:
    t = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    low, high = (mel_power(torch.from_numpy(np.sin(2 * np.pi * f * t).astype(np.float32))).mean(dim=1).argmax() for f in (300, 5000))
    assert low < high
    assert mel_power(torch.from_numpy(noise(2.5))).shape == (64, 3 * FRAMES_PER_CLIP)


def test_a_quieter_recording_gives_nearly_the_same_vectors(audio_encoder: PocketAudioEncoder) -> None:
    samples = noise(4)
    loud, quiet = audio_encoder.encode_audio(samples), audio_encoder.encode_audio(samples * 0.1)
    assert (loud * quiet).sum(dim=-1).min() > 0.999


def test_mel_stats_tell_loud_from_quiet() -> None:
    samples = np.concatenate([0.01 * noise(2), noise(2)])
    stats = MelStatsEncoder().encode_audio(samples)
    assert stats[:2, 16].max() < stats[2:, 16].min()


def test_text_offsets_cover_the_words(text_encoder: PocketTextEncoder) -> None:
    query = "a dog  barks"
    features = text_encoder.encode_text(query)
    assert [query[begin:end] for begin, end in features.offsets] == ["a", "dog", "barks"]
    assert features.tokens.shape == (3, 16)
    assert features.pooled is not None
    assert features.pooled.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_text_is_never_cut_silently(text_encoder: PocketTextEncoder) -> None:
    with pytest.raises(QamDetrError, match=f"at most {MAX_TOKENS}"):
        text_encoder.encode_text("dog " * (MAX_TOKENS + 1))


def test_packed_text_weights_come_back_nearly_equal(text_encoder: PocketTextEncoder) -> None:
    state = text_encoder.model.state_dict()
    restored = unpack_state(pack_state(text_encoder.model))
    assert set(restored) == set(state)
    for name, value in state.items():
        assert torch.allclose(restored[name], value, atol=0.02), name


def test_unknown_combos_are_named() -> None:
    with pytest.raises(ConfigError, match="choose one of"):
        load_combo("nothing")


@needs_weights
def test_shipped_text_knows_words_it_was_not_trained_on() -> None:
    encoder = load_combo("pocket").text["pocket"]

    def pooled(query: str) -> torch.Tensor:
        vector = encoder.encode_text(query).pooled
        assert vector is not None
        return vector

    known = {name: pooled(name) for name in ("a dog barks", "a baby is crying", "a clock is ticking", "rain falls", "a helicopter flies")}
    for query, expected in (
        ("a puppy yelps", "a dog barks"),
        ("an infant wails", "a baby is crying"),
        ("kitchen timer", "a clock is ticking"),
        ("a downpour", "rain falls"),
        ("a chopper overhead", "a helicopter flies"),
    ):
        assert max(known, key=lambda name: float(known[name] @ pooled(query))) == expected, query


@needs_weights
@pytest.mark.slow
def test_shipped_encoder_names_real_recordings_it_never_heard(shared_dir) -> None:
    prompts = {
        "dog_bark": "a dog barks", "rooster": "a rooster crows", "rain": "rain falls", "sea_waves": "sea waves",
        "crackling_fire": "a fire crackles", "crying_baby": "a baby cries", "sneezing": "a person sneezes",
        "clock_tick": "a clock ticks", "helicopter": "a helicopter flies", "chainsaw": "a chainsaw runs",
    }  # fmt: skip
    combo = load_combo("pocket")
    text = torch.stack([combo.text["pocket"].encode_text(prompt).pooled for prompt in prompts.values()])
    right = []
    for name in prompts:
        for path in sorted((shared_dir / "data" / "esc10" / name).glob("4-*.ogg")):
            vectors = combo.encode_recording(path).streams["pocket"]
            right.append(list(prompts)[int((vectors @ text.T).mean(dim=0).argmax())] == name)
    assert np.mean(right) >= 0.9


@needs_weights
def test_broken_weights_are_named_in_one_line(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(CHECKPOINT_DIR / "pocket-encoder", tmp_path / "pocket-encoder")
    (tmp_path / "pocket-encoder" / "audio.safetensors").write_text("version https://git-lfs")
    monkeypatch.setattr(pocket, "CHECKPOINT_DIR", tmp_path)
    encoders.forget_streams()
    try:
        with pytest.raises(CheckpointError, match="git lfs pull"):
            load_combo("pocket")
    finally:
        encoders.forget_streams()
