from __future__ import annotations

import gradio as gr
import numpy as np
import pytest
import soundfile
from fake import FakeRetriever

from qamdetr.config import Config
from qamdetr.errors import CheckpointError
from qamdetr.ui import ablations, offered_models
from qamdetr.ui.endpoint import Endpoint
from qamdetr.ui.recordings import Recordings
from qamdetr.ui.session import Session
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
    answer = endpoint.retrieve(Session(), str(make_audio()), "a dog", 2)
    assert list(answer) == ["audio", "duration", "query", "found", "encoder", "verifier", "beta", "moments", "saliency", "notes"]
    assert answer["audio"] == "yard.wav"
    assert len(answer["moments"]) == 2
    assert len(answer["saliency"]) == 20


def test_a_second_query_on_the_same_recording_does_not_encode_again(endpoint, retriever, make_audio):
    session, path = Session(), str(make_audio())
    for query in ("a dog", "rain"):
        endpoint.retrieve(session, path, query)
    assert retriever.encoded == ["yard.wav"]
    assert retriever.queries == ["a dog", "rain"]


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
        endpoint.retrieve(Session(), str(make_audio()), "a dog", **options)
    assert retriever.encoded == []


def test_a_recording_that_was_swept_is_named(endpoint, tmp_path):
    with pytest.raises(gr.Error, match=r"gone\.wav is no longer kept here; open or upload it again"):
        endpoint.retrieve(Session(), str(tmp_path / "gone.wav"), "a dog")


def test_files_over_the_limit_are_refused(retriever, make_audio):
    endpoint = make_endpoint(lambda _: retriever, AppSettings(upload_mb=1))
    with pytest.raises(gr.Error, match="2 MB; the limit is 1 MB; cut it"):
        endpoint.retrieve(Session(), str(make_audio(seconds=100)), "a dog")
    assert retriever.encoded == []


def test_an_offered_model_is_taken_and_no_other(several, make_audio, tmp_path):
    loaded = []
    endpoint = make_endpoint(lambda name: loaded.append(name) or FakeRetriever())
    endpoint.retrieve(Session(), str(make_audio()), "a dog", checkpoint="ladder-6-multi-feature")
    assert loaded == ["ladder-6-multi-feature"]
    for name in (str(tmp_path), "../secret"):
        with pytest.raises(gr.Error, match="is not offered here; choose one of qam-detr-pocket"):
            endpoint.retrieve(Session(), str(make_audio()), "a dog", checkpoint=name)
    assert loaded == ["ladder-6-multi-feature"]


def test_a_model_whose_encoders_are_missing_names_another_to_pass(several, make_audio):
    def load(name):
        raise CheckpointError(f"{name} needs laion/clap: run `hf download`, or use combo 'pocket', which needs no download.")

    endpoint = make_endpoint(load, AppSettings(checkpoint="big"))
    with pytest.raises(gr.Error, match=r"hf download.*pass checkpoint='qam-detr-pocket'"):
        endpoint.retrieve(Session(), str(make_audio()), "a dog")
