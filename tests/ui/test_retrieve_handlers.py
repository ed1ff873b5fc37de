from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import soundfile
from fake import FakeRetriever

from qamdetr.config import Config, InferenceConfig
from qamdetr.errors import CheckpointError
from qamdetr.progress import tell
from qamdetr.ui import ablations, encoding_progress, offered_models, recordings, retrieve_handlers
from qamdetr.ui.examples import Example
from qamdetr.ui.queries import MAX_QUERIES, MAX_QUERY_CHARACTERS
from qamdetr.ui.retrieve_handlers import RetrieveHandlers
from qamdetr.ui.session import KEPT_RECORDINGS, Session
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


@pytest.fixture
def handlers(retriever, make_audio):
    example = Example(make_audio("example.wav"), "A yard", {"a dog barks": ((2.0, 4.5),), "rain": ()})
    return RetrieveHandlers(SharedRetriever(lambda _: retriever), [example])


def views(steps):
    return [view for _, view in steps]


@pytest.fixture
def warned(monkeypatch):
    told = []
    monkeypatch.setattr(retrieve_handlers.gr, "Warning", lambda text, **_: told.append(text))
    return told


@pytest.fixture
def ladder(monkeypatch):
    """Checkpoints that need not lie here: what can be bypassed and how they were trained comes from the default configuration."""
    monkeypatch.setattr(ablations, "read_config", lambda _: Config())
    monkeypatch.setattr(offered_models, "available_checkpoints", lambda: ["big", *(row.checkpoint for row in ablations.TABLE_ROWS)])


def test_upload_then_query(handlers, retriever, make_audio):
    session = Session()
    *busy, ready = views(handlers.open_upload(session, str(make_audio())))
    assert all("yard.wav" in view["busy"] for view in busy)
    assert ready["state"] == "ready"
    assert ready["title"] == "yard.wav"
    _, answer = views(handlers.find(session, "a dog", "none", 0.35))
    assert answer["state"] == "result"
    (lane,) = answer["lanes"]
    assert lane["label"] == lane["query"] == "a dog"
    assert lane["how"].startswith("trained this way: ")
    assert lane["truth"] is None
    assert [row["rank"] for row in lane["moments"]] == [1, 2, 3, 4]
    list(handlers.find(session, "a cat", "none", 0.35))
    assert retriever.encoded == ["yard.wav"], "a second query must not encode again"


def test_example_brings_its_truth(handlers):
    *_, answer = views(handlers.open_example(Session(), "example", "a dog barks\nrain\na cat", "none", 0.35))
    known, absent, unknown = answer["lanes"]
    assert known["truth"] == [[2.0, 4.5]]
    assert known["moments"][0]["iou"] == pytest.approx(1.0)
    assert absent["truth"] == []
    assert unknown["truth"] is None


def test_an_example_that_is_not_there_changes_nothing(handlers):
    assert views(handlers.open_example(Session(), "../../etc/passwd", "a dog", "none", 0.35)) == [gr.skip()]
    assert views(handlers.open_example(Session(), "", "a dog", "none", 0.35)) == [gr.skip()]


def test_a_recording_of_the_microphone_goes_the_way_of_an_upload(handlers, retriever, make_audio):
    session = Session()
    *_, ready = views(handlers.open_microphone(session, str(make_audio("audio.wav"))))
    assert ready["title"] == "Your recording"
    assert retriever.encoded == ["audio.wav"]
    assert views(handlers.open_microphone(session, None)) == [ready], "a generator that yields nothing would empty the player"
    assert views(handlers.open_upload(session, None)) == [ready]


def test_several_queries_get_a_lane_each(handlers, retriever, make_audio):
    session = Session()
    list(handlers.open_upload(session, str(make_audio())))
    *_, answer = views(handlers.find(session, "a dog\n\n  nothing here  \na dog\nrain", "none", 0.35))
    assert [lane["label"] for lane in answer["lanes"]] == ["a dog", "nothing here", "rain"]
    assert [lane["found"] for lane in answer["lanes"]] == [True, False, True]
    assert session.queries == ["a dog", "nothing here", "rain"]
    assert [lane.result.query for lane in session.lanes] == session.queries
    assert session.chosen is None
    assert retriever.encoded == ["yard.wav"]


