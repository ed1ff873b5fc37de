"""The `server` verifier against a real HTTP server."""

from __future__ import annotations

import base64
import io
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_server import Reply, by_loudness, chat, serving
from tiny_system import candidate, tiny_retriever

from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.verifiers import prompt
from qamdetr.verifiers import server as module
from qamdetr.verifiers.base import CachedVerifier, PartialAnswersError, read_crops
from qamdetr.verifiers.server import ServerVerifier, read_score

YES = Reply(chat(Yes=math.log(0.9), No=math.log(0.1)))
KEY = "sk-SECRET/123"
ONE = [candidate(10, 14)]
TEN = [candidate(start, start + 1) for start in range(1, 11)]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("QAMDETR_VERIFIER_URL", "QAMDETR_VERIFIER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "_FIRST_WAIT_SECONDS", 0.02)


def make(url, **settings):
    return ServerVerifier(VerifierConfig(url=url, **settings))


def ask(url, recording, candidates=ONE, query="a dog barks", **settings):
    return make(url, **settings).verify(recording, query, {}, candidates)


def told(call, *args):
    """Message of the error; nothing that a traceback of it would show holds the key."""
    with pytest.raises(QamDetrError) as caught:
        call(*args)
    error = caught.value
    assert "\n" not in str(error)
    while error is not None:
        assert KEY not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return str(caught.value)


def test_the_request_holds_crop_question_and_wish_for_logprobs(recording):
    with serving(YES) as server:
        assert ask(server.url, recording) == [pytest.approx(0.9)]
    (request,) = server.requests
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("tiny-omni", 1, 0)
    assert (request["logprobs"], request["top_logprobs"]) == (True, 20)
    system, user = request["messages"]
    assert system == {"role": "system", "content": prompt.SYSTEM_TEXT}
    sound, question = user["content"]
    assert question == {"type": "text", "text": prompt.user_text("a dog barks", (2.0, 6.0), 8.0)}
    assert sound["input_audio"]["format"] == "wav"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sound["input_audio"]["data"])), dtype="float32")
    assert (rate, samples.shape) == (16_000, (8 * 16_000,))
    (crop,) = read_crops(recording, ONE)
    assert np.abs(samples - crop.samples.clip(-1, 1)).max() <= 2 / 32768
    assert "Authorization" not in server.headers[0]


def test_candidates_go_out_at_once_and_come_back_in_order(recording):
    energies = [float((crop.samples**2).mean()) for crop in read_crops(recording, TEN)]

    def slow(request):
        return Reply(by_loudness(request).body, delay_seconds=0.05)

    with serving(otherwise=slow) as server:
        scores = ask(server.url, recording, TEN, batch_size=4)
        assert 1 < server.most_running <= 4
        assert scores == pytest.approx(ask(server.url, recording, TEN, batch_size=1))
    assert [scores.index(s) for s in sorted(scores)] == [energies.index(e) for e in sorted(energies)]
    assert ask("http://127.0.0.1:9/v1", recording, []) == []


def test_the_key_comes_from_the_environment_and_is_never_shown(recording, monkeypatch, caplog):
    monkeypatch.setenv("QAMDETR_VERIFIER_API_KEY", f"\t{KEY}\r\n")
    caplog.set_level(logging.DEBUG)
    with serving(YES, Reply({"error": {"message": "Incorrect API key."}}, status=401)) as server:
        verifier = make(server.url)
        verifier.verify(recording, "a dog", {}, ONE)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert KEY not in repr(verifier) + verifier.identity
        message = told(verifier.verify, recording, "a dog", {}, ONE)
        assert "answers HTTP 401 (Incorrect API key). Set the key in the environment variable QAMDETR_VERIFIER_API_KEY" in message
        assert len(server.requests) == 2, "a refusal is final"
    assert KEY not in caplog.text
    for key in ("sk-SECRET\r\n123", "sk-SECRÉT"):
        monkeypatch.setenv("QAMDETR_VERIFIER_API_KEY", key)
        refused = told(make, "http://127.0.0.1:9/v1")
        assert "QAMDETR_VERIFIER_API_KEY holds blanks or characters outside ASCII" in refused
        assert "sk-SECR" not in refused


