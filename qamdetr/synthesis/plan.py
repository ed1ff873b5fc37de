"""Decides what happens in each scene: pure planning, no audio. The same library, recipe and scene number always give the same plan.

Distributions follow CASTELLA (measured on its public annotations): recordings of 60-300 s; window widths log-normal with a median of a few
seconds and a long tail; half of the queries have one window, the number of windows falling off as `n ** -1.4`.

Source: H. Munakata et al., "Language-based audio moment retrieval", ICASSP 2025 (Clotho-Moment: captioned clips over long backgrounds).
Deliberate differences: one-minute scenes with one window each become long scenes with several windows, distractors and absent queries.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from qamdetr.data.manifest import are_related, is_within
from qamdetr.errors import DataError
from qamdetr.synthesis import SceneRecipe
from qamdetr.synthesis.sources import LEVELS_DB, SHORT_SILENCE_SECONDS, Clip, Library, Window, merge_windows

T = TypeVar("T")

OCCURRENCE_EXPONENT = 1.4  # `n` occurrences are as likely as `n ** -1.4`, which is CASTELLA's histogram of windows per query
GROUP_SPREAD_SHARE = 0.8  # share of the spread of event lengths that all occurrences of one sound in a scene have in common
MAX_FILL = 0.7  # events are left out once the events together would last longer than this share of the scene
MAX_LEVEL_DIFFERENCE_DB = 10.0  # of events that overlap, so that neither becomes inaudible
SECOND_BACKGROUND_PROBABILITY = 0.3
PLACEMENT_TRIES = 60
LOOP_CROSSFADE_SECONDS = 0.1
REPEAT_GAP_SECONDS = (0.1, 0.8)
MIN_CUT_SECONDS = 1.0  # a repeated sound is cut to fit only when at least this much of it remains
SAME_CLIP_PROBABILITY = 0.5  # chance that a repeated sound plays the same clip again instead of another take of its group


@dataclass(frozen=True)
class Segment:
    """A part of one clip inside an event; with `loop`, of that stretch of the clip, repeated endlessly with crossfades."""

    file: str
    source_start_seconds: float
    length_seconds: float
    offset_seconds: float  # from the start of the event; a little below 0 when the part begins with silence
    loop: Window | None = None
    tail_seconds: float = 0.0  # of the clip's decay, fading out after the part and outside the event's windows


@dataclass(frozen=True)
class Event:
    """One occurrence of a sound, from `start_seconds` of the scene on. `windows` say where in the scene it is audible."""

    group: str
    start_seconds: float
    length_seconds: float
    snr_db: float
    windows: tuple[Window, ...]
    segments: tuple[Segment, ...]

    @property
    def end_seconds(self) -> float:
        """End of the last audible part."""
        return self.start_seconds + self.length_seconds


@dataclass(frozen=True)
class BackgroundPart:
    """A background from `offset_seconds` on, looped when it ends early; `level_db` relative to the scene's first background."""

    file: str
    offset_seconds: float
    level_db: float


@dataclass(frozen=True)
class PlannedQuery:
    """A line of the manifest: the text and its windows in seconds, none when the sound is absent."""

    text: str
    windows: tuple[Window, ...]
    groups: tuple[str, ...]  # whose caption the text is


@dataclass(frozen=True)
class ScenePlan:
    """All that is needed to render one scene and to write its lines of the manifest. Without backgrounds, `noise_seed` gives pink noise."""

    vid: str
    duration_seconds: float
    peak_dbfs: float
    noise_seed: int
    backgrounds: tuple[BackgroundPart, ...]
    events: tuple[Event, ...]
    queries: tuple[PlannedQuery, ...]


