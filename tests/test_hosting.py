"""What `docs/hosting.md` tells to type."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "docs" / "hosting.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^hf (.+?)(?: {3,}#.*)?$", PAGE, flags=re.MULTILINE)))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_and_options_are_those_of_the_installed_client(command):
    words = shlex.split(command)
    names = [word for word in words[: next((at for at, word in enumerate(words) if not word.isalpha()), len(words))] if word.islower()]
    client = Path(sys.executable).with_name("hf")
    if not client.is_file():
        pytest.skip("needs the client `hf` of huggingface_hub beside Python")
    told = subprocess.run([client, *names, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, told.stderr
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(^|[\s,]){re.escape(option)}\b", told.stdout), f"hf {' '.join(names)} has no option {option}"
    for choice in (words[at + 1] for at, word in enumerate(words) if word in {"--flavor", "--hardware", "--type"}):
        assert choice in told.stdout


def test_it_says_how_large_the_upload_is():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("needs a Git checkout")
    sizes = [(REPOSITORY / name).stat().st_size for name in tracked.stdout.split("\0") if name and (REPOSITORY / name).is_file()]
    said = re.search(r"caches: (\d+) MB, .* the largest file has\s+([\d.]+) MB", PAGE, flags=re.DOTALL)
    assert int(said[1]) == pytest.approx(sum(sizes) / 1e6, rel=0.25)
    assert float(said[2]) == pytest.approx(max(sizes) / 1e6, abs=0.06)
