from __future__ import annotations

import shutil
import subprocess
import threading

import numpy as np
import pytest
import soundfile

from qamdetr import audio
from qamdetr.progress import heard_by, tell


def test_what_is_told_is_heard_inside_and_nowhere_else():
    heard = []
    tell(0.1)
    with heard_by(heard.append):
        tell(0.25)
        tell(None)
        tell(1.5)
        other = threading.Thread(target=tell, args=(0.7,))
        other.start()
        other.join()
    tell(0.9)
    assert heard == [0.25, None, 1.0]


def test_whoever_hears_may_end_the_work():
    def stop(_):
        raise InterruptedError

    with pytest.raises(InterruptedError), heard_by(stop):
        tell(0.0)
    tell(0.5)


def stop_at(share):
    def hear(told):
        if told is None or told >= share:
            raise InterruptedError

    return hear


@pytest.mark.parametrize("name", ["walk.wav", "walk.m4a"])
def test_decoding_can_be_ended_in_the_middle(tmp_path, name):
    path = tmp_path / "walk.wav"
    soundfile.write(path, np.zeros(60 * 48000, dtype=np.float32), 48000)
    if name != path.name:
        if shutil.which("ffmpeg") is None:
            pytest.skip("needs ffmpeg")
        subprocess.run(["ffmpeg", "-v", "error", "-i", path, tmp_path / name], check=True)
    heard = []
    with heard_by(heard.append):
        whole = audio.decode(tmp_path / name)
    assert whole.duration_seconds == pytest.approx(60, abs=0.1)
    assert len(heard) > 5, "every few seconds of sound"
    assert heard[-1] == (1.0 if name == "walk.wav" else None)
    with pytest.raises(InterruptedError), heard_by(stop_at(0.3)):
        audio.decode(tmp_path / name)
