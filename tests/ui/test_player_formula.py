"""What the player computes in the browser, against the same in Python; the scripts run under node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qamdetr.inference.rerank import rerank
from qamdetr.types import Candidate, Moment, Result
from qamdetr.ui import lane_results, presenters
from qamdetr.ui.closer_look import MOST_COLUMNS, MOST_SECONDS
from qamdetr.ui.lane_results import LaneResult
from qamdetr.ui.player import PLAYER_SCRIPTS

UI_DIR = Path(presenters.__file__).parent
BETAS = (0.0, 0.05, 0.3, 0.35, 0.5, 0.95, 1.0)
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node (Debian: apt-get install nodejs)")


def run_js(expression, given):
    """Evaluate a JavaScript expression of `given` after the player's formulas."""
    formula = "".join((UI_DIR / name).read_text(encoding="utf-8") for name in ("weight.js", "player_formula.js"))
    script = f"{formula}\nconst given = JSON.parse(require('fs').readFileSync(0, 'utf-8'));\nconsole.log(JSON.stringify({expression}));"
    done = subprocess.run(["node", "-e", script], input=json.dumps(given), capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def candidates_of(rng, count, ties):
    scores = rng.integers(1, 6, (count, 2)) / 5 if ties else rng.random((count, 2))
    found = [Candidate(10.0 * i, 10.0 * i + 5.0, float(s), 1.0, float(s)) for i, s in enumerate(scores[:, 0])]
    order = sorted(range(count), key=lambda i: -found[i].decoder_score)
    return [found[i] for i in order], [float(scores[i, 1]) for i in order]


def answer(moments, *, beta, verifier="pocket", found=True):
    return Result("yard.wav", 300.0, "a dog barks", found, "pocket", verifier, beta, tuple(moments), (0.5,) * 300)


@pytest.fixture(scope="module")
def answers():
    """Answers as the server ranks them at some weight, some with equal scores, some of a sound that is not there."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(40):
        candidates, verified = candidates_of(rng, int(rng.integers(0, 12)), ties=number % 2 == 1)
        beta = float(rng.choice(BETAS))
        made.append(answer(rerank(candidates, verified, beta), beta=beta, found=number % 5 != 0))
    candidates, _ = candidates_of(rng, 8, ties=False)
    made.append(answer(rerank(candidates, None, 0.35), beta=0.0, verifier="none"))
    return made


@pytest.fixture(scope="module")
def lanes(answers):
    return [LaneResult(result.query, "", result, None) for result in answers]


@needs_node
def test_the_browser_ranks_and_scores_exactly_as_python(answers, lanes):
    view = presenters.result_view({}, lanes)
    shown = run_js("given.betas.map((beta) => given.lanes.map((lane) => ranked(lane, beta)))", {"betas": BETAS, "lanes": view["lanes"]})
    for beta, of_beta in zip(BETAS, shown, strict=True):
        for result, rows in zip(answers, of_beta, strict=True):
            expected = lane_results.reranked(result, beta).moments
            assert [(row["start"], row["score"], row["rank"]) for row in rows] == [
                (moment.start_seconds, moment.score, rank) for rank, moment in enumerate(expected, start=1)
            ]
            assert [result.moments[row["candidate"]].start_seconds for row in rows] == [row["start"] for row in rows]


@needs_node
def test_moved_counts_places_against_the_decoder_alone(answers, lanes):
    view = presenters.result_view({}, lanes)
    shown = run_js("given.map((lane) => ranked(lane, 0.6))", view["lanes"])
    for result, rows in zip(answers, shown, strict=True):
        before = [moment.window for moment in lane_results.reranked(result, 0.0).moments]
        after = [moment.window for moment in lane_results.reranked(result, 0.6).moments]
        if result.verifier != "none" and len({moment.decoder_score for moment in result.moments}) == len(before):
            assert [row["moved"] for row in rows] == [before.index(window) - place for place, window in enumerate(after)]
        if result.verifier == "none":
            assert not any(row["moved"] for row in rows)


@needs_node
@pytest.mark.parametrize("beta", [0.0, 0.35, 1.0])
def test_the_same_moments_are_likely_and_chosen_at_first(answers, lanes, beta):
    view = presenters.result_view({}, lanes)
    shown = run_js("given.lanes.map((lane) => ranked(lane, given.beta))", {"beta": beta, "lanes": view["lanes"]})
    chosen = [
        [number, row["candidate"]]
        for number, (lane, rows) in enumerate(zip(lanes, shown, strict=True))
        for row in sorted(rows, key=lambda row: row["candidate"])
        if lane.result.found and row["likely"]
    ]
    assert [list(pair) for pair in lane_results.default_choice(lanes, beta)] == chosen
    titles = run_js("given.lanes.map((lane) => answerTitle(lane, ranked(lane, given.beta)))", {"beta": beta, "lanes": view["lanes"]})
    expected = [presenters.answer_message(lane_results.reranked(result, beta), None)["title"] for result in answers]
    assert titles == expected


@needs_node
def test_the_line_of_equal_blend_lies_on_its_score_inside_the_square():
    rng = np.random.default_rng(1)
    given = [(float(beta), float(score)) for beta in (0.0, 0.2, 0.5, 1.0) for score in (*rng.random(20), 0.5)]
    for (beta, score), ends in zip(given, run_js("given.map(([beta, score]) => blendLine(beta, score))", given), strict=True):
        assert len(ends) == 2
        assert ends[0] != ends[1]
        for x, y in ends:
            assert (1 - beta) * x + beta * y == pytest.approx(score)
            assert 0 <= x <= 1
            assert 0 <= y <= 1
    assert run_js("blendLine(0.5, given)", 1.2) is None


@needs_node
def test_zoom_and_pan_stay_inside_the_recording_and_keep_the_second_under_the_pointer():
    rng = np.random.default_rng(2)
    moves = [[float(rng.uniform(0.3, 3)), float(rng.random()), float(rng.uniform(-30, 30))] for _ in range(200)]
    ranges = run_js(
        "given.reduce((all, [factor, share, seconds]) => { const last = all[all.length - 1];"
        " const centre = last.from + share * (last.to - last.from); const next = zoomed(last, factor, centre, 120);"
        " return [...all, next, panned(next, seconds, 120)]; }, [{ from: 0, to: 120 }])",
        moves,
    )
    for part in ranges:
        assert -1e-9 <= part["from"] < part["to"] <= 120 + 1e-9
        assert part["to"] - part["from"] >= 1 - 1e-9
    closer = run_js("zoomed({ from: 20, to: 60 }, 4, 30, 120)", None)
    assert (closer["from"], closer["to"]) == (27.5, 37.5)
    assert run_js("revealed({ from: 20, to: 30 }, 50, 52, 120)", None) == {"from": 46, "to": 56}
    assert run_js("revealed({ from: 20, to: 30 }, 21, 22, 120)", None) == {"from": 20, "to": 30}
    assert run_js("revealed({ from: 20, to: 30 }, 50, 90, 120)", None) == {"from": 49, "to": 59}


@needs_node
def test_ticks_are_round_and_never_too_many():
    for span in (0.7, 1, 12, 90, 3600, 40_000):
        step = run_js("tickStep(given, 8)", span)
        assert span / step <= 8
    assert run_js("given.map((second) => clock(second, 1))", [0, 59.96, 61.25, 3725.04]) == ["0:00.0", "1:00.0", "1:01.3", "1:02:05.0"]


@needs_node
def test_the_scripts_are_one_sound_function_body(tmp_path):
    body = "".join((UI_DIR / name).read_text(encoding="utf-8") for name in PLAYER_SCRIPTS)
    whole = tmp_path / "player.js"
    whole.write_text(f"(element, props, trigger, watch) => {{\n{body}\n}};\n", encoding="utf-8")
    done = subprocess.run(["node", "--check", whole], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_script_of_the_player_is_loaded():
    assert sorted(PLAYER_SCRIPTS) == sorted(["weight.js", *(path.name for path in UI_DIR.glob("player*.js"))])


PART = {"from": 100.0, "to": 160.0}


@needs_node
@pytest.mark.parametrize(
    ("given", "asks"),
    [
        ({"range": {"from": 0.0, "to": 3600.0}}, False),  # a column of the overview is 0.3 pixels
        ({"range": {"from": 0.0, "to": 601.0}}, False),  # a little wide, and too long to read
        ({"range": PART}, True),
        ({"range": PART, "pixels": 0}, False),
        ({"range": PART, "fine": {"from": 85.0, "to": 175.0, "columns": 1500, "asked": 1500}}, False),
        ({"range": {"from": 110.0, "to": 140.0}, "fine": {"from": 85.0, "to": 175.0, "columns": 1500, "asked": 1500}}, True),  # closer
        ({"range": {"from": 140.0, "to": 200.0}, "fine": {"from": 85.0, "to": 175.0, "columns": 1500, "asked": 1500}}, True),  # beside it
        ({"range": {"from": 100.0, "to": 101.0}, "fine": {"from": 99.0, "to": 102.0, "columns": 300, "asked": 1500}}, False),  # all samples
    ],
)
def test_finer_columns_are_asked_for_only_where_they_would_be_seen(given, asks):
    values = {"pixels": 1000, "fine": None, **given}
    part = run_js("closerLook(given.range, 3600, 4000, given.pixels, given.fine)", values)
    assert (part is not None) == asks


@needs_node
@pytest.mark.parametrize("pixels", [300, 1000, 4000])
@pytest.mark.parametrize("view", [{"from": 0.0, "to": 1.0}, {"from": 3595.0, "to": 3600.0}, {"from": 100.0, "to": 700.0}])
def test_the_part_that_is_asked_for_is_one_that_the_server_gives(view, pixels):
    part = run_js("closerLook(given.range, 3600, 4000, given.pixels, null)", {"range": view, "pixels": pixels})
    if part is None:
        assert (view["to"] - view["from"]) / pixels >= 0.9 / 1.5  # the overview's own columns will do
        return
    assert 0 <= part["from"] <= view["from"] < view["to"] <= part["to"] <= 3600
    assert part["to"] - part["from"] <= MOST_SECONDS
    assert 1 <= part["columns"] <= MOST_COLUMNS
    held = {"range": view, "pixels": pixels, "fine": {**part, "asked": part["columns"]}}
    assert run_js("closerLook(given.range, 3600, 4000, given.pixels, given.fine)", held) is None


@needs_node
def test_the_overlap_is_told_of_the_first_and_of_the_best_likely_row_and_of_none_where_nothing_is_true():
    rows = [{"iou": 0.4, "likely": True}, {"iou": 0.8, "likely": True}, {"iou": 0.9, "likely": False}]
    lanes = [{"truth": truth, "rows": rows} for truth in ([[1, 2]], [], None)]
    assert run_js("given.map(iouWords)", lanes) == ["first: IoU 0.40, best: 0.80", "", ""]
    assert run_js("iouWords(given)", {"truth": [[1, 2]], "rows": [{"iou": 0.801, "likely": True}, rows[1]]}) == "IoU 0.80"


@needs_node
def test_a_typed_weight_is_cut_to_its_range_and_no_number_keeps_the_last():
    typed = [5, -3, 1, 0, 0.35, "0.4", None, "", "abc", [], {}]
    expected = [1, 0, 1, 0, 0.35, 0.4, 0.6, 0.6, 0.6, 0, 0.6]
    assert run_js("given.map((value) => weightOf(value, 0.6))", typed) == expected
    assert run_js("weightOf(NaN, given)", 0.6) == 0.6
    assert run_js("weightOf(undefined, given)", None) is None


@needs_node
def test_without_quality_there_is_none_to_show():
    qualities = {"bypassed": (1.0, 1.0), "ranks": (0.9, 1.0)}
    views = []
    for given in qualities.values():
        moments = [Moment(float(i), i + 1.0, 0.5, quality, 0.5 * quality, None, 0.5 * quality) for i, quality in enumerate(given)]
        views += presenters.result_view({}, [LaneResult("a dog", "", answer(moments, beta=0.0, verifier="none"), None)])["lanes"]
    assert [[row["quality"] for row in lane["moments"]] for lane in views] == [[None, None], [0.9, 1.0]]
    assert run_js("given.map(hasQuality)", views) == [False, True]


@needs_node
def test_each_query_has_one_lane_of_true_moments_below_its_last_answer():
    def words(*lanes):
        return run_js("truthWords(given)", [{"query": query, "truth": truth} for query, truth in lanes])

    windows = [[1, 2]]
    assert words(("a dog", windows), ("a dog", windows)) == [None, "True moments"]
    assert words(("a dog", windows), ("a dog", windows), ("a cat", [])) == [None, "True moments of “a dog”", "True moments of “a cat”"]
    assert words(("a dog", windows), ("a cow", None)) == ["True moments of “a dog”", None]