class ScenePlanner:
    """Draws the plans of one library and recipe; scenes do not depend on each other, so any process may plan any scene."""

    def __init__(self, library: Library, recipe: SceneRecipe) -> None:
        self.recipe, self.library = recipe, library
        self._clips: dict[str, list[Clip]] = defaultdict(list)
        for clip in library.clips:
            self._clips[clip.group].append(clip)
        self._groups = sorted(self._clips)
        self._owners: dict[str, set[str]] = defaultdict(set)
        for group, texts in library.captions.items():
            for text in texts:
                self._owners[_same_text_key(text)].add(group)
        if len(self._groups) < recipe.min_groups:
            what = f"clips.csv: group: {len(self._groups)} distinct groups, but the recipe wants at least {recipe.min_groups} per scene"
            raise DataError(f"{what}: add clips or lower min_groups.")

    def plan(self, index: int) -> ScenePlan:
        """Plan scene number `index`."""
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, index])
        # Tenths of a second are whole samples at every usual rate.
        duration = round(float(rng.uniform(recipe.min_scene_seconds, recipe.max_scene_seconds)), 1)
        backgrounds = self._choose_backgrounds(rng)
        events = self._place_events(rng, duration)
        return ScenePlan(
            vid=f"{recipe.name}_{recipe.seed}_{index:05d}",
            duration_seconds=duration,
            peak_dbfs=round(float(rng.uniform(recipe.min_peak_dbfs, recipe.max_peak_dbfs)), 2),
            noise_seed=int(rng.integers(2**31)),
            backgrounds=tuple(backgrounds),
            events=tuple(sorted(events, key=lambda event: (event.start_seconds, event.group))),
            queries=tuple(self._choose_queries(rng, events, duration)),
        )

    def _choose_backgrounds(self, rng: np.random.Generator) -> list[BackgroundPart]:
        wanted = 2 if rng.random() < SECOND_BACKGROUND_PROBABILITY else 1
        chosen: list[BackgroundPart] = []
        for number in rng.permutation(len(self.library.backgrounds))[:wanted].tolist():
            background = self.library.backgrounds[number]
            offset = round(float(rng.uniform(0, background.duration_seconds)), 2)
            level = round(float(rng.uniform(-12, 0)), 1) if chosen else 0.0
            chosen.append(BackgroundPart(background.file, offset, level))
        return chosen

    def _choose_groups(self, rng: np.random.Generator) -> list[str]:
        """Choose the distinct sounds of a scene, none below another (is a `speech` a `speech/man`?)."""
        wanted = int(rng.integers(self.recipe.min_groups, self.recipe.max_groups + 1))
        chosen: list[str] = []
        for number in rng.permutation(len(self._groups)).tolist():
            if len(chosen) < wanted and not any(are_related(self._groups[number], other) for other in chosen):
                chosen.append(self._groups[number])
        return chosen

    def _place_events(self, rng: np.random.Generator, duration: float) -> list[Event]:
        recipe = self.recipe
        counts = np.arange(recipe.min_occurrences, recipe.max_occurrences + 1)
        weights = counts**-OCCURRENCE_EXPONENT
        wanted = {group: int(rng.choice(counts, p=weights / weights.sum())) for group in self._choose_groups(rng)}
        common = math.sqrt(GROUP_SPREAD_SHARE) * recipe.event_spread
        medians = {group: recipe.event_median_seconds * math.exp(common * rng.standard_normal()) for group in wanted}
        clips = {group: [self._clips[group][i] for i in rng.permutation(len(self._clips[group]))] for group in wanted}
        own = math.sqrt(1 - GROUP_SPREAD_SHARE) * recipe.event_spread
        events: list[Event] = []
        # Every sound gets its first occurrence before any gets its second, so that a crowded scene still holds all of them.
        for occurrence in range(recipe.max_occurrences):
            for group in (group for group, count in wanted.items() if occurrence < count):
                length = medians[group] * math.exp(own * rng.standard_normal())
                length = min(max(length, recipe.event_min_seconds), recipe.event_max_seconds, duration)
                clip = clips[group][occurrence % len(clips[group])]
                longest = min(recipe.event_max_seconds, duration)
                shape = make_event(rng, clip, self._clips[group], length, longest, recipe.tail_seconds)
                filled = sum(event.length_seconds for event in events)
                if not events or filled + shape.length_seconds <= MAX_FILL * duration:
                    events += self._place(rng, shape, events, duration)
        return events

    def _place(self, rng: np.random.Generator, shape: Event, events: Sequence[Event], duration: float) -> list[Event]:
        """Find a free place for an event; empty when `PLACEMENT_TRIES` random places are all taken."""
        recipe = self.recipe
        others = [event for event in events if event.group != shape.group]
        overlap = bool(others) and rng.random() < recipe.overlap_share
        snr_db = float(rng.uniform(recipe.min_snr_db, recipe.max_snr_db))
        last_start = duration - shape.length_seconds
        for _ in range(PLACEMENT_TRIES if last_start >= 0 else 0):
            start = float(rng.uniform(0, last_start))
            if overlap:
                partner = pick(rng, others)
                start = float(rng.uniform(partner.start_seconds - 0.8 * shape.length_seconds, partner.end_seconds))
            # Hundredths of a second, rounded down: the event must not reach past the end of the scene.
            start = math.floor(start * 100) / 100
            if not 0 <= start <= last_start:
                continue
            end = start + shape.length_seconds
            # The margin outweighs the rounding of windows to hundredths.
            gap = recipe.min_gap_seconds + 0.02
            if any(start < e.end_seconds + gap and e.start_seconds < end + gap for e in events if e.group == shape.group):
                continue
            under = [e for e in others if start < e.end_seconds and e.start_seconds < end]
            if under and not overlap:
                continue
            for event in under:
                snr_db = min(max(snr_db, event.snr_db - MAX_LEVEL_DIFFERENCE_DB), event.snr_db + MAX_LEVEL_DIFFERENCE_DB)
            heard = shape.windows
            if (level_db := recipe.audible_db - snr_db) >= LEVELS_DB[0] - 3:
                takes = {take.file: take for take in self._clips[shape.group]}
                heard = tuple(_audible(takes, shape.segments, level_db)) or heard
            windows = tuple((a + start, b + start) for a, b in heard)
            return [replace(shape, start_seconds=start, snr_db=round(snr_db, 2), windows=windows)]
        return []

    def _choose_queries(self, rng: np.random.Generator, events: Sequence[Event], duration: float) -> list[PlannedQuery]:
        present = sorted({event.group for event in events})
        used: set[str] = set()
        texts = (self._draw_caption(rng, group, present, used) for group in present for _ in range(self.recipe.captions_per_target))
        queries = [PlannedQuery(text, self._windows_of(text, events, duration), self._groups_of(text)) for text in texts if text]
        share = self.recipe.absent_share
        # Rounded at random, so that the share holds on average also where a scene has few queries.
        wanted = len(queries) + math.floor(len(queries) * share / (1 - share) + rng.random())
        for number in rng.permutation(len(self._groups)).tolist():
            if len(queries) < wanted and (text := self._draw_caption(rng, self._groups[number], present, used, absent=True)):
                queries.append(PlannedQuery(text, (), self._groups_of(text)))
        return [queries[number] for number in rng.permutation(len(queries)).tolist()]

    def _draw_caption(
        self, rng: np.random.Generator, group: str, present: Sequence[str], used: set[str], *, absent: bool = False
    ) -> str | None:
        """Draw a caption of `group` or of a group above it whose truth beside the groups `present` is beyond doubt; None without one.

        It may cover events of these groups, unless it shall be `absent`; where one lies above an owner of the caption, it might be what the
        caption says or not, and the caption is left out. It is none of those `used`, and then one of them.
        """
        captions, parts = self.library.captions, group.split("/")
        own = list(captions.get(group, ()))
        above = [text for count in range(len(parts) - 1, 0, -1) for text in captions.get("/".join(parts[:count]), ())]
        for pool in (above, own) if rng.random() < self.recipe.ancestor_caption_share else (own, above):
            usable = [text for text in pool if _same_text_key(text) not in used and self._is_clear(text, present, absent=absent)]
            if usable:
                text = pick(rng, usable)
                used.add(_same_text_key(text))
                return text
        return None

    def _is_clear(self, text: str, present: Sequence[str], *, absent: bool) -> bool:
        pairs = [(owner, other) for owner in self._owners[_same_text_key(text)] for other in present]
        return not any(are_related(*pair) if absent else pair[0] != pair[1] and is_within(*pair) for pair in pairs)

    def _groups_of(self, text: str) -> tuple[str, ...]:
        return tuple(sorted(self._owners[_same_text_key(text)]))

    def _windows_of(self, text: str, events: Sequence[Event], duration: float) -> tuple[Window, ...]:
        """All windows, to hundredths of a second, of events that any owner of the caption covers."""
        owners = self._owners[_same_text_key(text)]
        windows = [window for event in events if any(is_within(event.group, owner) for owner in owners) for window in event.windows]
        # Rounding must neither empty a window nor push it past the end.
        begins = [min(round(start, 2), duration - 0.01) for start, _ in windows]
        rounded = [(begin, min(max(round(end, 2), begin + 0.01), duration)) for begin, (_, end) in zip(begins, windows, strict=True)]
        merged = merge_windows(rounded, self.recipe.min_gap_seconds - 0.005)
        return tuple((round(start, 2), round(end, 2)) for start, end in merged)


