"""Calibration on validation: of scores, of the tiers of answers, and of the verifier's weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_system import tiny_retriever, write_sound

from qamdetr.config import InferenceConfig
from qamdetr.data.manifest import PredictionEntry, QueryEntry
from qamdetr.errors import AudioError, ConfigError
from qamdetr.evaluation.calibration import (
    REFUSED_SHARE,
    BestMoment,
    VerifiedAnswer,
    calibrate_answers,
    calibrate_beta,
    calibrate_found_threshold,
    expected_calibration_error,
    fit_score_map,
    score_map,
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


def test_the_map_of_scores_makes_probabilities_of_them_and_keeps_every_order():
    rng = np.random.default_rng(1)
    scores = rng.beta(1, 3, 2000)
    right = rng.random(2000) < np.sqrt(scores)  # a timid model
    knots = fit_score_map(scores[:1000].tolist(), right[:1000].tolist())
    held = [expected_calibration_error(score_map(chosen, scores[1000:].tolist()), right[1000:].tolist()) for chosen in ((), knots)]
    assert held[0] > 0.2 > 0.05 > held[1]
    assert InferenceConfig(score_calibration=knots).score_calibration == knots, "it can be stored"
    assert len(knots) <= 14
    with pytest.raises(ConfigError, match="both numbers must rise from one pair to the next"):
        InferenceConfig(score_calibration=((0.0, 0.2), (0.5, 0.2)))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=200), st.lists(st.floats(0, 1), max_size=20))
def test_a_map_of_any_scores_rises_everywhere(seen, asked):
    knots = fit_score_map([score for score, _ in seen], [right for _, right in seen])
    assert bool(knots) == (len(seen) >= 20)
    assert InferenceConfig(score_calibration=knots).score_calibration == knots
    apart = sorted({round(score, 4) for score in asked})
    mapped = score_map(knots, apart)
    assert mapped == sorted(set(mapped)) and all(0 <= value <= 1 for value in mapped)


def test_the_calibration_error_is_the_mean_distance_of_the_bins():
    # In [0.4, 0.6) two say 0.5 and one is right; in [0.8, 1] two say 0.9 and none is right.
    assert expected_calibration_error([0.5, 0.5, 0.9, 1.0], [True, False, False, False], bins=5) == pytest.approx(1.9 / 4)
    assert expected_calibration_error([0.25, 0.25, 0.25, 0.25], [True, False, False, False]) == 0
    assert expected_calibration_error([], []) == 0


def test_found_loses_the_fewest_of_the_thresholds_that_refuse_enough_and_perhaps_lies_below():
    rng = np.random.default_rng(2)
    present, absent = rng.beta(3, 2, 300), rng.beta(2, 3, 100)
    best = [BestMoment(score, True, True) for score in present] + [BestMoment(score, False, False) for score in absent]
    fitted = calibrate_answers(best, InferenceConfig(top_k=3))
    found, perhaps = fitted.inference.found_threshold, fitted.inference.perhaps_threshold
    enough = [value for value in np.linspace(0, 1, 5001) if np.mean(absent < value) >= REFUSED_SHARE]
    assert fitted.metrics["present_lost"] == pytest.approx(100 * np.mean(present < min(enough)), abs=0.01)
    assert fitted.metrics["absent_refused"] == pytest.approx(100 * REFUSED_SHARE)
    rightly = [2 * np.mean(present >= value) + np.mean(absent < value) for value in [perhaps, *np.linspace(0, 1, 2001)]]
    assert rightly[0] == pytest.approx(max(rightly)), "two of three are present"
    assert (perhaps < found, fitted.inference.top_k) == (True, 3)
    assert fitted.metrics["calibration_error"] < 0.05
    for side in (best[:300], best[300:]):  # nothing to tell apart: everything is found, as before
        alone = calibrate_answers(side, InferenceConfig()).inference
        assert (alone.found_threshold, alone.perhaps_threshold) == (0.0, 1.0)


def test_a_best_moment_is_right_by_its_overlap_with_any_true_window():
    rows = [(10.0, 20.0, 0.7), (0.0, 5.0, 0.6)]
    assert BestMoment.of(rows, [(50.0, 60.0), (10.0, 15.1)]) == BestMoment(0.7, True, True)
    assert BestMoment.of(rows, [(0.0, 5.0)]) == BestMoment(0.7, False, True), "the second does not count"
    assert BestMoment.of(rows, []) == BestMoment(0.7, False, False)
    assert BestMoment.of([], [(0.0, 5.0)]) == BestMoment(0.0, False, True)


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
