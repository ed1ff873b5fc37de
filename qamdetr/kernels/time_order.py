"""Which clips an operation along time walks, and in which direction; the same meaning for every backend.

`lengths` says how many clips of each item are valid, from the first on. `reverse` walks them from the last valid clip to the first. Padding
is not walked: nothing that stands there, not even NaN, reaches a valid clip or the last state, and the result and all gradients are zero
there. The CPU kernels follow this order by index; for all other backends, tensors are brought into it and back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Permute(torch.autograd.Function):
    """Rows of each item in another order, for orders that are their own inverse, so that the gradient takes the same way back.

    PyTorch's own gradient of indexing has to allow for repeated rows, which costs far more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, flat_order: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(flat_order)
        return x.reshape(-1, x.shape[-1]).index_select(0, flat_order).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (flat_order,) = ctx.saved_tensors
        reversed_grad: Tensor = _Permute.apply(grad, flat_order)  # type: ignore[no-untyped-call]
        return reversed_grad, None


def reverse_valid(x: Tensor, mask: Tensor) -> Tensor:
    """Reverse each item's valid clips in time and leave its padding where it is; applying it twice gives `x` back.

    Args:
        x: `(batch, clips, dim)`.
        mask: `(batch, clips)` bool, valid clips first.
    """
    batch, clips = mask.shape
    position = torch.arange(clips, device=mask.device)
    length = mask.sum(dim=1, keepdim=True)
    order = torch.where(position < length, length - 1 - position, position)
    flat_order = (order + clips * torch.arange(batch, device=mask.device)[:, None]).flatten()
    reversed_x: Tensor = _Permute.apply(x, flat_order)  # type: ignore[no-untyped-call]
    return reversed_x


def checked_lengths(lengths: Tensor | None, x: Tensor) -> Tensor:
    """Return `lengths` as `(batch,)` int64 beside `x` `(batch, clips, dim)`; None means that every clip is valid.

    Raises:
        ValueError: Another shape, no whole numbers, or a length outside [0, clips]; compiled code does not check its bounds.
    """
    batch, clips, _ = x.shape
    if lengths is None:
        return torch.full((batch,), clips, device=x.device)
    if lengths.shape != (batch,) or lengths.dtype.is_floating_point or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be {batch} whole numbers, one per item; they are {tuple(lengths.shape)}, {lengths.dtype}.")
    if lengths.device.type != "meta" and batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= clips:
        raise ValueError(f"lengths must lie within [0, {clips}], the clips there are; they reach from {lengths.min()} to {lengths.max()}.")
    return lengths.to(x.device, torch.int64).contiguous()


def in_walking_order(x: Tensor, lengths: Tensor, *, reverse: bool) -> Tensor:
    """Zero the padding of `x` `(batch, clips, dim)` and put its valid clips in the order that they are walked in, or back."""
    mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    x = x.masked_fill(~mask[..., None], 0.0)
    return reverse_valid(x, mask) if reverse else x
