"""Version 0.2's pocket encoders, which the ladder's six checkpoints were trained on; to go once the ladder is trained on `pocket`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, normalize

from qamdetr.features.base import stream
from qamdetr.features.pocket import FRAMES_PER_CLIP, NUM_MELS, SAMPLE_RATE_HZ, MelFrontEnd, Pocket, audible, log_mel


class PocketAudioModelV02(nn.Module):
    """Log-mel frames to one unit vector per second in the joint space."""

    def __init__(self, channels: Sequence[int] = (32, 64, 128, 256), dim: int = 256) -> None:
        super().__init__()
        stem, *stages = channels
        self.band_bias = nn.Parameter(torch.zeros(1, 1, NUM_MELS, 1))
        self.stem = nn.Sequential(nn.Conv2d(1, stem, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        blocks: list[nn.Module] = []
        for index, (source, target) in enumerate(zip((stem, *stages), stages, strict=False)):
            pair: list[nn.Module] = []
            for width in (source, target):
                pair += [nn.Conv2d(width, target, 3, padding=1, bias=False), nn.BatchNorm2d(target), nn.ReLU()]
            blocks += [*([nn.AvgPool2d(2)] if index else []), nn.Sequential(*pair)]
        self.stages = nn.Sequential(*blocks)
        self.frame = nn.Sequential(nn.Conv1d(2 * stages[-1], dim, 1), nn.ReLU())
        self.smooth = nn.Conv1d(dim, dim, 3, padding=1, groups=dim)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * dim, dim), nn.ReLU(), nn.Dropout(0.2))
        self.context = nn.Conv1d(dim, dim, 3, padding=1)
        self.output = nn.Linear(dim, dim)

    def forward(self, log_mels: Tensor) -> Tensor:
        """Encode `(batch, mels, 64 * clips)` log-mels to unit vectors `(batch, clips, dim)`."""
        # Loudness of the last second and a half or so is taken away: a far dog is a dog.
        level = avg_pool1d(log_mels.mean(dim=1, keepdim=True), 97, stride=1, padding=48, count_include_pad=False)
        x = ((log_mels - level).unsqueeze(1) + self.band_bias).contiguous(memory_format=torch.channels_last)
        x = self.stages(self.stem(x))
        x = self.frame(torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1))
        x = x + self.smooth(x)
        clips = x.unflatten(2, (log_mels.shape[-1] // FRAMES_PER_CLIP, -1))
        hidden: Tensor = self.head(torch.cat([clips.mean(dim=-1), clips.amax(dim=-1)], dim=1).transpose(1, 2))
        return normalize(self.output(hidden + self.context(hidden.transpose(1, 2)).transpose(1, 2)).float(), dim=-1)


@stream("pocket_v02", dim=256, rate_hz=SAMPLE_RATE_HZ, label="pocket of version 0.2")
class PocketV02(Pocket):
    """As `Pocket`, one vector for each second, and with no table of known sounds beside it."""

    listener, hops_seconds = MelFrontEnd, (1.0,)
    checkpoint = "pocket-encoder-v02"
    network = PocketAudioModelV02

    def encode_section(self, kept: Tensor) -> Tensor:
        """Encode mel power `(mels, 64 * clips)` in one go to unit vectors `(clips, 256)`."""
        vectors: Tensor = self.audio_model(log_mel(kept).unsqueeze(0))[0]
        return vectors

    def audible(self, kept: Tensor) -> Tensor:
        """Return `(clips,)` bool: False where a clip is silent, without its outermost frames, which reach into the neighbouring seconds."""
        level = kept.reshape(NUM_MELS, -1, FRAMES_PER_CLIP)[:, :, 2:-2].mean(dim=(0, 2))
        return audible(10 * torch.log10(level + 1e-12), -48.0)
