from __future__ import annotations

import gradio as gr
import numpy as np
import pytest
import soundfile
from fake import FakeRetriever

from qamdetr.errors import CheckpointError
from qamdetr.ui import retrieve_handlers
from qamdetr.ui.examples import Example
from qamdetr.ui.retrieve_handlers import KEPT_RECORDINGS, MAX_QUERY_CHARACTERS, RetrieveHandlers, Session
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


@pytest.fixture
def handlers(retriever, make_audio):
    example = Example(make_audio("example.wav"), "A yard", {"a dog barks": ((2.0, 4.5),), "rain": ()})
    return RetrieveHandlers(SharedRetriever(lambda _: retriever), [example])


def views(steps):
    return [view for _, view in steps]


def test_upload_then_query(handlers, retriever, make_audio):
    session = Session()
    busy, ready = views(handlers.open_upload(session, str(make_audio())))
    assert "yard.wav" in busy["busy"]
    assert ready["state"] == "ready"
    assert ready["title"] == "yard.wav"
    _, answer = views(handlers.find(session, "a dog", "none", 0.35))
    assert answer["state"] == "result"
    assert answer["truth"] is None
    assert [row["rank"] for row in answer["moments"]] == [1, 2, 3, 4]
    list(handlers.find(session, "a cat", "none", 0.35))
    assert retriever.encoded == ["yard.wav"], "a second query must not encode again"


def test_example_brings_its_truth(handlers):
    *_, answer = views(handlers.open_example(Session(), 0, "a dog barks", "none", 0.35))
    assert answer["truth"] == [[2.0, 4.5]]
    assert answer["moments"][0]["iou"] == pytest.approx(1.0)


def test_coming_back_to_a_recording_does_not_encode_again(handlers, retriever, make_audio):
    session = Session()
    for name in ("a.wav", "b.wav", "a.wav"):
        list(handlers.open_upload(session, str(make_audio(name))))
    assert retriever.encoded == ["a.wav", "b.wav"]
    for number in range(KEPT_RECORDINGS):
        list(handlers.open_upload(session, str(make_audio(f"more{number}.wav"))))
    assert len(session.recordings) == KEPT_RECORDINGS


def test_two_sessions_share_nothing(handlers, make_audio):
    one, two = Session(), Session()
    list(handlers.open_upload(one, str(make_audio("one.wav"))))
    assert two.recording is None
    assert two.view == {"state": "empty"}
    assert not two.recordings


def test_failure_puts_the_last_view_back_and_names_the_file_not_the_folder(handlers, make_audio, tmp_path):
    session = Session()
    list(handlers.open_upload(session, str(make_audio())))
    broken = tmp_path / "broken.wav"
    broken.write_text("not audio")
    seen = []
    with pytest.raises(gr.Error) as caught:
        seen.extend(view for _, view in handlers.open_upload(session, str(broken)))
    assert seen[-1]["title"] == "yard.wav"
    assert session.recording.name == "yard.wav"
    assert "broken.wav" in caught.value.message
    assert str(tmp_path) not in caught.value.message


def test_a_fault_of_the_program_is_one_calm_line_and_a_traceback_in_the_log(handlers, make_audio, caplog):
    session = Session()
    list(handlers.open_upload(session, str(make_audio())))
    with pytest.raises(gr.Error, match="Nothing you opened is lost") as caught:
        list(handlers.find(session, "explode", "none", 0.35))
    assert "RuntimeError" not in caught.value.message
    assert "a fault of the program" in caplog.text


@pytest.mark.parametrize("query", ["", "   "])
def test_searching_with_something_missing_warns_and_changes_nothing(handlers, make_audio, monkeypatch, query):
    told = []
    monkeypatch.setattr(retrieve_handlers.gr, "Warning", lambda text, **_: told.append(text))
    session = Session()
    assert views(handlers.find(session, "a dog", "none", 0.35)) == [{"state": "empty"}]
    list(handlers.open_upload(session, str(make_audio())))
    assert views(handlers.find(session, query, "none", 0.35)) == [session.base]
    assert "upload" in told[0]
    assert "No words yet" in told[1]


def test_overlong_query_is_refused_not_cut(handlers, retriever, make_audio):
    session = Session()
    list(handlers.open_upload(session, str(make_audio())))
    with pytest.raises(gr.Error, match=f"{MAX_QUERY_CHARACTERS + 1} characters; the limit is {MAX_QUERY_CHARACTERS}"):
        list(handlers.find(session, "x" * (MAX_QUERY_CHARACTERS + 1), "none", 0.35))
    assert retriever.queries == []


def test_another_verifier_answers_the_shown_query_again(handlers, retriever, make_audio):
    session = Session()
    assert views(handlers.find_again(session, "pocket", 0.35)) == []
    list(handlers.open_upload(session, str(make_audio())))
    list(handlers.find(session, "a dog", "none", 0.35))
    _, answer = views(handlers.find_again(session, "pocket", 0.35))
    assert answer["verifier"] == "pocket"
    assert retriever.queries == ["a dog", "a dog"]


