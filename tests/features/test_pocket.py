"""The pocket encoders: shapes, silence, gain, sections; the shipped weights know sounds and words they never met."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_models import encode_samples
from hypothesis import given, settings
from hypothesis import strategies as st

from qamdetr.audio import Sound
from qamdetr.config import CHECKPOINT_DIR
from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.features import base, pocket
from qamdetr.features.base import COMBOS, finish, open_streams
from qamdetr.features.pocket import (
    MAX_TOKENS,
    MEL_STATS_DIM,
    SAMPLE_RATE_HZ,
    EarFrontEnd,
    MelFrontEnd,
    mel_magnitudes,
    patches,
)


@pytest.fixture(scope="module")
def audio():
    return open_streams(*COMBOS["pocket"]).audio


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE_HZ))).astype(np.float32)


def test_sounding_seconds_have_unit_length_and_silent_ones_point_nowhere(audio) -> None:
    for seconds in (0.1, 1.0, 1.001):
        rows = [tuple(encode_samples(audio[name], noise(seconds)).shape) for name in ("pocket", "mel_stats")]
        assert rows == [(np.ceil(seconds), 256), (np.ceil(seconds), MEL_STATS_DIM)]
    samples = np.concatenate([noise(2), np.zeros(2 * SAMPLE_RATE_HZ, dtype=np.float32), 0.1 * noise(1)])
    lengths = encode_samples(audio["pocket"], samples).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0]), atol=1e-5, rtol=0)
    quiet = encode_samples(audio["pocket"], 1e-4 * noise(3)).norm(dim=-1)
    torch.testing.assert_close(quiet, torch.ones(3), atol=1e-5, rtol=0)
    silence = np.zeros(3 * SAMPLE_RATE_HZ, dtype=np.float32)
    assert all(encode_samples(encoder, silence).isfinite().all() for encoder in audio.values())


def test_a_quieter_recording_gives_nearly_the_same_vectors_and_statistics_and_a_quieter_second_others(audio) -> None:
    loud, quiet = (encode_samples(audio["pocket"], gain * noise(4)) for gain in (1, 0.1))
    assert (loud * quiet).sum(dim=-1).min() > 0.99
    longer = np.pad(0.01 * noise(4), (0, 4 * SAMPLE_RATE_HZ))
    loud, quiet = encode_samples(audio["mel_stats"], noise(4))[:3], encode_samples(audio["mel_stats"], longer)[:3]
    torch.testing.assert_close(quiet, loud, atol=1e-3, rtol=0)
    stats = encode_samples(audio["mel_stats"], np.concatenate([0.01 * noise(2), noise(2)]))
    assert stats[:2, 16].max() < stats[2:, 16].min()


@pytest.mark.parametrize("hop", [1.0, 0.5])
def test_sections_agree_with_one_pass(hop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, heard = open_streams(*COMBOS["pocket"], clip_seconds=hop).audio["pocket"], mel_magnitudes(noise(25))
    with torch.inference_mode():
        whole = encoder.encode_section(heard)
    assert len(whole) == 25 / hop
    monkeypatch.setattr(pocket, "_SECTION_SECONDS", 10)
    torch.testing.assert_close(finish(encoder.features(heard)), whole, atol=1e-5, rtol=0)


@given(
    front_end=st.sampled_from([MelFrontEnd(), EarFrontEnd()]),
    num_samples=st.sampled_from([100, 23_999, 24_000, 24_001, 24_136, 24_137, 192_000, 192_137, 384_001, 500_001]),
    block=st.sampled_from([1_000, 24_000, 200_137]),
)
@settings(max_examples=40, deadline=None)
def test_the_front_ends_do_not_care_how_samples_are_cut_and_forget(front_end: MelFrontEnd, num_samples: int, block: int) -> None:
    samples = noise(num_samples / SAMPLE_RATE_HZ + 0.01)[:num_samples]
    front_end.feed(noise(1.5, seed=1))
    front_end.begin()  # another channel was chosen
    for begin in range(0, num_samples, block):
        front_end.feed(samples[begin : begin + block])
    kept, half = front_end.finish(), front_end.fft_samples // 2
    seconds = -(-num_samples // SAMPLE_RATE_HZ)
    padded = torch.from_numpy(np.pad(samples, (half, seconds * SAMPLE_RATE_HZ - num_samples + half)))
    whole = front_end.spectrum(padded)[:, : seconds * front_end.frames_per_second]
    torch.testing.assert_close(kept, whole, rtol=1e-5, atol=1e-6)


def test_mels_rise_where_a_tone_is() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(2 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ).astype(np.float32)
    assert set(mel_magnitudes(tone, MelFrontEnd).argmax(dim=0)[2:-2].tolist()) == {18}
    heard = mel_magnitudes(tone)
    assert heard.shape == (64, 200)
    assert set(heard.argmax(dim=0)[2:-2].tolist()) == {19}
    seen = patches(heard[None])
    assert seen.shape == (1, 4, 96, 64)
    torch.testing.assert_close(patches(0.01 * heard[None])[:, 1:-1], seen[:, 1:-1], atol=1e-3, rtol=0)


def test_text_offsets_cover_the_words_and_text_is_never_cut_silently() -> None:
    encoder = open_streams(*COMBOS["pocket"]).text["pocket"]
    query = "a dog  barks"
    features = encoder.encode_text(query)
    assert [query[begin:end] for begin, end in features.offsets if begin < end] == ["a", "dog", "bark", "s"]
    with pytest.raises(QamDetrError, match=f"at most {MAX_TOKENS}"):
        encoder.encode_text("dog " * (MAX_TOKENS + 1))


def test_shipped_text_knows_words_it_was_not_trained_on() -> None:
    encoder = open_streams(*COMBOS["pocket"]).text["pocket"]
    known = ("a dog barks", "a baby is crying", "a clock is ticking", "rain falls", "a helicopter flies")
    asked = ("a puppy yelps", "an infant wails", "kitchen timer", "a downpour", "a chopper overhead")
    table, vectors = (torch.stack([encoder.encode_text(query).pooled for query in queries]) for queries in (known, asked))
    assert (vectors @ table.T).argmax(dim=1).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_shipped_encoder_names_real_recordings_it_never_heard(shared_dir: Path) -> None:
    prompts = {
        "dog_bark": "a dog barks", "rooster": "a rooster crows", "rain": "rain falls", "sea_waves": "sea waves",
        "crackling_fire": "a fire crackles", "crying_baby": "a baby cries", "sneezing": "a person sneezes",
        "clock_tick": "a clock ticks", "helicopter": "a helicopter flies", "chainsaw": "a chainsaw runs",
    }  # fmt: skip
    streams = open_streams(*COMBOS["pocket"])
    text = torch.stack([streams.text["pocket"].encode_text(prompt).pooled for prompt in prompts.values()])
    right = []
    for name in prompts:
        for path in sorted((shared_dir / "data" / "esc10" / name).glob("4-*.ogg")):
            vectors = streams.encode(Sound(path)).streams["pocket"]
            right.append(list(prompts)[int((vectors @ text.T).mean(dim=0).argmax())] == name)
    assert np.mean(right) >= 0.9


def test_broken_weights_are_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(CHECKPOINT_DIR / "pocket-encoder", tmp_path / "pocket-encoder")
    monkeypatch.setattr(pocket, "CHECKPOINT_DIR", tmp_path)
    base._open.cache_clear()
    try:
        (folder / "audio.safetensors").write_text("version https://git-lfs")
        with pytest.raises(CheckpointError, match="git lfs pull"):
            open_streams(["pocket"], [])
    finally:
        base._open.cache_clear()
