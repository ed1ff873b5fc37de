"""The Pythons that Spaces run: the requirements resolve on them and, where these are installed, the app runs."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
VERSIONS = ("3.10", "3.12")
HEADER = yaml.safe_load((REPOSITORY / "README.md").read_text(encoding="utf-8").split("---")[1])

INSTALLED = "QAMDETR_TEST_PYTHONS"
"""Environment variable: interpreters with the app's packages, such as those of virtual environments, joined as in PATH."""


def says(*command, timeout=60):
    """What a program prints; None where it does not run."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


@functools.cache
def interpreters():
    """Version -> interpreters that really run, and not merely have a name on the PATH."""
    named = [path for path in os.environ.get(INSTALLED, "").split(os.pathsep) if path]
    installed = (says("pyenv", "versions", "--bare") or "").split() if shutil.which("pyenv") else []
    kept = [f"{says('pyenv', 'prefix', name)}/bin/python" for name in installed if name.startswith(VERSIONS)]
    found = {}
    for candidate in [*named, *(f"python{version}" for version in VERSIONS), *kept, sys.executable]:
        version = says(candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
        if version in VERSIONS:
            found.setdefault(version, []).append(candidate)
    return found


@pytest.fixture(params=VERSIONS)
def version(request):
    if request.param not in interpreters():
        pytest.skip(f"needs Python {request.param}")
    return request.param


def test_the_space_runs_one_of_these():
    assert HEADER["python_version"] in VERSIONS
    assert (REPOSITORY / HEADER["app_file"]).is_file()
    assert f"gradio=={HEADER['sdk_version']}\n" in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    assert 0 < len(HEADER["short_description"]) <= 60
    assert {HEADER["colorFrom"], HEADER["colorTo"]} <= {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def test_the_standard_library_has_the_names_that_are_imported(version):
    nodes = [node for path in (REPOSITORY / "qamdetr").rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in sys.stdlib_module_names]
    lines = [f"from {node.module} import {alias.name}" for node in froms for alias in node.names if node.module != "__future__"]
    assert len(lines) > 100
    run = subprocess.run([interpreters()[version][0], "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("torch", ["==2.8.0", "<=2.11.0"], ids=["oldest torch of ZeroGPU", "newest torch of ZeroGPU"])
def test_requirements_resolve_as_a_space_on_zerogpu_asks(version, torch, tmp_path):
    made = tmp_path / "environment"
    pip = [made / "bin" / "python", "-m", "pip"]
    if says(interpreters()[version][0], "-m", "venv", made) is None:
        pytest.skip(f"Python {version} cannot make environments here")
    if says(*pip, "install", "--quiet", "--upgrade", "pip", timeout=180) is None:
        pytest.skip("no package index can be reached")
    space = ["-r", REPOSITORY / "requirements.txt", f"torch{torch}", f"gradio[oauth,mcp]=={HEADER['sdk_version']}", "spaces"]
    dry = [*pip, "install", "--quiet", "--dry-run", "--only-binary", ":all:", "--report", tmp_path / "report.json", *space]
    run = subprocess.run(dry, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr
    packages = [package["metadata"] for package in json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["install"]]
    chosen = {package["name"].lower(): package["version"] for package in packages}
    assert (chosen["torch"], chosen["gradio"]) == (torch.lstrip("<="), HEADER["sdk_version"])
    assert {"transformers", "librosa", "mcp", "spaces"} <= set(chosen)


ANSWER = """
import app
from qamdetr.inference.retriever import MomentRetriever

retriever = MomentRetriever.from_pretrained()
best = retriever.retrieve(retriever.encode("assets/street.ogg"), "a siren wails").moments[0]
print(list(app.demo.get_api_info()["named_endpoints"]), f"{best.start_seconds:.1f} {best.end_seconds:.1f} {best.score:.2f}")
"""


@pytest.mark.slow
def test_the_app_comes_up_and_answers_alike(version):
    wanted = "import gradio, torch, transformers, librosa"
    able = next((python for python in interpreters()[version] if says(python, "-c", wanted, timeout=180) is not None), None)
    if able is None:
        pytest.skip(f"needs Python {version} with what requirements.txt names (gigabytes of PyTorch); tell where in {INSTALLED}")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    told = [
        subprocess.run([python, "-c", ANSWER], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=280, check=False)
        for python in (able, sys.executable)
    ]
    assert told[0].returncode == 0, told[0].stderr
    assert re.match(r"\['/retrieve'\] \d", told[0].stdout)
    assert told[0].stdout == told[1].stdout
