"""`extract`: fills the cache once, from manifest or folder, in one process or several; goes on past what cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stored_features import OwnFeatures
from tiny_system import write_sound

from qamdetr import cli
from qamdetr.audio import find_recordings
from qamdetr.data.manifest import QueryEntry, write_manifest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def extract(tmp_path, encoder, capsys):
    """Run `extract` into a cache of its own; returns (exit status, stderr)."""

    def run(*args):
        status = cli.main(["extract", "--feature-dir", str(tmp_path / "cache"), *map(str, args)])
        out, err = capsys.readouterr()
        assert out == ""
        return status, err

    return run


def test_a_manifest_fills_the_cache_once_and_what_cannot_be_read_is_told_at_once_and_at_the_end(tmp_path, extract, encoder):
    for vid in ("a", "d", "other"):
        write_sound(tmp_path / f"{vid}.wav", 3)
    (tmp_path / "b.wav").write_bytes(b"RIFF but no sound")
    entries = [QueryEntry(f"{vid}{n}", text, vid, 3.0, None) for vid in "abcd" for n, text in enumerate(("a dog", "a cat"))]
    write_manifest(tmp_path / "m.jsonl", entries)
    args = ["--manifest", tmp_path / "m.jsonl", "--audio-dir", tmp_path]
    status, err = extract(*args)
    assert status == 1
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("qamdetr:")]
    for reason in ("b.wav cannot be decoded", "'c' of "):
        assert sum(reason in line for line in lines) == 2
    assert f"encoded 2 recordings and 2 queries into {tmp_path / 'cache'}; 0 recordings and 0 queries were there already." in lines[-4]
    assert lines[-1].startswith("qamdetr: error: 2 of 6 recordings and queries were skipped")
    for vid in "bc":
        write_sound(tmp_path / f"{vid}.wav", 3)
    status, err = extract(*args)
    assert status == 0
    assert "encoded 2 recordings and 0 queries" in err
    assert "2 recordings and 2 queries were there already." in err
    assert (tmp_path / "cache" / "pocket-tiny-1").is_dir()
    assert encoder.encoded == [str(tmp_path / f"{vid}.wav") for vid in "adbc"]


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import qamdetr.features.base
from killed_extraction import LoggingEncoder
from qamdetr import cli
from qamdetr.errors import AudioError

class Encoder(LoggingEncoder):
    def encoding(self, sound, only=()):
        recording = yield from super().encoding(sound, only)
        if Path(sound.path).stem.startswith("bad"):
            raise AudioError(f"{sound.path} is corrupt; convert it again.")
        return recording

qamdetr.features.base.open_streams = lambda *streams, name, **options: Encoder(Path(sys.argv[2]))
try:
    status = cli.main(["extract", *sys.argv[3:]])
except SystemExit as leaving:
    status = leaving.code
with open(sys.argv[2] + ".status", "a") as statuses:
    statuses.write(f"{status}\\n")
sys.exit(status)
"""


@pytest.mark.slow
def test_two_processes_share_the_recordings_and_tell_one_result(tmp_path):
    (tmp_path / "audio").mkdir()
    names = [*(f"r{number}" for number in range(5)), "bad1", "bad2", "bad3"]
    for number, name in enumerate(names):
        (tmp_path / "audio" / f"{name}.wav").write_bytes(bytes(range(number, number + 64)) * 50)
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", tmp_path / "driver.py"]
    command += [ROOT / "tests" / "features", tmp_path / "log", "--audio-dir", tmp_path / "audio", "--feature-dir", tmp_path / "cache"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run():
        (tmp_path / "log").write_text("")
        (tmp_path / "log.status").unlink(missing_ok=True)
        done = subprocess.run(list(map(str, command)), env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        encoded = sorted((tmp_path / "log").read_text().splitlines())
        return done.returncode, done.stderr.replace("\r", "\n"), encoded, (tmp_path / "log.status").read_text()

    status, told, encoded, statuses = run()
    assert (status, statuses) == (1, "1\n1\n")
    assert encoded == sorted(f"{number % 2} {name}" for number, name in enumerate(sorted(names)))
    for start in ("encoded 5 recordings and 0 queries", "error: 3 of 8 recordings and queries were skipped"):
        assert sum(line.startswith(f"qamdetr: {start}") for line in told.splitlines()) == 1
    assert told.count("bad2.wav is corrupt") == 2  # at once, and in the list at the end
    assert ("process 1 of 2" in told, "process 2 of 2" in told) == (True, False)
    cache = OwnFeatures(tmp_path / "cache", recordings=find_recordings(tmp_path / "audio"))
    assert all(cache.audio(name) for name in names[:5])

    for name in names[5:]:
        (tmp_path / "audio" / f"{name}.wav").unlink()
    status, told, encoded, statuses = run()
    assert (status, encoded, statuses) == (0, [], "0\n0\n")
    assert "encoded 0 recordings and 0 queries" in told
