"""What a visitor does, without gradio: opening, asking, comparing, putting away. The two lanes are run as gradio would run them."""

from __future__ import annotations

import gradio as gr
import pytest
from doubles import FakeRetriever

from qamdetr.errors import CheckpointError
from qamdetr.ui.examples import Example
from qamdetr.ui.find import KEPT_RECORDINGS, FindHandlers, Session
from qamdetr.ui.models import SharedRetriever
from qamdetr.ui.queries import MAX_QUERIES
from qamdetr.ui.settings import AppSettings

ASKED = ("none", 0.35, (), ())


@pytest.fixture
def handlers(retriever, make_audio, tmp_path):
    make_audio("example.wav")
    example = Example(tmp_path / "example.wav", "A yard", {"a dog barks": ((2.0, 4.5),), "rain": ()})
    return FindHandlers(SharedRetriever(lambda _: retriever), [example])


def run(handlers, update):
    """Let the lanes work as gradio does where an event says so; returns all views of the page."""
    session, view, encode, answer = update
    views = [view]
    if isinstance(encode, str):
        for _, view, now in handlers.encode(session):
            views.append(view)
            answer = now if isinstance(now, str) else answer
    if isinstance(answer, str):
        views += [view for _, view in handlers.answer(session)]
    return [view for view in views if view != gr.skip()]


def opened(handlers, path, session=None):
    session = session or Session()
    run(handlers, handlers.open_upload(session, path))
    return session


def ask(handlers, session, text, *asked):
    return run(handlers, handlers.find(session, text, *(asked or ASKED)))[-1]


def test_examples_bring_their_truth_and_are_encoded_once_for_all(handlers, retriever):
    for _ in range(2):
        answer = run(handlers, handlers.open_example(Session(), "example", "a dog barks\n\n rain \na dog barks\nnothing", *ASKED))[-1]
    assert retriever.encoded == ["example.wav"]
    assert [(lane["label"], lane["found"], lane["truth"]) for lane in answer["lanes"]] == [
        ("a dog barks", True, [[2.0, 4.5]]), ("rain", True, []), ("nothing", False, None)
    ]  # fmt: skip
    assert answer["lanes"][0]["moments"][0]["iou"] == pytest.approx(1.0)
    assert run(handlers, handlers.open_example(Session(), "../../etc/passwd", "a dog", *ASKED)) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a dog\n" + "x" * 501, "Line 2: The query has 501 characters; the limit is 500"),
        ("\n".join("abcdefghi"), f"9 lines.*the limit is {MAX_QUERIES}"),
        ("explode", "Nothing you opened is lost"),
    ],
)
def test_a_mistake_in_a_question_is_one_line_and_loses_nothing(handlers, make_audio, text, told, caplog):
    session = opened(handlers, make_audio())
    ask(handlers, session, "a dog")
    shown, lanes = session.view, session.lanes
    with pytest.raises(gr.Error, match=told) as caught:
        ask(handlers, session, text)
    assert "RuntimeError" not in caught.value.message
    assert session.view is shown
    assert session.lanes is lanes
    assert session.idle
    assert ("a fault of the program" in caplog.text) == (text == "explode")


def test_a_comparison_asks_each_model_once_and_one_that_is_too_large_changes_nothing(ladder, handlers, retriever, make_audio):
    session = opened(handlers, make_audio())
    answer = ask(handlers, session, "a dog\nrain", "pocket", 0.35, ["three_way", "verifier"], [1])
    assert [lane["verifier"] for lane in answer["lanes"]] == ["pocket", "none", "pocket"] * 2
    assert retriever.bypassed == [(), ("three_way",), ()]
    assert retriever.encoded == ["yard.wav"], "models that read the same encoders share the encoded recording"
    with pytest.raises(gr.Error, match="4 queries to 7 models are 28 answers; the limit is 16"):
        ask(handlers, session, "a\nb\nc\nd", "none", 0.35, [], [1, 2, 3, 4, 5, 6])
    assert handlers.shown_comparison(session) == (["three_way", "verifier"], [1]), "the boxes go back to what is answered"
    assert len(run(handlers, handlers.find_again(session, "pocket", 0.35, [], []))[-1]["lanes"]) == 2
    assert run(handlers, handlers.find_again(session, "pocket", 0.9, [], [])) == [session.view], "these answers are on the page"


