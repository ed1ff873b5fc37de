"""The `server` verifier against a real HTTP server."""

from __future__ import annotations

import base64
import io
import logging
import math
import socket
import time

import numpy as np
import pytest
import soundfile
from fake_server import Reply, chat, serving
from tiny_system import TinyEncoder, write_sound

from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.types import Candidate
from qamdetr.verifiers import http_json, prompt
from qamdetr.verifiers.crops import read_crops
from qamdetr.verifiers.server import open_server, read_score, wav_bytes

YES = Reply(chat(Yes=math.log(0.9), No=math.log(0.1)))
KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("QAMDETR_VERIFIER_URL", "QAMDETR_VERIFIER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http_json, "_FIRST_WAIT_SECONDS", 0.02)


@pytest.fixture
def recording(tmp_path):
    return TinyEncoder().encode_recording(write_sound(tmp_path / "walk.wav", 30))


def candidate(start, end):
    return Candidate(float(start), float(end), 0.5, 0.5, 0.25)


ONE = [candidate(10, 14)]


def ask(url, recording, candidates=ONE, query="a dog barks", **settings):
    return open_server(VerifierConfig(url=url, **settings)).verify(recording, query, {}, candidates)


def fails(url, recording, match, candidates=ONE, **settings):
    with pytest.raises(QamDetrError, match=match) as caught:
        ask(url, recording, candidates, **settings)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


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
        from fake_server import by_loudness

        reply = by_loudness(request)
        reply.delay_seconds = 0.05
        return reply

    with serving(otherwise=slow) as server:
        scores = ask(server.url, recording, candidates, batch_size=4)
        assert 1 < server.most_running <= 4
        assert scores == pytest.approx(ask(server.url, recording, candidates, batch_size=1))
    assert [scores.index(s) for s in sorted(scores)] == [energies.index(e) for e in sorted(energies)]
    assert len(set(scores)) == 12
    assert ask("http://127.0.0.1:9/v1", recording, []) == []


def test_the_key_comes_from_the_environment_and_is_never_shown(recording, monkeypatch, caplog):
    monkeypatch.setenv("QAMDETR_VERIFIER_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    refusal = Reply({"error": {"message": f"Incorrect API key provided: {KEY}."}}, status=401)
    with serving(YES, refusal) as server:
        verifier = open_server(VerifierConfig(url=server.url))
        verifier.verify(recording, "a dog", {}, ONE)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert KEY not in repr(verifier) + verifier.identity
        fails(server.url, recording, r"answers HTTP 401 \(Incorrect API key provided: \*\*\*\)\. Set the key in .*QAMDETR_VERIFIER_API_KEY")
        assert len(server.requests) == 2, "a refusal is final"
    assert KEY not in caplog.text


def test_the_address_may_come_from_the_environment(recording, monkeypatch):
    with serving(YES) as server:
        monkeypatch.setenv("QAMDETR_VERIFIER_URL", server.url + "/")
        assert ask("", recording) == [pytest.approx(0.9)]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_trouble_is_tried_again(recording, status):
    with serving(Reply({}, status=status), Reply({}, hang_up=True), YES) as server:
        assert ask(server.url, recording, retries=2) == [pytest.approx(0.9)]
        assert len(server.requests) == 3


def test_trouble_that_stays_is_told(recording):
    broken = Reply({"error": {"message": "CUDA error:\nout of memory"}}, status=500)
    with serving(otherwise=lambda _: broken) as server:
        fails(server.url, recording, r"answers HTTP 500 \(CUDA error: out of memory\)\. \(tried 3 times\)", retries=2)
        assert len(server.requests) == 3
        fails(server.url, recording, r"tried 1 times", retries=0)


def test_retry_after_is_respected_within_reason(recording):
    with serving(Reply({}, status=429, headers={"Retry-After": "0.4"}), YES) as server:
        ask(server.url, recording)
        assert server.times[1] - server.times[0] >= 0.4
    with serving(Reply({}, status=429, headers={"Retry-After": "3600"}), YES) as server:
        fails(server.url, recording, r"asks to wait 3600 s, more than verifier\.timeout_seconds \(60\)")


def test_retry_after_may_be_a_date():
    assert http_json._retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert http_json._retry_after_seconds("Wed, 21 Oct 2215 07:28:00 GMT") > 1e9
    assert http_json._retry_after_seconds("soon") is None
    assert http_json._retry_after_seconds(None) is None


def test_a_silent_server_ends_in_time(recording):
    with serving(otherwise=lambda _: Reply({}, delay_seconds=1.5)) as server:
        begin = time.monotonic()
        fails(server.url, recording, r"gave no answer within 0\.2 s; raise verifier\.timeout_seconds", timeout_seconds=0.2, model="m")
        assert time.monotonic() - begin < 1.2
        assert len(server.requests) == 1, "silence is not asked again"


def test_no_server_at_all(recording):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fails(f"http://127.0.0.1:{port}/v1", recording, rf"Cannot connect to http://127\.0\.0\.1:{port}/v1 .*tried 3 times")


def test_the_first_failure_ends_the_rest(recording):
    refusal = Reply({"message": "no audio here"}, status=400)
    with serving(otherwise=lambda _: refusal) as server:
        candidates = [candidate(start, start + 1) for start in range(1, 21)]
        fails(server.url, recording, r"answers HTTP 400 \(no audio here\)", candidates, batch_size=1)
        assert len(server.requests) < 5


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        (Reply(b"<html>hello</html>"), "is not JSON"),
        (Reply(b" "), "is empty"),
        (Reply(b"[" * 200_000), "is nested too deeply"),
        (Reply(b" " * (17 << 20)), "is longer than 16 MiB"),
        (Reply([]), "not that of an OpenAI-compatible chat server"),
        (Reply({"choices": []}), "not that of an OpenAI-compatible chat server"),
        (Reply({"choices": [{"message": {"content": "Yes"}, "logprobs": None}]}), r"has no log-probabilities.*--max-logprobs 20"),
        (Reply({"choices": [{"message": {"content": "Yes"}}]}), "has no log-probabilities"),
        (Reply(chat()), "has no log-probabilities"),
        (Reply(chat(Yes=-math.inf, No=math.nan)), "has no log-probabilities"),
        (Reply(chat(Yes=-0.1)), "has no log-probabilities of several words"),
        (Reply(chat(The=-0.1, A=-3.0)), r"answers neither Yes nor No \(its first word is 'The'\)"),
        (Reply({"error": {"message": "no model m"}}, status=404), r"HTTP 404 \(no model m\)\. Check verifier\.url"),
        (Reply(b"", status=307, headers={"Location": "http://127.0.0.1:9/"}), "HTTP 307.*Redirects are not followed"),
    ],
)
def test_answers_that_cannot_be_used_say_why(recording, reply, match):
    with serving(reply) as server:
        fails(server.url, recording, match)
        assert len(server.requests) == 1


