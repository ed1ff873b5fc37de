from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import numpy as np
import pytest
import soundfile
from fake import FakeRetriever, HeldRetriever

from qamdetr.config import Config
from qamdetr.errors import CheckpointError
from qamdetr.ui import ablations, encoding_progress, offered_models
from qamdetr.ui import endpoint as endpoint_module
from qamdetr.ui.encoding_progress import StoppedError
from qamdetr.ui.endpoint import Endpoint
from qamdetr.ui.lines import LineFullError
from qamdetr.ui.recordings import KEPT_FOR_PROGRAMS, Recordings
from qamdetr.ui.settings import AppSettings
from qamdetr.ui.shared_retriever import SharedRetriever


@pytest.fixture
def make_audio(tmp_path):
    def make(name="yard.wav", seconds=20):
        path = tmp_path / name
        soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(seconds * 8000), 8000)
        return path

    return make


@pytest.fixture
def retriever():
    return FakeRetriever()


def make_endpoint(load, settings=None):
    settings = settings or AppSettings()
    model = SharedRetriever(load, settings)
    return Endpoint(model, Recordings(model, settings), settings)


@pytest.fixture
def endpoint(retriever):
    return make_endpoint(lambda _: retriever)


@pytest.fixture
def several(monkeypatch):
    """Checkpoints that need not lie here."""
    monkeypatch.setattr(ablations, "read_config", lambda _: Config())
    monkeypatch.setattr(offered_models, "available_checkpoints", lambda: ["big", "ladder-6-multi-feature"])


def test_the_answer_is_the_json_of_the_command_line_without_server_paths(endpoint, make_audio):
    answer = endpoint.retrieve(str(make_audio()), "a dog", 2)
    assert list(answer) == ["audio", "duration", "query", "found", "encoder", "verifier", "beta", "moments", "saliency", "notes"]
    assert answer["audio"] == "yard.wav"
    assert len(answer["moments"]) == 2
    assert len(answer["saliency"]) == 20


def test_a_second_query_on_the_same_recording_does_not_encode_again(endpoint, retriever, make_audio):
    path = str(make_audio())
    for query in ("a dog", "rain"):
        endpoint.retrieve(path, query)
    assert retriever.encoded == ["yard.wav"]
    assert retriever.queries == ["a dog", "rain"]


def test_another_file_in_the_same_place_is_encoded_anew(endpoint, retriever, make_audio):
    assert endpoint.retrieve(str(make_audio()), "a dog")["duration"] == 20.0
    assert endpoint.retrieve(str(make_audio(seconds=12)), "a dog")["duration"] == 12.0
    assert len(retriever.encoded) == 2


def test_programs_keep_few_recordings(endpoint, retriever, make_audio):
    names = [f"{number}.wav" for number in range(KEPT_FOR_PROGRAMS + 1)]
    paths = [str(make_audio(name, seconds=1)) for name in names]
    for path in [*paths, paths[-1], paths[0]]:
        endpoint.retrieve(path, "a dog")
    assert retriever.encoded == [*names, names[0]]


