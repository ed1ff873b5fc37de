"""The Python API on a tiny random system."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import soundfile
import torch
from tiny_system import JOINT_DIM, TinyEncoder, recording_of, save_tiny, tiny_config, tiny_model, write_sound

from qamdetr.errors import AudioError, CheckpointError, ConfigError, QamDetrError
from qamdetr.inference import retriever as module
from qamdetr.inference.checkpoint import save_checkpoint
from qamdetr.inference.retriever import Member, MomentRetriever
from qamdetr.types import Result
from qamdetr.verifiers import base as registry


def make_retriever(*, joint=True, **inference):
    config = tiny_config(**inference)
    return MomentRetriever([Member(tiny_model(config), config)], TinyEncoder(joint=joint))


def random_recording(num_clips, duration=None):
    return recording_of(torch.randn(num_clips, JOINT_DIM, generator=torch.Generator().manual_seed(0)), duration)


def assert_same(one: Result, two: Result):
    assert [m.window for m in one.moments] == [pytest.approx(m.window, abs=1e-3) for m in two.moments]
    assert [m.score for m in one.moments] == pytest.approx([m.score for m in two.moments], abs=1e-5)
    assert one.saliency == pytest.approx(two.saliency, abs=1e-5)


def test_from_pretrained_file_to_moments(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module.encoders, "open_streams", lambda *streams, name, **options: asked.append((name, options)) or TinyEncoder())
    retriever = MomentRetriever.from_pretrained(save_tiny(tmp_path / "checkpoint", nms_iou=1.0))
    assert asked == [("tiny", {"models": {}, "dtype": "float32", "device": None})]
    path = write_sound(tmp_path / "walk.wav", 12.4)
    recording = retriever.encode(path)
    result = retriever.retrieve(recording, "a dog barks", top_k=3)
    assert (result.audio, result.query, result.encoder, result.verifier, result.beta) == (str(path), "a dog barks", "tiny", "none", 0.0)
    assert result.duration_seconds == pytest.approx(12.4)
    assert len(result.saliency) == recording.num_clips == 13
    assert all(0 <= value <= 1 for value in result.saliency)
    assert len(result.moments) == 3
    for moment in result.moments:
        assert 0 <= moment.start_seconds < moment.end_seconds <= result.duration_seconds
        assert moment.score == moment.decoder_score == pytest.approx(moment.foreground * moment.quality)
    assert [m.score for m in result.moments] == sorted((m.score for m in result.moments), reverse=True)


def test_many_queries_give_what_each_gives_alone(monkeypatch):
    retriever, recording = make_retriever(), random_recording(30)
    queries = ["a dog", "rain falls on the roof", "x", "bells ring twice far away"]
    together = retriever.retrieve_many(recording, queries)
    monkeypatch.setattr(module, "_PAIRS_PER_FORWARD", 3)
    for query, result, chunked in zip(queries, together, retriever.retrieve_many(recording, queries), strict=True):
        assert result.query == query
        alone = retriever.retrieve(recording, query)
        assert_same(result, alone)
        assert_same(chunked, alone)
    assert len({result.saliency for result in together}) == len(queries)
    assert retriever.retrieve_many(recording, []) == []


def test_long_recordings_run_in_sections():
    retriever = make_retriever(section_clips=20, section_overlap_clips=5)
    recording = random_recording(90, 89.5)
    result = retriever.retrieve(recording, "a dog", top_k=100)
    assert len(result.saliency) == 90
    assert len(result.moments) > 5, "more than one section has answers"
    assert max(moment.end_seconds for moment in result.moments) > 60
    assert all(0 <= moment.start_seconds < moment.end_seconds <= 89.5 for moment in result.moments)
    # The first clips are seen by the first section alone.
    first = retriever.retrieve(recording_of(recording.streams["pocket"][:20]), "a dog")
    streams = {name: features[:20] for name, features in recording.streams.items()}
    whole = retriever.retrieve(type(recording)("a", "", 20.0, streams, recording.peaks), "a dog")
    assert result.saliency[:15] == pytest.approx(whole.saliency[:15], abs=1e-5)
    assert len(first.saliency) == 20


def test_the_verifier_blends_into_the_score():
    retriever, recording = make_retriever(beta=0.4, nms_iou=1.0), random_recording(30)
    plain = retriever.retrieve(recording, "a dog")
    result = retriever.retrieve(recording, "a dog", verifier="pocket")
    assert (result.verifier, result.beta, result.notes) == ("pocket", 0.4, ())
    for moment in result.moments:
        assert moment.score == pytest.approx(0.6 * moment.decoder_score + 0.4 * moment.verifier_score)
    assert sorted(m.window for m in result.moments) == sorted(m.window for m in plain.moments)
    assert retriever.retrieve(recording, "a dog", verifier="pocket", beta=0.0).moments[0].window == plain.moments[0].window
    # The verifier sees the checkpoint's top-K even when fewer are shown.
    assert retriever.retrieve(recording, "a dog", verifier="pocket", top_k=1).moments == result.moments[:1]


def test_a_verifier_that_fails_leaves_the_decoders_ranking_and_a_note():
    retriever, recording = make_retriever(joint=False), random_recording(30)
    result = retriever.retrieve(recording, "a dog", verifier="pocket")
    assert (result.verifier, result.beta) == ("none", 0.0)
    assert len(result.notes) == 1
    assert "Verifier pocket failed" in result.notes[0]
    assert result.moments == retriever.retrieve(recording, "a dog").moments


def test_found_compares_the_best_decoder_score_with_the_threshold():
    recording = random_recording(30)
    best = make_retriever().retrieve(recording, "a dog").moments[0].decoder_score
    assert make_retriever(found_threshold=best - 1e-4).retrieve(recording, "a dog").found
    assert not make_retriever(found_threshold=best + 1e-4).retrieve(recording, "a dog").found


def test_the_official_protocol_and_bypass_reach_model_and_decoding():
    retriever, recording = make_retriever(), random_recording(30)
    official = retriever.retrieve(recording, "a dog", protocol="official")
    assert len(official.moments) == 5
    assert all(m.start_seconds == round(m.start_seconds) and m.end_seconds == round(m.end_seconds) for m in official.moments)
    for answering in (retriever, make_retriever(segment_threshold=0.3)):
        bypassed = answering.retrieve(recording, "a dog", bypass=["quality"])
        assert all(moment.quality == 1 and moment.score == moment.foreground for moment in bypassed.moments)
    with pytest.raises(ConfigError, match="cannot bypass 'brain'"):
        retriever.retrieve(recording, "a dog", bypass=["brain"])


def test_mistakes_are_refused(tmp_path):
    retriever, recording = make_retriever(), random_recording(10)
    for query in ("", " \n", "\u200b", " \u200d\u2060\ufeff\x00 "):
        with pytest.raises(QamDetrError, match="The query is empty"):
            retriever.retrieve(recording, query)
    with pytest.raises(QamDetrError, match="top_k is 0; it must be at least 1"):
        retriever.retrieve(recording, "a", top_k=0)
    with pytest.raises(QamDetrError, match=r"beta is 1\.5"):
        retriever.retrieve(recording, "a", beta=1.5)
    with pytest.raises(QamDetrError, match="is not known; choose one of none, pocket"):
        retriever.retrieve(recording, "a", verifier="x")
    with pytest.raises(AudioError, match="does not exist"):
        retriever.encode(tmp_path / "no.wav")


def test_threads_may_share_a_retriever():
    retriever, recording = make_retriever(), random_recording(40)
    queries = [f"sound number {number}" for number in range(12)]
    alone = [retriever.retrieve(recording, query) for query in queries]
    with ThreadPoolExecutor(4) as pool:
        for one, two in zip(pool.map(lambda query: retriever.retrieve(recording, query), queries), alone, strict=True):
            assert_same(one, two)


def test_nothing_tracks_gradients():
    retriever, recording = make_retriever(), random_recording(10)
    retriever.retrieve(recording, "a dog")
    assert all(parameter.grad is None for parameter in retriever.members[0].model.parameters())
    assert not retriever.members[0].model.training


def test_the_official_protocol_rounds_last_also_with_segments_and_sections():
    retriever = make_retriever(segment_threshold=0.3, section_clips=20, section_overlap_clips=5)
    recording = random_recording(70, 69.4)
    official = retriever.retrieve(recording, "a dog", protocol="official", top_k=50)
    assert official.moments
    assert all(m.start_seconds == round(m.start_seconds) and m.end_seconds == round(m.end_seconds) for m in official.moments)
    exact = retriever.retrieve(recording, "a dog", top_k=50)
    assert any(m.start_seconds != round(m.start_seconds) for m in exact.moments)


def test_bytes_that_are_not_text_are_refused():
    with pytest.raises(QamDetrError, match="UTF-8"):
        make_retriever().retrieve(random_recording(10), "a dog \udcff")


def test_a_checkpoint_refuses_encoders_of_another_version(tmp_path, monkeypatch):
    config = tiny_config()
    save_checkpoint(tmp_path / "c", tiny_model(config), replace(config, data=replace(config.data, encoder="0123")))
    encoder = TinyEncoder()
    encoder.fingerprint = "4567"
    monkeypatch.setattr(module.encoders, "open_streams", lambda *streams, name, **options: encoder)
    with pytest.raises(CheckpointError, match="version 0123"):
        MomentRetriever.from_pretrained(tmp_path / "c")
    encoder.fingerprint = "0123"
    assert MomentRetriever.from_pretrained(tmp_path / "c").encoder is encoder


class Openers:
    """Stand in the place of `features.base`: say what they were asked for, and give encoders of the asked version."""

    def __init__(self, monkeypatch, fingerprint="1234"):
        self.asked = []
        self.fingerprint = fingerprint
        monkeypatch.setattr(module.encoders, "open_streams", self.streams)

    def streams(self, audio, text, *, name="", **options):
        self.asked.append(("combo", name) if name else ("streams", audio, text))
        return self.encoder(name or "pocket+mel_stats")

    def encoder(self, name):
        encoder = TinyEncoder()
        encoder.name, encoder.fingerprint = name, self.fingerprint
        return encoder


STREAMS = ("streams", ("pocket", "mel_stats"), ("pocket",))


@pytest.mark.parametrize(
    ("data", "asked", "name"),
    [
        ({"encoder": "public-0123"}, [STREAMS], "pocket+mel_stats"),
        ({"encoder": "public-0123+public-4567"}, [STREAMS], "pocket+mel_stats"),
        ({"encoder": "", "audio_features": {"pocket": "x"}}, [STREAMS], "pocket+mel_stats"),
        ({"encoder": "1234+public-0123", "audio_features": {"pocket": "x"}}, [("combo", "tiny"), STREAMS], "pocket+mel_stats"),
        ({"encoder": "1234"}, [("combo", "tiny")], "tiny"),
        ({"encoder": ""}, [("combo", "tiny")], "tiny"),
    ],
)
def test_a_checkpoint_gets_the_encoders_that_its_features_came_from(tmp_path, monkeypatch, data, asked, name):
    config = tiny_config()
    save_checkpoint(tmp_path, tiny_model(config), replace(config, data=replace(config.data, **data)))
    openers = Openers(monkeypatch)
    assert MomentRetriever.from_pretrained(tmp_path).encoder.name == name
    assert openers.asked == asked


def test_a_mixed_version_is_compared_in_its_own_part(tmp_path, monkeypatch):
    config = tiny_config()
    data = replace(config.data, encoder="1234+public-0123", audio_features={"mel_stats": "x"})
    save_checkpoint(tmp_path, tiny_model(config), replace(config, data=data))
    Openers(monkeypatch, "9999")
    with pytest.raises(CheckpointError, match="version 1234 of the tiny encoders, here is version 9999"):
        MomentRetriever.from_pretrained(tmp_path)


def test_the_message_of_another_version_names_the_settings_of_big_encoders(tmp_path, monkeypatch):
    config = tiny_config()
    data = replace(config.data, encoder="1234", combo="B", encoder_models={"laion_clap": "theirs"})
    save_checkpoint(tmp_path, tiny_model(config), replace(config, data=data))
    Openers(monkeypatch, "9999")
    with pytest.raises(CheckpointError) as caught:
        MomentRetriever.from_pretrained(tmp_path, encoder_models={"ms_clap": "mine"})
    assert "here is version 9999 (float32, laion_clap=theirs, ms_clap=mine); features would not fit: name the models" in str(caught.value)


def test_a_stream_that_the_checkpoint_does_not_have_is_refused(tmp_path, monkeypatch):
    config = tiny_config()
    save_checkpoint(tmp_path, tiny_model(config), config)
    openers = Openers(monkeypatch)
    with pytest.raises(ConfigError, match=r"--encoder: .* has no stream 'laion_clap', only pocket, mel_stats\."):
        MomentRetriever.from_pretrained(tmp_path, encoder_models={"laion_clap": "/x"})
    assert openers.asked == []


def test_an_encoder_that_moved_is_named_with_the_option_for_it(tmp_path):
    config = tiny_config()
    gone = tmp_path / "gone"
    data = replace(config.data, combo="laion_clap", encoder_models={"laion_clap": str(gone)})
    save_checkpoint(tmp_path / "c", tiny_model(config), replace(config, data=data))
    with pytest.raises(CheckpointError, match=rf"from {gone}, which does not exist.* `--encoder laion_clap=FOLDER`\.$"):
        MomentRetriever.from_pretrained(tmp_path / "c")
    with pytest.raises(CheckpointError) as caught:
        MomentRetriever.from_pretrained(tmp_path / "c", encoder_models={"laion_clap": f"{gone}/too"})
    assert "--encoder" not in str(caught.value), "that option was wrong itself"


def test_settings_and_encoders_may_be_chosen_on_opening(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module.encoders, "open_streams", lambda *streams, name, **options: asked.append(options) or TinyEncoder())
    config = tiny_config()
    data = replace(config.data, encoder_models={"pocket": "a", "mel_stats": "b"}, encoder_dtype="bfloat16")
    save_checkpoint(tmp_path, tiny_model(config), replace(config, data=data))
    opened = MomentRetriever.from_pretrained(tmp_path, overrides=["inference.nms_iou=0.5"], device="cpu", encoder_models={"pocket": "mine"})
    assert asked == [{"models": {"pocket": "mine", "mel_stats": "b"}, "dtype": "bfloat16", "device": "cpu"}]
    assert opened.config.inference.nms_iou == 0.5
    with pytest.raises(ConfigError, match="changes the model section"):
        MomentRetriever.from_pretrained(tmp_path, overrides=["model.num_moment_queries=6"])
    with pytest.raises(ConfigError, match="cannot run on device 'cuda:99'"):
        MomentRetriever.from_pretrained(tmp_path, device="cuda:99")


def test_streams_that_the_network_does_not_read_are_left_alone():
    retriever, recording = make_retriever(), random_recording(20)
    streams = {
        "other": torch.full((20, 3), float("nan")),
        "mel_stats": recording.streams["mel_stats"],
        "pocket": recording.streams["pocket"],
    }
    assert_same(retriever.retrieve(replace(recording, streams=streams), "a dog"), retriever.retrieve(recording, "a dog"))


class Oracle:
    """A verifier with an opinion of its own, or one that breaks in a given way."""

    name, identity, needs_audio = "oracle", "oracle 1", False

    def __init__(self, answer):
        self.answer = answer
        self.asked = 0

    def check(self):
        pass

    def verify(self, recording, query, text, candidates):
        self.asked += 1
        return self.answer(candidates)


def test_a_verifier_may_be_given_and_only_ranks():
    retriever, recording = make_retriever(nms_iou=1.0), random_recording(30)
    plain = retriever.retrieve(recording, "a dog")
    late = Oracle(lambda candidates: [candidate.start_seconds / 30 for candidate in candidates])
    result = retriever.retrieve(recording, "a dog", verifier=late, beta=1.0)
    assert (result.verifier, late.asked) == ("oracle", 1)
    assert [m.start_seconds for m in result.moments] == sorted((m.start_seconds for m in plain.moments), reverse=True)
    assert {m.window for m in result.moments} == {m.window for m in plain.moments}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda candidates: [0.5], "it gave 1 scores for 5 candidates"),
        (lambda candidates: [float("nan")] * len(candidates), "it gave a score of nan"),
        (lambda candidates: [1.5] * len(candidates), "it gave a score of 1.5"),
        (lambda candidates: 1 / 0, "division by zero"),
        (lambda candidates: (_ for _ in ()).throw(MemoryError()), "MemoryError"),
    ],
)
def test_no_verifier_loses_the_decoders_answer(answer, reason):
    retriever, recording = make_retriever(nms_iou=1.0), random_recording(30)
    result = retriever.retrieve(recording, "a dog", verifier=Oracle(answer))
    assert reason in result.notes[0]
    assert (result.verifier, result.beta) == ("none", 0.0)
    assert result.moments == retriever.retrieve(recording, "a dog").moments


def test_beta_is_the_given_one_else_the_verifiers_else_the_checkpoints():
    retriever, recording = make_retriever(beta=0.4, beta_by_verifier={"oracle": 0.2}), random_recording(20)
    oracle = Oracle(lambda candidates: [0.5] * len(candidates))
    assert retriever.retrieve(recording, "a dog", verifier=oracle, beta=0.7).beta == 0.7
    assert retriever.retrieve(recording, "a dog", verifier=oracle).beta == 0.2
    assert retriever.retrieve(recording, "a dog", verifier="pocket").beta == 0.4


def test_a_named_verifier_is_made_once_with_the_checkpoints_settings(monkeypatch):
    made = []
    monkeypatch.setattr(registry, "make_verifier", lambda name, settings: made.append((name, settings)) or Oracle(lambda c: [0.5] * len(c)))
    retriever, recording = make_retriever(), random_recording(10)
    for _ in range(2):
        retriever.retrieve(recording, "a dog", verifier="any")
    assert made == [("any", retriever.config.verifier)]


def test_encoding_goes_step_by_step_and_may_be_closed(tmp_path):
    retriever, path = make_retriever(), write_sound(tmp_path / "walk.wav", 12.4)
    work = retriever.encoding(path)
    steps = []
    with pytest.raises(StopIteration) as end:
        while True:
            assert not torch.is_inference_mode_enabled(), "whoever waits is not in inference mode"
            steps.append(next(work))
    assert steps
    assert all(step.stage and (step.share is None or 0 <= step.share <= 1) for step in steps)
    assert_same(retriever.retrieve(end.value.value, "a dog"), retriever.retrieve(retriever.encode(path), "a dog"))
    work = retriever.encoding(path)
    next(work)
    work.close()
    assert retriever.encoder.encoded == [str(path)] * 2, "the closed one was not encoded"


def test_arrays_and_open_files_are_recordings_too(tmp_path):
    retriever, path = make_retriever(), write_sound(tmp_path / "walk.wav", 12.4)
    expected = retriever.retrieve(retriever.encode(path), "a dog")
    samples = soundfile.read(path, dtype="float32")
    with path.open("rb") as file:
        for source in (samples, file):
            assert_same(retriever.retrieve(retriever.encode(source), "a dog"), expected)


@pytest.mark.parametrize("protocol", ["exact", "official"])
def test_moments_of_a_part_are_on_the_files_clock(tmp_path, protocol):
    retriever, path = make_retriever(found_threshold=0.0), write_sound(tmp_path / "walk.wav", 30)
    samples, rate_hz = soundfile.read(path, dtype="float32")
    cut = retriever.retrieve(retriever.encode((samples[8 * rate_hz : 20 * rate_hz], rate_hz)), "a dog", protocol=protocol)
    recording = retriever.encode(path, start_seconds=8.0, end_seconds=20.0)
    part = retriever.retrieve(recording, "a dog", protocol=protocol)
    assert recording.duration_seconds == 12
    assert [m.window for m in part.moments] == [pytest.approx((m.start_seconds + 8, m.end_seconds + 8), abs=1e-3) for m in cut.moments]
    assert part.duration_seconds == 20
    assert len(part.saliency) == len(cut.saliency) == 12


def test_what_reading_decided_is_told_in_the_answers(tmp_path):
    retriever = make_retriever()
    recording = replace(random_recording(20), notes=("the file ends after 0:45 of 1:30",))
    assert retriever.retrieve(recording, "a dog").notes == recording.notes
    failed = retriever.retrieve(recording, "a dog", verifier=Oracle(lambda candidates: []))
    assert failed.notes[0] == recording.notes[0]
    assert "Verifier oracle failed" in failed.notes[1]
