"""The Python API on a tiny random system."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny_system import JOINT_DIM, TinyEncoder, recording_of, tiny_config, tiny_model, tiny_retriever, write_sound

from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.inference import retriever as module
from qamdetr.inference.checkpoint import save_checkpoint
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.types import Result
from qamdetr.verifiers import Verifier
from qamdetr.verifiers import base as registry


def random_recording(num_clips, duration=None):
    return recording_of(torch.randn(num_clips, JOINT_DIM, generator=torch.Generator().manual_seed(0)), duration)


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    return write_sound(tmp_path_factory.mktemp("sounds") / "walk.wav", 30)


def assert_same(one: Result, two: Result):
    assert [m.window for m in one.moments] == [pytest.approx(m.window, abs=1e-3) for m in two.moments]
    assert [m.score for m in one.moments] == pytest.approx([m.score for m in two.moments], abs=1e-5)
    assert one.saliency == pytest.approx(two.saliency, abs=1e-5)


def test_many_queries_give_what_each_gives_alone_in_threads_too(monkeypatch):
    retriever, recording = tiny_retriever(), random_recording(30)
    queries = ["a dog", "rain falls on the roof", "x", "bells ring twice far away"]
    together = retriever.retrieve_many(recording, queries)
    monkeypatch.setattr(module, "_PAIRS_PER_FORWARD", 3)
    with ThreadPoolExecutor(4) as pool:
        alone = list(pool.map(lambda query: retriever.retrieve(recording, query), queries))
    for query, *results in zip(queries, together, alone, retriever.retrieve_many(recording, queries), strict=True):
        assert [result.query for result in results] == [query] * 3
        assert_same(results[0], results[1])
        assert_same(results[0], results[2])
    assert len({result.saliency for result in together}) == len(queries)
    assert retriever.retrieve_many(recording, []) == []


@pytest.mark.parametrize("segments", [0.0, 0.3])
def test_long_recordings_run_in_sections_and_the_official_protocol_rounds_last(segments):
    retriever = tiny_retriever(section_clips=20, section_overlap_clips=5, segment_threshold=segments)
    recording = random_recording(90, 89.5)
    exact, official = (retriever.retrieve(recording, "a dog", top_k=100, protocol=protocol) for protocol in ("exact", "official"))
    assert len(exact.saliency) == 90
    assert len(exact.moments) > 5, "more than one section has answers"
    assert max(moment.end_seconds for moment in exact.moments) > 60
    assert all(0 <= moment.start_seconds < moment.end_seconds <= 89.5 for moment in exact.moments)
    assert any(m.start_seconds != round(m.start_seconds) for m in exact.moments)
    assert all(m.start_seconds == round(m.start_seconds) and m.end_seconds == round(m.end_seconds) for m in official.moments)
    # The first clips are seen by the first section alone.
    streams = {name: features[:20] for name, features in recording.streams.items()}
    first = retriever.retrieve(replace(recording, duration_seconds=20.0, streams=streams), "a dog")
    assert exact.saliency[:15] == pytest.approx(first.saliency[:15], abs=1e-5)


@pytest.mark.parametrize("segments", [0.0, 0.3])
def test_bypass_reaches_model_and_decoding(segments):
    bypassed = tiny_retriever(segment_threshold=segments).retrieve(random_recording(30), "a dog", bypass=["quality"])
    assert all(moment.quality == 1 and moment.score == moment.foreground for moment in bypassed.moments)


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (" \u200d\u2060\ufeff\x00 ", {}, "The query is empty"),
        ("a dog \udcff", {}, "UTF-8"),
        ("a", {"top_k": 0}, "top_k is 0; it must be at least 1"),
        ("a", {"bypass": ["brain"]}, "cannot bypass 'brain'"),
    ],
)
def test_mistakes_are_refused(query, options, message):
    with pytest.raises(QamDetrError) as caught:
        tiny_retriever().retrieve(random_recording(10), query, **options)
    assert message in str(caught.value)


@pytest.fixture
def openers(monkeypatch):
    """Stands in the place of `open_streams`: takes note of what it was asked for, and gives encoders of version 1234."""
    asked = []

    def open_streams(audio, text, *, name="", **options):
        asked.append((name or (audio, text), options))
        encoder = TinyEncoder()
        encoder.name, encoder.fingerprint = name or "pocket+mel_stats", "1234"
        return encoder

    monkeypatch.setattr(module.encoders, "open_streams", open_streams)
    return asked


def save(folder, **data):
    config = tiny_config()
    save_checkpoint(folder, tiny_model(config), replace(config, data=replace(config.data, **data)))
    return folder


STREAMS = (("pocket", "mel_stats"), ("pocket",))


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        ({"encoder": "public-0123+public-4567"}, [STREAMS]),
        ({"encoder": "", "audio_features": {"pocket": "x"}}, [STREAMS]),
        ({"encoder": "1234+public-0123", "audio_features": {"pocket": "x"}}, ["tiny", STREAMS]),
        ({"encoder": "1234"}, ["tiny"]),
        ({"encoder": ""}, ["tiny"]),
    ],
)
def test_a_checkpoint_gets_the_encoders_that_its_features_came_from(tmp_path, openers, data, asked):
    retriever = MomentRetriever.from_pretrained(save(tmp_path, **data))
    assert [what for what, _ in openers] == asked
    assert retriever.encoder.name == ("tiny" if asked[-1] == "tiny" else "pocket+mel_stats")


def test_features_of_other_encoders_are_refused_on_opening_with_what_was_opened(tmp_path, openers):
    save(tmp_path, encoder="0123", combo="B", encoder_models={"laion_clap": "theirs"})
    message = r"version 1234 \(float32, laion_clap=theirs, ms_clap=mine\); features would not fit; name the models"
    with pytest.raises(CheckpointError, match=message):
        MomentRetriever.from_pretrained(tmp_path, encoder_models={"ms_clap": "mine"})


def test_an_encoder_that_moved_is_named_with_the_option_for_it(tmp_path):
    gone = tmp_path / "gone"
    save(tmp_path / "c", combo="laion_clap", encoder_models={"laion_clap": str(gone)})
    with pytest.raises(CheckpointError, match=rf"from {gone}, which does not exist.* `--encoder laion_clap=FOLDER`"):
        MomentRetriever.from_pretrained(tmp_path / "c")


class Oracle(Verifier):
    """Has an opinion of its own, or breaks in a given way."""

    name, needs_audio = "oracle", False

    def __init__(self, answer=lambda candidates: [0.5] * len(candidates)):
        self.answer = answer

    def verify(self, recording, query, text, candidates):
        return self.answer(candidates)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda candidates: [0.5], "it gave 1 scores for 5 candidates"),
        (lambda candidates: [float("nan")] * len(candidates), "it gave a score of nan"),
        (lambda candidates: 1 / 0, "division by zero"),
        (lambda candidates: (_ for _ in ()).throw(MemoryError()), "MemoryError"),
        (None, "has no joint space"),
    ],
)
def test_no_verifier_loses_the_decoders_answer_nor_what_reading_decided(answer, reason):
    retriever = tiny_retriever(nms_iou=1.0, joint=answer is not None)
    recording = replace(random_recording(30), notes=("the file ends after 0:45 of 1:30",))
    result = retriever.retrieve(recording, "a dog", verifier="pocket" if answer is None else Oracle(answer))
    assert result.notes[0] == recording.notes[0]
    assert "failed (" in result.notes[1]
    assert reason in result.notes[1]
    assert (result.verifier, result.beta) == ("none", 0.0)
    assert result.moments == retriever.retrieve(recording, "a dog").moments


def test_beta_is_the_given_one_else_the_verifiers_else_the_checkpoints_and_a_named_verifier_is_made_once(monkeypatch):
    retriever, recording = tiny_retriever(beta=0.4, beta_by_verifier={"oracle": 0.2}), random_recording(20)
    made = []
    monkeypatch.setitem(registry.VERIFIERS, "oracle", lambda settings: made.append(settings) or Oracle())
    assert retriever.retrieve(recording, "a dog", verifier="oracle", beta=0.7).beta == 0.7
    assert retriever.retrieve(recording, "a dog", verifier="oracle").beta == 0.2
    assert retriever.retrieve(recording, "a dog", verifier="pocket").beta == 0.4
    assert made == [retriever.config.verifier]


def test_encoding_goes_step_by_step_and_may_be_closed(walk):
    retriever = tiny_retriever()
    steps = list(retriever.encoding(walk))
    assert len(steps) > 1
    assert all(step.stage and (step.share is None or 0 <= step.share <= 1) for step in steps)
    work = retriever.encoding(walk)
    next(work)
    assert not torch.is_inference_mode_enabled(), "whoever waits is not in inference mode"
    work.close()
    assert retriever.encoder.encoded == [str(walk)], "the closed one was not encoded"


def test_files_arrays_and_open_files_are_recordings(walk):
    retriever = tiny_retriever()
    expected = retriever.retrieve(retriever.encode(walk), "a dog")
    assert (expected.audio, expected.encoder, expected.duration_seconds, len(expected.saliency)) == (str(walk), "tiny", 30.0, 30)
    with walk.open("rb") as file:
        for source in (soundfile.read(walk, dtype="float32"), file):
            assert_same(retriever.retrieve(retriever.encode(source), "a dog"), expected)


@pytest.mark.parametrize("verifier", ["none", "pocket"])
def test_silence_in_front_moves_the_moments_and_nothing_else(shipped, verifier):
    samples, rate_hz = soundfile.read(Path(__file__).parents[2] / "assets" / "street.ogg", frames=40 * 24000, dtype="float32")
    samples[0] = 0.01
    plain, later = (
        shipped.encode((np.concatenate([np.zeros(round(silent * rate_hz), dtype=np.float32), samples]), rate_hz)) for silent in (0.0, 7.3)
    )
    assert (later.duration_seconds, later.unheard_seconds, later.num_clips) == (pytest.approx(47.3), pytest.approx(7.3), plain.num_clips)
    one, two = (shipped.retrieve(recording, "an ambulance passes", verifier=verifier) for recording in (plain, later))
    assert [m.score for m in two.moments] == pytest.approx([m.score for m in one.moments], abs=1e-3)
    for before, after in zip(one.moments, two.moments, strict=True):
        assert after.window == pytest.approx([seconds + 7.3 for seconds in before.window], abs=0.01)
    assert (len(one.saliency), len(two.saliency), set(two.saliency[:14])) == (80, 95, {0.0})
    assert two.saliency == pytest.approx(np.interp(np.arange(95) - 14.6, np.arange(80), one.saliency, left=0.0), abs=0.01)
    assert shipped.retrieve_like(later, two.moments[0].window).moments[0].window == pytest.approx(two.moments[0].window, abs=0.3)


def test_what_only_the_mean_of_channels_does_not_hear_is_encoded():
    samples = np.repeat([0.5, 0.001], 8000) * np.random.default_rng(0).uniform(-1, 1, 16000)
    other = samples * np.repeat([-1, 1], 8000)
    recording = tiny_retriever().encode((np.stack([samples, other], axis=1).astype(np.float32), 8000))
    assert "channel 1 of 2 is heard alone" in recording.notes[0]
    assert (recording.unheard_seconds, recording.num_clips) == (0.0, 2)


@pytest.mark.parametrize("protocol", ["exact", "official"])
def test_moments_of_a_part_are_on_the_files_clock(walk, protocol):
    retriever = tiny_retriever(found_threshold=0.0)
    samples, rate_hz = soundfile.read(walk, dtype="float32")
    cut = retriever.retrieve(retriever.encode((samples[8 * rate_hz : 20 * rate_hz], rate_hz)), "a dog", protocol=protocol)
    recording = retriever.encode(walk, start_seconds=8.0, end_seconds=20.0)
    part = retriever.retrieve(recording, "a dog", protocol=protocol)
    assert [m.window for m in part.moments] == [pytest.approx((m.start_seconds + 8, m.end_seconds + 8), abs=1e-3) for m in cut.moments]
    assert (recording.duration_seconds, part.duration_seconds) == (12, 20)
    assert part.saliency == pytest.approx([0.0] * 8 + [*cut.saliency], abs=1e-5)
