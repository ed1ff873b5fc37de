from __future__ import annotations

import threading

import pytest
from fake import FakeRetriever

from qamdetr.errors import CheckpointError
from qamdetr.ui.shared_retriever import SharedRetriever


def test_loads_once_for_visitors_who_come_together():
    loads = []
    start = threading.Barrier(4)

    def load():
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

    def load():
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
    SharedRetriever(lambda: retriever).warm_up_in_background().join(timeout=20)
    assert retriever.encoded == ["warm_up.wav"]
    assert retriever.queries == ["a sound"]

    def broken():
        raise CheckpointError("No checkpoint.")

    SharedRetriever(broken).warm_up_in_background().join(timeout=20)
    assert "could not be warmed up: No checkpoint." in caplog.text
    assert "Traceback" not in caplog.text