def test_an_answer_that_breaks_off_is_tried_again(recording):
    cut = Reply(YES.body, missing_bytes=40)
    with serving(cut, YES) as server:
        assert ask(server.url, recording) == [pytest.approx(0.9)]
        assert len(server.requests) == 2
    with serving(otherwise=lambda _: cut) as server:
        fails(server.url, recording, r"broke off after \d+ bytes.*tried 2 times", retries=1)


def test_all_spellings_count_and_a_word_unheard_of_is_as_rare_as_the_rarest():
    answer = chat(**{"Yes": math.log(0.4), " yes": math.log(0.2), "NO": math.log(0.1), "Maybe": math.log(0.05)})
    assert read_score(answer, "u") == pytest.approx(0.6 / 0.7)
    alone = chat(Yes=math.log(0.9), Sure=math.log(0.02))
    assert read_score(alone, "u") == pytest.approx(0.9 / 0.92)
    assert read_score(chat(No=math.log(0.9), Sure=math.log(0.02)), "u") == pytest.approx(1 - 0.9 / 0.92)


def test_addresses_that_cannot_be_used_are_refused_at_once():
    with pytest.raises(QamDetrError, match=r"set verifier\.url or QAMDETR_VERIFIER_URL"):
        open_server(VerifierConfig())
    for url in ("localhost:8000", "ftp://host/v1", "file:///etc/passwd", "http://", "http://host:port/v1"):
        with pytest.raises(QamDetrError, match="is not an HTTP address"):
            open_server(VerifierConfig(url=url))
    for url in ("http://host/v1?api-key=hunter2", "http://host/v1#hunter2", "host/v1?hunter2"):
        with pytest.raises(QamDetrError, match=r"holds a `\?` or `#`") as caught:
            open_server(VerifierConfig(url=url))
        assert "hunter2" not in str(caught.value)
    for url in ("http://my host/v1", "http://host/v 1", "http://host/v1\x00", "http://höst/v1"):
        with pytest.raises(QamDetrError, match="holds blanks or characters outside ASCII"):
            open_server(VerifierConfig(url=url))
    assert open_server(VerifierConfig(url=" http://host/v1/\r\n")).client.url == "http://host/v1"
    with pytest.raises(QamDetrError, match="holds a user name or password") as caught:
        open_server(VerifierConfig(url="https://me:hunter2@host/v1"))
    assert "hunter2" not in str(caught.value)


def test_the_model_is_asked_once_and_enters_the_identity(recording):
    with serving() as server:
        verifier = open_server(VerifierConfig(url=server.url))
        assert "tiny-omni" in verifier.identity
        assert server.url in verifier.identity
        named = open_server(VerifierConfig(url=server.url, model="other"))
        assert "other" in named.identity
        named.verify(recording, "a dog", {}, ONE)
        assert server.requests[0]["model"] == "other"
    assert "tiny-omni" in verifier.identity, "remembered after the server went"