def make_event(
    rng: np.random.Generator, clip: Clip, takes: Sequence[Clip], length: float, max_seconds: float, tail_seconds: float = 0.0
) -> Event:
    """Make an event of the wanted length, at time 0 and without a level, out of a clip: as it is, looped, or repeated (`extend`).

    `takes` are all clips of the sound's group, `clip` among them; one with `extend=no` keeps its length and is cut at `max_seconds`. With
    tails, so is one that is repeated, and what is not cut decays as its file does.
    """
    if clip.extend == "loop":
        segments = _loop(rng, clip, length)
    elif clip.extend == "repeat":
        repeated = [take for take in takes if take.extend == "repeat"]
        segments = _repeat(rng, clip, repeated, length, max_seconds if tail_seconds else None)
    else:
        start, end = clip.active[0][0], clip.active[-1][1]
        segments = [Segment(clip.file, start, min(end - start, max_seconds), 0.0)]
    by_file = {take.file: take for take in takes}
    windows = _audible(by_file, segments)
    if tail_seconds:
        segments = [replace(segment, tail_seconds=min(tail_seconds, _decay(by_file[segment.file], segment))) for segment in segments]
    first = windows[0][0]
    audible = tuple((start - first, end - first) for start, end in windows)
    moved = tuple(replace(segment, offset_seconds=segment.offset_seconds - first) for segment in segments)
    return Event(clip.group, 0.0, audible[-1][1], 0.0, audible, moved)


