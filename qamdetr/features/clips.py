"""Runs an audio encoder clip by clip over a recording, in batches that bound memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from qamdetr.features.base import EncoderOptions
from qamdetr.progress import tell
from qamdetr.sample_stream import SampleStream


@torch.inference_mode()
def encode_clips(
    samples: np.ndarray | SampleStream, window_samples: int, dim: int, options: EncoderOptions, encode: Callable[[Tensor], Tensor]
) -> Tensor:
    """Cut a recording into windows and encode them in batches; `(ceil(n / window_samples), dim)` float32 on the CPU.

    Args:
        samples: `(n,)` mono float32; of a stream, no more than a batch is held.
        window_samples: Length and hop of the windows.
        dim: Width of the features.
        options: Device and clips at once.
        encode: `(batch, m)` windows on the device -> `(batch, dim)`; `m` is `window_samples`, or less for a short last window, which comes
            alone.
    """
    features = torch.empty(-(-len(samples) // window_samples), dim)
    begin = 0
    for part in sections(samples, options.batch_clips * window_samples):
        tell(begin / len(features))
        end = begin + len(part) // window_samples
        if end > begin:
            windows = torch.from_numpy(part[: (end - begin) * window_samples]).reshape(end - begin, window_samples)
            features[begin:end] = encode(windows.to(options.device)).float().cpu()
        if len(part) % window_samples:
            tail = torch.from_numpy(part[(end - begin) * window_samples :]).unsqueeze(0)
            features[end] = encode(tail.to(options.device))[0].float().cpu()
        begin = end
    return features


def sections(samples: np.ndarray | SampleStream, section_samples: int) -> Iterator[np.ndarray]:
    """Cut samples into sections of equal length; the last may be shorter."""
    blocks = [samples] if isinstance(samples, np.ndarray) else samples
    held = np.empty(0, dtype=np.float32)
    for block in blocks:
        held = np.concatenate([held, block]) if len(held) else block
        whole = len(held) // section_samples * section_samples
        for begin in range(0, whole, section_samples):
            yield held[begin : begin + section_samples]
        held = held[whole:]
    if len(held):
        yield held
