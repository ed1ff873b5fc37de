"""The networks of the packages `msclap` and `laion-clap`, imported without the packages themselves (those need torchaudio and more)."""

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

_FAKE = "clap_package_source"


@contextlib.contextmanager
def package_module(package: str, folder: str, module: str) -> Iterator[types.ModuleType]:
    """Import `module` of a package's inner `folder` without running the `__init__` files above it; skips the test where that cannot be.

    Modules that the file imports but HTSAT does not use (torchvision, h5py) are stood in for where they are not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed (see .ci/run)")
    before = set(sys.modules)
    parent = types.ModuleType(_FAKE)
    parent.__path__ = [str(Path(spec.submodule_search_locations[0]) / folder)]
    sys.modules[_FAKE] = parent
    with contextlib.suppress(ImportError):
        import h5py  # noqa: F401
        import torchvision  # noqa: F401
    for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc", "h5py"):
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.ops.misc"].__dict__.setdefault("FrozenBatchNorm2d", nn.BatchNorm2d)
    try:
        try:
            loaded = importlib.import_module(f"{_FAKE}.{module}")
        except ImportError as error:
            pytest.skip(f"the source of {package} cannot be imported here: {error}")
        yield loaded
    finally:
        for name in set(sys.modules) - before:
            if name.startswith((_FAKE, "torchvision", "h5py")):
                del sys.modules[name]


def laion_audio_settings(size: str, classes: int = 3) -> SimpleNamespace:
    """Settings of `laion_clap/clap_module/model_configs/HTSAT-tiny.json` and `HTSAT-base.json` that the network reads."""
    return SimpleNamespace(
        model_name=size, class_num=classes, window_size=1024, hop_size=480, sample_rate=48_000, mel_bins=64, fmin=50, fmax=14_000
    )


def projection(d_in: int, d_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d_in, d_out), nn.ReLU(), nn.Linear(d_out, d_out))


def sounds(rate_hz: int, seconds: float, seed: int = 0) -> torch.Tensor:
    """A tone that glides, gets louder and has noise around it, so that each second differs."""
    time = torch.arange(int(rate_hz * seconds)) / rate_hz
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(seed))
    glide = torch.sin(2 * torch.pi * (300 + 700 * time) * time)
    return (0.05 + 0.1 * time / seconds) * glide + 0.02 * noise * torch.sin(torch.pi * 3 * time).square()
