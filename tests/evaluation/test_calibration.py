"""Calibration on validation: of the answer "not in this recording", and of the verifier's weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_system import tiny_retriever, write_sound

from qamdetr.data.manifest import PredictionEntry, QueryEntry
from qamdetr.errors import AudioError
from qamdetr.evaluation.calibration import (
    VerifiedAnswer,
    calibrate_beta,
    calibrate_found_threshold,
    verify_manifest,
)
from qamdetr.evaluation.figures import save_beta_figure
from qamdetr.evaluation.metrics import score
from qamdetr.types import Candidate
from qamdetr.verifiers import Verifier

TRUTH = (10.0, 20.0)
"""The true window of every query here; `window(iou)` makes others."""

unit_steps = st.integers(0, 8).map(lambda step: step / 8)


def window(iou):
    """A window whose IoU with `TRUTH` is the given one."""
    return (TRUTH[0], TRUTH[0] + iou * (TRUTH[1] - TRUTH[0]))


def answer_of(number, windows, verifier_scores, vid=None):
    """An answer with `(iou, decoder score)` candidates, best decoder score first."""
    entry = QueryEntry(f"q{number}", "a dog", vid or f"v{number}", 60.0, (TRUTH,))
    candidates = [Candidate(*window(iou), decoder_score, 1.0, decoder_score) for iou, decoder_score in windows]
    return VerifiedAnswer(entry, tuple(candidates), None if verifier_scores is None else tuple(verifier_scores))


@st.composite
def answers(draw):
    """A few queries whose candidates have coarse scores, so that ties abound; some were not verified."""
    made = []
    for number in range(draw(st.integers(1, 5))):
        scores = sorted(draw(st.lists(unit_steps, min_size=1, max_size=4)), reverse=True)
        windows = [(draw(st.sampled_from([0.3, 0.55, 0.75, 0.95])), value) for value in scores]
        verified = draw(st.none() | st.lists(unit_steps, min_size=len(scores), max_size=len(scores)))
        made.append(answer_of(number, windows, verified))
    return made


def blend(answer, beta):
    """Eq. 3, written out once more."""
    rows = []
    for place, candidate in enumerate(answer.candidates):
        verified = candidate.decoder_score if answer.verifier_scores is None else answer.verifier_scores[place]
        rows.append((candidate.window, candidate.decoder_score - beta * (candidate.decoder_score - verified), place))
    rows.sort(key=lambda row: (round(-row[1], 9), row[2]))
    return PredictionEntry(answer.entry.qid, "a dog", answer.entry.vid, tuple((*window, value) for window, value, _ in rows))


def test_the_threshold_is_that_of_trying_every_one():
    rng = np.random.default_rng(0)
    present, absent = rng.beta(4, 2, 200), rng.beta(2, 4, 60)
    assert calibrate_found_threshold([0.6, 0.9, 0.8], [0.1, 0.2]) == (0.4, 1.0), "half-way"
    assert calibrate_found_threshold([0.5], []) == calibrate_found_threshold([], [0.5]) == (0.0, 0.5)
    threshold, accuracy = calibrate_found_threshold(present.tolist(), absent.tolist())
    balanced = [0.5 * np.mean(present >= value) + 0.5 * np.mean(absent < value) for value in [threshold, *np.linspace(0, 1, 2001)]]
    assert balanced[0] == pytest.approx(accuracy)
    assert accuracy == pytest.approx(max(balanced), abs=1e-9)


grids = st.lists(st.integers(0, 16).map(lambda step: step / 16), min_size=1, max_size=6)
"""Dyadic weights: blends of dyadic scores are exact, so that equal ones tie in whatever way they are written."""


@settings(max_examples=60, deadline=None)
@given(answers(), grids)
def test_the_choice_is_that_of_trying_everything(verified, grid):
    truth = [answer.entry for answer in verified]
    best = None
    for beta in sorted(grid):
        found = score([blend(answer, beta) for answer in verified], truth)
        quality = (round(found.recall_at_1[0.7], 9), round(found.mean_average_precision, 9))
        if best is None or quality > best[0]:
            best = (quality, beta)
    curve = calibrate_beta(verified, grid, resamples=20)
    assert curve.chosen.beta == best[1]
    assert (curve.chosen.metrics["R1@0.7"], curve.chosen.metrics["mAP"]) == pytest.approx(best[0])
    assert [point.beta for point in curve.points] == sorted(set(grid))
    assert curve.decoder_alone.beta == 0
    assert [point.beta for point in curve.shown] == sorted({0, *grid})
    assert not (curve.is_worse and 0 in grid)


def test_a_worse_best_and_a_single_recording():
    verified = [answer_of(number, [(0.95, 0.6), (0.3, 0.5)], [0.0, 1.0]) for number in range(3)]
    assert calibrate_beta(verified, [0.5, 1], resamples=5).is_worse
    assert not calibrate_beta(verified, [0.05, 1], resamples=5).is_worse, "equal is not worse"
    same = [answer_of(number, [(0.3, 0.6), (0.95, 0.5)], [0.0, 1.0], vid="v") for number in range(3)]
    assert calibrate_beta(same, resamples=10).gain == {}


def test_the_figure_shows_the_choice(tmp_path):
    curve = calibrate_beta([answer_of(n, [(0.3, 0.6), (0.95, 0.5)], [0.0, 1.0]) for n in range(2)], resamples=10)
    save_beta_figure(curve, "run $1$, pocket", tmp_path / "new" / "curve.svg")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curve.svg"]
    assert "<!-- chosen: 0.1 -->" in (tmp_path / "new" / "curve.svg").read_text(encoding="utf-8")


class Contrary(Verifier):
    """Prefers what the decoder does not; every second score is the same."""

    name, needs_audio = "contrary", False

    def verify(self, recording, query, text, candidates):
        if query == "broken":
            raise RuntimeError("gone")
        return [rank // 2 / len(candidates) for rank in range(len(candidates))]


ASKED = [QueryEntry(f"q{number}", query, vid, 12.0, None) for number, (vid, query) in enumerate([("a", "x"), ("b", "y"), ("a", "broken")])]


def test_verified_answers_ranked_afterwards_are_what_is_ranked_at_once(tmp_path):
    retriever, verifier = tiny_retriever(nms_iou=1.0), Contrary()
    recordings = {vid: write_sound(tmp_path / f"{vid}.wav", 12, seed=seed) for seed, vid in enumerate("ab")}
    parts = list(verify_manifest(retriever, recordings, ASKED, verifier, top_k=10))
    assert [[answer.entry.qid for answer in part] for part in parts] == [["q0", "q2"], ["q1"]], "each recording once"
    for answer in (answer for part in parts for answer in part):
        for beta in (0.0, 0.3, 1.0):
            at_once = retriever.retrieve(retriever.encode(recordings[answer.entry.vid]), answer.entry.query, verifier=verifier, beta=beta)
            expected = [pytest.approx((moment.start_seconds, moment.end_seconds, moment.score), abs=1e-4) for moment in at_once.moments]
            assert list(answer.ranked(beta).pred_relevant_windows) == expected
        assert (answer.verifier_scores is None) == ("Verifier contrary failed (gone)" in answer.problem) == (answer.entry.query == "broken")
    recordings["a"].write_text("no sound")
    bad, good = verify_manifest(retriever, recordings, ASKED, verifier, top_k=10)
    assert isinstance(bad, AudioError)
    assert [answer.entry.qid for answer in good] == ["q1"], "one that cannot be read does not stop the others"
