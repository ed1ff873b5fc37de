"""Heavy packages are imported where they are used: no time is measured, only what came along."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "gradio", "numba", "transformers", "librosa", "scipy", "matplotlib", "pandas")


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("qamdetr", ()),
        ("qamdetr.cli", ()),
        ("qamdetr.config", ()),
        ("qamdetr.inference.retriever", ("torch",)),
        ("qamdetr.ui.page", ("torch", "gradio", "pandas")),  # pandas comes with gradio
    ],
)
def test_a_module_brings_no_heavy_package_that_it_can_wait_for(module, allowed):
    script = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(told.stdout.split()) <= set(allowed)
