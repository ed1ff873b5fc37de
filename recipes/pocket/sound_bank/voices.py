"""Speech of men, women and children, whispers and crowds, spoken by espeak-ng."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from qamdetr.audio import Sound, resample
from qamdetr.errors import QamDetrError

ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "de", "fr", "es", "it")

VOICES: dict[str, tuple[tuple[str, ...], tuple[int, int]]] = {
    "speech/man": (("+m1", "+m2", "+m3", "+m4", "+m5", "+m6", "+m7", "+m8"), (10, 45)),
    "speech/woman": (("+f1", "+f2", "+f3", "+f4", "+f5"), (40, 65)),
    "speech/child": (("+f2", "+f3", "+f4", "+f5"), (85, 99)),
    "speech/whisper": (("+whisper", "+whisperf"), (20, 70)),
}
"""Group -> espeak-ng variants and range of its pitch setting (0 to 99)."""

CROWD_VOICES = 12
_FRAGMENTS = (
    "good morning how are you today", "please turn left at the next corner", "I think we should leave before it gets dark",
    "the meeting starts at ten o'clock", "could you pass me the salt", "yesterday we walked along the river", "what an idea",
    "the weather report promises sunshine for the weekend", "he never told me about the letter", "first you mix the flour with the eggs",
    "this is the last call", "our neighbours bought a new house", "she plays in a small team", "no, not at all",
    "welcome back to the evening show", "the train to the north leaves from platform five", "open the window please it is warm in here",
)  # fmt: skip


def render_all(rng: np.random.Generator, utterances_per_group: int, sample_rate_hz: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield `(group, utterance)`; crowds are many voices at once.

    Raises:
        QamDetrError: espeak-ng is not installed.
    """
    if shutil.which("espeak-ng") is None:
        raise QamDetrError("espeak-ng is missing: apt-get install espeak-ng.")
    spoken: list[np.ndarray] = []
    for group, (variants, (low, high)) in VOICES.items():
        for _ in range(utterances_per_group):
            voice = f"{rng.choice(ACCENTS)}{rng.choice(variants)}"
            samples = resample(*speak(_sentence(rng), voice, int(rng.integers(low, high)), int(rng.integers(120, 200))), sample_rate_hz)
            spoken.append(samples)
            yield group, samples
    for _ in range(utterances_per_group // 2):
        yield "speech/crowd", _crowd(rng, spoken, sample_rate_hz)


def speak(text: str, voice: str, pitch: int, words_per_minute: int) -> tuple[np.ndarray, int]:
    """Let espeak-ng say `text`; returns samples and their rate."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "voice.wav"
        command = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(words_per_minute), "-w", str(path), text]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        sound = Sound(path)
        return sound.samples(), sound.rate_hz


def _sentence(rng: np.random.Generator) -> str:
    return ", ".join(rng.choice(_FRAGMENTS, size=int(rng.integers(1, 3)), replace=False))


def _crowd(rng: np.random.Generator, spoken: Sequence[np.ndarray], sample_rate_hz: int) -> np.ndarray:
    """Lay many voices over each other at random positions, far and near."""
    total = np.zeros(int(8 * sample_rate_hz), dtype=np.float32)
    for _ in range(CROWD_VOICES * 3):
        voice = spoken[int(rng.integers(len(spoken)))][: len(total)]
        begin = int(rng.integers(0, len(total) - len(voice) + 1))
        total[begin : begin + len(voice)] += voice * rng.uniform(0.2, 1.0)
    return (total / max(float(np.abs(total).max()), 1e-6) * 0.8).astype(np.float32)
