"""From items to model input and targets, through the one feature path (`features.pipeline.prepare`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from qamdetr.data.dataset import MomentItem
from qamdetr.data.manifest import QueryEntry
from qamdetr.features.pipeline import prepare
from qamdetr.spans import windows_to_spans_cxw
from qamdetr.types import Batch, Targets, Window


@dataclass(frozen=True)
class LabelledBatch:
    """Model input, ground truth, and what decoding and metrics need to know of each item.

    Attributes:
        batch: Model input.
        targets: Ground truth.
        entries: The manifest's lines.
        durations_seconds: Length of each item's audio.
        num_clips: Clips of each item.
    """

    batch: Batch
    targets: Targets
    entries: tuple[QueryEntry, ...]
    durations_seconds: tuple[float, ...]
    num_clips: tuple[int, ...]

    def to(self, device: torch.device | str) -> LabelledBatch:
        """Return a copy with all tensors on `device`."""
        return replace(self, batch=self.batch.to(device), targets=self.targets.to(device))


class Collator:
    """Makes batches; knows which queries are true of which recording, to keep them out of negative pairs."""

    def __init__(self, entries: Iterable[QueryEntry], *, saliency_windows: Literal["all", "first"] = "all") -> None:
        """Take note of every query that has windows in `entries`, the whole data set.

        Args:
            entries: All lines of the data set.
            saliency_windows: Windows that make a clip salient. `first` is the official loop's reading, in which the other true
                windows of a query are negatives; it is there to be measured against.
        """
        self._saliency_windows = saliency_windows
        self._true_of: dict[str, set[str]] = defaultdict(set)
        for entry in entries:
            if entry.relevant_windows:
                self._true_of[entry.vid].add(_wording(entry.query))

    def __call__(self, items: Sequence[MomentItem]) -> LabelledBatch:
        """Prepare features, spans, saliency and negative pairs of `items`."""
        batch = prepare([item.audio for item in items], [item.text for item in items])
        longest = batch.audio_mask.shape[1]
        targets = Targets(
            spans_cxw=torch.cat([windows_to_spans_cxw(item.windows, item.num_clips) for item in items]),
            num_spans=tuple(len(item.windows) for item in items),
            saliency=torch.stack([clip_coverage(self._salient(item.windows), longest) for item in items]),
            negative_index=torch.tensor([self._negative_of(item, items) for item in items]),
        )
        return LabelledBatch(
            batch=batch,
            targets=targets,
            entries=tuple(item.entry for item in items),
            durations_seconds=tuple(item.duration_seconds for item in items),
            num_clips=tuple(item.num_clips for item in items),
        )

    def _salient(self, windows: Sequence[Window]) -> Sequence[Window]:
        return windows if self._saliency_windows == "all" else windows[:1]

    def _negative_of(self, item: MomentItem, items: Sequence[MomentItem]) -> int:
        """Pick an item whose query is not known to be true of this item's audio, or -1.

        It comes from another recording, is worded differently, and is no query of this recording anywhere in the data set.

        Source: QD-DETR rolls the batch by one; that pairs queries with their own recording whenever two items share it.
        """
        wording = _wording(item.entry.query)
        true_here = self._true_of.get(item.entry.vid, set())
        eligible = [
            position
            for position, other in enumerate(items)
            if other.entry.vid != item.entry.vid and _wording(other.entry.query) != wording and _wording(other.entry.query) not in true_here
        ]
        return eligible[item.draw % len(eligible)] if eligible else -1


def clip_coverage(windows: Sequence[Window], num_clips: int) -> Tensor:
    """Return `(num_clips,)` share of each one-second clip that lies in any window, in [0, 1]; all windows count, overlaps once."""
    coverage = torch.zeros(num_clips)
    clip_start = torch.arange(num_clips, dtype=torch.float32)
    covered_until = 0.0
    for start, end in sorted(windows):
        begin = max(start, covered_until)
        if end > begin:
            coverage += (torch.clamp(clip_start + 1, max=end) - torch.clamp(clip_start, min=begin)).clamp(min=0)
            covered_until = end
    return coverage.clamp(max=1)


def _wording(query: str) -> str:
    """Return the query without differences in case, spacing and closing full stop."""
    return " ".join(query.casefold().split()).rstrip(".")
