"""The program answers as before it was rebuilt; `make.py` tells how the files beside this one were made, and when to make them anew."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
make = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("golden_make", HERE / "make.py"))
spec.loader.exec_module(make)

WINDOW_SECONDS, SCORE, FEATURE = 0.05, 1e-3, 1e-5


def read(name: str):
    return json.loads(gzip.decompress((HERE / name).read_bytes()))


@pytest.fixture(scope="module")
def answered() -> dict[str, list]:
    return make.answers()


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", make.CHECKPOINTS)
def test_every_example_is_answered_as_before(answered, checkpoint):
    kept = {name: rows for name, rows in read("answers.json.gz").items() if name.startswith(f"{checkpoint}/")}
    assert len(kept) == 20
    for name, rows in kept.items():
        for before, now in zip(rows, answered[name], strict=True):
            where = f"{name}: {before['query']}"
            assert (now["query"], now["found"], now["notes"]) == (before["query"], before["found"], before["notes"]), where
            assert now["beta"] == pytest.approx(before["beta"]), where
            same_moments(now["moments"], before["moments"], where)
            np.testing.assert_allclose(now.get("saliency", []), before.get("saliency", []), atol=1.5 * SCORE, err_msg=where)


def same_moments(now: list, before: list, where: str) -> None:
    """Equal windows and scores; moments whose scores differ by less than the tolerance may have changed places."""
    assert len(now) == len(before), where
    left = list(now)
    for moment in before:
        # Official windows are whole seconds: a bound on half a second, as one of these is, falls to either side.
        seconds = 1.0 if "/official/" in where else WINDOW_SECONDS
        window, scores = pytest.approx(moment[:2], abs=seconds), pytest.approx(moment[2:], abs=SCORE)
        match = next((other for other in left if other[:2] == window and other[2:] == scores), None)
        assert match is not None, f"{where}: {moment} is not among {now}"
        left.remove(match)
    assert all(one[2] >= other[2] for one, other in itertools.pairwise(now)), where


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("scores")
    for name in "ab":
        (folder / f"{name}.jsonl").write_bytes(gzip.decompress((HERE / f"{name}.jsonl.gz").read_bytes()))
    return make.scores(folder)


def test_scores_and_curves_are_printed_as_before(told):
    for name, before in read("scores.json.gz").items():
        if name in ("evaluate text", "evaluate json"):
            assert told[name] == before
        elif name.endswith("json"):
            same_numbers(json.loads(told[name]), json.loads(before), "")
        else:
            now, then = ([line.split()[:1] for line in text.splitlines()] for text in (told[name], before))
            assert now == then, name


def same_numbers(now, before, where: str) -> None:
    """Equal but for what is drawn by chance, which may move by its own noise."""
    assert type(now) is type(before), where
    if isinstance(before, (dict, list)):
        keys = list(before) if isinstance(before, dict) else range(len(before))
        assert (list(now) if isinstance(now, dict) else range(len(now))) == keys, where
        for key in keys:
            same_numbers(now[key], before[key], f"{where}/{key}")
    elif isinstance(before, float):
        drawn = any(part in where for part in ("/intervals/", "/low", "/high"))
        assert now == pytest.approx(before, abs=4.0 if drawn else 0.03 if where.endswith("p_value") else 0.02), where
    else:
        assert now == before, where


def test_pocket_features_are_what_they_were():
    kept = np.load(HERE / "features.npz")
    now = make.features()
    assert set(now) == set(kept)
    for name, before in kept.items():
        np.testing.assert_allclose(now[name], before, atol=FEATURE * max(np.abs(before).max(), 1), err_msg=name)


@pytest.mark.slow
def test_thirty_steps_of_training_end_where_they_ended(monkeypatch):
    kept = dict(np.load(HERE / "weights.npz"))
    with make.inside() as folder:
        now = make.weights(folder)
    assert list(now) == list(kept)
    for name, before in kept.items():
        # Made on AVX2; from one processor to the other 6e-5 was seen, while thirty steps carry a weight some 1e-2.
        np.testing.assert_allclose(now[name], before, atol=2e-4, rtol=0, err_msg=name)
    # Bits hang on the processor and on the versions of PyTorch and its libraries; where they differ, the loop above has spoken.
    sys.stderr.write(f"bits of 30 steps equal: {make.hash_of(now) == (HERE / 'weights.sha256').read_text().strip()}\n")


@pytest.fixture(scope="module")
def mistaken() -> dict[str, tuple[int, str]]:
    commands = [command for command, _, _ in make.read_mistakes()]
    with make.inside() as folder:
        make.make_world(folder)
        return dict(zip(commands, make.mistakes(commands, folder), strict=True))


@pytest.mark.parametrize(("command", "status", "line"), make.read_mistakes(), ids=lambda value: str(value)[:60])
def test_every_mistake_is_its_line(mistaken, command, status, line):
    assert mistaken[command] == (int(status), line)
