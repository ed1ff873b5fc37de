"""Validation during training: decode, score with the field's metrics, and calibrate what scores mean and when to answer "nothing found"."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import gather_object

from qamdetr.config import InferenceConfig
from qamdetr.data.dataset import LabelledBatch
from qamdetr.data.manifest import PredictionEntry, QueryEntry
from qamdetr.evaluation.calibration import BestMoment, calibrate_answers
from qamdetr.evaluation.metrics import evaluate
from qamdetr.inference.candidates import answers
from qamdetr.model.qam_detr import QamDetr


@dataclass(frozen=True)
class Validation:
    """What one pass over the validation set found."""

    metrics: dict[str, float]
    """The field's five numbers in percent, and with absent queries in the set: mean best decoder score of queries whose sound is present
    and absent, the balanced accuracy of telling them apart, and what `calibrate_answers` measures."""
    inference: InferenceConfig  # the settings with the thresholds and the score map that were fitted


def validate(model: QamDetr, loader: Iterable[LabelledBatch], truth: Iterable[QueryEntry], config: InferenceConfig) -> Validation:
    """Answer as serving does over `loader` (this process's share), join the processes' answers and score them against `truth`."""
    model.eval()
    rows: list[PredictionEntry] = []
    for batch in loader:
        with torch.inference_mode():  # in float32 as in serving, whatever the training multiplies in
            output = model(batch.batch)
        decoded = answers(output, batch.durations_seconds, batch.num_clips, config, clip_seconds=batch.clip_seconds)
        for entry, answer in zip(batch.entries, decoded, strict=True):
            windows = tuple((found.start_seconds, found.end_seconds, found.decoder_score) for found in answer.candidates)
            rows.append(PredictionEntry(entry.qid, entry.query, entry.vid, windows))
    # Several processes repeat a few items to even out their shares; the last of equal rows stays.
    predictions: dict[str, PredictionEntry] = {row.qid: row for row in gather_object(rows)}
    entries = list(truth)
    present, absent = ([entry for entry in entries if bool(entry.relevant_windows) is there] for there in (True, False))
    metrics = evaluate([predictions[entry.qid] for entry in present], present)
    metrics.pop("num_queries")
    best = [BestMoment.of(predictions[entry.qid].pred_relevant_windows, entry.relevant_windows or ()) for entry in entries]
    answering = calibrate_answers(best, config)
    if absent:
        for name, there in (("present_score", True), ("absent_score", False)):
            metrics[name] = round(float(np.mean([each.score for each in best if each.present is there])), 4)
    return Validation({**metrics, **answering.metrics}, answering.inference)