BUSY, BROKEN = Reply({}, status=503), Reply({"error": {"message": "CUDA error:\nout of memory"}}, status=500)
CUT = Reply(YES.body, missing_bytes=9)


@pytest.mark.parametrize("trouble", [Reply({}, status=429), BROKEN, Reply({}, hang_up=True), CUT])
def test_passing_trouble_is_tried_again(recording, trouble):
    with serving(trouble, BUSY, YES) as server:
        assert ask(server.url, recording, retries=2) == [pytest.approx(0.9)]
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "settings", "requests", "message"),
    [
        (BROKEN, {"retries": 2}, 3, "answers HTTP 500 (CUDA error: out of memory). (tried 3 times)"),
        (CUT, {"retries": 1}, 2, "broke off; check the server"),
        (Reply({}, delay_seconds=0.9), {"timeout_seconds": 0.2, "model": "m"}, 1, "gave no answer within 0.2 s; raise verifier."),
        (Reply({"message": "no audio here"}, status=400), {}, 1, "answers HTTP 400 (no audio here)."),
        (Reply({}, status=404), {}, 1, "Check verifier.url (it ends with /v1 as a rule)"),
        (Reply({}, status=302, headers={"Location": "http://127.0.0.1:9/"}), {}, 1, "Redirects are not followed; give the final address."),
        (Reply(b"<html>"), {}, 1, "is not JSON; check that the address is that of an OpenAI-compatible API"),
        (Reply(b"[" * 100_000), {}, 1, "is not JSON"),
        (Reply({"choices": []}), {}, 1, "is not that of an OpenAI-compatible chat server"),
        (Reply(chat(Yes=-0.1)), {}, 1, "has no log-probabilities of several words; the server must support `logprobs`"),
        (Reply(chat(Maybe=-0.1, Perhaps=-2.0)), {}, 1, "answers neither Yes nor No (its first word is 'Maybe'); serve Qwen2.5-Omni"),
    ],
)  # fmt: skip
def test_trouble_that_stays_is_told_in_a_line(recording, reply, settings, requests, message):
    with serving(otherwise=lambda _: reply) as server:
        assert message in told(make(server.url, **settings).verify, recording, "a dog", {}, ONE)
        assert len(server.requests) == requests


def test_the_first_failure_ends_the_rest_and_good_answers_before_it_are_kept(recording, tmp_path):
    refusal = Reply({"message": "no"}, status=400)
    with serving(*[YES] * 4, refusal) as server:
        verifier = make(server.url, batch_size=1)
        with pytest.raises(PartialAnswersError, match="HTTP 400") as caught:
            verifier.verify(recording, "a dog", {}, TEN)
        assert caught.value.scores == pytest.approx(dict.fromkeys(range(4), 0.9))
        assert len(server.requests) == 5
        server.script, server.otherwise = [*[YES] * 9, refusal], lambda _: YES
        cached = CachedVerifier(verifier, tmp_path / "answers")
        told(cached.verify, recording, "a dog", {}, TEN)
        asked = len(server.requests)
        assert cached.verify(recording, "a dog", {}, TEN) == pytest.approx([0.9] * 10)
        assert len(server.requests) == asked + 1


