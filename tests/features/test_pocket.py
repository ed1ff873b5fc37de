"""Tests of the pocket encoders: shapes, padding, gain, storage; and of the shipped weights where they are present."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from qamdetr import audio
from qamdetr.config import CHECKPOINT_DIR
from qamdetr.errors import CheckpointError, ConfigError, QamDetrError
from qamdetr.features import encoders, pocket, pocket_audio
from qamdetr.features.encoders import ComboEncoder, load_combo
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
    power = mel_power(noise(25))
    with torch.inference_mode():
        whole = audio_encoder.model(log_mel(power).unsqueeze(0))[0]
    monkeypatch.setattr(pocket_audio, "_SECTION_CLIPS", 10)
    assert torch.allclose(audio_encoder.encode_front_end(power), whole, atol=1e-5)


def test_mel_power_finds_the_band_of_a_tone() -> None:
    t = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    low, high = (mel_power(np.sin(2 * np.pi * f * t).astype(np.float32)).mean(dim=1).argmax() for f in (300, 5000))
    assert low < high
    assert mel_power(noise(2.5)).shape == (64, 3 * FRAMES_PER_CLIP)


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


def whole_mel_power(samples: np.ndarray) -> torch.Tensor:
    """Mel power of a recording held whole, in one transform."""
    clips = -(-len(samples) // SAMPLE_RATE_HZ)
    padded = np.pad(samples, (512, clips * SAMPLE_RATE_HZ - len(samples) + 512))
    spectrum = torch.stft(torch.from_numpy(padded), 1024, 375, window=torch.hann_window(1024), center=False, return_complex=True)
    return pocket_audio.mel_filterbank() @ spectrum.abs().square()[:, : clips * FRAMES_PER_CLIP]


@pytest.mark.parametrize(
    "num_samples", [100, 23_999, 24_000, 24_001, 24_136, 24_137, 8 * 24_000, 8 * 24_000 + 137, 16 * 24_000 + 1, 500_001]
)
@pytest.mark.parametrize("block", [1_000, 24_000, 200_137])
def test_the_front_end_does_not_care_how_samples_are_cut(num_samples: int, block: int) -> None:
    samples = noise(num_samples / SAMPLE_RATE_HZ + 0.01)[:num_samples]
    front_end = pocket_audio.MelFrontEnd()
    for begin in range(0, num_samples, block):
        front_end.add(samples[begin : begin + block])
    power = front_end.finish()
    torch.testing.assert_close(power, whole_mel_power(samples), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(power, mel_power(samples), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "seconds"),
    [
        ("a.wav", 24_000, 1, 0.3),
        ("a.wav", 44_100, 2, 24.0),
        ("a.wav", 7_001, 1, 9.5),
        ("a.wav", 192_000, 2, 2.1),
        ("a.flac", 48_000, 2, 33.3),
        ("a.ogg", 44_100, 2, 13.0),
        ("a.mp3", 22_050, 1, 13.0),
        ("a.m4a", 44_100, 2, 13.0),
    ],
)
def test_a_recording_read_in_blocks_gives_the_features_of_one_held_whole(
    tmp_path: Path, audio_encoder: PocketAudioEncoder, name: str, rate: int, channels: int, seconds: float
) -> None:
    samples = 0.2 * np.random.default_rng(0).standard_normal((round(seconds * rate), channels)).clip(-3, 3)
    path = tmp_path / (name if name != "a.m4a" else "a.wav")
    with soundfile.SoundFile(path, "w", rate, channels) as file:
        for begin in range(0, len(samples), 10_000):
            file.write(samples[begin : begin + 10_000])
    if name == "a.m4a":
        if shutil.which("ffmpeg") is None:
            pytest.skip("needs ffmpeg")
        subprocess.run(["ffmpeg", "-v", "error", "-i", path, tmp_path / name], check=True)
        path = tmp_path / name
    combo = ComboEncoder("x", {"pocket": audio_encoder, "mel_stats": MelStatsEncoder()}, {}, "")
    recording = combo.encode_recording(path)
    waveform = audio.load(path, SAMPLE_RATE_HZ)
    assert recording.duration_seconds == audio.decode(path).duration_seconds
    power = whole_mel_power(waveform.samples)
    torch.testing.assert_close(recording.streams["pocket"], audio_encoder.encode_front_end(power), rtol=0, atol=1e-5)
    torch.testing.assert_close(recording.streams["mel_stats"], pocket_audio.mel_stats(power), rtol=0, atol=1e-5)
