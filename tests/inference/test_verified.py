"""Answers with both scores apart: re-ranked afterwards they are what the retriever gives at once."""

from __future__ import annotations

import pytest
from tiny_system import TinyEncoder, tiny_config, tiny_model, write_sound

from qamdetr.data.manifest import QueryEntry
from qamdetr.errors import AudioError
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.inference.verified import verify_manifest


class Contrary:
    """Prefers what the decoder does not; every second score is the same."""

    name = identity = "contrary"
    needs_audio = False

    def check(self):
        pass

    def verify(self, recording, query, text, candidates):
        return [rank // 2 / len(candidates) for rank in range(len(candidates))]


class Broken(Contrary):
    """Never answers."""

    def verify(self, recording, query, text, candidates):
        raise RuntimeError("gone")


@pytest.fixture
def retriever():
    config = tiny_config(nms_iou=1.0)
    return MomentRetriever(tiny_model(config), config, TinyEncoder())


@pytest.fixture
def recordings(tmp_path):
    return {vid: write_sound(tmp_path / f"{vid}.wav", 12, seed=seed) for seed, vid in enumerate("ab")}


ENTRIES = [QueryEntry(f"q{number}", query, vid, 12.0, None) for number, (vid, query) in enumerate([("a", "x"), ("b", "y"), ("a", "z")])]


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_ranked_afterwards_is_ranked_at_once(retriever, recordings, beta):
    verifier = Contrary()
    parts = list(verify_manifest(retriever, recordings, ENTRIES, verifier, top_k=10))
    assert [[answer.entry.qid for answer in part] for part in parts] == [["q0", "q2"], ["q1"]]
    for part in parts:
        queries = [answer.entry.query for answer in part]
        recording = retriever.encode(recordings[part[0].entry.vid])
        at_once = retriever.retrieve_many(recording, queries, verifier=verifier, beta=beta)
        for answer, result in zip(part, at_once, strict=True):
            scores = [candidate.decoder_score for candidate in answer.candidates]
            assert scores == sorted(scores, reverse=True)
            assert answer.verifier_scores == tuple(verifier.verify(None, "", {}, scores))
            expected = tuple((moment.start_seconds, moment.end_seconds, moment.score) for moment in result.moments)
            assert answer.ranked(beta).pred_relevant_windows == expected


def test_without_an_answer_of_the_verifier_the_decoder_ranks_at_every_weight(retriever, recordings):
    for part in verify_manifest(retriever, recordings, ENTRIES, Broken(), top_k=10):
        for answer in part:
            assert answer.verifier_scores is None
            assert "Verifier contrary failed (gone)" in answer.problem
            assert answer.ranked(1.0) == answer.ranked(0.0)


def test_a_recording_that_cannot_be_read_does_not_stop_the_others(retriever, recordings):
    recordings["a"].write_text("no sound")
    bad, good = verify_manifest(retriever, recordings, ENTRIES, Contrary(), top_k=10)
    assert isinstance(bad, AudioError)
    assert "a.wav" in str(bad)
    assert [answer.entry.qid for answer in good] == ["q1"]