@pytest.mark.parametrize(
    ("text", "told"),
    [("a dog\n" + "x" * 501, "Line 2: The query has 501 characters"), ("\n".join("abcdefghi"), f"9 lines.*the limit is {MAX_QUERIES}")],
)
def test_a_mistake_in_one_query_names_its_line_and_loses_nothing(handlers, retriever, make_audio, text, told):
    session = Session()
    list(handlers.open_upload(session, str(make_audio())))
    list(handlers.find(session, "a dog", "none", 0.35))
    shown, lanes = session.view, session.lanes
    seen = []
    with pytest.raises(gr.Error, match=told):
        seen.extend(views(handlers.find(session, text, "none", 0.35)))
    assert session.view is shown
    assert session.lanes is lanes
    assert retriever.queries == ["a dog"]


def test_full_and_ablated_answers_stand_side_by_side(ladder, make_audio):
    retriever = FakeRetriever()
    handlers = RetrieveHandlers(SharedRetriever(lambda _: retriever), [])
    session = Session()
    list(handlers.open_upload(session, str(make_audio())))
    *_, answer = views(handlers.find(session, "a dog\nrain", "pocket", 0.35, ["three_way", "verifier"], [1]))
    labels = ["qam-detr-pocket", "Without 3-way fusion and verifier", "Row 1: DETR-style baseline"]
    assert [lane["label"] for lane in answer["lanes"]] == [f"{query} · {label}" for query in ("a dog", "rain") for label in labels]
    assert [lane["how"].split(":")[0] for lane in answer["lanes"][:3]] == [
        "trained this way", "bypassed in the full model", "trained this way"
    ]  # fmt: skip
    assert [lane["verifier"] for lane in answer["lanes"][:3]] == ["pocket", "none", "pocket"]
    assert retriever.bypassed == [(), ("three_way",), ()]
    assert retriever.encoded == ["yard.wav"], "models that read the same encoders share the encoded recording"
    *_, answer = views(handlers.find_again(session, "pocket", 0.35, [], []))
    assert [lane["label"] for lane in answer["lanes"]] == ["a dog", "rain"]
    assert views(handlers.find_again(session, "pocket", 0.9, [], [])) == [session.view], "the same answers are on the page already"


def test_more_answers_than_can_be_compared_are_refused(ladder, handlers, make_audio):
    session = Session()
    list(handlers.open_upload(session, str(make_audio())))
    with pytest.raises(gr.Error, match="4 queries to 7 models are 28 answers; the limit is 16"):
        list(handlers.find(session, "a\nb\nc\nd", "none", 0.35, [], [1, 2, 3, 4, 5, 6]))


def test_after_a_refusal_the_comparison_is_the_one_that_is_answered(ladder, handlers, make_audio):
    session = Session()
    assert handlers.shown_comparison(session) is None
    views(handlers.open_upload(session, str(make_audio())))
    views(handlers.find(session, "dog\ncat\nrain\nwind", "none", 0.35, ["quality"], [3]))
    with pytest.raises(gr.Error, match="the limit is 16"):
        views(handlers.find_again(session, "none", 0.35, ["quality"], [1, 2, 3, 4]))
    assert handlers.shown_comparison(session) == (["quality"], [3])


def test_a_model_that_was_not_calibrated_says_that_it_names_anything(ladder, handlers, make_audio, monkeypatch):
    session = Session()
    views(handlers.open_upload(session, str(make_audio())))
    views(handlers.find(session, "dog", "none", 0.35))
    assert not session.lanes[0].can_refuse
    monkeypatch.setattr(ablations, "read_config", lambda _: Config(inference=InferenceConfig(found_threshold=0.1)))
    views(handlers.find(session, "dog", "none", 0.35))
    assert session.lanes[0].can_refuse


def test_what_is_chosen_for_export_is_checked(handlers, make_audio):
    session = Session()
    list(handlers.open_upload(session, str(make_audio())))
    list(handlers.find(session, "a dog", "none", 0.35))
    event = SimpleNamespace(chosen=[[0, 1], [0, 99], [7, 0], "x", [0, 1]])
    assert handlers.choose_moments(session, event).chosen == [(0, 1)]
    list(handlers.find(session, "rain", "none", 0.35))
    assert session.chosen is None, "a new answer begins with its own choice"


def test_a_long_recording_is_refused_before_and_after_decoding(make_audio, retriever, monkeypatch):
    handlers = RetrieveHandlers(SharedRetriever(lambda _: retriever), [], AppSettings(longest_minutes=0.2))
    told = r"yard\.wav lasts 0\.3 minutes; the page takes up to 0\.2; cut it"
    with pytest.raises(gr.Error, match=told):
        list(handlers.open_upload(Session(), str(make_audio())))
    assert retriever.encoded == []
    monkeypatch.setattr(recordings, "stated_seconds", lambda _: None)
    with pytest.raises(gr.Error, match=told):
        list(handlers.open_upload(Session(), str(make_audio())))


