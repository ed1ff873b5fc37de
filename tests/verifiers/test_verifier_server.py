"""The `server` verifier against a real HTTP server."""

from __future__ import annotations

import base64
import io
import logging
import math
import socket

import numpy as np
import pytest
import soundfile
from fake_server import Reply, by_loudness, chat, serving
from tiny_system import TinyEncoder, write_sound

from qamdetr.audio import Sound
from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.types import Candidate
from qamdetr.verifiers import prompt
from qamdetr.verifiers import server as module
from qamdetr.verifiers.base import CachedVerifier, PartialAnswersError, read_crops
from qamdetr.verifiers.server import ServerVerifier, read_score, wav_bytes

YES = Reply(chat(Yes=math.log(0.9), No=math.log(0.1)))
KEY = "sk-SECRET/123"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("QAMDETR_VERIFIER_URL", "QAMDETR_VERIFIER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "_FIRST_WAIT_SECONDS", 0.02)


@pytest.fixture
def recording(tmp_path):
    return TinyEncoder().encode(Sound(write_sound(tmp_path / "walk.wav", 30)))


def candidate(start, end):
    return Candidate(float(start), float(end), 0.5, 0.5, 0.25)


ONE = [candidate(10, 14)]
TEN = [candidate(start, start + 1) for start in range(1, 11)]


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


def test_wav_is_16_bit_mono_and_clips_what_is_too_loud():
    info = soundfile.info(io.BytesIO(wav_bytes(np.zeros(100, dtype=np.float32))))
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (16_000, 1, "PCM_16", 100)
    loud, _ = soundfile.read(io.BytesIO(wav_bytes(np.array([3.0, -3.0], dtype=np.float32))))
    assert loud.tolist() == pytest.approx([1, -1], abs=1e-3)


def test_candidates_go_out_at_once_and_come_back_in_order(recording):
    candidates = [candidate(start, start + 1) for start in range(1, 13)]
    energies = [float((crop.samples**2).mean()) for crop in read_crops(recording, candidates)]

    def slow(request):
        reply = by_loudness(request)
        reply.delay_seconds = 0.05
        return reply

    with serving(otherwise=slow) as server:
        scores = ask(server.url, recording, candidates, batch_size=4)
        assert 1 < server.most_running <= 4
        assert scores == pytest.approx(ask(server.url, recording, candidates, batch_size=1))
    assert [scores.index(s) for s in sorted(scores)] == [energies.index(e) for e in sorted(energies)]
    assert ask("http://127.0.0.1:9/v1", recording, []) == []


@pytest.mark.parametrize("around", ["{}", "{}\r", " {}\r\n", "\t{}"])
def test_the_key_comes_from_the_environment_and_is_never_shown(recording, monkeypatch, caplog, around):
    monkeypatch.setenv("QAMDETR_VERIFIER_API_KEY", around.format(KEY))
    caplog.set_level(logging.DEBUG)
    refusal = Reply({"error": {"message": f"Incorrect API key provided: {KEY}."}}, status=401)
    with serving(YES, refusal) as server:
        verifier = make(server.url)
        verifier.verify(recording, "a dog", {}, ONE)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert KEY not in repr(verifier) + verifier.identity
        message = told(verifier.verify, recording, "a dog", {}, ONE)
        assert (
            "answers HTTP 401 (Incorrect API key provided: ***). Set the key in the environment variable QAMDETR_VERIFIER_API_KEY"
            in message
        )
        assert len(server.requests) == 2, "a refusal is final"
    assert KEY not in caplog.text


@pytest.mark.parametrize("key", ["sk-SECRET\r\n123", "sk-SECRET 123", "sk-SECRÉT", "sk-SECRET\x7f", "sk-SECRET\u200b"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_quoted(monkeypatch, key):
    monkeypatch.setenv("QAMDETR_VERIFIER_API_KEY", key)
    message = told(make, "http://127.0.0.1:9/v1")
    assert "QAMDETR_VERIFIER_API_KEY holds blanks or characters outside ASCII" in message
    assert "sk-SECR" not in message


BUSY, BROKEN = Reply({}, status=503), Reply({"error": {"message": "CUDA error:\nout of memory"}}, status=500)


@pytest.mark.parametrize(
    "trouble", [Reply({}, status=429), Reply({}, status=500), BUSY, Reply({}, hang_up=True), Reply(YES.body, missing_bytes=9)]
)
def test_passing_trouble_is_tried_again(recording, trouble):
    with serving(trouble, BUSY, YES) as server:
        assert ask(server.url, recording, retries=2) == [pytest.approx(0.9)]
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "settings", "requests", "message"),
    [
        (BROKEN, {"retries": 2}, 3, "answers HTTP 500 (CUDA error: out of memory). (tried 3 times)"),
        (BROKEN, {"retries": 0}, 1, "(tried 1 times)"),
        (Reply(YES.body, missing_bytes=9), {"retries": 1}, 2, "broke off after"),
        (Reply({}, delay_seconds=0.9), {"timeout_seconds": 0.2, "model": "m"}, 1, "gave no answer within 0.2 s; raise verifier."),
        (Reply({"message": "no audio here"}, status=400), {}, 1, "answers HTTP 400 (no audio here)."),
        (Reply({}, status=404), {}, 1, "Check verifier.url (it ends with /v1 as a rule)"),
        (Reply({}, status=302, headers={"Location": "http://127.0.0.1:9/"}), {}, 1, "Redirects are not followed; give the final address."),
        (Reply(b"<html>"), {}, 1, "is not JSON; check that the address is that of an OpenAI-compatible API"),
        (Reply(b" "), {}, 1, "is empty"),
        (Reply(b"[" * 100_000), {}, 1, "is not JSON"),
        (Reply(b"x" * (17 << 20)), {}, 1, "is longer than 16 MiB"),
        (Reply({"choices": []}), {}, 1, "is not that of an OpenAI-compatible chat server"),
        (Reply(chat(Yes=-0.1)), {}, 1, "has no log-probabilities of several words; the server must support `logprobs`"),
        (Reply(chat(Maybe=-0.1, Perhaps=-2.0)), {}, 1, "answers neither Yes nor No (its first word is 'Maybe'); serve Qwen2.5-Omni"),
    ],
)  # fmt: skip
def test_trouble_that_stays_is_told_in_a_line(recording, reply, settings, requests, message):
    with serving(otherwise=lambda _: reply) as server:
        assert message in told(make(server.url, **settings).verify, recording, "a dog", {}, ONE)
        assert len(server.requests) == requests


def test_no_server_at_all(recording):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    message = told(make(url).verify, recording, "a dog", {}, ONE)
    assert message.startswith(f"Cannot connect to {url} (")
    assert message.endswith("(tried 3 times)")


def test_the_first_failure_ends_the_rest_and_good_answers_before_it_are_kept(recording, tmp_path):
    refusal = Reply({"message": "no"}, status=400)
    with serving(*[YES] * 4, refusal) as server:
        verifier = make(server.url, batch_size=1)
        with pytest.raises(PartialAnswersError, match="HTTP 400") as caught:
            verifier.verify(recording, "a dog", {}, TEN)
        assert caught.value.scores == pytest.approx(dict.fromkeys(range(4), 0.9))
        assert len(server.requests) == 5
        server.script = [*[YES] * 9, refusal]
        cached = CachedVerifier(verifier, tmp_path / "answers")
        told(cached.verify, recording, "a dog", {}, TEN)
        asked = len(server.requests)
        server.otherwise = lambda _: YES
        assert cached.verify(recording, "a dog", {}, TEN) == pytest.approx([0.9] * 10)
        assert len(server.requests) == asked + 1


def test_all_spellings_count_and_a_word_unheard_of_is_as_rare_as_the_rarest():
    answer = chat(**{"Yes": math.log(0.4), " yes": math.log(0.2), "NO": math.log(0.1), "Maybe": math.log(0.05)})
    assert read_score(answer, "u") == pytest.approx(0.6 / 0.7)
    assert read_score(chat(Yes=math.log(0.9), Sure=math.log(0.02)), "u") == pytest.approx(0.9 / 0.92)
    assert read_score(chat(No=math.log(0.9), Sure=math.log(0.02)), "u") == pytest.approx(1 - 0.9 / 0.92)


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([""], "set verifier.url or QAMDETR_VERIFIER_URL"),
        (["localhost:8000", "ftp://host/v1", "file:///etc/passwd", "http://", "http://host:port/v1"], "is not an HTTP address"),
        (["http://host/v1?api-key=hunter2", "http://host/v1#hunter2", "host/v1?hunter2"], "holds a `?` or `#`"),
        (["http://my host/v1", "http://host/v 1", "http://host/v1\x00", "http://höst/v1"], "holds blanks or characters outside ASCII"),
        (["https://me:hunter2@host/v1"], "holds a user name or password"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused_at_once(urls, message):
    for url in urls:
        refused = told(make, url)
        assert message in refused
        assert "hunter2" not in refused


def test_the_address_may_come_from_the_environment(recording, monkeypatch):
    assert make(" http://host/v1/\r\n").url == "http://host/v1"
    with serving(YES) as server:
        monkeypatch.setenv("QAMDETR_VERIFIER_URL", server.url + "/")
        assert ask("", recording) == [pytest.approx(0.9)]


def test_the_model_is_asked_once_and_enters_the_identity_with_address_and_words(recording, monkeypatch):
    with serving() as server:
        verifier = make(server.url)
        assert "tiny-omni" in verifier.identity
        assert server.url in verifier.identity
        named = make(server.url, model="other")
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
        for status in (404, 405, 500):
            server.models = Reply({}, status=status)
            make(server.url, model="m").check()
        for status in (401, 403):
            server.models = Reply({}, status=status)
            assert f"HTTP {status}" in told(make(server.url, model="m").check)
        server.models = Reply({"data": []})
        make(server.url, model="m").check()
        assert "names no model" in told(make(server.url).check)
        server.models = Reply({}, delay_seconds=0.5)
        assert "gave no answer within 0.1 s; check that" in told(make(server.url, model="m", timeout_seconds=0.1).check)
        assert server.requests == []
        url = server.url
    for model in ("m", ""):
        assert "Cannot connect" in told(make(url, model=model).check)


def test_an_invisible_query_is_not_sent(recording):
    with serving() as server:
        assert "no visible characters" in told(make(server.url).verify, recording, "\u200b", {}, ONE)
        assert server.requests == []