def test_closing_empties_the_page_and_keeps_the_features(handlers, retriever, make_audio):
    session = Session()
    path = str(make_audio())
    list(handlers.open_upload(session, path))
    assert handlers.close(session)[1] == {"state": "empty"}
    list(handlers.open_upload(session, path))
    assert retriever.encoded == ["yard.wav"]


def test_endpoint_gives_the_json_of_the_command_line_without_server_paths(handlers, make_audio):
    answer = handlers.retrieve(Session(), str(make_audio()), "a dog", 2)
    assert list(answer) == ["audio", "duration", "query", "found", "encoder", "verifier", "beta", "moments", "saliency", "notes"]
    assert answer["audio"] == "yard.wav"
    assert len(answer["moments"]) == 2
    assert len(answer["saliency"]) == 20


@pytest.mark.parametrize(
    ("options", "told"),
    [({"top_k": 0}, "top_k is 0"), ({"top_k": 101}, "1 to 100"), ({"beta": 1.5}, "beta is 1.5"), ({"verifier": "oracle"}, "oracle")],
)
def test_endpoint_refuses_options_out_of_range(handlers, make_audio, options, told):
    with pytest.raises(gr.Error, match=told):
        handlers.retrieve(Session(), str(make_audio()), "a dog", **options)


def test_files_over_the_limit_are_refused_wherever_they_come_from(handlers, make_audio, monkeypatch):
    monkeypatch.setattr(retrieve_handlers, "MAX_UPLOAD_BYTES", 1024**2 // 4)
    with pytest.raises(gr.Error, match="the limit is"):
        handlers.retrieve(Session(), str(make_audio()), "a dog")


def test_another_model_encodes_the_open_recording_anew(make_audio):
    loaded = {}

    def load(name):
        return loaded.setdefault(name, FakeRetriever())

    handlers = RetrieveHandlers(SharedRetriever(load), [])
    session = Session()
    list(handlers.open_upload(session, str(make_audio())))
    list(handlers.find(session, "a dog", "none", 0.35))
    assert handlers.choose_model(session, "ladder-1-baseline")[1] == "ladder-1-baseline"
    list(handlers.find_again(session, "none", 0.35))
    assert [(name, model.encoded, model.queries) for name, model in loaded.items()] == [
        ("qam-detr-pocket", ["yard.wav"], ["a dog"]),
        ("ladder-1-baseline", ["yard.wav"], ["a dog"]),
    ]
    handlers.choose_model(session, "qam-detr-pocket")
    list(handlers.find_again(session, "none", 0.35))
    assert loaded["qam-detr-pocket"].encoded == ["yard.wav"], "going back must not encode again"


def test_a_model_that_cannot_be_opened_is_explained_and_the_pocket_default_takes_its_place(monkeypatch, make_audio):
    def load(name):
        if name == "big":
            raise CheckpointError("big needs laion/clap, about 600 MB; run `hf download`.")
        return FakeRetriever()

    warnings = []
    monkeypatch.setattr(retrieve_handlers.gr, "Warning", lambda text, **_: warnings.append(text))
    handlers = RetrieveHandlers(SharedRetriever(load), [])
    session = Session()
    assert handlers.choose_model(session, "big")[1] == "qam-detr-pocket"
    assert session.checkpoint == "qam-detr-pocket"
    assert "hf download" in warnings[0]
    assert "uses qam-detr-pocket, which needs no download" in warnings[0]
    list(handlers.open_upload(session, str(make_audio())))
    *_, answer = views(handlers.find(session, "a dog", "none", 0.35))
    assert answer["state"] == "result"


def test_a_page_that_starts_with_a_model_that_is_not_here_goes_over_to_the_pocket_default(monkeypatch, make_audio):
    def load(name):
        if name != "qam-detr-pocket":
            raise CheckpointError("big needs laion/clap, about 600 MB; run `hf download`.")
        return FakeRetriever()

    warnings = []
    monkeypatch.setattr(retrieve_handlers.gr, "Warning", lambda text, **_: warnings.append(text))
    monkeypatch.setenv("QAMDETR_CHECKPOINT", "big")
    handlers = RetrieveHandlers(SharedRetriever(load), [])
    session = Session()
    *_, opened = views(handlers.open_upload(session, str(make_audio())))
    *_, answer = views(handlers.find(session, "a dog", "none", 0.35))
    assert (opened["state"], answer["state"]) == ("ready", "result")
    assert len(warnings) == 1
    assert "hf download" in warnings[0]
    with pytest.raises(gr.Error, match="hf download"):
        handlers.retrieve(Session(), str(make_audio("b.wav")), "a dog")
