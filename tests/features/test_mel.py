"""The log-mel front end gives what the stock extractors give, and costs little."""

import time

import numpy as np
import pytest
import torch
from clap_packages import sounds

from qamdetr.features.base import EncoderOptions
from qamdetr.features.htsat import Htsat
from qamdetr.features.mel import LogMel, htk_filters, slaney_filters

SHAPE = {"sample_rate_hz": 48_000, "fft_samples": 1024, "mels": 64, "min_hz": 50, "max_hz": 14_000}


@pytest.fixture(scope="module")
def stock():
    from transformers import ClapFeatureExtractor

    return ClapFeatureExtractor(frequency_min=50)


def laion_front_end(filters):
    from qamdetr.features.laion_clap import LaionClapAudioEncoder

    class _Projection(torch.nn.Module):
        linear2 = torch.nn.Linear(1, 1)

    return LaionClapAudioEncoder(None, _Projection(), LogMel(filters, hop_samples=480), EncoderOptions())


def windows():
    whole = sounds(48_000, 1.0).numpy()
    spike = np.zeros(48_000, np.float32)
    spike[[0, 47_999]] = 0.5
    return {
        "whole": whole,
        "silence": np.zeros(48_000, np.float32),
        "ends that do not meet": spike,
        "half": whole[:24_000],
        "odd length": whole[:12_345],
        "nearly whole": whole[:47_999],
        "one sample": whole[-1:],
        "short silence": np.zeros(700, np.float32),
    }


@pytest.mark.parametrize("name", list(windows()))
@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
def test_equals_the_stock_extractor(stock, name, truncation):
    samples = windows()[name]
    expected = stock(samples, sampling_rate=48_000, truncation=truncation, padding="repeatpad", return_tensors="pt")["input_features"][0]
    filters = htk_filters(**SHAPE) if truncation == "fusion" else slaney_filters(**SHAPE)
    ours = laion_front_end(filters).log_mels(torch.from_numpy(samples)[None])[0]
    assert ours.shape == (1001, 64)
    for channel in expected:  # fusion: four equal ones
        difference_db = (ours - channel).abs()
        # Where partial waves cancel, single precision shows; the packages' own front ends run in it too.
        assert difference_db.max() < 0.02
        assert (difference_db > 1e-3).float().mean() < 5e-3


def test_filters_equal_the_stock_ones(stock):
    np.testing.assert_allclose(htk_filters(**SHAPE).numpy(), stock.mel_filters, atol=1e-7)
    np.testing.assert_allclose(slaney_filters(**SHAPE).numpy(), stock.mel_filters_slaney, atol=1e-7)


@pytest.mark.parametrize(("samples", "repeats"), [(48_000, 10), (48_000, 3), (48_000, 2), (48_000, 1), (2_400, 7), (960, 50), (4_801, 4)])
def test_repeated_audio_equals_audio_repeated(samples, repeats):
    # 960 samples are two hops, less than the edges take; 4801 is no whole number of hops.
    front_end = LogMel(slaney_filters(**SHAPE), hop_samples=480)
    audio = torch.stack(
        [sounds(48_000, 1.0, seed)[1_000 : 1_000 + samples] if samples < 47_000 else sounds(48_000, 1.0, seed) for seed in (0, 1)]
    )
    torch.testing.assert_close(front_end.repeated(audio, repeats), front_end(audio.repeat(1, repeats)), atol=2e-3, rtol=0)


def test_batch_does_not_change_values():
    front_end = LogMel(slaney_filters(**SHAPE), hop_samples=320)
    audio = torch.stack([sounds(44_100, 1.0, seed) for seed in range(5)])
    torch.testing.assert_close(front_end(audio), torch.cat([front_end(row[None]) for row in audio]), atol=1e-4, rtol=0)


@pytest.mark.slow
@torch.inference_mode()
def test_costs_at_most_a_tenth_of_the_encoder():
    from transformers import ClapAudioConfig, ClapAudioModel

    htsat = Htsat(ClapAudioModel(ClapAudioConfig()), EncoderOptions())
    front_end = LogMel(slaney_filters(**SHAPE), hop_samples=480)
    audio = torch.stack([sounds(48_000, 1.0, seed) for seed in range(4)])
    log_mels = front_end.repeated(audio, 10)

    def best_seconds(call):
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return min(times)

    assert best_seconds(lambda: front_end.repeated(audio, 10)) < 0.1 * best_seconds(lambda: htsat(log_mels))
