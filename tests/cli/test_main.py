"""The command line as a whole: help without waiting, terminals of every kind, a format from outside. Its mistakes stand in tests/golden."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from qamdetr import cli
from qamdetr.export import EXPORTS

ROOT = Path(__file__).resolve().parents[2]


def run_python(*args, **options):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, **options)


def test_help_and_version_come_without_torch_and_without_boxes():
    script = "import sys; from qamdetr.cli import main; main(['predict', '--help']); main(['--version']); print('torch' in sys.modules)"
    told = run_python("-c", script)
    assert (told.returncode, told.stderr) == (0, "")
    assert "--query TEXT" in told.stdout
    assert told.stdout.splitlines()[-2].startswith("qamdetr ")
    assert told.stdout.splitlines()[-1] == "False"
    assert "\u2502" not in told.stdout


def test_a_terminal_of_another_encoding():
    told = run_python("-m", "qamdetr", "evaluate", "犬.jsonl", "犬.jsonl", env={"PYTHONIOENCODING": "ascii"}, encoding="utf-8")
    assert told.returncode == 2
    assert "Cannot read 犬.jsonl" in told.stderr


@pytest.mark.parametrize(("raised", "status"), [(BrokenPipeError, 1), (KeyboardInterrupt, 130)])
def test_a_reader_that_leaves_and_a_stop_are_no_tracebacks(raised, status):
    script = (
        "import sys; from qamdetr import cli; import qamdetr.data.manifest as manifest\n"
        f"def gone(*args, **options): raise {raised.__name__}\n"
        "manifest.read_manifest = gone; sys.exit(cli.main(['evaluate', 'a', 'b']))"
    )
    left = run_python("-c", script)
    assert (left.returncode, left.stderr) == (status, "")


def test_a_format_from_outside_is_offered_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(EXPORTS, "starts", None)  # taken away again at the end
    lines = [
        "from qamdetr.export import export",
        "@export('starts', label='Starts', ending='.txt')",
        "def starts(answers): return ''.join(f'{moment.start_seconds}\\n' for answer in answers for _, moment in answer.moments())",
    ]
    (tmp_path / "my_format.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("my_format")
    assert cli.main(["predict", str(ROOT / "assets" / "street.ogg"), "--query", "a siren wails", "--format", "starts"]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(13.85, abs=0.5)
