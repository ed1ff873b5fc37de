"""The command line as a whole: one line for every mistake, help without waiting, terminals of every kind."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["sing"], "invalid choice: 'sing'"),
        (["predict"], "Give at least one AUDIO file and one --query TEXT"),
        (["predict", "a.wav"], "Give at least one AUDIO file and one --query TEXT"),
        (["predict", "a.wav", "--query", " "], "The query is empty"),
        (["predict", "a.wav", "--query", "x", "--top-k", "0"], "--top-k is 0; it must be at least 1"),
        (["predict", "a.wav", "--query", "x", "--top-k", "two"], "invalid int value: 'two'"),
        (["predict", "a.wav", "--query", "x", "--beta", "1.5"], "beta is 1.5; it must lie between 0"),
        (["predict", "a.wav", "--query", "x", "--beta", "nan"], "beta is nan"),
        (["predict", "a.wav", "--query", "x", "--verifier", "x"], "is not known; choose one of none, pocket"),
        (["predict", "a.wav", "--query", "x", "--format", "xml"], "invalid choice: 'xml'"),
        (["predict", "a.wav", "--query", "x", "--checkpoint", "nope"], "No checkpoint 'nope'"),
        (["predict", "a.wav", "--query", "x", "--audio-dir", "d"], "--audio-dir goes with --manifest"),
        (["predict", "a.wav", "--query", "x", "--output", "/"], "--output / is a folder"),
        (["predict", "a.wav", "--query", "x", "--colour"], "unknown arguments: --colour"),
        (["predict", "--manifest", "m.jsonl"], "--manifest needs --output"),
        (["predict", "--manifest", "m.jsonl", "--query", "x"], "--manifest brings its own"),
        (["predict", "--manifest", "gone.jsonl", "--output", "p.jsonl"], "Cannot read gone.jsonl"),
        (["evaluate", "gone.jsonl", "gone.jsonl"], "Cannot read gone.jsonl"),
        (["evaluate", "a", "b", "c"], "unknown arguments: c"),
        (["evaluate", "a", "b", "--bootstrap", "0"], "--bootstrap is 0; it must be from 1 to 1000000"),
        (["evaluate", "a", "b", "--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["evaluate", "a", "b", "--figure", "f.xls"], "f.xls ends in '.xls'; a figure ends in one of .png, .svg, .pdf"),
        (["submit", "p.jsonl"], "the following arguments are required: --manifest"),
        (["submit", "p.jsonl", "--manifest", "gone.jsonl"], "Cannot read gone.jsonl"),
        (["data-report"], "the following arguments are required: JSONL"),
        (["data-report", "gone.jsonl"], "Cannot read gone.jsonl"),
        (["synthesize", "--clips", "c"], "the following arguments are required: --output"),
        (["synthesize", "--clips", "c", "--output", "o", "--num-scenes", "0"], "num_scenes is 0; it must be at least 1"),
        (["extract", "--manifest", "gone.jsonl"], "Cannot read gone.jsonl"),
    ],
)
def test_every_mistake_is_one_line(tmp_path, monkeypatch, told, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in told(*args)


def run_python(*args, **options):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, **options)


def test_help_comes_without_loading_torch():
    script = (
        "import sys; from qamdetr.cli import main\n"
        "try: main(['predict', '--help'])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    told = run_python("-c", script)
    assert told.returncode == 0
    assert "--query TEXT" in told.stdout
    assert told.stderr.strip() == "False"


def test_the_module_runs_and_says_its_version():
    told = run_python("-m", "qamdetr", "--version")
    assert (told.returncode, told.stdout.split()[0]) == (0, "qamdetr")


def test_a_terminal_of_another_encoding_and_a_reader_that_leaves(tmp_path):
    told = run_python("-m", "qamdetr", "evaluate", "犬.jsonl", "犬.jsonl", env={"PYTHONIOENCODING": "ascii"}, encoding="utf-8")
    assert told.returncode == 2
    assert "Cannot read 犬.jsonl" in told.stderr
    script = (
        "import sys; from qamdetr import cli\n"
        "def gone(*args): raise BrokenPipeError\n"
        "cli.evaluate.run = gone; sys.exit(cli.main(['evaluate', 'a', 'b']))"
    )
    left = run_python("-c", script)
    assert (left.returncode, left.stderr) == (1, "")
