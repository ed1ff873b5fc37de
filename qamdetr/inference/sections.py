"""Recordings longer than the trained length: pure functions that split them into overlapping sections and merge the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qamdetr.errors import ConfigError
from qamdetr.inference.candidates import suppress
from qamdetr.types import Candidate

_SLACK = 1.1  # a recording longer than a section by up to this factor still runs whole: 300.5 s are not worth a second pass
_EDGE_SECONDS = 1.0  # a candidate that ends this near to a section's inner edge may have been cut by it
_CUT_COVERED = 0.5  # such a one gives way where the neighbouring section sees at least this share of it, uncut


@dataclass(frozen=True)
class Section:
    """Clips `[start, end)` of a recording; `last` and `start == 0` tell the outer edges from the inner ones."""

    start: int
    end: int
    last: bool
    clip_seconds: float = 1.0

    @property
    def num_clips(self) -> int:
        """Length in clips."""
        return self.end - self.start

    @property
    def start_seconds(self) -> float:
        """Where it begins in the recording."""
        return self.start * self.clip_seconds

    @property
    def end_seconds(self) -> float:
        """Where it ends."""
        return self.end * self.clip_seconds

    def cut(self, streams: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cut every stream `(clips, dim_s)` to the section."""
        return {name: features[self.start : self.end] for name, features in streams.items()}

    def seconds(self, duration_seconds: float) -> float:
        """Length in seconds; the last clip of a recording may be partly filled."""
        return min(self.end_seconds, duration_seconds) - self.start_seconds


def split(num_clips: int, section_clips: int, overlap_clips: int, clip_seconds: float = 1.0) -> list[Section]:
    """Cover a recording with sections of equal length that overlap by at least `overlap_clips`.

    A recording that fits, or nearly so, is one section. The last section is moved back to full length, so that no section is a short rest.
    """
    if section_clips < 1 or not 0 <= overlap_clips < section_clips:
        what = f"inference.section_overlap_clips is {overlap_clips}"
        raise ConfigError(what, f"it must be 0 or more and below section_clips ({section_clips})")
    if num_clips <= section_clips * _SLACK:
        return [Section(0, num_clips, last=True, clip_seconds=clip_seconds)]
    starts = [*range(0, num_clips - section_clips, section_clips - overlap_clips), num_clips - section_clips]
    return [Section(start, start + section_clips, start == starts[-1], clip_seconds) for start in starts]


def merge_candidates(
    sections: Sequence[Section], candidates: Sequence[Sequence[Candidate]], duration_seconds: float, nms_iou: float
) -> list[Candidate]:
    """Put the candidates of all sections on the recording's time axis and drop doubles; best decoder score first.

    Besides plain suppression, a candidate that an inner edge may have cut gives way to an uncut one of another section that covers
    at least half of it, whatever their scores.
    """
    if len(sections) == 1:  # which has its own doubles dropped already
        return sorted(candidates[0], key=lambda candidate: -candidate.decoder_score)
    whole: list[tuple[Candidate, Section]] = []
    cut: list[tuple[Candidate, Section]] = []
    for section, found in zip(sections, candidates, strict=True):
        for local in found:
            end = min(local.end_seconds + section.start_seconds, duration_seconds)  # the sum can round up past it
            candidate = replace(local, start_seconds=local.start_seconds + section.start_seconds, end_seconds=end)
            (cut if _is_cut(candidate, section) else whole).append((candidate, section))
    alone = [c for c, section in cut if not any(_covers(other, c) for other, origin in whole if origin != section)]
    return suppress([*(candidate for candidate, _ in whole), *alone], nms_iou)


def merge_saliency(sections: Sequence[Section], saliency: Sequence[Tensor]) -> Tensor:
    """Average per-clip values `(section clips,)` of overlapping sections to `(clips,)`."""
    total = torch.zeros(sections[-1].end)
    count = torch.zeros(sections[-1].end)
    for section, values in zip(sections, saliency, strict=True):
        total[section.start : section.end] += values
        count[section.start : section.end] += 1
    return total / count


def _is_cut(candidate: Candidate, section: Section) -> bool:
    at_start = section.start > 0 and candidate.start_seconds < section.start_seconds + _EDGE_SECONDS
    at_end = not section.last and candidate.end_seconds > section.end_seconds - _EDGE_SECONDS
    return at_start or at_end


def _covers(other: Candidate, cut: Candidate) -> bool:
    shared = min(other.end_seconds, cut.end_seconds) - max(other.start_seconds, cut.start_seconds)
    return shared >= _CUT_COVERED * (cut.end_seconds - cut.start_seconds)
