"""Which backend runs where, and what is said when the wanted one cannot."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from qamdetr.errors import ConfigError
from qamdetr.kernels import backends
from qamdetr.kernels.backends import choose_backend, use_backend


def tensor_on(device, dtype=torch.float32):
    """What the choice looks at, for devices that are not here."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    backends._start_problem.cache_clear()
    yield
    backends._start_problem.cache_clear()


@pytest.fixture
def install(monkeypatch):
    """Make the GPU packages importable or not, whatever is installed here."""

    def install(*, mamba_ssm, triton):
        driver = SimpleNamespace(active=SimpleNamespace(get_current_target=lambda: "a GPU"))
        for name, there in {"mamba_ssm": mamba_ssm, "mamba_ssm.ops": mamba_ssm, "triton": triton}.items():
            monkeypatch.setitem(sys.modules, name, ModuleType(name) if there else None)
        interface = "mamba_ssm.ops.selective_scan_interface"
        monkeypatch.setitem(sys.modules, interface, ModuleType(interface) if mamba_ssm else None)
        if triton:
            sys.modules["triton"].runtime = SimpleNamespace(driver=driver)

    return install


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("mamba_ssm", "triton", "expected"), [(True, True, "mamba_ssm"), (True, False, "mamba_ssm"), (False, True, "triton")]
)
def test_on_a_gpu_the_installed_package_comes_first(install, mamba_ssm, triton, expected, dtype):
    install(mamba_ssm=mamba_ssm, triton=triton)

    assert choose_backend(None, [tensor_on("cuda", dtype), None, tensor_on("cuda")]) == expected


def test_a_gpu_without_either_says_that_it_will_be_slow(install):
    install(mamba_ssm=False, triton=False)

    with pytest.warns(UserWarning, match="slow loop"):
        assert choose_backend(None, [tensor_on("cuda")]) == "reference"


def test_a_package_that_does_not_start_is_passed_over(install, monkeypatch):
    install(mamba_ssm=True, triton=True)

    def broken(name):
        if name == "triton":
            return sys.modules["triton"]
        raise OSError("undefined symbol")

    monkeypatch.setattr(backends, "importlib", SimpleNamespace(import_module=broken))

    with pytest.warns(UserWarning, match="undefined symbol"):
        assert choose_backend(None, [tensor_on("cuda")]) == "triton"
    with pytest.raises(ConfigError, match=r"'mamba_ssm' does not start \(undefined symbol\)"):
        choose_backend("mamba_ssm", [tensor_on("cuda")])


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_other_types_and_devices_take_the_reference(install, device):
    install(mamba_ssm=True, triton=True)

    assert choose_backend(None, [tensor_on(device, torch.float64)]) == "reference"
    assert choose_backend(None, [tensor_on("meta")]) == "reference"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_cpu_takes_its_own(dtype):
    assert choose_backend(None, [tensor_on("cpu", dtype)]) == "cpu"


@pytest.mark.parametrize("backend", ["cpu", "triton", "mamba_ssm", "reference"])
def test_the_choice_can_be_forced_for_a_call_or_a_block(install, backend):
    install(mamba_ssm=True, triton=True)
    tensors = [tensor_on("cpu" if backend == "cpu" else "cuda")]

    assert choose_backend(backend, tensors) == backend
    with use_backend(backend):
        assert choose_backend(None, tensors) == backend
        assert choose_backend("reference", tensors) == "reference"


def test_a_gpu_backend_refuses_tensors_elsewhere(install):
    install(mamba_ssm=True, triton=True)

    for backend in ("triton", "mamba_ssm"):
        with pytest.raises(ConfigError, match=f"^Backend '{backend}' takes tensors on 'cuda' only, not on 'cpu'; .*'reference'") as refusal:
            choose_backend(backend, [tensor_on("cuda"), tensor_on("cpu")])
        assert "\n" not in str(refusal.value)


def test_the_cpu_refuses_a_gpu_tensor():
    with pytest.raises(ConfigError, match="'cpu' takes tensors on 'cpu' only, not on 'cuda'"):
        choose_backend("cpu", [tensor_on("cuda")])


def test_triton_takes_cpu_tensors_where_it_is_interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    assert choose_backend("triton", [tensor_on("cpu")]) == "triton"
    assert choose_backend(None, [tensor_on("cpu")]) == "cpu"
