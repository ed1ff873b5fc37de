from __future__ import annotations

import os
import shutil
import threading

import pytest
from fake import FakeRetriever
from run_folders import row, write_run

from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.ui.settings import AppSettings
from qamdetr.ui.shared_retriever import KEPT_MODELS, SharedRetriever


def test_loads_once_for_visitors_who_come_together():
    loads = []
    start = threading.Barrier(4)

    def load(_):
        loads.append(1)
        return FakeRetriever()

    shared = SharedRetriever(load)
    got = []

    def visit():
        start.wait()
        got.append(shared.get())

    threads = [threading.Thread(target=visit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len({id(retriever) for retriever in got}) == 1


def test_a_failed_load_is_told_and_tried_again():
    outcomes = [CheckpointError("No checkpoint 'x'; train one."), None]

    def load(_):
        error = outcomes.pop(0)
        if error:
            raise error
        return FakeRetriever()

    shared = SharedRetriever(load)
    with pytest.raises(CheckpointError, match="train one"):
        shared.get()
    assert isinstance(shared.get(), FakeRetriever)


def test_warm_up_runs_the_whole_way_and_survives_failure(caplog):
    retriever = FakeRetriever()
    shared = SharedRetriever(lambda _: retriever)
    shared.warm_up_in_background().join(timeout=20)
    assert retriever.encoded == ["warm_up.wav", "warm_up.wav"]
    assert retriever.queries == ["a sound"]
    assert shared.pace.expected_seconds("fake", "pocket", 60.0) is not None, "what it measured tells the first visitor the time left"

    def broken(_):
        raise CheckpointError("No checkpoint.")

    SharedRetriever(broken).warm_up_in_background().join(timeout=20)
    assert "could not be warmed up: No checkpoint." in caplog.text
    assert "Traceback" not in caplog.text


def test_a_checkpoint_is_loaded_once_and_the_one_used_longest_ago_goes():
    loads = []

    def load(name):
        loads.append(name)
        return FakeRetriever()

    shared = SharedRetriever(load)
    others = [f"other-{number}" for number in range(KEPT_MODELS)]
    for other in others:
        shared.get("often")
        shared.get(other)
    shared.get("often")
    assert loads == ["often", *others], "what is used all the time stays"
    shared.get(others[0])
    assert loads[-1] == others[0]


def test_the_settings_choose_what_the_page_starts_with():
    assert SharedRetriever(FakeRetriever).offered()[0] == "qam-detr-pocket"
    loads = []
    shared = SharedRetriever(lambda name: loads.append(name) or FakeRetriever(), AppSettings(checkpoint="models/mine"))
    assert shared.offered()[:2] == ["mine", "qam-detr-pocket"]
    shared.get()
    assert loads == ["models/mine"]


def test_what_was_trained_is_offered_by_its_run_and_read_anew_when_training_went_on(tmp_path):
    loads = []
    best = write_run(tmp_path / "mine", [row(1, 5.0)], checkpoint=True) / "best"
    shared = SharedRetriever(lambda folder: loads.append(folder) or FakeRetriever(), runs=tmp_path)
    assert shared.offered()[-1] == "run: mine"
    shared.get("run: mine")
    shared.get("run: mine")
    os.utime(best / "model.safetensors", ns=(1, 1))
    shared.get("run: mine")
    assert loads == [str(best)] * 2


def test_a_run_that_was_removed_is_one_line_even_where_its_model_is_loaded(tmp_path):
    folder = write_run(tmp_path / "mine", [row(1, 5.0)], checkpoint=True)
    shared = SharedRetriever(lambda _: FakeRetriever(), runs=tmp_path)
    shared.open_offered("run: mine", "choose another")
    shutil.rmtree(folder)
    with pytest.raises(ConfigError, match=r"The model of the run 'mine' is no longer here.*choose one of qam-detr-pocket") as caught:
        shared.open_offered("run: mine", "choose another")
    assert str(tmp_path) not in str(caught.value)


def test_a_broken_checkpoint_is_told_by_its_name(tmp_path):
    write_run(tmp_path / "mine", [row(1, 5.0)], checkpoint=True)

    def load(folder):
        raise CheckpointError(f"Checkpoint {folder}: model.safetensors is damaged; copy it again.")

    for shared, name in (
        (SharedRetriever(load, runs=tmp_path), "run: mine"),
        (SharedRetriever(load, AppSettings(checkpoint=str(tmp_path / "mine" / "best"))), "mine"),
    ):
        with pytest.raises(CheckpointError) as caught:
            shared.open_offered(name, "choose another")
        assert str(caught.value) == f"Checkpoint {name}: model.safetensors is damaged; copy it again."


def test_large_verifiers_are_made_once_with_the_settings_of_the_page(monkeypatch):
    made = []
    from qamdetr.ui import gpu

    monkeypatch.setattr(gpu, "open_verifier", lambda name, settings, trained: made.append((name, settings.verifier_url)) or object())
    shared = SharedRetriever(FakeRetriever, AppSettings(verifiers=("none", "server"), verifier_url="http://localhost:8000/v1"))
    retriever = FakeRetriever()
    assert shared.verifier("none", retriever) == "none"
    assert shared.verifier("pocket", retriever) == "pocket"
    assert shared.verifier("server", retriever) is shared.verifier("server", retriever)
    assert made == [("server", "http://localhost:8000/v1")]
