"""What must not happen with a server that misbehaves: a key in a message, a wait without end, hours lost in a manifest."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import threading
import time

import pytest
from fake_server import Reply, chat, serving
from tiny_system import TinyEncoder, write_sound

from qamdetr.config import VerifierConfig
from qamdetr.errors import QamDetrError
from qamdetr.types import Candidate
from qamdetr.verifiers import http_json, outage
from qamdetr.verifiers.base import PartialAnswersError
from qamdetr.verifiers.cache import CachedVerifier
from qamdetr.verifiers.http_json import JsonClient
from qamdetr.verifiers.server import open_server

YES = Reply(chat(Yes=math.log(0.9), No=math.log(0.1)))
SILENCE = Reply({}, delay_seconds=0.9)
KEY = "sk-SECRET/123"


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


CANDIDATES = [candidate(start, start + 1) for start in range(1, 11)]


def make(url, **settings):
    return open_server(VerifierConfig(url=url, **settings))


def failure(call, *args):
    """Message of the error, with everything that a traceback of it would show."""
    with pytest.raises(QamDetrError) as caught:
        call(*args)
    chain, error = [], caught.value
    while error is not None:
        chain.append(str(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert "\n" not in chain[0]
    return chain[0], " ".join(chain)


@contextlib.contextmanager
def raw_server(*pieces, pause_seconds=0.0):
    """Sends these bytes to whoever connects, whatever is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(65536)
                        for piece in pieces:
                            connection.sendall(piece)
                            time.sleep(pause_seconds)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.mark.parametrize("around", ["{}\r", " {}\r\n", "\t{}"])
def test_blanks_and_line_ends_around_the_key_do_not_count(recording, monkeypatch, around):
    monkeypatch.setenv("QAMDETR_VERIFIER_API_KEY", around.format(KEY))
    with serving(YES) as server:
        make(server.url).verify(recording, "a dog", {}, CANDIDATES[:1])
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", ["sk-SECRET\r\n123", "sk-SECRET 123", "sk-SECRÉT", "sk-SECRET\x7f", "sk-SECRET\u200b"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_quoted(monkeypatch, key):
    monkeypatch.setenv("QAMDETR_VERIFIER_API_KEY", key)
    told, everything = failure(make, "http://127.0.0.1:9/v1")
    assert "QAMDETR_VERIFIER_API_KEY holds blanks or characters outside ASCII" in told
    assert "sk-SECR" not in everything


@pytest.mark.parametrize(
    "reply",
    [
        Reply(chat(**{KEY: -0.1, "A": -3.0})),
        Reply(chat(**{"x" * 20 + KEY: -0.1, "A": -3.0})),
        Reply({"error": {"message": f"bad key {KEY}"}}, status=401),
        Reply({"error": {"message": "w" * 152 + KEY}}, status=400),
        Reply(f'{{"error": "bad key {KEY}'.replace("/", "\\/").encode() + b'"}', status=500),
        Reply(KEY.encode(), status=503),
        Reply(KEY.replace("/", "\\/").encode(), status=400),
        Reply(KEY.replace("/", "%2F").encode(), status=400),
        Reply(b'{"detail": "\\u0073\\u006b-SECRET\\/123"}', status=422),
    ],
)
def test_a_server_that_repeats_the_key_does_not_get_it_shown(recording, monkeypatch, reply):
    monkeypatch.setenv("QAMDETR_VERIFIER_API_KEY", KEY)
    with serving(otherwise=lambda _: reply) as server:
        told, everything = failure(make(server.url, retries=0).verify, recording, "a dog", {}, CANDIDATES[:1])
    assert "sk-" not in everything
    assert "***" in told


def test_a_key_in_the_address_or_the_status_line_is_masked():
    with raw_server(f"HTTX {KEY}\r\n\r\n".encode()) as url:
        for call in (JsonClient(url, KEY, 5, 0).get, JsonClient(f"{url}/{KEY}", KEY, 5, 0).reach):
            told, everything = failure(call, "models")
            assert "Cannot connect" in told
            assert KEY not in everything


def test_what_http_cannot_send_is_told_without_quoting_it():
    client = JsonClient("http://127.0.0.1:9/v1", KEY)
    object.__setattr__(client, "key", f"{KEY}\r")  # as if the check had let it through
    told, everything = failure(client.get, "models")
    assert "No request can be sent" in told
    assert KEY not in everything


def test_an_answer_that_trickles_in_ends_in_time(recording):
    with serving(otherwise=lambda _: Reply(YES.body, trickle_seconds=0.05)) as server:
        begin = time.monotonic()
        told, _ = failure(make(server.url, model="m", timeout_seconds=0.5).verify, recording, "a dog", {}, CANDIDATES[:1])
        assert time.monotonic() - begin < 1.5
        assert "gave no answer within 0.5 s; raise verifier.timeout_seconds" in told
        assert len(server.requests) == 1


def test_headers_that_trickle_in_end_in_time():
    header = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + b"X-Long: y\r\n" * 20
    with raw_server(*(header[i : i + 1] for i in range(len(header))), pause_seconds=0.05) as url:
        begin = time.monotonic()
        assert "gave no answer within 0.4 s" in failure(JsonClient(url, timeout_seconds=0.4).get, "models")[0]
        assert time.monotonic() - begin < 1.5


