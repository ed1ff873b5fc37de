"""Turns scene plans into audio: background, events at their levels over it, a random peak. No randomness beyond the plan's."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile

from qamdetr.audio import Sound
from qamdetr.files import write_whole
from qamdetr.synthesis.plan import LOOP_CROSSFADE_SECONDS, BackgroundPart, Event, ScenePlan
from qamdetr.synthesis.sources import Samples, active_rms

CACHE_BYTES = 512 * 2**20  # decoded sources kept in memory per process; the longest unused go first
LONG_BACKGROUND_SECONDS = 900.0  # of longer backgrounds only the part that a scene needs is read
BACKGROUND_CROSSFADE_SECONDS = 1.0
MIN_EDGE_SECONDS = 0.005  # fade inside a sound that begins at the very start of its file; shorter ones click
PINK_NOISE_DB = -20.0  # of the stand-in noise: events sit at their SNR over a background 20 dB louder than the noise that is heard
QUIET_BACKGROUND_DB = -20.0  # a background this far below its own average counts as this loud: its pauses do not hide events


class SourceCache:
    """Decoded mono sources at the rate of the scenes: clips with an active RMS of 1, backgrounds as they are."""

    def __init__(self, clips_dir: Path, backgrounds_dir: Path | None, sample_rate_hz: int) -> None:
        self.sample_rate_hz, self._clips_dir, self._backgrounds_dir = sample_rate_hz, clips_dir, backgrounds_dir or Path()
        self._kept: dict[Path, Samples] = {}  # the longest unused first

    def clip(self, file: str) -> Samples:
        """Return a clip scaled to an active RMS of 1, so that takes of different loudness make one event."""
        return self._load(self._clips_dir / file, scaled=True)

    def background(self, part: BackgroundPart, seconds: float) -> Samples:
        """Return `seconds` of a background from the part's offset on, looped when it is too short; of a long one only those are read."""
        path, rate = self._backgrounds_dir / part.file, self.sample_rate_hz
        sound = Sound(path)
        if path not in self._kept and sound.duration_seconds >= max(LONG_BACKGROUND_SECONDS, seconds):
            start = min(part.offset_seconds, sound.duration_seconds - seconds)
            samples = sound.part(start, start + seconds, rate_hz=rate)
            return np.pad(samples, (0, max(0, round(seconds * rate) - len(samples))))[: round(seconds * rate)]
        samples = self._load(path)
        offset = round(part.offset_seconds * rate) % len(samples)
        return loop_to(samples, offset, round(seconds * rate), round(BACKGROUND_CROSSFADE_SECONDS * rate))

    def _load(self, path: Path, *, scaled: bool = False) -> Samples:
        samples = self._kept.pop(path, None)
        if samples is None:
            samples = Sound(path).samples(self.sample_rate_hz)
            if scaled:
                samples = samples - samples.mean()
                samples /= active_rms(samples, self.sample_rate_hz)
        self._kept[path] = samples
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > CACHE_BYTES:
            del self._kept[next(iter(self._kept))]
        return samples


def render(plan: ScenePlan, sources: SourceCache, fade_seconds: float) -> Samples:
    """Render a scene: `(samples,)` at the rate of `sources`, with its peak at the plan's `peak_dbfs`."""
    rate = sources.sample_rate_hz
    background = _mix_background(plan, sources)
    scene = background.copy()
    boost = 1.0 if plan.backgrounds else 10 ** (-PINK_NOISE_DB / 20)
    floor = 10 ** (QUIET_BACKGROUND_DB / 20) * _rms(background)
    for event in plan.events:
        sound, lead = _assemble(event, sources, fade_seconds)
        start = round(event.start_seconds * rate)
        local = max(_rms(background[start : round(event.end_seconds * rate)]), floor) * boost
        sound *= local * 10 ** (event.snr_db / 20) / active_rms(sound, rate)
        _add(scene, sound, start - lead)
    peak = max(float(scene.max()), -float(scene.min()))
    scene *= 10 ** (plan.peak_dbfs / 20) / peak
    return scene


def render_scenes(
    plans: Iterable[ScenePlan], sources: SourceCache, fade_seconds: float, audio_dir: Path, tell: Callable[[], object] = lambda: None
) -> None:
    """Render and write scenes one by one, telling after each; an `OSError` is the disk's."""
    for plan in plans:
        content = io.BytesIO()  # libsndfile tells of a full disk in words of its own
        soundfile.write(content, render(plan, sources, fade_seconds), sources.sample_rate_hz, format="FLAC", subtype="PCM_16")
        write_whole(audio_dir / f"{plan.vid}.flac", content.getvalue())
        tell()


