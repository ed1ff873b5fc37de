"""A folder of short clips of two sounds, as somebody might have one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16000


def make_clips(folder: Path, sounds: dict[str, float], per_sound: int = 5) -> Path:
    """Write `per_sound` clips of each sound (a name and its pitch in Hz) into a subfolder of its own."""
    time = np.arange(int(1.5 * RATE_HZ)) / RATE_HZ
    for name, pitch_hz in sounds.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_sound):
            tone = 0.5 * np.hanning(time.size) * np.sin(2 * np.pi * pitch_hz * (1 + 0.02 * number) * time)
            soundfile.write(folder / name / f"{number}.wav", tone.astype(np.float32), RATE_HZ)
    return folder
