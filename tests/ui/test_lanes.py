"""What the page shows of recordings and answers, and that the browser computes the same as Python."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qamdetr.inference.rerank import mark_likely, rerank
from qamdetr.types import Candidate, Moment, Result
from qamdetr.ui import lanes as lanes_module
from qamdetr.ui.lanes import (
    NEVER_REFUSES,
    LaneResult,
    answer_message,
    checked_choice,
    default_choice,
    reranked,
    result_view,
)

UI_DIR = Path(lanes_module.__file__).parent
BETAS = (0.0, 0.05, 0.3, 0.35, 0.5, 0.95, 1.0)


def run_js(expression, given):
    """Evaluate a JavaScript expression of `given` after the player's formulas."""
    formula = "".join((UI_DIR / name).read_text(encoding="utf-8") for name in ("weight.js", "player_formula.js"))
    script = f"{formula}\nconst given = JSON.parse(require('fs').readFileSync(0, 'utf-8'));\nconsole.log(JSON.stringify({expression}));"
    done = subprocess.run(["node", "-e", script], input=json.dumps(given), capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def moment(start, end, score, *, likely=True):
    return Moment(start, end, score, 1.0, score, None, score=score, likely=likely)


def result(*moments, found=True, verifier="none"):
    return Result("yard.wav", 60.0, "a dog barks", found, "pocket", verifier, 0.35 if verifier != "none" else 0.0, moments, (0.25,) * 60)


def random_lane(rng, number):
    """An answer as the server ranks it at some weight, some with equal scores and overlaps, some of a sound that is not there."""
    scores = rng.integers(1, 6, (int(rng.integers(0, 12)), 2)) / 5 if number % 2 else rng.random((int(rng.integers(0, 12)), 2))
    starts = rng.integers(0, 60, len(scores)) * 2.0
    found = [Candidate(float(at), float(at) + 5.0, float(s), 1.0, float(s)) for at, s in zip(starts, scores[:, 0], strict=True)]
    order = sorted(range(len(found)), key=lambda i: -found[i].decoder_score)
    beta, threshold, there = float(rng.choice(BETAS)), 0.3 * (number % 3), number % 5 != 0
    verified = [float(scores[i, 1]) for i in order] if number % 7 else None
    ranked = mark_likely(rerank([found[i] for i in order], verified, beta), found=there, threshold=threshold)
    answer = Result("yard.wav", 300.0, "a dog", there, "pocket", "none" if verified is None else "pocket", beta, ranked, (0.5,) * 300)
    return LaneResult("a dog", "", answer, None, threshold)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node (Debian: apt-get install nodejs)")
def test_the_browser_ranks_and_calls_likely_exactly_as_the_server():
    rng = np.random.default_rng(0)
    random_lanes = [random_lane(rng, number) for number in range(60)]
    given = {"betas": BETAS, "lanes": result_view({}, random_lanes)["lanes"]}
    shown = run_js("given.betas.map((beta) => given.lanes.map((lane) => ranked(lane, beta)))", given)
    titles = run_js("given.betas.map((beta) => given.lanes.map((lane) => answerTitle(lane, ranked(lane, beta))))", given)
    for beta, of_beta, told in zip(BETAS, shown, titles, strict=True):
        chosen = []
        for number, (lane, rows) in enumerate(zip(random_lanes, of_beta, strict=True)):
            expected = reranked(lane, beta)
            assert [(row["start"], row["score"], row["rank"]) for row in rows] == [
                (one.start_seconds, one.score, rank) for rank, one in enumerate(expected.moments, start=1)
            ]
            assert [row["likely"] for row in rows if expected.found] == [one.likely for one in expected.moments if expected.found]
            before = [one.window for one in reranked(lane, 0.0).moments]
            if len({one.decoder_score for one in expected.moments}) == len(set(before)) == len(before):
                assert [row["moved"] for row in rows] == [before.index(one.window) - at for at, one in enumerate(expected.moments)]
            likely = {one.window for one in expected.moments if one.likely}
            chosen += [(number, index) for index, one in enumerate(lane.result.moments) if one.window in likely]
            assert told[number] == answer_message(expected, None)["title"]
        assert default_choice(random_lanes, beta) == chosen


ONE, LIKELY = result(moment(1, 2, 0.8)), result(moment(1, 2, 0.8), moment(3, 4, 0.5), moment(5, 6, 0.4, likely=False))
ABSENT = replace(ONE, found=False)


def test_an_answer_says_what_is_not_sure():
    for answer, kind in ((LIKELY, "found"), (ABSENT, "absent"), (result(found=False), "none")):
        assert answer_message(answer, None)["kind"] == kind
    for threshold in (0.0, 0.1):
        (lane,) = result_view({}, [LaneResult("a dog", "", LIKELY, None, threshold)])["lanes"]
        assert (NEVER_REFUSES in lane["message"]["detail"]) == (threshold == 0)


def test_a_view_takes_the_weight_of_the_first_verified_lane_and_keeps_the_notes():
    noted = replace(ONE, notes=("the file ends after 0:45 of 1:30",))
    view = result_view({}, [LaneResult("Baseline", "", noted, None), LaneResult("Full", "", result(verifier="pocket"), None)])
    assert [(lane["label"], lane["notes"]) for lane in view["lanes"]] == [("Baseline", [*noted.notes]), ("Full", [])]
    assert (view["verifier"], view["beta"]) == ("pocket", 0.35)


def test_what_the_browser_sends_as_chosen_is_checked():
    lanes = [LaneResult("a dog barks", "", result(moment(1, 2, 0.9), moment(3, 4, 0.5)), None)]
    assert checked_choice([[0, 1], [0, 0], [0, 1]], lanes) == [(0, 0), (0, 1)]
    for sent in ([], [[5, 0], [0, 9], [-1, 0], ["0", "1"], [0], [0, [1]], None, {"a": 1}], "[[0, 1]]", None):
        assert checked_choice(sent, lanes) == []
