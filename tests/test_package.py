"""The package as others get it: what the wheel holds, that it answers from any folder, and that few files answer a question."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_WHEEL_BYTES, MAX_FILES = 43_000_000, 31
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_answers_from_any_folder(tmp_path):
    def run(*words, **options):
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("qamdetr-*.whl")
    assert wheel.stat().st_size <= MAX_WHEEL_BYTES
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = ["configs/pocket.yaml", "configs/systems/submit1.yaml", "checkpoints/qam-detr-pocket/model.safetensors"]
    wanted += ["checkpoints/pocket-encoder/audio.safetensors", "assets/street.ogg", "assets/examples.json"]
    wanted += [
        str(path.relative_to(ROOT / "qamdetr")) for kind in ("js", "css", "svg") for path in (ROOT / "qamdetr" / "ui").rglob(f"*.{kind}")
    ]
    assert {f"qamdetr/{name}" for name in wanted} <= names
    run(*pip, "install", "--no-deps", "--target", tmp_path / "installed", wheel)
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    where = {"cwd": tmp_path / "elsewhere", "env": environment}
    command = tmp_path / "installed" / "bin" / "qamdetr"
    labels = run(
        sys.executable, command, "predict", ROOT / "assets" / "street.ogg", "--query", "a siren wails", "--format", "audacity", **where
    )
    (label,) = labels.splitlines()
    assert [float(value) for value in label.split("\t")[:2]] == pytest.approx([13.85, 17.14], abs=0.5)
    script = "import qamdetr; print(qamdetr.__file__, qamdetr.MomentRetriever.from_pretrained().config.data.combo)"
    file, combo = run(sys.executable, "-c", script, **where).split()
    assert (Path(file).parents[1], combo) == (tmp_path / "installed", "pocket")


def test_one_question_runs_through_few_files():
    """The second time, when all is imported, so that only what answers is counted."""
    script = """
import sys
from qamdetr.cli import main
words = ["predict", "assets/empty-room.ogg", "--query", "a dog barks", "--format", "json", "--output", sys.argv[1]]
main(words)
seen = set()
sys.setprofile(lambda frame, event, argument: event == "call" and seen.add(frame.f_code.co_filename))
status = main(words)
sys.setprofile(None)
print(*sorted(name.split("/qamdetr/")[1] for name in seen if name.endswith(".py") and "/qamdetr/" in name and "site-packages" not in name))
sys.exit(status)
"""
    told = subprocess.run([sys.executable, "-c", script, os.devnull], cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert len(told.stdout.split()) <= MAX_FILES, told.stdout
