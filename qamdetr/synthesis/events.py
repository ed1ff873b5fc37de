"""Makes one event of the wanted length out of the clips of a sound: as it is, looped, or repeated. Plans only, no audio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from qamdetr.synthesis.sources import SHORT_SILENCE_SECONDS, Clip, merge_windows

if TYPE_CHECKING:  # qamdetr.types imports torch, which would cost each worker process seconds
    from qamdetr.types import Window

T = TypeVar("T")

LOOP_CROSSFADE_SECONDS = 0.1
REPEAT_GAP_SECONDS = (0.1, 0.8)
MIN_CUT_SECONDS = 1.0
"""A repeated sound is cut to fit only when at least this much of it remains."""
SAME_CLIP_PROBABILITY = 0.5
"""Chance that a repeated sound plays the same clip again instead of another take of its group."""


@dataclass(frozen=True)
class Segment:
    """A part of one clip inside an event.

    Attributes:
        file: The clip.
        source_start_seconds, length_seconds: The part, in seconds of the clip.
        offset_seconds: Where it starts, from the start of the event (a little below 0 when it begins with silence).
        fade_in_seconds, fade_out_seconds: Crossfade with the neighbouring segment inside the part; 0 at the ends of an event.
    """

    file: str
    source_start_seconds: float
    length_seconds: float
    offset_seconds: float
    fade_in_seconds: float = 0.0
    fade_out_seconds: float = 0.0


@dataclass(frozen=True)
class EventShape:
    """An event before it has a place: segments and audible windows relative to its first audible sample."""

    segments: tuple[Segment, ...]
    windows: tuple[Window, ...]

    @property
    def length_seconds(self) -> float:
        """From the first to the last audible sample."""
        return self.windows[-1][1]


def make_event(rng: np.random.Generator, clip: Clip, takes: Sequence[Clip], length: float, max_seconds: float) -> EventShape:
    """Make an event out of a clip, in the way its `extend` says.

    Args:
        rng: The scene's generator.
        clip: What the event begins with.
        takes: All clips of the sound's group, `clip` among them.
        length: Wanted length in seconds; a clip with `extend=no` keeps its own.
        max_seconds: Where a clip with `extend=no` is cut.
    """
    if clip.extend == "loop":
        segments = _loop(rng, clip, length)
    elif clip.extend == "repeat":
        segments = _repeat(rng, clip, [take for take in takes if take.extend == "repeat"], length)
    else:
        start, end = clip.active[0][0], clip.active[-1][1]
        segments = [Segment(clip.file, start, min(end - start, max_seconds), 0.0)]
    windows = _audible({take.file: take for take in takes}, segments)
    first = windows[0][0]
    return EventShape(
        segments=tuple(replace(segment, offset_seconds=segment.offset_seconds - first) for segment in segments),
        windows=tuple((start - first, end - first) for start, end in windows),
    )


def _repeat(rng: np.random.Generator, clip: Clip, takes: Sequence[Clip], length: float) -> list[Segment]:
    """Play the clip's soundings, and those of other takes, with short gaps until `length` is filled."""
    segments: list[Segment] = []
    offset = 0.0
    while True:
        start, end = pick(rng, clip.stretches)
        remaining = length - offset
        if segments and end - start > remaining and remaining < MIN_CUT_SECONDS:
            return segments
        segments.append(Segment(clip.file, start, min(end - start, remaining), offset))
        offset += segments[-1].length_seconds + float(rng.uniform(*REPEAT_GAP_SECONDS))
        if offset >= length:
            return segments
        if rng.random() >= SAME_CLIP_PROBABILITY:
            clip = pick(rng, takes)


def _loop(rng: np.random.Generator, clip: Clip, length: float) -> list[Segment]:
    """Cut a random part of the clip's longest sounding, or loop it with crossfades when it is too short."""
    start, end = max(clip.stretches, key=lambda stretch: stretch[1] - stretch[0])
    if end - start >= length:
        part = Segment(clip.file, start + float(rng.uniform(0, end - start - length)), length, 0.0)
        # A short part may fall into a pause between two ticks.
        return [part] if _audible({clip.file: clip}, [part]) else [Segment(clip.file, start, length, 0.0)]
    fade = min(LOOP_CROSSFADE_SECONDS, (end - start) / 4)
    begin = start + float(rng.uniform(0, (end - start) / 2))
    segments: list[Segment] = []
    offset = 0.0
    while True:
        part_length = min(end - begin, length - offset)
        last = offset + part_length >= length or length - (offset + part_length - fade) <= 2 * fade
        segments.append(Segment(clip.file, begin, part_length, offset, fade if segments else 0.0, 0.0 if last else fade))
        if last:
            return segments
        offset += part_length - fade
        begin = start


def _audible(clips: dict[str, Clip], segments: Sequence[Segment]) -> list[Window]:
    """Where the segments sound, in seconds of the event; touching parts are joined."""
    windows = []
    for segment in segments:
        begin = segment.source_start_seconds
        for start, end in clips[segment.file].active:
            start_here, end_here = max(start, begin), min(end, begin + segment.length_seconds)
            if end_here - start_here > 0.001:
                windows.append((start_here - begin + segment.offset_seconds, end_here - begin + segment.offset_seconds))
    return merge_windows(windows, SHORT_SILENCE_SECONDS)


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Draw one item, all equally likely."""
    return items[int(rng.integers(len(items)))]
