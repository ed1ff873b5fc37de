"""Time scan, Mamba block and BiMamba layer beside mambapy's and a Transformer layer, and hold them to what is asked of them.

python -m benchmarks.scan [--repeats 9] [--threads 2] [--output build/benchmarks/scan.json]

Batch 8, 300 clips, width 256 (512 channels inside, state 16), float32 on the CPU, forward + backward; then BiMamba and
Transformer layer forward alone on one recording of 300 to 7200 clips. All runs take turns in one process; medians.
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from mambapy.mamba import MambaBlock, MambaConfig
from torch import Tensor, nn
from torch.nn import functional

from benchmarks._timing import compile_kernels, median_seconds, write_json
from qamdetr.kernels.scan import selective_scan
from qamdetr.model.encoder import BiMambaLayer, Mamba

BATCH, CLIPS, DIM, HEADS, FFN_DIM, STATE = 8, 300, 256, 8, 1024, 16
INNER = 2 * DIM
RECORDING_CLIPS = (300, 900, 1800, 3600, 7200)

OURS, PEER = "qamdetr", "mambapy"
RATIOS = {  # name -> (numerator, denominator)
    "scan: mambapy / qamdetr": (f"{PEER} scan", f"{OURS} scan"),
    "Mamba block: mambapy / qamdetr": (f"{PEER} Mamba block", f"{OURS} Mamba block"),
    "BiMamba layer / Transformer layer": (f"{OURS} BiMamba layer", "torch Transformer layer"),
    "two mambapy blocks / BiMamba layer": (f"{PEER} two Mamba blocks", f"{OURS} BiMamba layer"),
}


def forward_backward(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], None]:
    """Return a run of `function` and of its gradient by every input."""

    def run() -> None:
        function(*(tensor.detach().requires_grad_() for tensor in inputs)).sum().backward()  # type: ignore[no-untyped-call]

    return run


def runs() -> dict[str, Callable[[], object]]:
    """Make everything that is timed, on the same random input."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, CLIPS, DIM)
    mask = torch.ones(BATCH, CLIPS, dtype=torch.bool)
    u, delta, z = torch.randn(3, BATCH, CLIPS, INNER)
    B, C = torch.randn(2, BATCH, CLIPS, STATE)  # noqa: N806 - the paper's letters
    A, D = -torch.arange(1.0, STATE + 1).repeat(INNER, 1), torch.ones(INNER)  # noqa: N806
    bias = torch.full((INNER,), -4.0)
    peer = MambaBlock(MambaConfig(d_model=DIM, n_layers=1, d_state=STATE, expand_factor=2, d_conv=4, pscan=True))
    other_peer = copy.deepcopy(peer)
    layer = BiMambaLayer(DIM)
    transformer = nn.TransformerEncoderLayer(DIM, HEADS, FFN_DIM, batch_first=True)

    def our_scan(*tensors: Tensor) -> Tensor:
        u, delta, A, B, C, D, z, bias = tensors  # noqa: N806
        return selective_scan(u, delta, A, B, C, D, z, bias, backend="cpu")

    def peer_scan(*tensors: Tensor) -> Tensor:
        u, delta, A, B, C, D, z, bias = tensors  # noqa: N806 - as its MambaBlock calls it: softplus and gate around the scan
        out: Tensor = peer.selective_scan(u, functional.softplus(delta + bias), A, B, C, D) * functional.silu(z)
        return out

    scan_inputs = (u, delta, A, B, C, D, z, bias)
    torch.testing.assert_close(our_scan(*scan_inputs), peer_scan(*scan_inputs), rtol=1e-3, atol=1e-3)
    return {
        f"{OURS} scan": forward_backward(our_scan, *scan_inputs),
        f"{PEER} scan": forward_backward(peer_scan, *scan_inputs),
        f"{OURS} Mamba block": forward_backward(Mamba(DIM), x),
        f"{PEER} Mamba block": forward_backward(peer, x),
        f"{PEER} two Mamba blocks": forward_backward(lambda x: peer(x) + other_peer(x.flip(1)), x),
        f"{OURS} BiMamba layer": forward_backward(lambda x: layer(x, mask), x),
        "torch Transformer layer": forward_backward(transformer, x),
    }


