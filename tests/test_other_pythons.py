"""The Pythons that Spaces run: they compile the sources, resolve the requirements and, where these are installed, run the app."""

from __future__ import annotations

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
TORCH = {"3.10": ("2.8.0", "2.11.0"), "3.12": ("2.8.0", "2.11.0")}
"""What ZeroGPU takes: the oldest and the newest."""

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


def header():
    return yaml.safe_load((REPOSITORY / "README.md").read_text(encoding="utf-8").split("---")[1])


def test_the_space_runs_one_of_these():
    assert header()["python_version"] in VERSIONS
    assert (REPOSITORY / header()["app_file"]).is_file()
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    assert f"gradio=={header()['sdk_version']}\n" in pins
    assert 0 < len(header()["short_description"]) <= 60
    assert {header()["colorFrom"], header()["colorTo"]} <= {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


def test_the_sources_compile_and_take_nothing_that_this_python_lacks(version):
    probe = [interpreters()[version][0], REPOSITORY / "tests" / "other_pythons_probe.py", REPOSITORY / "qamdetr", REPOSITORY / "benchmarks"]
    run = subprocess.run(probe, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""


def test_the_probe_finds_what_is_too_new(version, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "new.py").write_text(
        "import os.path, typing as t\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nowhere import x\n"
        "from email import message\nfrom typing import NoSuchThing\nt.NoneSuch\nos.path.join\n"
    )
    said = says(interpreters()[version][0], REPOSITORY / "tests" / "other_pythons_probe.py", package)
    assert said.splitlines() == ["package/new.py: typing.NoSuchThing", "package/new.py: typing.NoneSuch"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("oldest", [True, False], ids=["oldest torch", "newest torch"])
def test_requirements_resolve_as_a_space_on_zerogpu_asks(version, oldest, tmp_path):
    made = tmp_path / "environment"
    pip = [made / "bin" / "python", "-m", "pip"]
    if says(interpreters()[version][0], "-m", "venv", made) is None:
        pytest.skip(f"Python {version} cannot make environments here")
    if says(*pip, "install", "--quiet", "--upgrade", "pip", timeout=180) is None:
        pytest.skip("no package index can be reached")
    torch = f"torch=={TORCH[version][0]}" if oldest else f"torch<={TORCH[version][1]}"
    space = ["-r", REPOSITORY / "requirements.txt", torch, f"gradio[oauth,mcp]=={header()['sdk_version']}", "spaces"]
    run = subprocess.run(
        [*pip, "install", "--quiet", "--dry-run", "--only-binary", ":all:", "--report", tmp_path / "report.json", *space],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    chosen = {
        package["metadata"]["name"].lower(): package["metadata"]["version"]
        for package in json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["install"]
    }
    assert chosen["torch"] == TORCH[version][0 if oldest else 1]
    assert chosen["gradio"] == header()["sdk_version"]
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
