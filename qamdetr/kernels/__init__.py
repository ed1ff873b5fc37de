"""Fast forms of what `model` says plainly: each is held to its reference by a test."""

from qamdetr.kernels.cpu import speed_up

__all__ = ["speed_up"]