def _decay(clip: Clip, segment: Segment) -> float:
    """Seconds from the end of a part to the clip's next sounding or its end; 0 where the part was cut."""
    end = segment.source_start_seconds + segment.length_seconds
    if segment.loop or not any(abs(end - sounding_end) < 0.001 for _, sounding_end in clip.stretches):
        return 0.0
    return round(max(0.0, min((start for start, _ in clip.stretches if start >= end), default=clip.duration_seconds) - end), 4)


def _repeat(rng: np.random.Generator, clip: Clip, takes: Sequence[Clip], length: float, max_seconds: float | None) -> list[Segment]:
    """Play the clip's soundings, and those of other takes, with short gaps until `length` is filled.

    With `max_seconds` only what would last longer than that is cut, without it what would last longer than `length`.
    """
    segments: list[Segment] = []
    offset = 0.0
    while True:
        start, end = pick(rng, clip.stretches)
        remaining = length - offset
        if segments and end - start > remaining and (max_seconds or remaining < MIN_CUT_SECONDS):
            return segments
        segments.append(Segment(clip.file, start, min(end - start, remaining if max_seconds is None else max_seconds), offset))
        offset += segments[-1].length_seconds + float(rng.uniform(*REPEAT_GAP_SECONDS))
        if offset >= length:
            return segments
        if rng.random() >= SAME_CLIP_PROBABILITY:
            clip = pick(rng, takes)


def _loop(rng: np.random.Generator, clip: Clip, length: float) -> list[Segment]:
    """Cut a random part of the clip's longest sounding, or loop it when it is too short."""
    start, end = max(clip.stretches, key=lambda stretch: stretch[1] - stretch[0])
    if end - start < length:
        return [Segment(clip.file, start + float(rng.uniform(0, (end - start) / 2)), length, 0.0, loop=(start, end))]
    part = Segment(clip.file, start + float(rng.uniform(0, end - start - length)), length, 0.0)
    # A short part may fall into a pause between two ticks.
    return [part] if _audible({clip.file: clip}, [part]) else [Segment(clip.file, start, length, 0.0)]


def _audible(clips: dict[str, Clip], segments: Sequence[Segment], level_db: float = -math.inf) -> list[Window]:
    """Where the segments sound, and reach a level against their clip's RMS, in seconds of the event; touching parts are joined."""
    windows = []
    for segment in segments:
        begin, length = segment.source_start_seconds, segment.length_seconds
        low, high = segment.loop or (begin, begin + length)
        period = high - low - (min(LOOP_CROSSFADE_SECONDS, (high - low) / 4) if segment.loop else 0.0)
        for start, end in clips[segment.file].above(level_db):
            for later in (turn * period for turn in range(2 + int(length / period))):
                start_here, end_here = max(max(start, low) + later, begin), min(min(end, high) + later, begin + length)
                if end_here - start_here > 0.001:
                    windows.append((start_here - begin + segment.offset_seconds, end_here - begin + segment.offset_seconds))
    return merge_windows(windows, SHORT_SILENCE_SECONDS)


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Draw one item, all equally likely."""
    return items[int(rng.integers(len(items)))]


def _same_text_key(text: str) -> str:
    """Captions that differ only in case, spaces or closing punctuation are one caption."""
    return " ".join(text.casefold().split()).rstrip(".!? ")
