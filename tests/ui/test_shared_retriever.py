from __future__ import annotations

import threading

import pytest
from fake import FakeRetriever

from qamdetr.errors import CheckpointError
from qamdetr.ui.shared_retriever import CHECKPOINT_VARIABLE, SharedRetriever, offered_checkpoints


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
    SharedRetriever(lambda _: retriever).warm_up_in_background().join(timeout=20)
    assert retriever.encoded == ["warm_up.wav"]
    assert retriever.queries == ["a sound"]

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
    for name in ("a", "b", "a", "c", "a", "d", "a", "b"):
        shared.get(name)
    assert loads == ["a", "b", "c", "d", "b"], "a is used all the time and stays"


def test_the_environment_chooses_what_the_page_starts_with(monkeypatch):
    monkeypatch.delenv(CHECKPOINT_VARIABLE, raising=False)
    assert offered_checkpoints()[0] == "qam-detr-pocket"
    monkeypatch.setenv(CHECKPOINT_VARIABLE, "runs/mine/best")
    assert offered_checkpoints()[:2] == ["runs/mine/best", "qam-detr-pocket"]
    loads = []
    SharedRetriever(lambda name: loads.append(name) or FakeRetriever()).get()
    assert loads == ["runs/mine/best"]