def test_slow_but_whole_answers_and_chunked_ones_are_read():
    body = json.dumps({"data": "x" * 200_000}).encode()
    with raw_server(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body[:9], body[9:], pause_seconds=0.1) as url:
        assert len(JsonClient(url, timeout_seconds=5).get("models")["data"]) == 200_000
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:70_000], body[70_000:])]
    with raw_server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *chunks, b"0\r\n\r\n") as url:
        assert len(JsonClient(url, timeout_seconds=5).get("models")["data"]) == 200_000
    with raw_server(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", chunks[0]) as url:
        assert "broke off after" in failure(JsonClient(url, "", 5, 0).get, "models")[0]


def test_a_silent_server_costs_one_time_out_and_no_second_wave(recording):
    with serving(otherwise=lambda _: SILENCE) as server:
        begin = time.monotonic()
        failure(make(server.url, model="m", batch_size=2, timeout_seconds=0.4).verify, recording, "a dog", {}, CANDIDATES)
        assert time.monotonic() - begin < 0.75
        assert len(server.requests) == 2


def test_a_failed_crop_ends_the_waits_of_the_others(recording):
    busy, refusal = Reply({}, status=503, headers={"Retry-After": "20"}), Reply({"message": "no audio"}, status=400, delay_seconds=0.2)
    with serving(busy, refusal) as server:
        begin = time.monotonic()
        failure(make(server.url, batch_size=2).verify, recording, "a dog", {}, CANDIDATES)
        assert time.monotonic() - begin < 5
        assert len(server.requests) == 2


@pytest.mark.parametrize("model", ["m", ""])
def test_a_server_that_is_silent_three_times_is_left_alone_for_a_while(recording, monkeypatch, tmp_path, model):
    with serving(otherwise=lambda _: SILENCE) as server:
        plain = make(server.url, model=model, batch_size=2, timeout_seconds=0.3)
        verifier = CachedVerifier(plain, tmp_path / "answers")

        def ask():
            return failure(verifier.verify, recording, "a dog", {}, CANDIDATES)[0]

        first, *_ = [ask() for _ in range(3)]
        begin = time.monotonic()
        later = {ask() for _ in range(20)}
        assert time.monotonic() - begin < 0.3
        assert len(server.requests) == 6
        assert len(later) == 1, "one note for all"
        assert later.pop().startswith(first)
        now = time.monotonic()
        monkeypatch.setattr(outage.time, "monotonic", lambda: now + 61)
        ask()
        assert len(server.requests) == 8, "tried once more"
        ask()
        assert len(server.requests) == 8, "and left alone again"
        server.otherwise = lambda _: YES
        monkeypatch.setattr(outage.time, "monotonic", lambda: now + 200)
        assert verifier.verify(recording, "a dog", {}, CANDIDATES) == pytest.approx([0.9] * 10)
        server.otherwise = lambda _: SILENCE
        assert "in a row" not in failure(verifier.verify, recording, "a cat", {}, CANDIDATES)[0], "counted anew"


def test_a_server_that_is_dead_is_left_alone_also_where_its_model_was_to_be_asked(recording, monkeypatch):
    with serving() as server:
        url = server.url
    verifier = make(url, retries=0)
    for _ in range(3):
        assert "in a row" not in failure(lambda: verifier.identity)[0]
    assert "in a row" in failure(lambda: verifier.identity)[0]
    assert "in a row" in failure(verifier.verify, recording, "a dog", {}, CANDIDATES)[0]


def test_refusals_are_no_outage(recording):
    with serving(otherwise=lambda _: Reply({"message": "no audio"}, status=400)) as server:
        verifier = make(server.url, batch_size=1)
        for _ in range(5):
            failure(verifier.verify, recording, "a dog", {}, CANDIDATES)
        assert len(server.requests) == 5


def test_good_answers_before_a_bad_one_are_kept(recording, tmp_path):
    with serving(*[YES] * 9, Reply({"message": "no"}, status=400)) as server:
        verifier = make(server.url, batch_size=1)
        with pytest.raises(PartialAnswersError, match="HTTP 400") as caught:
            verifier.verify(recording, "a dog", {}, CANDIDATES)
        assert caught.value.scores == pytest.approx(dict.fromkeys(range(9), 0.9))
        server.script = [*[YES] * 9, Reply({"message": "no"}, status=400)]
        cached = CachedVerifier(verifier, tmp_path / "answers")
        failure(cached.verify, recording, "a dog", {}, CANDIDATES)
        asked = len(server.requests)
        server.otherwise = lambda _: YES
        assert cached.verify(recording, "a dog", {}, CANDIDATES) == pytest.approx([0.9] * 10)
        assert len(server.requests) == asked + 1


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
            assert f"HTTP {status}" in failure(make(server.url, model="m").check)[0]
        server.models = Reply({"data": []})
        make(server.url, model="m").check()
        assert "names no model" in failure(make(server.url).check)[0]
        server.models = Reply({}, delay_seconds=0.5)
        assert "gave no answer within 0.1 s; check that" in failure(make(server.url, model="m", timeout_seconds=0.1).check)[0]
        assert server.requests == []
        url = server.url
    for model in ("m", ""):
        assert "Cannot connect" in failure(make(url, model=model).check)[0]


def test_the_words_are_part_of_the_identity(monkeypatch):
    from qamdetr.verifiers import prompt

    verifier = make("http://127.0.0.1:9/v1", model="m")
    before = verifier.identity
    monkeypatch.setattr(prompt, "_USER_TEXT", prompt._USER_TEXT.replace("accurately ", ""))
    assert verifier.identity != before


def test_an_invisible_query_is_not_sent(recording):
    with serving() as server:
        assert "no visible characters" in failure(make(server.url).verify, recording, "\u200b", {}, CANDIDATES)[0]
        assert server.requests == []