def test_the_work_is_told_in_stages(handlers, retriever, make_audio, monkeypatch):
    monkeypatch.setattr(encoding_progress, "POLL_SECONDS", 0.01)
    reached, go_on = threading.Event(), threading.Event()
    encode = retriever.encode

    def slow(path, on_stage=None):
        def stage(name, seconds):
            on_stage(name, seconds)
            reached.set()
            go_on.wait(5)

        return encode(path, stage)

    monkeypatch.setattr(retriever, "encode", slow)
    steps = handlers.open_upload(Session(), str(make_audio()))
    told = [next(steps)[1]["busy"] for _ in range(2)]
    reached.wait(5)
    told += [next(steps)[1]["busy"] for _ in range(2)]
    go_on.set()
    assert told[0] == "Opening “yard.wav” …"
    assert told[-1] == "Listening to “yard.wav”: stream pocket, 1 of 2 …"
    *_, ready = views(steps)
    assert ready["state"] == "ready"


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
    assert views(handlers.find_again(session, "pocket", 0.35)) == [session.view]
    list(handlers.open_upload(session, str(make_audio())))
    list(handlers.find(session, "a dog", "none", 0.35))
    _, answer = views(handlers.find_again(session, "pocket", 0.35))
    assert answer["verifier"] == answer["lanes"][0]["verifier"] == "pocket"
    assert retriever.queries == ["a dog", "a dog"]


def test_closing_empties_the_page_and_keeps_the_features(handlers, retriever, make_audio):
    session = Session()
    path = str(make_audio())
    list(handlers.open_upload(session, path))
    assert handlers.close(session)[1] == {"state": "empty"}
    list(handlers.open_upload(session, path))
    assert retriever.encoded == ["yard.wav"]


def test_files_over_the_limit_are_refused(retriever, make_audio):
    handlers = RetrieveHandlers(SharedRetriever(lambda _: retriever), [], AppSettings(upload_mb=1))
    with pytest.raises(gr.Error, match="2 MB; the limit is 1 MB; cut it"):
        list(handlers.open_upload(Session(), str(make_audio(seconds=100))))
    assert retriever.encoded == []


def test_a_model_with_other_encoders_encodes_the_open_recording_anew(ladder, make_audio):
    loaded = {}

    def load(name):
        return loaded.setdefault(name, FakeRetriever(fingerprint=name))

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


def load_all_but_big(name):
    if name == "big":
        raise CheckpointError("big needs laion/clap: run `hf download`, or use combo 'pocket', which needs no download.")
    return FakeRetriever()


def test_a_model_that_cannot_be_opened_is_explained_and_the_pocket_default_takes_its_place(ladder, warned, make_audio):
    handlers = RetrieveHandlers(SharedRetriever(load_all_but_big), [])
    session = Session()
    assert handlers.choose_model(session, "big")[1] == "qam-detr-pocket"
    assert session.checkpoint == "qam-detr-pocket"
    assert "hf download" in warned[0]
    assert "choose qam-detr-pocket under Model" in warned[0]
    assert "Until then the page uses qam-detr-pocket." in warned[0]
    list(handlers.open_upload(session, str(make_audio())))
    *_, answer = views(handlers.find(session, "a dog", "none", 0.35))
    assert answer["state"] == "result"


def test_a_first_model_that_cannot_be_opened_gives_way_as_well(ladder, warned, make_audio):
    handlers = RetrieveHandlers(SharedRetriever(load_all_but_big, AppSettings(checkpoint="big")), [])
    session = Session("big")
    *_, ready = views(handlers.open_upload(session, str(make_audio())))
    assert ready["state"] == "ready"
    assert handlers.checkpoint(session) == "qam-detr-pocket"
    assert len(warned) == 1


def test_a_broken_default_is_an_error_in_one_line(ladder, warned, make_audio):
    def load(_):
        raise CheckpointError("No checkpoint 'qam-detr-pocket'; train one.")

    handlers = RetrieveHandlers(SharedRetriever(load), [])
    with pytest.raises(gr.Error, match="train one"):
        list(handlers.open_upload(Session(), str(make_audio())))
    with pytest.raises(gr.Error, match="train one"):
        handlers.choose_model(Session(), "qam-detr-pocket")
    assert warned == []


