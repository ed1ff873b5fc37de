"""Several tiny checkpoints, of two combos, that answer as one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_streams import STREAMS, save_member, tiny_combos
from tiny_system import write_sound

from qamdetr.errors import AudioError, ConfigError, QamDetrError
from qamdetr.features.base import Streams
from qamdetr.inference.checkpoint import load_pretrained
from qamdetr.inference.ensemble import EnsembleRetriever, SeparateEncoders, SharedEncoders
from qamdetr.inference.pools import merge_pools
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.types import Recording

QUERIES = ["a dog barks", "rain on a roof"]


class Fake:
    """A verifier that prefers late windows and remembers what it saw."""

    name, identity, needs_audio = "fake", "fake 1", False

    def __init__(self):
        self.seen = []

    def check(self):
        pass

    def verify(self, recording, query, text, candidates):
        self.seen.append((recording, text, list(candidates)))
        return [candidate.start_seconds / recording.duration_seconds for candidate in candidates]


@pytest.fixture
def combos():
    return tiny_combos()


@pytest.fixture
def members(tmp_path, combos):
    """Two members on combo X and one on combo Y."""
    encoders, _ = combos
    found = []
    for seed, combo in enumerate("XYX"):
        model, config = load_pretrained(save_member(tmp_path / f"m{seed}", combo, seed))
        found.append(MomentRetriever(model, config, encoders[combo]))
    return found


def shared(members):
    return SharedEncoders([member.encoder for member in members], [STREAMS[member.encoder.name] for member in members])


@pytest.fixture
def sound(tmp_path):
    return write_sound(tmp_path / "a.wav", 23.4)


def test_a_recording_is_encoded_once_and_each_member_reads_its_own_streams(members, combos, sound):
    runs = combos[1]
    recording = EnsembleRetriever(members, shared(members)).encode(sound)
    assert runs == {"joint": 1, "loud": 1, "soft": 1}
    assert [list(part.streams) for part in recording.parts] == [list(STREAMS[combo][0]) for combo in "XYX"]
    assert recording.parts[0].streams["joint"] is recording.parts[1].streams["joint"]
    assert isinstance(recording, Recording)
    assert (recording.path, recording.num_clips) == (str(sound), 24)
    for member, part in zip(members, recording.parts, strict=True):
        alone = member.encode(sound)
        assert all(torch.equal(part.streams[name], rows) for name, rows in alone.streams.items())


def test_streams_that_no_member_reads_are_not_run(members, combos, sound):
    encoders = SharedEncoders([members[0].encoder], [(("joint",), ("joint",))])
    (part,) = encoders.encode_recording(sound)
    assert list(part.streams) == ["joint"]
    assert combos[1] == {"joint": 1}


def test_two_models_of_one_stream_are_kept_apart(members, sound):
    other, runs = tiny_combos()
    louder = Streams("Z", {"joint": other["Y"].audio["soft"]}, dict(other["X"].text))
    encoders = SharedEncoders([members[0].encoder, louder], [STREAMS["X"], (("joint",), ("joint",))])
    one, two = encoders.encode_recording(sound)
    assert not torch.equal(one.streams["joint"], two.streams["joint"])
    assert runs == {"soft": 1}
    assert encoders.name == "X+Z"


def test_the_answer_is_the_merged_answers_of_the_members(members, sound):
    ensemble = EnsembleRetriever(members, shared(members), weights=[1, 2, 1], merge="fusion", merge_iou=0.5)
    recording = ensemble.encode(sound)
    results = ensemble.retrieve_many(recording, QUERIES, top_k=100)
    for query, result in zip(QUERIES, results, strict=True):
        texts = [member.encoder.encode_query(query) for member in members]
        decoded = [m.decode(m.encode(sound), [text])[0] for m, text in zip(members, texts, strict=True)]
        expected = merge_pools([answer.candidates for answer in decoded], "fusion", iou=0.5, weights=[1, 2, 1])
        assert [m.window for m in result.moments] == [pytest.approx(c.window, abs=1e-4) for c in expected]
        assert [m.score for m in result.moments] == pytest.approx([c.decoder_score for c in expected], abs=1e-5)
        curves = torch.stack([answer.saliency for answer in decoded])
        mean = (curves[0] + 2 * curves[1] + curves[2]) / 4
        assert result.saliency == pytest.approx(mean.tolist(), abs=1e-5)
        assert (result.query, result.encoder, result.verifier, result.beta) == (query, "X+Y", "none", 0.0)
        alone = ensemble.retrieve(recording, query, top_k=100)
        assert [m.window for m in result.moments] == [pytest.approx(m.window, abs=1e-4) for m in alone.moments]
    assert ensemble.retrieve_many(recording, []) == []


@pytest.mark.parametrize("merge", ["pool", "nms", "fusion"])
def test_one_member_answers_as_it_does_alone(members, sound, merge):
    member = members[1]
    ensemble = EnsembleRetriever([member], shared([member]), merge=merge, merge_iou=1.0)
    one, alone = (each.retrieve(each.encode(sound), "a dog", verifier="pocket", beta=0.3) for each in (ensemble, member))
    assert one.saliency == pytest.approx(alone.saliency, abs=1e-6)
    assert [m.window for m in one.moments] == [pytest.approx(m.window, abs=1e-6) for m in alone.moments]
    assert [m.score for m in one.moments] == pytest.approx([m.score for m in alone.moments], abs=1e-6)
    assert replace(one, moments=(), saliency=()) == replace(alone, moments=(), saliency=())


def test_the_verifier_sees_the_merged_top_k_of_a_member_with_a_joint_space(members, combos, tmp_path, sound):
    fake = Fake()
    model, config = load_pretrained(save_member(tmp_path / "w", "W", 7))
    without = MomentRetriever(model, config, combos[0]["W"])
    mixed = [without, *members]
    ensemble = EnsembleRetriever(mixed, shared(mixed), merge="pool", top_k=4, beta=0.9)
    recording = ensemble.encode(sound)
    result = ensemble.retrieve(recording, "a dog", top_k=2, verifier=fake)
    seen, text, candidates = fake.seen[0]
    assert seen is recording.parts[1]
    assert list(text) == ["joint"]
    assert len(candidates) == 4
    assert (result.verifier, result.beta, len(result.moments)) == ("fake", 0.9, 2)
    assert {moment.window for moment in result.moments} <= {candidate.window for candidate in candidates}
    assert [m.score for m in result.moments] == sorted((m.score for m in result.moments), reverse=True)
    assert [m.verifier_score for m in result.moments] == [m.start_seconds / result.duration_seconds for m in result.moments]


def test_the_systems_verifier_and_beta_are_defaults(members, sound):
    ensemble = EnsembleRetriever(members, shared(members), verifier="pocket", beta=0.45)
    recording = ensemble.encode(sound)
    result = ensemble.retrieve(recording, "a dog")
    assert (result.verifier, result.beta) == ("pocket", 0.45)
    assert ensemble.retrieve(recording, "a dog", verifier="none").verifier == "none"
    assert ensemble.retrieve(recording, "a dog", beta=0.2).beta == 0.2


def test_found_is_the_members_mean_against_their_mean_threshold(members, sound):
    ensemble = EnsembleRetriever(members, shared(members), weights=[1, 1, 2], merge="fusion")
    recording = ensemble.encode(sound)
    best = [m.retrieve(m.encode(sound), "a dog").moments[0].decoder_score for m in members]
    mean = (best[0] + best[1] + 2 * best[2]) / 4

    def found(thresholds):
        for member, threshold in zip(members, thresholds, strict=True):
            member.config = replace(member.config, inference=replace(member.config.inference, found_threshold=threshold))
        return ensemble.retrieve(recording, "a dog").found

    assert found([mean - 1e-4] * 3)
    assert not found([mean + 1e-4] * 3)
    # What one lacks, another may have to spare.
    assert found([best[0] + 0.001, best[1], best[2] - 0.001])


def test_official_rounding_comes_last(members, sound):
    ensemble = EnsembleRetriever(members, shared(members), merge="fusion", merge_iou=0.5)
    recording = ensemble.encode(sound)
    exact = ensemble.retrieve(recording, "a dog", top_k=50)
    official = ensemble.retrieve(recording, "a dog", top_k=50, protocol="official")
    assert [m.start_seconds for m in official.moments] == [round(m.start_seconds) for m in exact.moments]
    assert [m.score for m in official.moments] == [round(m.score, 4) for m in exact.moments]
    assert any(m.start_seconds != round(m.start_seconds) for m in exact.moments)


def test_separate_encoders_ask_one_that_several_share_once(combos, sound):
    encoders, runs = combos
    separate = SeparateEncoders([encoders["X"], encoders["Y"], encoders["X"]])
    one, _, three = separate.encode_recording(sound)
    assert one is three
    assert runs == {"joint": 2, "loud": 1, "soft": 1}
    assert [list(text) for text in separate.encode_query("a dog")] == [["joint"], ["joint", "words"], ["joint"]]


def test_a_plain_recording_with_all_streams_will_do(members, sound):
    ensemble = EnsembleRetriever(members, shared(members))
    whole = ensemble.encode(sound)
    streams = {name: rows for part in whole.parts for name, rows in part.streams.items()}
    plain = Recording("a", "", whole.duration_seconds, streams, whole.peaks)
    assert ensemble.retrieve(plain, "a dog").moments == ensemble.retrieve(whole, "a dog").moments


def test_mistakes_are_refused(members, tmp_path):
    with pytest.raises(ConfigError, match="needs at least one member"):
        EnsembleRetriever([], shared(members))
    with pytest.raises(ConfigError, match="merge is 'vote'"):
        EnsembleRetriever(members, shared(members), merge="vote")
    ensemble = EnsembleRetriever(members, shared(members))
    with pytest.raises(AudioError, match="does not exist"):
        ensemble.encode(tmp_path / "gone.wav")
    recording = ensemble.encode(write_sound(tmp_path / "b.wav", 3))
    for options, message in (({"top_k": 0}, "top_k is 0"), ({"beta": 2}, "beta is 2"), ({"verifier": "x"}, "is not known")):
        with pytest.raises(QamDetrError, match=message):
            ensemble.retrieve(recording, "a", **options)
    with pytest.raises(QamDetrError, match="The query is empty"):
        ensemble.retrieve(recording, " ")