def test_limits_are_told_before_any_work_and_what_cannot_be_read_puts_the_last_view_back(handlers, make_audio, retriever, tmp_path):
    for settings, seconds, told in (
        (AppSettings(longest_minutes=0.2), 20, r"yard\.wav lasts 0\.3 minutes; the page takes up to 0\.2; cut it"),
        (AppSettings(upload_mb=1), 100, "2 MB; the limit is 1 MB; cut it"),
    ):
        with pytest.raises(gr.Error, match=told):
            opened(FindHandlers(SharedRetriever(lambda _: retriever), [], settings), make_audio(seconds=seconds))
    assert retriever.encoded == []
    session = opened(handlers, make_audio())
    (tmp_path / "broken.wav").write_text("not audio")
    with pytest.raises(gr.Error, match=r"^'?broken\.wav cannot be decoded as audio"):
        opened(handlers, str(tmp_path / "broken.wav"), session)
    assert (session.view["title"], session.recording.name, session.idle) == ("yard.wav", "yard.wav", True)


def test_sessions_share_nothing_and_going_back_costs_nothing(handlers, retriever, make_audio):
    session, other = Session(), Session()
    for name in ("a.wav", "b.wav", "a.wav"):
        opened(handlers, make_audio(name), session)
        ask(handlers, session, "a dog")
    assert retriever.encoded == ["a.wav", "b.wav"]
    assert handlers.close(session)[1] == {"state": "empty"}
    opened(handlers, make_audio("b.wav"), session)
    assert len(retriever.encoded) == 2, "what was put away may come back"
    for number in range(KEPT_RECORDINGS):
        opened(handlers, make_audio(f"more{number}.wav"), session)
    opened(handlers, make_audio("a.wav"), session)
    assert retriever.encoded[-1] == "a.wav", "and goes in the end"
    assert (other.recording, other.view) == (None, {"state": "empty"})


def test_a_model_with_other_encoders_encodes_the_open_recording_anew(ladder, make_audio):
    loaded = {}
    handlers = FindHandlers(SharedRetriever(lambda name: loaded.setdefault(name, FakeRetriever(fingerprint=name))), [])
    session = opened(handlers, make_audio())
    ask(handlers, session, "a dog")
    for name in ("ladder-1-baseline", "qam-detr-pocket"):
        assert handlers.choose_model(session, name)[1] == name
        run(handlers, handlers.find_again(session, *ASKED))
    assert [(name, model.encoded, len(model.queries)) for name, model in loaded.items()] == [
        ("qam-detr-pocket", ["yard.wav"], 2), ("ladder-1-baseline", ["yard.wav"], 1)
    ]  # fmt: skip


def test_a_model_that_cannot_be_opened_is_explained_and_the_pocket_default_takes_its_place(ladder, warned, make_audio):
    def load(name):
        if name == "big":
            raise CheckpointError("big needs laion/clap", "run `hf download laion/clap`")
        return FakeRetriever()

    for first, session in (("big", Session("big")), ("qam-detr-pocket", Session())):
        handlers = FindHandlers(SharedRetriever(load, AppSettings(checkpoint=first)), [])
        if not session.checkpoint:
            assert handlers.choose_model(session, "big")[1] == "qam-detr-pocket"
        opened(handlers, make_audio(), session)
        assert ask(handlers, session, "a dog")["state"] == "result"
        assert "`, or choose qam-detr-pocket under Model. Until then the page uses qam-detr-pocket." in warned.pop()
    assert warned == []
