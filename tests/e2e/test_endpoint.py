"""The public endpoint, called as a program calls it."""

from __future__ import annotations

import httpx
import pytest

pytestmark = pytest.mark.slow
gradio_client = pytest.importorskip("gradio_client")


@pytest.fixture(scope="module")
def client(app_url):
    return gradio_client.Client(app_url, verbose=False)


def test_retrieve_answers_with_the_json_of_the_command_line(client, recordings):
    answer = client.predict(gradio_client.handle_file(recordings["walk.wav"]), "a bell rings", api_name="/retrieve")
    assert list(answer) == ["audio", "duration", "query", "found", "encoder", "verifier", "beta", "moments", "saliency", "notes"]
    assert answer["audio"] == "walk.wav"
    assert answer["duration"] == pytest.approx(40.0)
    assert len(answer["saliency"]) == 40
    for moment in answer["moments"]:
        assert list(moment) == ["start", "end", "score", "decoder_score", "foreground", "quality", "verifier_score"]
        assert 0 <= moment["start"] < moment["end"] <= 40.0


def test_retrieve_takes_its_options_by_name(client, recordings):
    audio = gradio_client.handle_file(recordings["walk.wav"])
    answer = client.predict(audio=audio, query="a bell rings", top_k=2, verifier="pocket", beta=0.5, api_name="/retrieve")
    assert len(answer["moments"]) <= 2
    for moment in answer["moments"]:
        assert moment["score"] == pytest.approx(0.5 * moment["decoder_score"] + 0.5 * moment["verifier_score"], abs=2e-6)


@pytest.mark.parametrize(
    ("file", "query", "told"), [("broken.wav", "a bell rings", "broken.wav"), ("walk.wav", "  ", "empty"), ("walk.wav", "x" * 501, "501")]
)
def test_mistakes_come_back_as_one_line(client, recordings, file, query, told):
    with pytest.raises(gradio_client.exceptions.AppError) as caught:
        client.predict(gradio_client.handle_file(recordings[file]), query, api_name="/retrieve")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value).strip()
    assert "Traceback" not in str(caught.value)


def test_files_of_the_server_cannot_be_read(app_url):
    # Raw HTTP: the Python client would upload its own file of that name.
    stolen = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
    call = f"{app_url}/gradio_api/call/retrieve"
    event = httpx.post(call, json={"data": [stolen, "a bell rings", 10, "none", None]}).json()["event_id"]
    answer = httpx.get(f"{call}/{event}", timeout=60).text
    assert answer.startswith("event: error")
    assert "hostname" not in answer
