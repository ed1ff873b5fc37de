"""The `server` verifier against a scripted OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from tiny_system import candidate, tiny_retriever

from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.verifiers import prompt
from qamdetr.verifiers import server as module
from qamdetr.verifiers.base import CachedVerifier, PartialAnswersError, read_crops
from qamdetr.verifiers.server import ServerVerifier, read_score

URL = "http://server/v1"
KEY = "sk-SECRET/123"
ONE = [candidate(10, 14)]
TEN = [candidate(start, start + 1) for start in range(1, 11)]


def reply(body, status=200, **headers):
    return lambda: httpx.Response(status, headers=headers, **{"content" if isinstance(body, bytes) else "json": body})


def chat(**logprobs):
    """A chat answer whose first token has these alternatives."""
    listed = [{"token": token, "logprob": value} for token, value in logprobs.items()]
    return {"choices": [{"logprobs": {"content": [{**listed[0], "top_logprobs": listed}]}}]}


YES = reply(chat(Yes=math.log(0.9), No=math.log(0.1)))
BUSY, BROKEN = reply({}, 503), reply({"error": {"message": "CUDA error:\nout of memory"}}, 500)
CUT, SILENT = httpx.RemoteProtocolError("peer closed connection"), httpx.ReadTimeout("")


class Server:
    """Answers `script` first, in turn, then always `otherwise`, or by loudness: louder crops are likelier. Remembers all requests."""

    def __init__(self):
        self.script, self.otherwise, self.requests, self.headers, self.timeouts = [], self.by_loudness, [], [], []
        self.models, self.models_asked = reply({"data": [{"id": "tiny-omni"}]}), 0

    def answer(self, request):
        self.timeouts.append(request.extensions["timeout"]["read"])
        if request.url.path == "/v1/models":
            self.models_asked += 1
            answer = self.models
        else:
            self.requests.append(json.loads(request.content))
            self.headers.append(request.headers)
            answer = self.script.pop(0) if self.script else self.otherwise
        if isinstance(answer, Exception):
            raise answer
        return answer() if answer != self.by_loudness else self.by_loudness(json.loads(request.content))

    def by_loudness(self, request):
        sound, _ = soundfile.read(io.BytesIO(base64.b64decode(request["messages"][1]["content"][0]["input_audio"]["data"])))
        share = min(0.99, max(0.01, float((sound**2).mean()) * 3))
        return reply(chat(Yes=math.log(share), No=math.log(1 - share)))()


@pytest.fixture
def server(monkeypatch):
    server, client = Server(), httpx.Client
    monkeypatch.setattr(module.httpx, "Client", lambda **options: client(transport=httpx.MockTransport(server.answer), **options))
    monkeypatch.setattr(module, "_FIRST_WAIT_SECONDS", 0.0)
    for name in ("QAMDETR_VERIFIER_URL", "QAMDETR_VERIFIER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return server


def make(url=URL, **settings):
    return ServerVerifier(VerifierConfig(url=url, **settings))


def ask(recording, candidates=ONE, **settings):
    return make(**settings).verify(recording, "a dog barks", {}, candidates)


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


def test_the_request_holds_crop_question_and_wish_for_logprobs(server, recording):
    server.script = [YES]
    assert ask(recording) == [pytest.approx(0.9)]
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


def test_candidates_go_out_at_once_and_come_back_in_order(server, recording, monkeypatch):
    energies = [float((crop.samples**2).mean()) for crop in read_crops(recording, TEN)]
    alone, answer, together = ask(recording, TEN, batch_size=1), server.answer, threading.Barrier(2)

    def met(request):
        together.wait(30)  # which one request at a time would never pass
        return answer(request)

    monkeypatch.setattr(server, "answer", met)
    scores = ask(recording, TEN, batch_size=2, model="m")
    assert scores == pytest.approx(alone)
    assert [scores.index(s) for s in sorted(scores)] == [energies.index(e) for e in sorted(energies)]


def test_the_key_comes_from_the_environment_and_is_never_shown(server, recording, monkeypatch, caplog):
    monkeypatch.setenv("QAMDETR_VERIFIER_API_KEY", f"\t{KEY}\r\n")
    caplog.set_level(logging.DEBUG)
    server.script = [YES, reply({"error": {"message": f"Incorrect API key {KEY}."}}, 401)]
    verifier = make()
    verifier.verify(recording, "a dog", {}, ONE)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(verifier) + verifier.identity
    message = told(verifier.verify, recording, "a dog", {}, ONE)
    assert "answers HTTP 401 (Incorrect API key …). Set the key in the environment variable QAMDETR_VERIFIER_API_KEY" in message
    assert len(server.requests) == 2, "a refusal is final"
    assert KEY not in caplog.text
    monkeypatch.setenv("QAMDETR_VERIFIER_API_KEY", "sk-SECRET\r\n123")
    assert "SECRET" not in told(make)


@pytest.mark.parametrize("trouble", [reply({}, 429), BROKEN, CUT, httpx.ConnectError("refused")])
def test_passing_trouble_is_tried_again(server, recording, trouble):
    server.script = [trouble, BUSY, YES]
    assert ask(recording, retries=2) == [pytest.approx(0.9)]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "settings", "requests", "message"),
    [
        (BROKEN, {"retries": 2}, 3, "answers HTTP 500 (CUDA error: out of memory). (tried 3 times)"),
        (CUT, {"retries": 1}, 2, "broke off; check the server"),
        (SILENT, {"timeout_seconds": 0.2, "model": "m"}, 1, "gave no answer within 0.2 s; raise verifier."),
        (reply({"message": "no audio here"}, 400), {}, 1, "answers HTTP 400 (no audio here)."),
        (reply({}, 404), {}, 1, "Check verifier.url (it ends with /v1 as a rule)"),
        (reply({}, 302, Location="http://127.0.0.1:9/"), {}, 1, "Redirects are not followed; give the final address."),
        (reply(b"<html>"), {}, 1, "is not JSON; check that the address is that of an OpenAI-compatible API"),
        (reply({"choices": []}), {}, 1, "has no log-probabilities of several words; the server must be OpenAI-compatible"),
        (reply(chat(Yes=-0.1)), {}, 1, "has no log-probabilities of several words"),
        (reply(chat(Maybe=-0.1, Perhaps=-2.0)), {}, 1, "answers neither Yes nor No (its first word is 'Maybe'); serve Qwen2.5-Omni"),
    ],
)
def test_trouble_that_stays_is_told_in_a_line(server, recording, answer, settings, requests, message):
    server.otherwise = answer
    assert message in told(make(**settings).verify, recording, "a dog", {}, ONE)
    assert len(server.requests) == requests
    assert set(server.timeouts) == {settings.get("timeout_seconds", 60.0)}


def test_the_first_failure_ends_the_rest_and_good_answers_before_it_are_kept(server, recording, tmp_path):
    refusal = reply({"message": "no"}, 400)
    server.script, server.otherwise = [*[YES] * 4, refusal], YES
    verifier = make(batch_size=1)
    with pytest.raises(PartialAnswersError, match="HTTP 400") as caught:
        verifier.verify(recording, "a dog", {}, TEN)
    assert caught.value.scores == pytest.approx(dict.fromkeys(range(4), 0.9))
    assert len(server.requests) == 5
    server.script = [*[YES] * 9, refusal]
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
        (["localhost:8000", "file:///etc/passwd", "http://", "http://host:port/v1"], "is not an HTTP address"),
        (["http://host/v1?api-key=hunter2", "http://host/v1#hunter2", "https://me:hunter2@host/v1"], "holds a user name, a password, `?`"),
        (["http://my host/v1", "http://höst/v1"], "holds blanks or characters outside ASCII"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused_at_once(server, urls, message):
    for url in urls:
        refused = told(make, url)
        assert message in refused
        assert "hunter2" not in refused


def test_address_and_model_may_be_left_to_environment_and_server_and_enter_the_identity(server, monkeypatch):
    monkeypatch.setenv("QAMDETR_VERIFIER_URL", f" {URL}/\r\n")
    verifier = make("")
    before = verifier.identity
    assert f"{URL} tiny-omni" in before
    assert "other" in make(model="other").identity
    server.models = CUT
    assert verifier.identity == before, "remembered after the server went"


def test_the_check_asks_for_the_models_once_and_says_so_where_nobody_listens(server):
    for models, model, message in (
        (reply({}, 404), "m", ""),  # one that names no models may have that one
        (reply({}, 403), "m", "HTTP 403"),
        (reply({"data": []}), "", "names no model"),
        (SILENT, "", "gave no answer within 0.1 s; check that"),
        (
            httpx.ConnectError("refused"),
            "",
            "Cannot connect to http://server/v1 (refused); check that the server runs there. (tried 1 times)",
        ),
    ):
        server.models, verifier = models, make(model=model, timeout_seconds=0.1)
        assert message in told(verifier.check) if message else verifier.check() is None
    assert (server.models_asked, server.requests) == (5, [])


def test_in_a_retriever_it_scores_the_decoders_own_windows_once_and_a_failure_is_a_note(server, recording, tmp_path):
    retriever = tiny_retriever(nms_iou=1.0, verifier=VerifierConfig(url=URL, cache_dir=str(tmp_path / "answers"), retries=0))
    plain = retriever.retrieve(recording, "a dog")
    checked, again = (retriever.retrieve(recording, "a dog", verifier="server", beta=beta) for beta in (0.9, 0.2))
    assert len(server.requests) == len(plain.moments), "answers are kept, whatever beta"
    server.otherwise = reply({"message": "no key"}, 401)
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
