"""Whatever a verifier does, the decoder's windows come back: same boundaries, and ranked by the decoder where the verifier fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_omni
from fake_server import Reply, serving
from tiny_system import TinyEncoder, tiny_config, tiny_model, write_sound

from qamdetr.config import VerifierConfig
from qamdetr.inference.retriever import Member, MomentRetriever


@pytest.fixture
def path(tmp_path):
    return write_sound(tmp_path / "walk.wav", 30)


@pytest.fixture
def make_retriever(tmp_path):
    def make(**settings):
        config = tiny_config(nms_iou=1.0)
        config = replace(config, verifier=VerifierConfig(cache_dir=str(tmp_path / "answers"), retries=0, **settings))
        return MomentRetriever([Member(tiny_model(config), config)], TinyEncoder())

    return make


def windows(result):
    return [moment.window for moment in result.moments]


def test_a_server_scores_the_decoders_own_windows(make_retriever, path):
    with serving() as server:
        retriever = make_retriever(url=server.url)
        recording = retriever.encode(path)
        plain = retriever.retrieve(recording, "a dog")
        checked = retriever.retrieve(recording, "a dog", verifier="server", beta=0.9)
        asked = len(server.requests)
        assert asked == len(plain.moments)
        again = retriever.retrieve(recording, "a dog", verifier="server", beta=0.2)
        assert len(server.requests) == asked, "answers are kept, whatever beta"
    assert (checked.verifier, checked.beta, checked.notes) == ("server", 0.9, ())
    assert sorted(windows(checked)) == sorted(windows(again)) == sorted(windows(plain))
    assert windows(checked) != windows(plain)
    for moment in checked.moments:
        assert moment.score == pytest.approx(0.1 * moment.decoder_score + 0.9 * moment.verifier_score)


@pytest.mark.parametrize(("reply", "told"), [(Reply({"message": "no key"}, status=401), "HTTP 401 (no key)"), (None, "listened to")])
def test_a_verifier_that_fails_leaves_the_decoders_ranking_and_a_note(make_retriever, path, reply, told):
    with serving(otherwise=lambda _: reply) as server:
        retriever = make_retriever(url=server.url)
        recording = retriever.encode(path)
        if reply is None:
            path.unlink()
        result = retriever.retrieve(recording, "a dog", verifier="server")
    assert result.moments == retriever.retrieve(recording, "a dog").moments
    assert (result.verifier, result.beta) == ("none", 0.0)
    (note,) = result.notes
    assert "Verifier server failed" in note
    assert told in note


def test_qwen_omni_from_a_sound_file_to_moments(make_retriever, path, tmp_path):
    retriever = make_retriever(model=str(tiny_omni.save_omni(tmp_path / "omni", max_seconds=30)))
    recording = retriever.encode(path)
    plain = retriever.retrieve(recording, "a dog")
    checked = retriever.retrieve(recording, "a dog", verifier="qwen2.5-omni", beta=1.0)
    assert (checked.verifier, checked.notes) == ("qwen2.5-omni", ())
    assert sorted(windows(checked)) == sorted(windows(plain))
    scores = [moment.verifier_score for moment in checked.moments]
    assert scores == sorted(set(scores), reverse=True)
    # A model that is not there costs the second opinion, not the answer.
    missing = make_retriever(model=str(tmp_path / "no such" / "folder")).retrieve(recording, "a dog", verifier="qwen2.5-omni")
    assert missing.moments == plain.moments
    assert "no folder here" in missing.notes[0]
