"""The settings of synthesised scenes. The command line makes its options out of these fields and their help."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeVar

from qamdetr.errors import ConfigError

T = TypeVar("T")

_LARGEST = 86_400.0
"""No scene is longer than a day, and no level needs to be checked more closely."""


def _option(default: T, help_text: str) -> T:
    value: T = field(default=default, metadata={"help": help_text})
    return value


@dataclass(frozen=True)
class SceneRecipe:
    """How scenes are drawn; every field has a one-line help in its metadata.

    Raises:
        ConfigError: A value out of range.
    """

    name: str = _option("scene", "first part of each recording's vid, as in scene_0_00001")
    seed: int = _option(0, "the same seed gives the same scenes")
    num_scenes: int = _option(100, "how many recordings to make")
    sample_rate_hz: int = _option(24000, "sample rate of the audio written, in Hz")
    min_scene_seconds: float = _option(60.0, "shortest recording, in seconds")
    max_scene_seconds: float = _option(300.0, "longest recording, in seconds")
    min_groups: int = _option(3, "fewest distinct sounds in a recording")
    max_groups: int = _option(7, "most distinct sounds in a recording")
    min_occurrences: int = _option(1, "fewest occurrences of a sound in a recording")
    max_occurrences: int = _option(8, "most occurrences of a sound in a recording (few are likelier than many)")
    event_median_seconds: float = _option(5.0, "median length of an event that is looped or repeated, in seconds")
    event_spread: float = _option(1.0, "standard deviation of the logarithm of event lengths (log-normal)")
    event_min_seconds: float = _option(1.0, "shortest length aimed at for an event, in seconds; a clip used as it is may be shorter")
    event_max_seconds: float = _option(30.0, "longest event, in seconds; longer clips are cut")
    min_gap_seconds: float = _option(1.0, "least pause between occurrences of one sound; windows closer than this are merged")
    overlap_share: float = _option(0.25, "share of events that are placed over an event of another sound (0 = no overlaps)")
    min_snr_db: float = _option(0.0, "quietest event over the background around it, in dB")
    max_snr_db: float = _option(20.0, "loudest event over the background around it, in dB")
    min_peak_dbfs: float = _option(-12.0, "quietest peak of a recording, in dB below full scale")
    max_peak_dbfs: float = _option(-1.0, "loudest peak of a recording, in dB below full scale")
    absent_share: float = _option(0.1, "share of queries whose sound is not in the recording")
    captions_per_target: int = _option(1, "differently worded queries per sound")
    ancestor_caption_share: float = _option(
        0.2, "share of queries worded by a caption of a group above the sound's own, where there is one"
    )
    fade_seconds: float = _option(0.02, "fade at both ends of each sound, outside its window where the clip allows, in seconds")
    num_workers: int = _option(1, "processes to use; does not change the result")

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, low, high in (
            ("seed", 0, math.inf),
            ("num_scenes", 1, math.inf),
            ("sample_rate_hz", 4000, 192000),
            ("min_scene_seconds", 5, math.inf),
            ("min_groups", 1, math.inf),
            ("min_occurrences", 1, math.inf),
            ("event_min_seconds", 0.1, math.inf),
            ("event_median_seconds", 0.1, math.inf),
            ("event_spread", 0, 5),
            ("min_gap_seconds", 1, math.inf),
            ("overlap_share", 0, 1),
            ("absent_share", 0, 0.9),
            ("captions_per_target", 1, math.inf),
            ("ancestor_caption_share", 0, 1),
            ("fade_seconds", 0, 1),
            ("min_peak_dbfs", -60, 0),
            ("max_peak_dbfs", -60, 0),
            ("num_workers", 1, math.inf),
        ):
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)):
                raise ConfigError(f"{name} is {value}; it must be {f'at least {low}' if high == math.inf else f'from {low} to {high}'}.")
        for name in ("max_scene_seconds", "event_max_seconds", "min_snr_db", "max_snr_db"):
            if not abs(getattr(self, name)) <= _LARGEST:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be between -{_LARGEST:g} and {_LARGEST:g}.")
        for low_name, high_name in (
            ("min_scene_seconds", "max_scene_seconds"),
            ("min_groups", "max_groups"),
            ("min_occurrences", "max_occurrences"),
            ("event_min_seconds", "event_max_seconds"),
            ("min_snr_db", "max_snr_db"),
            ("min_peak_dbfs", "max_peak_dbfs"),
        ):
            if not getattr(self, low_name) <= getattr(self, high_name):
                raise ConfigError(
                    f"{low_name} {getattr(self, low_name)} is over {high_name} {getattr(self, high_name)}; swap or correct them."
                )
        if not self.name or not all(letter.isalnum() or letter in "-_" for letter in self.name):
            raise ConfigError(f"name is {self.name!r}; it becomes part of file names: use letters, digits, - and _ only.")