def test_a_recording_waits_for_a_model_that_can_be_opened(ladder, warned, make_audio):
    broken = ["qam-detr-pocket"]

    def load(name):
        if name in broken:
            raise CheckpointError("Damaged; copy it again.")
        return FakeRetriever()

    handlers = RetrieveHandlers(SharedRetriever(load), [])
    session = Session()
    with pytest.raises(gr.Error, match="copy it again"):
        list(handlers.open_upload(session, str(make_audio())))
    assert session.recording is None
    broken.clear()
    *_, answer = views(handlers.find(session, "a dog", "none", 0.35))
    assert answer["title"] == "yard.wav"
    assert session.waiting is None


def test_choosing_encoders_takes_a_model_that_reads_them_or_says_what_to_do(ladder, warned):
    handlers = RetrieveHandlers(SharedRetriever(lambda _: FakeRetriever()), [])
    session = Session("ladder-1-baseline")
    assert handlers.choose_encoder(session, "A")[1] == "ladder-1-baseline"
    assert "No model here was trained on A: LAION-CLAP" in warned[0]
    assert "the page stays with ladder-1-baseline" in warned[0]


def test_settings_come_back_from_the_address(ladder, handlers):
    link = handlers.read_link("?q=a+dog&q=rain&model=ladder-2-bimamba&verifier=pocket&beta=0.4&off=quality&row=1&example=example")
    assert (link.queries, link.model, link.verifier, link.beta) == ("a dog\nrain", "ladder-2-bimamba", "pocket", 0.4)
    assert (link.off, link.rows, link.example) == (("quality",), (1,), "example")


def test_a_recording_that_was_put_away_while_it_was_encoded_does_not_come_back(handlers, make_audio):
    session = Session("qam-detr-pocket")
    steps = handlers.open_upload(session, str(make_audio()))
    next(steps)
    handlers.close(session)
    *_, (_, last) = steps
    assert last == {"state": "empty"}
    assert session.recording is None


