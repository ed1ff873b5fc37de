"""Random inputs of a selective scan, its gradients on a backend, and how close they have to be."""

from __future__ import annotations

import torch

from qamdetr.models.scan import selective_scan_channels_last

NAMES = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"]


def random_inputs(batch, steps, channels, state, *, seed=0, step_scale=1.0):
    """Channels-last inputs in the order of NAMES; `step_scale` spreads the raw step sizes."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return [
        normal(batch, steps, channels),
        step_scale * normal(batch, steps, channels),
        -torch.exp(normal(channels, state)),
        normal(batch, steps, state),
        normal(batch, steps, state),
        normal(channels),
        normal(batch, steps, channels),
        normal(channels),
    ]


def run(inputs, backend, *, softplus=True, grad_state=True):
    """Outputs and gradients of one scan, for an upstream gradient that differs at every element."""
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in inputs]
    out, last_state = selective_scan_channels_last(*leaves, delta_softplus=softplus, backend=backend)
    loss = (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum()
    if grad_state:
        loss = loss + (last_state * torch.linspace(-1, 1, last_state.numel()).view(last_state.shape)).sum()
    loss.backward()
    return [out.detach(), last_state.detach(), *[leaf.grad for leaf in leaves if leaf is not None]]


def assert_close(actual, expected):
    """Relative to the largest element, since float32 sums of large terms leave small elements with that error."""
    for one, other in zip(actual, expected, strict=True):
        assert torch.isfinite(one).all()
        assert (one - other).abs().max() <= 1e-4 * max(1.0, other.abs().max().item())


def check_padded_batch(lengths, channels, state, backend, seed=0):
    """Recordings in a padded batch come out, values and gradients, as each does alone."""
    whole = random_inputs(len(lengths), max(lengths), channels, state, seed=seed)
    within = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[..., None]
    padded = [torch.where(within, x, 50.0) if x.dim() == 3 else x for x in whole]
    weights = torch.linspace(-1, 1, whole[0].numel()).view(whole[0].shape)

    together = _weighted(padded, weights * within, backend)
    alone = [
        _weighted([x[i : i + 1, :length] if x.dim() == 3 else x for x in whole], weights[i : i + 1, :length], "reference")
        for i, length in enumerate(lengths)
    ]

    for position, actual in enumerate(together):
        expected = [each[position] for each in alone]
        if actual.dim() < 3:  # of a parameter
            assert_close([actual], [sum(expected)])
            continue
        for i, length in enumerate(lengths):
            assert_close([actual[i : i + 1, :length]], [expected[i]])
            assert position == 0 or not actual[i, length:].any()


def _weighted(inputs, weights, backend):
    """Output, and gradients of its weighted sum."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out, _ = selective_scan_channels_last(*leaves, delta_softplus=True, backend=backend)
    (out * weights).sum().backward()
    return [out.detach(), *[leaf.grad for leaf in leaves]]
