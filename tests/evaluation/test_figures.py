"""The figure: every format, one and two systems, names that matplotlib would read as something else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.evaluation import invent_predictions, invent_truth
from qamdetr.errors import DataError
from qamdetr.evaluation.compare import bootstrap
from qamdetr.evaluation.figures import FIGURE_SUFFIXES, FigureSystem, curve_names, save_figure
from qamdetr.evaluation.metrics import match, query_scores, score_by_length


@pytest.fixture(scope="module")
def system():
    rng = np.random.default_rng(0)
    truth = invent_truth(12, rng)
    matching = match(invent_predictions(truth, rng), truth)
    scores = query_scores(matching)
    return FigureSystem("A: run", scores, score_by_length(matching), bootstrap(scores, curve_names(), resamples=20))


def test_every_format_is_written_whole_and_two_systems_share_a_figure_whatever_their_names(system, tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match="Cannot write"):
        save_figure([system], tmp_path / "folder.png")
    for suffix, signature in zip(FIGURE_SUFFIXES, (b"\x89PNG", b"<?xml", b"%PDF"), strict=True):
        path = tmp_path / suffix[1:] / f"figure{suffix}"
        save_figure([system], path)
        assert path.read_bytes().startswith(signature)
        assert [file.name for file in path.parent.iterdir()] == [path.name]
    save_figure([system, dataclasses.replace(system, label="_$odd$name", intervals={})], tmp_path / "two.svg")
    assert (tmp_path / "two.svg").stat().st_size > (tmp_path / "svg" / "figure.svg").stat().st_size
