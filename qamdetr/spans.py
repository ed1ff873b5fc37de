"""The only place with span arithmetic: IoU, gIoU, NMS, and the way between spans in [0, 1] and windows in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qamdetr.errors import DataError
from qamdetr.types import Window

MIN_WINDOW_SECONDS = 0.1
"""Shortest window that a prediction becomes; an empty one could be neither played nor scored."""

_TINY = 1e-9  # keeps 0 / 0 of two empty spans at 0


def span_cxw_to_xx(spans_cxw: Tensor) -> Tensor:
    """Turn `(..., 2)` (centre, width) into (start, end); nothing is clamped."""
    centre, width = spans_cxw.unbind(-1)
    return torch.stack([centre - 0.5 * width, centre + 0.5 * width], dim=-1)


def span_xx_to_cxw(spans_xx: Tensor) -> Tensor:
    """Turn `(..., 2)` (start, end) into (centre, width)."""
    start, end = spans_xx.unbind(-1)
    return torch.stack([0.5 * (start + end), end - start], dim=-1)


def iou(a_xx: Tensor, b_xx: Tensor) -> Tensor:
    """Intersection over union of spans or windows `(..., 2)`, element by element with broadcasting; in [0, 1]."""
    overlap, union, _ = _extents(a_xx, b_xx)
    return overlap / union.clamp(min=_TINY)


def giou(a_xx: Tensor, b_xx: Tensor) -> Tensor:
    """Generalised IoU, element by element: IoU minus the empty share of the common hull; in [-1, 1].

    Source: Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019, in one dimension.
    """
    overlap, union, hull = _extents(a_xx, b_xx)
    return overlap / union.clamp(min=_TINY) - (hull - union) / hull.clamp(min=_TINY)


def pairwise_iou(a_xx: Tensor, b_xx: Tensor) -> Tensor:
    """`iou` of every span of `(n, 2)` with every span of `(m, 2)`: `(n, m)`."""
    return iou(a_xx[:, None], b_xx[None, :])


def windows_to_spans_cxw(windows: Sequence[Window] | Tensor, length_seconds: float) -> Tensor:
    """Normalise windows in seconds to spans `(n, 2)` of the `length_seconds` of all clips that the model sees, clamped to [0, 1].

    Raises:
        DataError: A window that is empty once clamped to the recording.
    """
    windows_xx = torch.as_tensor(windows, dtype=torch.float32).reshape(-1, 2)
    clamped = windows_xx.clamp(0.0, length_seconds)
    empty = clamped[:, 1] <= clamped[:, 0]
    if bool(empty.any()):
        start, end = windows_xx[empty][0].tolist()
        raise DataError(f"Window [{start:g}, {end:g}] s is empty within the recording's {length_seconds:g} s", "drop it from the manifest")
    return span_xx_to_cxw(clamped / length_seconds)


def spans_cxw_to_windows(spans_cxw: Tensor, length_seconds: float, duration_seconds: float) -> Tensor:
    """Turn spans `(..., 2)` of the `length_seconds` that the model saw into windows inside [0, `duration_seconds`], never empty."""
    shortest = min(MIN_WINDOW_SECONDS, duration_seconds)
    start, end = (span_cxw_to_xx(spans_cxw) * length_seconds).unbind(-1)
    # A too narrow prediction grows around its own centre before the recording's ends move it.
    missing = (shortest - (end - start)).clamp(min=0.0)
    start = (start - 0.5 * missing).clamp(0.0, duration_seconds - shortest)
    end = torch.maximum(end + 0.5 * missing, start + shortest).clamp(max=duration_seconds)
    return torch.stack([start, end], dim=-1)


def nms(windows: Sequence[Window] | Tensor, scores: Sequence[float] | Tensor, max_iou: float) -> list[int]:
    """Greedy non-maximum suppression: drop windows `(n, 2)` that overlap a better one by more than `max_iou`; 1 keeps every window.

    Returns:
        Indices of the kept windows, best first; equal scores keep their order.
    """
    windows_xx = torch.as_tensor(windows, dtype=torch.float64).reshape(-1, 2)
    order = torch.as_tensor(scores, dtype=torch.float64).reshape(-1).argsort(descending=True, stable=True)
    suppresses = (pairwise_iou(windows_xx, windows_xx) > max_iou).cpu().numpy()
    kept: list[int] = []
    dropped = np.zeros(len(suppresses), dtype=bool)
    for index in order.tolist():
        if not dropped[index]:
            kept.append(index)
            dropped |= suppresses[index]
    return kept


def _extents(a_xx: Tensor, b_xx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of overlap, union and common hull."""
    start_a, end_a = a_xx.unbind(-1)
    start_b, end_b = b_xx.unbind(-1)
    overlap = (torch.minimum(end_a, end_b) - torch.maximum(start_a, start_b)).clamp(min=0.0)
    union = (end_a - start_a) + (end_b - start_b) - overlap
    hull = torch.maximum(end_a, end_b) - torch.minimum(start_a, start_b)
    return overlap, union, hull
