"""Instruments and sound effects of a General MIDI soundfont, played by FluidSynth from phrases made up here."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mido
import numpy as np

from qamdetr.audio import Sound
from qamdetr.errors import QamDetrError

SOUNDFONTS = (Path("/usr/share/sounds/sf2/FluidR3_GM.sf2"), Path("/usr/share/sounds/sf2/default-GM.sf2"))

PROGRAMS: dict[str, tuple[int, ...]] = {
    "music/piano": (0, 1, 3), "music/organ": (16, 19), "music/accordion": (21, 23), "music/harmonica": (22,), "music/guitar": (24, 25),
    "music/electric_guitar": (29, 30), "music/bass": (32, 33), "music/strings": (40, 42, 48), "music/choir": (52, 53),
    "music/brass": (56, 57, 61), "music/saxophone": (65, 66), "music/flute": (71, 73, 74), "music/whistle": (78,), "music/harp": (46,),
    "music/xylophone": (9, 10, 12, 13), "music/bagpipe": (109,), "music/sitar": (104, 105), "music/synth": (80, 81, 90),
    "bell/tubular": (14,), "animal/bird": (123,), "phone/ring": (124,), "human/clapping": (126,), "gunshot": (127,),
}  # fmt: skip
"""Group -> General MIDI programs (counted from 0)."""

PERCUSSION: dict[str, tuple[int, ...]] = {
    "music/drums/kick": (35, 36), "music/drums/snare": (38, 40), "music/drums/cymbal": (42, 46, 49, 51, 55),
    "music/drums/tom": (41, 43, 45, 47, 48, 50), "music/drums/cowbell": (56, 76, 77), "music/drums/shaker": (54, 69, 70),
    "human/clapping": (39,),
}  # fmt: skip
"""Group -> keys of the General MIDI percussion channel."""

EFFECTS = frozenset({"animal/bird", "phone/ring", "human/clapping", "gunshot"})
PHRASE_SECONDS = 4.0
_TICKS_PER_SECOND = 960  # 480 ticks per beat at 120 beats per minute, mido's default tempo
_PERCUSSION_CHANNEL = 9


def render_all(rng: np.random.Generator, phrases_per_program: int, sample_rate_hz: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield `(group, phrase)` for every group; each phrase lasts about four seconds and another second to fade.

    Raises:
        QamDetrError: FluidSynth or a soundfont is not installed.
    """
    soundfont = find_soundfont()
    for group, programs in PROGRAMS.items():
        for program in programs:
            events = [_phrase(rng, group in EFFECTS, group == "music/bass") for _ in range(phrases_per_program)]
            yield from _render(group, events, program, 0, soundfont, sample_rate_hz)
    for group, keys in PERCUSSION.items():
        events = [_rhythm(rng, (keys[i % len(keys)],)) for i in range(2 * phrases_per_program)]
        yield from _render(group, events, 0, _PERCUSSION_CHANNEL, soundfont, sample_rate_hz)
    beats = [_rhythm(rng, (36, 42, 38, 42, 36, 46, 38, 42)) for _ in range(2 * phrases_per_program)]
    yield from _render("music/drums", beats, 0, _PERCUSSION_CHANNEL, soundfont, sample_rate_hz)


def find_soundfont() -> Path:
    """Return an installed soundfont.

    Raises:
        QamDetrError: FluidSynth or the soundfont is missing.
    """
    found = next((path for path in SOUNDFONTS if path.is_file()), None)
    if found is None or shutil.which("fluidsynth") is None:
        raise QamDetrError("FluidSynth with a General MIDI soundfont is missing: apt-get install fluidsynth fluid-soundfont-gm.")
    return found


Note = tuple[float, float, int, int]
"""Start and end in seconds, key, velocity."""


def _phrase(rng: np.random.Generator, effect: bool, low: bool) -> list[Note]:
    """Make up a melody or chords in a random scale; effects sound one held key."""
    if effect:
        return [(0.0, PHRASE_SECONDS * rng.uniform(0.5, 1.0), int(rng.integers(52, 76)), int(rng.integers(80, 120)))]
    scale = [0, 2, 4, 5, 7, 9, 11] if rng.random() < 0.5 else [0, 2, 3, 5, 7, 8, 10]
    root = int(rng.integers(28, 40) if low else rng.integers(48, 72))
    beat = rng.uniform(0.12, 0.6)
    chords = rng.random() < 0.35
    notes: list[Note] = []
    position, degree = 0.0, int(rng.integers(7))
    while position < PHRASE_SECONDS - 0.1:
        length = beat * int(rng.choice([1, 1, 2, 4]))
        velocity = int(rng.integers(60, 120))
        for step in (0, 2, 4) if chords else (0,):
            octave, index = divmod(degree + step, 7)
            notes.append((position, min(position + length * 0.95, PHRASE_SECONDS), root + 12 * octave + scale[index], velocity))
        degree = int(np.clip(degree + rng.integers(-3, 4), -3, 10))
        position += length
    return notes


def _rhythm(rng: np.random.Generator, keys: tuple[int, ...]) -> list[Note]:
    """Make up a rhythm that walks through `keys`."""
    beat, position, index = rng.uniform(0.12, 0.45), 0.0, 0
    notes: list[Note] = []
    while position < PHRASE_SECONDS - 0.1:
        if rng.random() < 0.85:
            notes.append((position, position + 0.1, keys[index % len(keys)], int(rng.integers(70, 120))))
        index += 1
        position += beat
    return notes


def _render(
    group: str, phrases: list[list[Note]], program: int, channel: int, soundfont: Path, sample_rate_hz: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Render all phrases in one run of FluidSynth (loading the soundfont is the slow part) and cut them apart."""
    stride = PHRASE_SECONDS + 2.0
    timed = [
        (start + i * stride, end + i * stride, key, velocity) for i, phrase in enumerate(phrases) for start, end, key, velocity in phrase
    ]
    events = sorted([(start, 1, key, velocity) for start, _, key, velocity in timed] + [(end, 0, key, 0) for _, end, key, _ in timed])
    track = mido.MidiTrack([mido.Message("program_change", program=program, channel=channel)])
    now = 0
    for seconds, on, key, velocity in events:
        tick = round(seconds * _TICKS_PER_SECOND)
        track.append(mido.Message("note_on" if on else "note_off", note=key, velocity=velocity, channel=channel, time=tick - now))
        now = tick
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder) / "phrases.mid", Path(folder) / "phrases.wav"
        mido.MidiFile(tracks=[track], ticks_per_beat=480).save(midi)
        command = ["fluidsynth", "-ni", "-q", "-g", "0.8", "-r", str(sample_rate_hz), "-F", str(wav), str(soundfont), str(midi)]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        whole = Sound(wav).samples()
    for i in range(len(phrases)):
        begin = int(i * stride * sample_rate_hz)
        samples = whole[begin : begin + int((PHRASE_SECONDS + 1.0) * sample_rate_hz)]
        if len(samples) and float(np.abs(samples).max()) > 1e-3:
            yield group, samples
