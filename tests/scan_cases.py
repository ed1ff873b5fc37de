"""Random inputs of a selective scan, its gradients on a backend, and how close they have to be."""

from __future__ import annotations

import torch

from qamdetr.kernels.scan import selective_scan

NAMES = ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"]


def random_inputs(batch, steps, channels, state, *, seed=0, step_scale=1.0):
    """Inputs in the order of NAMES; `step_scale` spreads the raw step sizes."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, device="cpu").to(torch.get_default_device())

    sequence, small = (batch, steps, channels), (batch, steps, state)
    u, delta, A = normal(*sequence), step_scale * normal(*sequence), -torch.exp(normal(channels, state))  # noqa: N806 - the paper's letters
    return [u, delta, A, normal(*small), normal(*small), normal(channels), normal(*sequence), normal(channels)]


def ramp(x):
    """An upstream gradient that differs at every element."""
    return torch.linspace(-1, 1, x.numel()).view(x.shape)


def run(inputs, backend, **walk):
    """Output and gradients of one scan."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    out = selective_scan(*leaves, backend=backend, **walk)
    return [out.detach(), *torch.autograd.grad(out, leaves, ramp(out))]


def check_golden(golden, case, backend):
    """`backend` gives mamba-ssm's own numbers, which have channels before steps."""

    def load(name):
        tensor = torch.from_numpy(golden[f"scan/{case}/{name}"]).to(torch.get_default_device())
        return tensor.transpose(1, 2) if tensor.dim() == 3 else tensor

    leaves, expected = [load(name).requires_grad_() for name in NAMES], [load(name) for name in ("out", *(f"grad_{n}" for n in NAMES))]
    out = selective_scan(*leaves, backend=backend)
    gradients = torch.autograd.grad(out, leaves, load("grad_out"))
    for name, actual, wanted in zip(["out", *NAMES], [out, *gradients], expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def assert_close(actual, expected):
    """Relative to the largest element, since float32 sums of large terms leave small elements with that error."""
    for one, other in zip(actual, expected, strict=True):
        assert torch.isfinite(one).all()
        assert (one - other).abs().max() <= 1e-4 * max(1.0, other.abs().max().item())


def check_small_steps(backend):
    """Steps near 1e-6, where `log(1 + x)` in float32 would be off by percents."""
    inputs = random_inputs(1, 4, 3, 2)
    inputs[1], inputs[5], inputs[7] = torch.full_like(inputs[1], -14.0), torch.zeros(3), torch.zeros(3)
    out = selective_scan(*inputs, backend=backend)
    expected = selective_scan(*[tensor.double() for tensor in inputs], backend="reference")
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=0)


def check_walk(lengths, channels, state, backend, *, reverse, seed=0):
    """Each item of a padded batch comes out as its valid steps do alone, turned round by hand; NaN in padding reaches nothing."""
    whole = random_inputs(len(lengths), max(lengths) + 2, channels, state, seed=seed)
    within = (torch.arange(max(lengths) + 2) < torch.tensor(lengths)[:, None])[..., None]
    leaves = [(torch.where(within, x, float("nan")) if x.dim() == 3 else x).requires_grad_() for x in whole]
    weights = ramp(whole[0])

    out = selective_scan(*leaves, backend=backend, lengths=torch.tensor(lengths), reverse=reverse)
    gradients = torch.autograd.grad((out * weights.masked_fill(~within, float("inf"))).where(within, 0.0).sum(), leaves)

    turn = (lambda x: x.flip(1)) if reverse else (lambda x: x)
    sums = [torch.zeros_like(x) for x in whole]
    for i, length in enumerate(lengths):
        own = [(x[i : i + 1, :length] if x.dim() == 3 else x).clone().requires_grad_() for x in whole]
        if length:
            own_out = turn(selective_scan(*[turn(x) if x.dim() == 3 else x for x in own], backend="reference"))
            assert_close([out[i : i + 1, :length]], [own_out])
            for total, x, gradient in zip(sums, own, torch.autograd.grad(own_out, own, weights[i : i + 1, :length]), strict=True):
                (total[i : i + 1, :length] if x.dim() == 3 else total).add_(gradient)
        assert not out[i, length:].any()
    assert_close(gradients, sums)
    for gradient in gradients:
        assert gradient.dim() < 3 or not gradient[~within[..., 0]].any()