@pytest.fixture
def held(retriever, monkeypatch):
    """Encoding that goes on, telling that it does, until it is let go; the files that were begun, and what ended each."""
    monkeypatch.setattr(encoding_progress, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(retrieve_handlers, "POLL_SECONDS", 0.01)
    encode = retriever.encode
    held = SimpleNamespace(let_go=threading.Event(), begun=[], ends={}, ended=threading.Event())

    def slow(path, on_stage=None):
        name = Path(path).name
        held.begun.append(name)
        try:
            while not held.let_go.wait(0.005):
                tell(0.5)
            recording = encode(path, on_stage)
        except BaseException as error:
            held.ends[name] = type(error).__name__
            raise
        else:
            held.ends[name] = "encoded"
            return recording
        finally:
            held.ended.set()

    monkeypatch.setattr(retriever, "encode", slow)
    yield held
    held.let_go.set()


def test_what_is_put_away_stops_being_encoded(handlers, held, make_audio):
    session = Session()
    steps = handlers.open_upload(session, str(make_audio()))
    assert [next(steps)[1]["cancel"] for _ in range(3)] == [True] * 3
    assert handlers.close(session)[1] == {"state": "empty"}
    assert views(steps) == [{"state": "empty"}]
    assert held.ended.wait(5)
    assert held.ends == {"yard.wav": "StoppedError"}
    assert not session.runs


def test_a_closed_page_stops_the_encoding(handlers, held, make_audio):
    steps = handlers.open_upload(Session(), str(make_audio()))
    for _ in range(3):
        next(steps)
    steps.close()
    assert held.ended.wait(5)
    assert held.ends == {"yard.wav": "StoppedError"}


def test_another_recording_takes_the_place_of_the_one_that_is_being_encoded(handlers, held, make_audio):
    session = Session()
    first = handlers.open_upload(session, str(make_audio("long.wav")))
    for _ in range(3):
        next(first)
    second = handlers.open_upload(session, str(make_audio("short.wav")))
    next(second)
    assert views(first) == [gr.skip()], "the page already tells of the second"
    assert held.ended.wait(5)
    held.let_go.set()
    *_, ready = views(second)
    assert ready["title"] == "short.wav"
    assert held.ends == {"long.wav": "StoppedError", "short.wav": "encoded"}


def test_cancelling_brings_back_what_the_page_showed(handlers, held, make_audio):
    session = Session()
    held.let_go.set()
    *_, ready = views(handlers.open_upload(session, str(make_audio("first.wav"))))
    held.let_go.clear()
    held.ended.clear()
    steps = handlers.open_upload(session, str(make_audio("second.wav")))
    for _ in range(3):
        next(steps)
    _, view, *sources = handlers.cancel(session)
    assert view is ready
    assert sources == [None, None], "the file that was not opened leaves its field"
    assert views(steps) == [ready]
    assert held.ended.wait(5)
    assert session.recording.name == "first.wav"
    assert handlers.cancel(session)[2:] == (gr.skip(), gr.skip()), "an open recording stays in its field"


def test_a_question_waits_for_its_own_recording_which_is_encoded_once(handlers, held, retriever, make_audio):
    session = Session()
    opening = handlers.open_upload(session, str(make_audio()))
    for _ in range(3):
        next(opening)
    asking = handlers.find(session, "a dog", "none", 0.35)
    for _ in range(3):
        assert next(asking)[1]["state"] == "busy"
    opening.close()
    next(asking)
    held.let_go.set()
    *_, answer = views(asking)
    assert answer["state"] == "result"
    assert held.begun == ["yard.wav"]
    assert held.ends == {"yard.wav": "encoded"}, "the question still waits for it, whoever opened it has gone"


def test_a_question_on_another_recording_does_not_wait_for_somebodys_encoding(handlers, held, make_audio):
    held.let_go.set()
    mine, other = Session(), Session()
    list(handlers.open_upload(mine, str(make_audio("mine.wav"))))
    held.let_go.clear()
    encoding = handlers.open_upload(other, str(make_audio("other.wav")))
    for _ in range(3):
        next(encoding)
    *_, answer = views(handlers.find(mine, "a dog", "none", 0.35))
    assert answer["state"] == "result"
    late = handlers.open_upload(Session(), str(make_audio("late.wav")))
    told = ""
    while "waits for its turn" not in told:
        told = next(late)[1]["busy"]
    assert told == "“late.wav” waits for its turn: 1 other recording first …"
    encoding.close()
    held.let_go.set()
    *_, ready = views(late)
    assert ready["title"] == "late.wav"


def test_whoever_waits_for_an_answer_is_told_and_a_full_line_loses_nothing(retriever, held, make_audio):
    settings = AppSettings(queue_length=1)
    model = SharedRetriever(lambda _: retriever, settings)
    handlers = RetrieveHandlers(model, [], settings)
    held.let_go.set()
    sessions = [Session(), Session()]
    for session in sessions:
        list(handlers.open_upload(session, str(make_audio())))
    with model.answering.ticket() as ticket:
        assert ticket.wait(0) == 0
        waiting = handlers.find(sessions[0], "a dog", "none", 0.35)
        told = [next(waiting)[1]["busy"] for _ in range(2)]
        assert told == ["Looking for “a dog” …", "Waiting for your turn: 1 other question first …"]
        seen = []
        with pytest.raises(gr.Error, match="Too many at once: 1 request is waiting already, which is the limit; try again in a moment"):
            seen.extend(views(handlers.find(sessions[1], "a dog", "none", 0.35)))
        assert sessions[1].view["title"] == "yard.wav"
    *_, answer = views(waiting)
    assert answer["state"] == "result"
    *_, answer = views(handlers.find(sessions[1], "a dog", "none", 0.35))
    assert answer["state"] == "result"


def test_a_later_question_takes_the_place_of_the_one_that_waits(handlers, held, retriever, make_audio):
    held.let_go.set()
    session = Session()
    list(handlers.open_upload(session, str(make_audio())))
    with handlers._model.answering.ticket():
        first = handlers.find(session, "a dog", "none", 0.35)
        for _ in range(2):
            next(first)
        second = handlers.find(session, "rain", "none", 0.35)
        next(second)
        assert views(first) == [gr.skip()]
    *_, answer = views(second)
    assert [lane["label"] for lane in answer["lanes"]] == ["rain"]
    assert retriever.queries == ["rain"]


def test_an_example_is_encoded_once_for_all_visitors(handlers, retriever):
    for _ in range(2):
        list(handlers.open_example(Session(), "example", "a dog barks", "none", 0.35))
    assert retriever.encoded == ["example.wav"]


def test_a_page_that_lost_its_session_is_told_once_what_to_do(handlers, monkeypatch):
    told = []
    monkeypatch.setattr(retrieve_handlers.gr, "Warning", lambda text, **_: told.append(text))
    session = Session(greeted=False)
    assert views(handlers.find_again(session, "none", 0.35)) == [gr.skip()], "what the page shows stays"
    for _ in range(2):
        views(handlers.find(session, "a dog", "none", 0.35))
    assert told[0].endswith("no longer kept; open the recording again.")
    assert told[1].startswith("No recording yet")
