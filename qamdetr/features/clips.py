"""Runs an audio encoder clip by clip over a recording, in batches that bound memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from qamdetr.features.base import EncoderOptions
from qamdetr.progress import tell


@torch.inference_mode()
def encode_clips(samples: np.ndarray, window_samples: int, dim: int, options: EncoderOptions, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Cut a recording into windows and encode them in batches; `(ceil(n / window_samples), dim)` float32 on the CPU.

    Args:
        samples: `(n,)` mono float32.
        window_samples: Length and hop of the windows.
        dim: Width of the features.
        options: Device and clips at once.
        encode: `(batch, m)` windows on the device -> `(batch, dim)`; `m` is `window_samples`, or less for a short last window, which comes
            alone.
    """
    whole = len(samples) // window_samples
    features = torch.empty(-(-len(samples) // window_samples), dim)
    for begin in range(0, whole, options.batch_clips):
        tell(begin / whole)
        end = min(begin + options.batch_clips, whole)
        windows = torch.from_numpy(samples[begin * window_samples : end * window_samples]).reshape(end - begin, window_samples)
        features[begin:end] = encode(windows.to(options.device)).float().cpu()
    if whole < len(features):
        tail = torch.from_numpy(samples[whole * window_samples :]).unsqueeze(0)
        features[whole] = encode(tail.to(options.device))[0].float().cpu()
    return features