def forward_runs(clips: int) -> dict[str, Callable[[], object]]:
    """Make both layers' answers on one recording, without gradients."""
    layer, x, mask = BiMambaLayer(DIM).eval(), torch.randn(1, clips, DIM), torch.ones(1, clips, dtype=torch.bool)
    transformer = nn.TransformerEncoderLayer(DIM, HEADS, FFN_DIM, batch_first=True).eval()

    def without_gradients(module: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                module(*inputs)

        return run

    return {"BiMamba": without_gradients(layer, x, mask), "Transformer": without_gradients(transformer, x)}


def time_recordings(repeats: int) -> dict[str, dict[str, float]]:
    """Return seconds of a forward pass by layer and number of clips; all lengths take turns."""
    every = {(layer, clips): run for clips in RECORDING_CLIPS for layer, run in forward_runs(clips).items()}
    seconds = median_seconds({f"{layer} {clips}": run for (layer, clips), run in every.items()}, repeats=repeats)
    return {layer: {str(clips): seconds[f"{layer} {clips}"] for clips in RECORDING_CLIPS} for layer in ("BiMamba", "Transformer")}


def compare_with_asked(ratios: Mapping[str, float], forward: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, float, bool]]:
    """Return what is asked, in words and as a bound, what was measured, and whether it holds."""
    against = ratios["BiMamba layer / Transformer layer"]
    faster = ratios["two mambapy blocks / BiMamba layer"]
    long = forward["BiMamba"]["3600"] / forward["Transformer"]["3600"]
    growth = forward["BiMamba"]["7200"] / forward["BiMamba"]["300"] / (7200 / 300)
    return [
        ("BiMamba / Transformer layer, forward + backward", "<= 2.0", against, against <= 2.0),
        ("two mambapy blocks / BiMamba layer", ">= 6.0", faster, faster >= 6.0),
        ("BiMamba / Transformer layer, forward, 3600 clips", "< 1.0", long, long < 1.0),
        ("time per clip, 7200 / 300 clips", "<= 1.25", growth, growth <= 1.25),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/scan.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    compile_kernels()

    seconds = median_seconds(runs(), repeats=arguments.repeats)
    ratios = {name: seconds[over] / seconds[under] for name, (over, under) in RATIOS.items()}

    print(f"forward + backward, batch {BATCH}, {CLIPS} clips, width {DIM}, {arguments.threads} threads, median of {arguments.repeats}")
    for name, value in seconds.items():
        print(f"  {name:<36}{1000 * value:9.1f} ms")
    for name, ratio in ratios.items():
        print(f"  {name:<36}{ratio:9.2f} x")
    forward = time_recordings(arguments.repeats)
    print("forward of one recording\n  clips          " + "".join(f"{clips:>10}" for clips in RECORDING_CLIPS))
    for layer, times in forward.items():
        print(f"  {layer + ' ms':<15}" + "".join(f"{1000 * value:10.1f}" for value in times.values()))
        print("  µs per clip    " + "".join(f"{1e6 * value / int(clips):10.2f}" for clips, value in times.items()))
    asked = compare_with_asked(ratios, forward)
    for what, bound, value, holds in asked:
        print(f"  {what:<52} asked {bound:<8} measured {value:6.2f}   {'holds' if holds else 'MISSED'}")
    setting = {"batch": BATCH, "clips": CLIPS, "dim": DIM, "threads": arguments.threads, "repeats": arguments.repeats}
    machine = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    write_json(arguments.output, {"setting": setting, **machine, "seconds": seconds, "ratios": ratios, "forward": forward, "asked": asked})


if __name__ == "__main__":
    main()
