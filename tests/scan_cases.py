"""Random inputs of a selective scan, its gradients on a backend, and how close they have to be."""

from __future__ import annotations

import torch

from qamdetr.kernels.scan import selective_scan_channels_last

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


def run(inputs, backend, *, softplus=True, grad_state=True, **walk):
    """Outputs and gradients of one scan, for an upstream gradient that differs at every element."""
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in inputs]
    out, last_state = selective_scan_channels_last(*leaves, delta_softplus=softplus, backend=backend, **walk)
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


def check_walk(lengths, channels, state, backend, *, reverse, softplus=True, seed=0):
    """Each item of a padded batch comes out as its valid steps do alone, turned round by hand; NaN in padding reaches nothing."""
    whole = random_inputs(len(lengths), max(lengths) + 2, channels, state, seed=seed)
    if not softplus:  # without softplus a step size is positive as it stands
        whole[1], whole[7] = whole[1].abs(), whole[7].abs()
    within = (torch.arange(max(lengths) + 2) < torch.tensor(lengths)[:, None])[..., None]
    leaves = [(torch.where(within, x, float("nan")) if x.dim() == 3 else x).requires_grad_() for x in whole]
    weights = torch.linspace(-1, 1, whole[0].numel()).view(whole[0].shape)
    state_weights = torch.linspace(-1, 1, len(lengths) * channels * state).view(len(lengths), channels, state)

    out, last_state = selective_scan_channels_last(
        *leaves, delta_softplus=softplus, backend=backend, lengths=torch.tensor(lengths), reverse=reverse
    )
    loss = (out * weights.masked_fill(~within, float("inf"))).where(within, 0.0).sum() + (last_state * state_weights).sum()
    gradients = torch.autograd.grad(loss, leaves)

    turn = (lambda x: x.flip(1)) if reverse else (lambda x: x)
    sums = [torch.zeros_like(x) for x in whole]
    for i, length in enumerate(lengths):
        own = [(x[i : i + 1, :length] if x.dim() == 3 else x).clone().requires_grad_() for x in whole]
        if length == 0:
            assert not last_state[i].any()
        else:
            turned = [turn(x) if x.dim() == 3 else x for x in own]
            own_out, own_state = selective_scan_channels_last(*turned, delta_softplus=softplus, backend="reference")
            own_loss = (turn(own_out) * weights[i : i + 1, :length]).sum() + (own_state * state_weights[i]).sum()
            assert_close([out[i : i + 1, :length], last_state[i : i + 1]], [turn(own_out), own_state])
            for total, x, gradient in zip(sums, own, torch.autograd.grad(own_loss, own), strict=True):
                (total[i : i + 1, :length] if x.dim() == 3 else total).add_(gradient)
        assert not out[i, length:].any()
    assert_close(gradients, sums)
    for gradient in gradients:
        assert gradient.dim() < 3 or not gradient[~within[..., 0]].any()
