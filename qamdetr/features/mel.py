"""The log-mel front end of both CLAPs: batched, on the encoder's device, and frugal with audio that repeats itself."""

from __future__ import annotations

import torch
from torch import Tensor

POWER_FLOOR = 1e-10
"""Smallest mel power, -100 dB; both packages and Transformers use it."""


class LogMel:
    """Turns samples into mel power in dB, always in float32.

    The window is Hann (periodic), frames are centred, edges are reflected.

    Source: `torchlibrosa.stft` (both packages' front end) and Transformers' `ClapFeatureExtractor`, which agree on all of it. Theirs work
    clip by clip or on every repetition; this one does not.
    """

    def __init__(self, filters: Tensor, *, hop_samples: int, device: str = "cpu") -> None:
        """Build the front end for `filters` `(fft_samples / 2 + 1, mels)`."""
        self.hop_samples = hop_samples
        self.fft_samples = 2 * (filters.shape[0] - 1)
        # Bins above the highest filter need no power.
        self._used_bins = int(filters.abs().sum(dim=1).nonzero().max()) + 1
        self._filters = filters[: self._used_bins].float().to(device)
        self._window = torch.hann_window(self.fft_samples, device=device)

    def __call__(self, samples: Tensor) -> Tensor:
        """Return `(batch, n // hop + 1, mels)` dB of `samples` `(batch, n)`, `n > fft / 2`."""
        spectrum = torch.stft(
            samples, self.fft_samples, self.hop_samples, window=self._window, center=True, pad_mode="reflect", return_complex=True
        )[:, : self._used_bins]
        power = spectrum.real.square() + spectrum.imag.square()
        return 10.0 * torch.log10((power.transpose(1, 2) @ self._filters).clamp(min=POWER_FLOOR))

    def repeated(self, samples: Tensor, repeats: int) -> Tensor:
        """Return the dB of `samples` `(batch, n)` played `repeats` times over, `(batch, repeats * n // hop + 1, mels)`.

        Where the hop divides `n`, frames repeat too, but for those that touch an edge: two repetitions hold every frame there is, and the
        rest is copied.
        """
        step, rest = divmod(samples.shape[1], self.hop_samples)
        edge = -(-self.fft_samples // 2 // self.hop_samples)
        if rest or step < 2 * edge or repeats < 3:
            return self(samples.repeat(1, repeats))
        frames = self(samples.repeat(1, 2))
        middle = torch.cat([frames[:, step : step + edge], frames[:, edge:step]], dim=1)
        return torch.cat([frames[:, :step], middle.repeat(1, repeats - 2, 1), frames[:, step:]], dim=1)


def slaney_filters(*, sample_rate_hz: int, fft_samples: int, mels: int, min_hz: float, max_hz: float) -> Tensor:
    """Return `(fft_samples / 2 + 1, mels)` Slaney filters of unit area, as `torchlibrosa` builds them."""
    import librosa

    return torch.from_numpy(librosa.filters.mel(sr=sample_rate_hz, n_fft=fft_samples, n_mels=mels, fmin=min_hz, fmax=max_hz)).T.float()


def htk_filters(*, sample_rate_hz: int, fft_samples: int, mels: int, min_hz: float, max_hz: float) -> Tensor:
    """Return `(fft_samples / 2 + 1, mels)` HTK filters of unit height, as `torchaudio` builds them."""
    import librosa

    filters = librosa.filters.mel(sr=sample_rate_hz, n_fft=fft_samples, n_mels=mels, fmin=min_hz, fmax=max_hz, htk=True, norm=None)
    return torch.from_numpy(filters).T.float()
