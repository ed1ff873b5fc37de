"""Recordings with known moments, mixed from clips and backgrounds. Here: the settings of scenes, which are also the command's options."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TypeVar

from qamdetr.errors import ConfigError

T = TypeVar("T", int, float, str)

_DAY = 86_400.0  # no scene is longer


def _option(default: T, help_text: str, low: float = -math.inf, high: float = math.inf) -> T:
    value: T = field(default=default, metadata={"help": help_text, "range": (low, high)})
    return value


@dataclass(frozen=True)
class SceneRecipe:
    """How scenes are drawn; every field has a one-line help and its range in its metadata. A value out of range is a `ConfigError`."""

    name: str = _option("scene", "first part of each recording's vid, as in scene_0_00001")
    seed: int = _option(0, "the same seed gives the same scenes", 0)
    num_scenes: int = _option(100, "how many recordings to make", 1)
    sample_rate_hz: int = _option(24000, "sample rate of the audio written, in Hz", 4000, 192000)
    min_scene_seconds: float = _option(60.0, "shortest recording, in seconds", 5, _DAY)
    max_scene_seconds: float = _option(300.0, "longest recording, in seconds", 5, _DAY)
    min_groups: int = _option(3, "fewest distinct sounds in a recording", 1)
    max_groups: int = _option(7, "most distinct sounds in a recording", 1)
    min_occurrences: int = _option(1, "fewest occurrences of a sound in a recording", 1)
    max_occurrences: int = _option(8, "most occurrences of a sound in a recording (few are likelier than many)", 1)
    event_median_seconds: float = _option(5.0, "median length of an event that is looped or repeated, in seconds", 0.1, _DAY)
    event_spread: float = _option(1.0, "standard deviation of the logarithm of event lengths (log-normal)", 0, 5)
    event_min_seconds: float = _option(1.0, "shortest event aimed at, in seconds; a clip used as it is may be shorter", 0.1, _DAY)
    event_max_seconds: float = _option(30.0, "longest event, in seconds; longer clips are cut", 0.1, _DAY)
    min_gap_seconds: float = _option(1.0, "least pause between occurrences of one sound; windows closer than this are merged", 1)
    overlap_share: float = _option(0.25, "share of events that are placed over an event of another sound (0 = no overlaps)", 0, 1)
    min_snr_db: float = _option(0.0, "quietest event over the background around it, in dB", -100, 100)
    max_snr_db: float = _option(20.0, "loudest event over the background around it, in dB", -100, 100)
    min_peak_dbfs: float = _option(-12.0, "quietest peak of a recording, in dB below full scale", -60, 0)
    max_peak_dbfs: float = _option(-1.0, "loudest peak of a recording, in dB below full scale", -60, 0)
    absent_share: float = _option(0.1, "share of queries whose sound is not in the recording", 0, 0.9)
    captions_per_target: int = _option(1, "differently worded queries per sound", 1)
    ancestor_caption_share: float = _option(0.2, "share of queries worded by a caption of a group above the sound's own", 0, 1)
    audible_db: float = _option(
        -100.0, "a window ends where its event falls this far below the background, in dB (-100 = wherever it sounds)", -100, 0
    )
    tail_seconds: float = _option(
        0.0, "decay kept of each clip after its sounding, in seconds; above 0, no sounding is cut to length", 0, 10
    )
    fade_seconds: float = _option(0.02, "fade at both ends of each sound, outside its window where the clip allows, in seconds", 0, 1)
    num_workers: int = _option(1, "processes to use; does not change the result", 1)

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, (low, high) in ((f.name, f.metadata["range"]) for f in fields(self) if f.name != "name"):
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)):
                wanted = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
                raise ConfigError(f"{name} is {value}; it must be {wanted}.")
        for low_name in ("min_scene_seconds", "min_groups", "min_occurrences", "event_min_seconds", "min_snr_db", "min_peak_dbfs"):
            smaller, larger = getattr(self, low_name), getattr(self, high_name := low_name.replace("min", "max"))
            if smaller > larger:
                raise ConfigError(f"{low_name} {smaller} is over {high_name} {larger}", "swap or correct them")
        if not self.name or not all(letter.isalnum() or letter in "-_" for letter in self.name):
            raise ConfigError(f"name is {self.name!r}; it becomes part of file names: use letters, digits, - and _ only.")