@pytest.fixture
def leave(monkeypatch):
    """Makes the caller of `/retrieve` leave."""
    monkeypatch.setattr(encoding_progress, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(endpoint_module, "POLL_SECONDS", 0.01)
    gone = threading.Event()
    monkeypatch.setattr(endpoint_module, "caller_waits", lambda: not gone.is_set())
    return gone.set


def test_encoding_stops_when_the_caller_leaves_and_the_place_is_free(leave, make_audio):
    retriever = HeldRetriever()
    model = SharedRetriever(lambda _: retriever)
    endpoint = Endpoint(model, Recordings(model, AppSettings()))
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(endpoint.retrieve, str(make_audio("long.wav")), "a dog")
        assert retriever.begun.acquire(timeout=10)
        leave()
        with pytest.raises(gr.Error, match="has left"):
            answer.result(timeout=10)
        assert retriever.ended.acquire(timeout=10)
    with model.encoding.ticket() as ticket:
        assert ticket.wait(10) == 0


@pytest.mark.parametrize("line", ["encoding", "answering"])
def test_a_caller_who_leaves_while_waiting_is_not_served(leave, make_audio, line):
    retriever = FakeRetriever()
    model = SharedRetriever(lambda _: retriever)
    endpoint = Endpoint(model, Recordings(model, AppSettings()))
    with getattr(model, line).ticket():
        leave()
        with pytest.raises(gr.Error, match="has left"):
            endpoint.retrieve(str(make_audio()), "a dog")
    assert retriever.queries == []


def test_an_encoding_that_two_programs_wait_for_goes_on_when_one_leaves(monkeypatch, make_audio):
    monkeypatch.setattr(encoding_progress, "POLL_SECONDS", 0.01)
    retriever = HeldRetriever()
    model = SharedRetriever(lambda _: retriever)
    recordings, path = Recordings(model, AppSettings()), make_audio("long.wav")
    gone, looked = threading.Event(), threading.Semaphore(0)
    with ThreadPoolExecutor() as pool:
        one = pool.submit(recordings.encode_for_program, model.first, path, lambda: not gone.is_set())
        assert retriever.begun.acquire(timeout=10)
        other = pool.submit(recordings.encode_for_program, model.first, path, lambda: looked.release() is None)
        assert looked.acquire(timeout=10)
        gone.set()
        with pytest.raises(StoppedError):
            one.result(timeout=10)
        retriever.let_go.set()
        assert other.result(timeout=10).duration_seconds == 20.0
    assert retriever.encoded == ["long.wav"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 101}, "1 to 100"),
        ({"top_k": 3.7}, "top_k is 3.7; it must be a whole number"),
        ({"top_k": "abc"}, "top_k is 'abc'"),
        ({"beta": 1.5}, "beta is 1.5"),
        ({"verifier": "oracle"}, "oracle"),
        ({"verifier": None}, "Verifier None"),
        ({"checkpoint": 5}, "checkpoint is 5"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_anything_is_done(endpoint, retriever, make_audio, options, told):
    with pytest.raises(gr.Error, match=told):
        endpoint.retrieve(str(make_audio()), "a dog", **options)
    assert retriever.encoded == []


def test_a_recording_that_was_swept_is_named(endpoint, tmp_path):
    with pytest.raises(gr.Error, match=r"gone\.wav is no longer kept here; open or upload it again"):
        endpoint.retrieve(str(tmp_path / "gone.wav"), "a dog")


def test_files_over_the_limit_are_refused(retriever, make_audio):
    endpoint = make_endpoint(lambda _: retriever, AppSettings(upload_mb=1))
    with pytest.raises(gr.Error, match="2 MB; the limit is 1 MB; cut it"):
        endpoint.retrieve(str(make_audio(seconds=100)), "a dog")
    assert retriever.encoded == []


def test_an_offered_model_is_taken_and_no_other(several, make_audio, tmp_path):
    loaded = []
    endpoint = make_endpoint(lambda name: loaded.append(name) or FakeRetriever())
    endpoint.retrieve(str(make_audio()), "a dog", checkpoint="ladder-6-multi-feature")
    assert loaded == ["ladder-6-multi-feature"]
    for name in (str(tmp_path), "../secret"):
        with pytest.raises(gr.Error, match="is not offered here; choose one of qam-detr-pocket"):
            endpoint.retrieve(str(make_audio()), "a dog", checkpoint=name)
    assert loaded == ["ladder-6-multi-feature"]


def test_a_model_whose_encoders_are_missing_names_another_to_pass(several, make_audio):
    def load(name):
        raise CheckpointError(f"{name} needs laion/clap: run `hf download`, or use combo 'pocket', which needs no download.")

    endpoint = make_endpoint(load, AppSettings(checkpoint="big"))
    with pytest.raises(gr.Error, match=r"hf download.*pass checkpoint='qam-detr-pocket'"):
        endpoint.retrieve(str(make_audio()), "a dog")


def test_programs_that_wait_for_the_same_file_are_counted(make_audio):
    held, settings = HeldRetriever(), AppSettings(queue_length=1)
    recordings = Recordings(SharedRetriever(lambda _: held, settings), settings)
    path = make_audio("long.wav")
    asked = threading.Semaphore(0)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(recordings.encode_for_program, settings.checkpoint, path, lambda: asked.release() is None) for _ in range(2)]
        assert asked.acquire(timeout=30)
        assert asked.acquire(timeout=30)
        with pytest.raises(LineFullError, match="1 request is waiting already"):
            recordings.encode_for_program(settings.checkpoint, path, lambda: True)
        held.let_go.set()
        assert len({id(future.result(timeout=30)) for future in waiting}) == 1