def test_all_spellings_count_and_a_word_unheard_of_is_as_rare_as_the_rarest():
    answer = chat(**{"Yes": math.log(0.4), " yes": math.log(0.2), "NO": math.log(0.1), "Maybe": math.log(0.05)})
    assert read_score(answer, "u") == pytest.approx(0.6 / 0.7)
    assert read_score(chat(Yes=math.log(0.9), Sure=math.log(0.02)), "u") == pytest.approx(0.9 / 0.92)


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([""], "Verifier 'server' has no address; set verifier.url or QAMDETR_VERIFIER_URL"),
        (["localhost:8000", "file:///etc/passwd", "http://", "http://host:port/v1"], "is not an HTTP address"),
        (["http://host/v1?api-key=hunter2", "http://host/v1#hunter2"], "holds a `?` or `#`"),
        (["http://my host/v1", "http://höst/v1"], "holds blanks or characters outside ASCII"),
        (["https://me:hunter2@host/v1"], "holds a user name or password"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused_at_once(urls, message):
    for url in urls:
        refused = told(make, url)
        assert message in refused
        assert "hunter2" not in refused


def test_address_and_model_may_be_left_to_environment_and_server_and_enter_the_identity(recording, monkeypatch):
    with serving() as server:
        monkeypatch.setenv("QAMDETR_VERIFIER_URL", f" {server.url}/\r\n")
        verifier, named = make(""), make(server.url, model="other")
        assert verifier.url == server.url
        assert f"{server.url} tiny-omni" in verifier.identity
        assert "other" in named.identity
        named.verify(recording, "a dog", {}, ONE)
        assert server.requests[0]["model"] == "other"
    before = verifier.identity
    assert "tiny-omni" in before, "remembered after the server went"
    monkeypatch.setattr(prompt, "_USER_TEXT", prompt._USER_TEXT.replace("accurately ", ""))
    assert verifier.identity != before


def test_the_check_asks_for_the_models_once_and_nothing_else():
    with serving() as server:
        make(server.url, model="m").check()
        make(server.url).check()
        assert server.models_asked == 2
        for reply, model, message in (
            (Reply({}, status=404), "m", ""),  # one that names no models may have that one
            (Reply({}, status=403), "m", "HTTP 403"),
            (Reply({"data": []}), "m", ""),
            (Reply({"data": []}), "", "names no model"),
            (Reply({}, delay_seconds=0.5), "m", "gave no answer within 0.1 s; check that"),
        ):
            server.models, verifier = reply, make(server.url, model=model, timeout_seconds=0.1)
            assert message in told(verifier.check) if message else verifier.check() is None
        assert server.requests == []
    message = told(make(server.url).check)
    assert message.startswith(f"Cannot connect to {server.url} (")
    assert message.endswith("(tried 1 times)")


def test_in_a_retriever_it_scores_the_decoders_own_windows_once_and_a_failure_is_a_note(recording, tmp_path):
    with serving() as server:
        settings = VerifierConfig(url=server.url, cache_dir=str(tmp_path / "answers"), retries=0)
        retriever = tiny_retriever(nms_iou=1.0, verifier=settings)
        plain = retriever.retrieve(recording, "a dog")
        checked, again = (retriever.retrieve(recording, "a dog", verifier="server", beta=beta) for beta in (0.9, 0.2))
        assert len(server.requests) == len(plain.moments), "answers are kept, whatever beta"
        server.otherwise = lambda _: Reply({"message": "no key"}, status=401)
        failed = retriever.retrieve(recording, "a cat", verifier="server")
        Path(recording.path).unlink()
        gone = retriever.retrieve(recording, "a cat", verifier="server")
    assert (checked.verifier, checked.beta, checked.notes) == ("server", 0.9, ())
    windows = [[moment.window for moment in result.moments] for result in (plain, checked, again)]
    assert sorted(windows[0]) == sorted(windows[1]) == sorted(windows[2])
    assert windows[0] != windows[1]
    for moment in checked.moments:
        assert moment.score == pytest.approx(0.1 * moment.decoder_score + 0.9 * moment.verifier_score)
    for result, reason in ((failed, "HTTP 401 (no key)"), (gone, "cannot be listened to")):
        assert (result.verifier, result.beta, len(result.notes)) == ("none", 0.0, 1)
        assert reason in result.notes[0]
        assert result.moments == retriever.retrieve(recording, "a cat").moments
