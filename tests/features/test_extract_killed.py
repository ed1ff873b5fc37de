"""Extraction killed at any moment goes on where it was: nothing is lost, nothing stored is computed again, nothing is half-written."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import torch
from killed_extraction import run_extract
from stored_features import OwnFeatures

from qamdetr.audio import find_recordings

NAMES = [f"r{number}" for number in range(4)]


def stored(feature_dir: Path, audio_dir: Path) -> set[str]:
    """Recordings whose features are there; reads and compares them all."""
    recordings = find_recordings(audio_dir)
    cache = OwnFeatures(feature_dir, recordings=recordings)
    found = {vid for vid in recordings if cache.audio(vid)}
    for vid in found:
        assert torch.equal(cache.audio(vid)["bytes"].flatten(), torch.tensor(list(recordings[vid].read_bytes()[:64])).float())
    return found


def test_killed_at_every_moment_it_goes_on_where_it_was(tmp_path: Path) -> None:
    audio_dir, log = tmp_path / "audio", tmp_path / "log"
    audio_dir.mkdir()
    for number, name in enumerate(NAMES):
        (audio_dir / f"{name}.wav").write_bytes(bytes(range(number, number + 64)) * 50)
    status, encoded, num_moments = run_extract(audio_dir, tmp_path / "whole", log)
    assert (status, encoded) == (0, NAMES)
    assert num_moments >= 5 * len(NAMES)  # encoded, opened, half-written, renamed, removed
    features, num_stored = tmp_path / "features", set()
    for moment in range(num_moments):
        shutil.rmtree(features, ignore_errors=True)
        status, first, _ = run_extract(audio_dir, features, log, kill_at=moment)
        assert status == -signal.SIGKILL
        before = stored(features, audio_dir)
        num_stored.add(len(before))
        assert before <= set(first)
        assert len(set(first) - before) <= 1, "only the recording under way is lost"
        status, second, _ = run_extract(audio_dir, features, log)
        assert (status, second) == (0, [name for name in NAMES if name not in before])
        assert stored(features, audio_dir) == set(NAMES)
    assert num_stored == set(range(len(NAMES) + 1))
    assert run_extract(audio_dir, features, log)[:2] == (0, [])