def loop_to(samples: Samples, offset: int, length: int, fade: int) -> Samples:
    """Return `length` samples of the endlessly repeated source, from `offset` on; its end fades into its start over `fade` samples."""
    fade = min(fade, len(samples) // 4)
    period = samples[: len(samples) - fade].copy()
    period[:fade] = samples[:fade] * _ramp(fade) + samples[len(samples) - fade :] * _ramp(fade)[::-1]
    return period.take(np.arange(offset, offset + length), mode="wrap")


def pink_noise(length: int, seed: int) -> Samples:
    """Noise whose power falls by 3 dB per octave, RMS 1.

    Source: the three-pole filter of J. O. Smith, "Spectral Audio Signal Processing", CCRMA, section "Example: Synthesis of 1/F noise".
    """
    white = np.random.default_rng(seed).standard_normal(length + 4096, dtype=np.float32)
    numerator = [0.049922035, -0.095993537, 0.050612699, -0.004408786]
    denominator = [1.0, -2.494956002, 2.017265875, -0.522189400]
    pink = np.asarray(scipy.signal.lfilter(numerator, denominator, white), dtype=np.float32)[4096:]  # past the filter's start
    return pink / np.float32(_rms(pink))


def _mix_background(plan: ScenePlan, sources: SourceCache) -> Samples:
    """Sum of the plan's backgrounds, each first brought to the same RMS; pink noise when there are none or they are silent."""
    length = round(plan.duration_seconds * sources.sample_rate_hz)
    mixed = np.zeros(length, dtype=np.float32)
    for part in plan.backgrounds:
        samples = sources.background(part, plan.duration_seconds)
        loudness = _rms(samples)
        if loudness > 1e-6:
            mixed += samples * np.float32(10 ** (part.level_db / 20) / loudness)
    return mixed if mixed.any() else pink_noise(length, plan.noise_seed)


def _assemble(event: Event, sources: SourceCache, fade_seconds: float) -> tuple[Samples, int]:
    """Join an event's segments: the sound, and how many of its samples lie before the event's start (silence and fade)."""
    rate = sources.sample_rate_hz
    fade, edge = round(fade_seconds * rate), round(MIN_EDGE_SECONDS * rate)
    lead = fade + round(-min(0.0, *(segment.offset_seconds for segment in event.segments)) * rate)
    end_seconds = max(segment.offset_seconds + segment.length_seconds for segment in event.segments)
    longest = max(fade, *(round(segment.tail_seconds * rate) for segment in event.segments))
    sound = np.zeros(lead + round(end_seconds * rate) + longest + 2, dtype=np.float32)
    for segment in event.segments:
        source = sources.clip(segment.file)
        begin, length = round(segment.source_start_seconds * rate), round(segment.length_seconds * rate)
        # The fades at the ends of a part lie outside its window where the file goes on.
        before, after = min(fade, begin), max(0, min(max(fade, round(segment.tail_seconds * rate)), len(source) - begin - length))
        if segment.loop:
            low, high = (round(seconds * rate) for seconds in segment.loop)
            before = after = fade
            part = loop_to(source[low:high], begin - low - fade, length + 2 * fade, round(LOOP_CROSSFADE_SECONDS * rate))
        else:
            part = source[begin - before : begin + length + after].copy()
        rise, fall = (min(max(size, edge), len(part)) for size in (before, after))
        part[:rise] *= _ramp(rise)
        part[len(part) - fall :] *= _ramp(fall)[::-1]
        _add(sound, part, lead + round(segment.offset_seconds * rate) - before)
    return sound, lead


def _ramp(length: int) -> Samples:
    """Rise from 0 to 1 whose square and mirrored square add up to 1: an equal-power fade."""
    return np.sin(0.5 * np.pi * (np.arange(length, dtype=np.float32) + 0.5) / max(length, 1)).astype(np.float32)


def _add(target: Samples, samples: Samples, position: int) -> None:
    """Add samples into `target` at `position`; what lies outside is dropped."""
    begin, end = max(0, position), min(len(target), position + len(samples))
    if begin < end:
        target[begin:end] += samples[begin - position : end - position]


def _rms(samples: Samples) -> float:
    return float(np.sqrt(np.dot(samples, samples) / max(1, len(samples))))
