from __future__ import annotations

import os
import shutil

import pytest
from run_folders import row, write_run

from qamdetr.ui import offered_models
from qamdetr.ui.offered_models import MAX_RUNS, OfferedModels

SHIPPED = ["qam-detr-pocket", "ladder-1-baseline"]


@pytest.fixture(autouse=True)
def _shipped(monkeypatch):
    monkeypatch.setattr(offered_models, "available_checkpoints", lambda: SHIPPED)


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def trained(runs, name, written_ns=10**9, **more):
    folder = write_run(runs / name, [row(1, 5.0)], checkpoint=True, **more)
    os.utime(folder / "best" / "model.safetensors", ns=(written_ns, written_ns))
    return folder


def test_runs_with_a_checkpoint_follow_the_shipped_models_newest_first(runs):
    trained(runs, "first", 1000)
    trained(runs, "group/second", 2000, finished=True)
    write_run(runs / "young", [])
    models = OfferedModels("qam-detr-pocket", runs).all()
    assert list(models) == [*SHIPPED, "run: group/second", "run: first"]
    assert models["run: first"] == str(runs / "first" / "best")


def test_a_restart_and_a_run_that_comes_later_need_no_word(runs):
    offered = OfferedModels("qam-detr-pocket", runs)
    trained(runs, "late")
    assert "run: late" in offered.all()
    assert "run: late" in OfferedModels("qam-detr-pocket", runs).all()
    shutil.rmtree(runs / "late")
    assert list(offered.all()) == SHIPPED


def test_without_training_no_run_is_offered(runs):
    trained(runs, "mine")
    offered = OfferedModels("qam-detr-pocket")
    assert list(offered.all()) == SHIPPED
    assert "run" not in str(offered.refusal("run: mine")).split("choose")[0].replace("run: mine", "")


def test_broken_folders_hide_no_other_and_a_folder_that_is_not_there_holds_nothing(runs):
    trained(runs, "good")
    (runs / "file").write_text("no folder")
    (runs / "half" / "best").mkdir(parents=True)
    (runs / "odd").mkdir()
    (runs / "odd" / "run.json").mkdir()
    (runs / "loop").symlink_to(runs / "loop")
    assert list(OfferedModels("qam-detr-pocket", runs).all()) == [*SHIPPED, "run: good"]
    assert list(OfferedModels("qam-detr-pocket", runs / "nowhere").all()) == SHIPPED


def test_the_list_ends_with_the_newest_and_use_in_find_offers_any_other(runs):
    for number in range(MAX_RUNS + 1):
        trained(runs, f"run-{number}", 1000 + number)
    offered = OfferedModels("qam-detr-pocket", runs)
    assert len(offered.all()) == len(SHIPPED) + MAX_RUNS
    assert "run: run-0" not in offered.all()
    offered.add_run("run: run-0", runs / "run-0" / "best")
    assert offered.folder("run: run-0") == str(runs / "run-0" / "best")
    shutil.rmtree(runs / "run-0")
    assert "run: run-0" not in offered.all()


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("elsewhere/mine", "mine"),
        ("elsewhere/mine/best", "mine"),
        ("elsewhere/qam-detr-pocket", "folder: qam-detr-pocket"),
        ("runs/second/best", "run: second"),
    ],
)
def test_the_first_model_is_called_by_a_name_wherever_it_lies(folder, name, runs, tmp_path):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    offered = OfferedModels(str(tmp_path / folder), runs)
    assert offered.first == name
    assert list(offered.all()) == [name, *SHIPPED]
    assert offered.folder(name) == str(tmp_path / folder)
    assert str(tmp_path) not in str(offered.refusal("nothing"))


def test_a_first_model_that_is_a_run_is_listed_once(runs):
    trained(runs, "mine")
    assert list(OfferedModels(str(runs / "mine" / "best"), runs).all()) == ["run: mine", *SHIPPED]


def test_a_refusal_says_what_happened_and_names_some_of_what_is_here(runs):
    for number in range(20):
        trained(runs, f"run-{number}")
    told = str(OfferedModels("qam-detr-pocket", runs).refusal("run: gone"))
    assert told.startswith("The model of the run 'gone' is no longer here: it was moved or removed; choose one of qam-detr-pocket")
    assert told.endswith("or 10 more that the page lists.")
