"""Several checkpoints that answer as one: their recipes, one encoding for all, merging, and features in the place of encoders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stored_features import OwnFeatures, write_audio_file, write_text_file
from tiny_streams import DIM, STREAMS, save_member, tiny_combos
from tiny_system import write_sound

from qamdetr.config import CONFIG_DIR, SYSTEM_DIR
from qamdetr.data.dataset import Collator, MomentDataset
from qamdetr.data.manifest import QueryEntry
from qamdetr.errors import DataError, QamDetrError
from qamdetr.features.base import Streams, join_fingerprints
from qamdetr.features.store import FeatureStore
from qamdetr.inference import retriever as serving
from qamdetr.inference.candidates import answers
from qamdetr.inference.pools import merge_pools
from qamdetr.inference.retriever import MomentRetriever, load_system
from qamdetr.types import Recording, TextFeatures
from qamdetr.verifiers import Verifier

SUBMISSIONS = {
    "submit1": ("abc", "none", 0.35),
    "submit2": ("abc", "qwen2.5-omni", 0.35),
    "submit3": ("a", "qwen2.5-omni", 0.45),
    "submit4": ("b", "qwen2.5-omni", 0.30),
}
"""Combos, verifier and beta of the report's sections 2.3 and 4.2."""

QUERIES = ["a dog barks", "rain on a roof"]


def write(folder: Path, text: str) -> Path:
    path = folder / "system.yaml"
    path.write_text(text)
    return path


def test_the_submissions_are_the_reports_with_several_seeds_of_each_combo():
    assert {path.stem for path in SYSTEM_DIR.glob("[!_]*.yaml")} == set(SUBMISSIONS)
    for name, (combos, verifier, beta) in SUBMISSIONS.items():
        system = load_system(name)
        assert (system.verify_with, system.beta, system.top_k) == (verifier, beta, 10)
        runs = [f"runs/combo_{combo}_finetune-s{seed}/best" for combo in combos for seed in "012"]
        assert sorted(member.checkpoint for member in system.members.values()) == runs
        assert all((CONFIG_DIR / f"combo_{combo}_finetune.yaml").is_file() for combo in combos)
        assert {member.weight for member in system.members.values()} == {1.0}
    one, two = load_system("submit1"), load_system("submit2")
    assert (one.members, one.merge, one.merge_iou) == (two.members, two.merge, two.merge_iou), "ranked anew"


def test_members_may_be_named_listed_or_given(tmp_path):
    named = load_system(write(tmp_path, "members: {one: runs/x, two: {checkpoint: runs/y, weight: 2}}"))
    assert [(name, m.checkpoint, m.weight) for name, m in named.members.items()] == [("one", "runs/x", 1.0), ("two", "runs/y", 2.0)]
    listed = load_system(write(tmp_path, "members: [runs/x, {checkpoint: runs/y, weight: 2}]"), ["merge=nms", "members.runs/x.weight=3"])
    assert [(m.checkpoint, m.weight) for m in listed.members.values()] == [("runs/x", 3.0), ("runs/y", 2.0)]
    given = load_system("submit2", members=["a", "b"])
    assert ([m.checkpoint for m in given.members.values()], given.verify_with, given.beta) == (["a", "b"], "qwen2.5-omni", 0.35)
    changed = load_system("submit3", ["data.feature_dir=elsewhere", "inference.nms_iou=1", "verifier.batch_size=2"])
    assert {m.overrides for m in changed.members.values()} == {("data.feature_dir=elsewhere", "inference.nms_iou=1")}
    assert changed.verifier.batch_size == 2
    assert load_system("submit2", ["verify_with=no"]).verify_with == "none", "a bare no is False in YAML 1.1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("members: {a: x}\nmerge: vote", "merge is 'vote'; it must be one of pool, nms, fusion"),
        ("members: {a: x}\nmerge_iou: 2", "merge_iou is 2.0; it must be from 0.0 to 1.0"),
        ("members: {a: x}\nverifier: pocket", "verifier is 'pocket'; a system names its verifier in `verify_with`"),
        ("members: {a: {weight: 2}}", "members.a.checkpoint is missing"),
        ("members: {a: {checkpoint: x, weight: 0}}", "members.a.weight is 0.0; it must be from 1e-06"),
        ("members: [3]", "members lists 3"),
    ],
)
def test_mistakes_are_one_line(tmp_path, text, message):
    with pytest.raises(QamDetrError) as caught:
        load_system(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class Shop:
    """Opens systems of tiny checkpoints on shared tiny encoders, and remembers what ran."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder
        self.combos, self.runs = tiny_combos()
        monkeypatch.setattr(serving.encoders, "open_streams", lambda audio, text, *, name, **options: self.combos[name])

    def open(self, combos: str, *overrides: str, **options) -> MomentRetriever:
        """One member for each letter, each with weights of its own."""
        members = [str(save_member(self.folder / f"m{seed}{combo}", combo, seed)) for seed, combo in enumerate(combos)]
        return MomentRetriever.from_system(load_system("submit1", list(overrides), members=members), **options)

    def alone(self, system: MomentRetriever) -> list[MomentRetriever]:
        """Each member by itself."""
        return [MomentRetriever([replace(m, audio={}, text={})], self.combos[m.config.data.combo]) for m in system.members]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    return Shop(tmp_path, monkeypatch)


@pytest.fixture
def sound(tmp_path):
    return write_sound(tmp_path / "a.wav", 23.4)


def test_each_encoder_runs_once_and_each_member_reads_its_own_streams(shop, sound):
    system = shop.open("XYX", "inference.found_threshold=0.25", "merge=pool")
    assert {member.config.inference.found_threshold for member in system.members} == {0.25}
    recording = system.encode(sound)
    assert shop.runs == {"joint": 1, "loud": 1, "soft": 1}
    assert [list(member.heard(recording).streams) for member in system.members] == [list(STREAMS[combo][0]) for combo in "XYX"]
    assert (recording.path, recording.num_clips) == (str(sound), 24)
    for member, alone in zip(system.members, shop.alone(system), strict=True):
        assert all(torch.equal(member.heard(recording).streams[name], rows) for name, rows in alone.encode(sound).streams.items())
    plain = Recording("a", "", recording.duration_seconds, dict(reversed(recording.streams.items())), recording.peaks)
    assert system.retrieve(plain, "a dog").moments == system.retrieve(recording, "a dog").moments


def test_two_models_of_one_stream_stay_apart(shop, sound):
    soft = shop.combos["Y"].audio["soft"]
    shop.combos["Y"] = Streams("Z", {"joint": soft, "soft": soft}, shop.combos["Y"].text)
    system = shop.open("XY")
    one, two = (member.heard(system.encode(sound)) for member in system.members)
    assert not torch.equal(one.streams["joint"], two.streams["joint"])
    assert torch.equal(two.streams["joint"], two.streams["soft"])


def test_the_answer_is_the_merged_answers_of_the_members(shop, sound):
    system = shop.open("XYX", "merge=fusion", "merge_iou=0.5")
    system.members = tuple(replace(member, weight=weight) for member, weight in zip(system.members, [1, 2, 1], strict=True))
    results = system.retrieve_many(system.encode(sound), QUERIES, top_k=100)
    for query, result in zip(QUERIES, results, strict=True):
        decoded = [m.members[0].decode(m.encode(sound), [m.encoder.encode_query(query)])[0] for m in shop.alone(system)]
        expected = merge_pools([answer.candidates for answer in decoded], "fusion", iou=0.5, weights=[1, 2, 1])
        assert [m.window for m in result.moments] == [pytest.approx(c.window, abs=1e-4) for c in expected]
        assert [m.score for m in result.moments] == pytest.approx([c.decoder_score for c in expected], abs=1e-5)
        curves = [answer.saliency for answer in decoded]
        assert result.saliency == pytest.approx(((curves[0] + 2 * curves[1] + curves[2]) / 4).tolist(), abs=1e-5)
        assert (result.query, result.encoder, result.verifier, result.beta) == (query, "X+Y", "none", 0.0)
    official = system.retrieve(system.encode(sound), QUERIES[0], top_k=100, protocol="official")
    assert [m.start_seconds for m in official.moments] == [round(m.start_seconds) for m in results[0].moments], "rounding comes last"
    assert [m.score for m in official.moments] == [round(m.score, 4) for m in results[0].moments]


@pytest.mark.parametrize("merge", ["pool", "nms", "fusion"])
def test_one_member_answers_as_it_does_alone(shop, sound, merge):
    system = shop.open("Y", f"merge={merge}", "merge_iou=1")
    one, alone = (each.retrieve(each.encode(sound), "a dog", verifier="pocket", beta=0.3) for each in (system, *shop.alone(system)))
    assert [(*m.window, m.score) for m in one.moments] == [pytest.approx((*m.window, m.score), abs=1e-6) for m in alone.moments]
    assert one.saliency == pytest.approx(alone.saliency, abs=1e-6)
    assert replace(one, moments=(), saliency=()) == replace(alone, moments=(), saliency=())


class Late(Verifier):
    """Prefers late windows, and remembers what it saw."""

    name, needs_audio = "late", False

    def verify(self, recording, query, text, candidates):
        self.seen = (recording, text, list(candidates))
        return [candidate.start_seconds / recording.duration_seconds for candidate in candidates]


def test_the_verifier_sees_the_merged_top_k_of_a_member_with_a_joint_space(shop, sound):
    late = Late()
    system = shop.open("WXYX", "merge=pool", "top_k=4", "beta=0.9", "verify_with=pocket")
    recording = system.encode(sound)
    result = system.retrieve(recording, "a dog", top_k=2, verifier=late)
    heard, text, candidates = late.seen
    assert (list(heard.streams), list(text), len(candidates)) == (["joint", "loud"], ["joint"], 4)
    assert (result.verifier, result.beta, len(result.moments)) == ("late", 0.9, 2)
    assert {moment.window for moment in result.moments} <= {candidate.window for candidate in candidates}
    assert [m.verifier_score for m in result.moments] == [m.start_seconds / result.duration_seconds for m in result.moments]
    default = system.retrieve(recording, "a dog")
    assert (default.verifier, default.beta) == ("pocket", 0.9)
    assert system.retrieve(recording, "a dog", verifier="none").verifier == "none"


def test_found_is_the_members_mean_against_their_mean_threshold(shop, sound):
    system = shop.open("XYX", "merge=fusion")
    weights = [1, 1, 2]
    best = [m.retrieve(m.encode(sound), "a dog").moments[0].decoder_score for m in shop.alone(system)]
    mean = (best[0] + best[1] + 2 * best[2]) / 4
    recording = system.encode(sound)

    def found(*thresholds):
        system.members = tuple(
            replace(m, weight=w, config=replace(m.config, inference=replace(m.config.inference, found_threshold=t)))
            for m, w, t in zip(system.members, weights, thresholds, strict=True)
        )
        return system.retrieve(recording, "a dog").found

    assert found(mean - 1e-4, mean - 1e-4, mean - 1e-4)
    assert not found(mean + 1e-4, mean + 1e-4, mean + 1e-4)
    assert found(best[0] + 0.001, best[1], best[2] - 0.001), "what one lacks, another may have to spare"


ENTRIES = [
    QueryEntry("q1", "a dog barks", "first", 40.0, None),
    QueryEntry("q2", "rain falls", "first", 40.0, ((3.0, 9.0),)),
    QueryEntry("7", "a dog barks", "second", 25.0, ((1.0, 2.0),), numeric_qid=True),
]


NEW = join_fingerprints(dict.fromkeys(["joint", "loud"], "new"))


def store_features(folder: Path, *versions: str, combo: str = "X", **record: object) -> OwnFeatures:
    """Own features of both recordings and all queries."""
    cache = OwnFeatures(folder, *versions, **record)
    audio, text = STREAMS[combo]
    for vid, clips in (("first", 40), ("second", 25)):
        cache.write_audio(vid, {name: torch.randn(clips, DIM) for name in audio})
    for query in {entry.query for entry in ENTRIES}:
        cache.write_text(query, {name: TextFeatures(torch.randn(3, DIM), ((0, 1), (1, 2), (2, 3))) for name in text})
    return cache


@pytest.fixture
def public(tmp_path):
    """A checkpoint on public files of both recordings and all queries."""
    for vid, clips in (("first", 40), ("second", 25)):
        write_audio_file(tmp_path / "audio", vid, clips, DIM)
    for entry in ENTRIES:
        write_text_file(tmp_path / "text", entry.qid, 4, DIM)
    folders = {
        f"{kind}_features": dict.fromkeys(streams, str(tmp_path / kind))
        for kind, streams in zip(("audio", "text"), STREAMS["X"], strict=True)
    }
    return save_member(tmp_path / "checkpoint", "X", **folders)


def test_from_features_the_answer_is_what_validation_scores(public):
    """Training reads batches of a dataset, this reads recording by recording; both must find the same windows."""
    retriever = MomentRetriever.from_features(public, ENTRIES)
    config = retriever.config
    dataset = MomentDataset(ENTRIES, FeatureStore(config.model, config.data))
    labelled = Collator(ENTRIES)([dataset[index] for index in range(len(ENTRIES))])
    with torch.inference_mode():
        output = retriever.members[0].model(labelled.batch)
    expected = answers(output, labelled.durations_seconds, labelled.num_clips, config.inference)
    for entry, answer in zip(ENTRIES, expected, strict=True):
        recording = retriever.encode(entry.vid)
        assert recording.num_clips == entry.duration_seconds
        moments = retriever.retrieve(recording, entry.query).moments
        found = [(moment.start_seconds, moment.end_seconds, moment.score) for moment in moments]
        assert found == [pytest.approx((*c.window, c.decoder_score), abs=1e-4) for c in answer.candidates]


def test_from_features_reads_what_the_manifest_needs_and_refuses_what_is_not_there(public, tmp_path):
    (tmp_path / "text" / "qidq2.npz").unlink()
    assert MomentRetriever.from_features(public, [ENTRIES[0], ENTRIES[2]]).encode("second").num_clips == 25
    with pytest.raises(QamDetrError, match="1 query"):
        MomentRetriever.from_features(public, ENTRIES)
    write_text_file(tmp_path / "text", "q2", 4, DIM)
    write_audio_file(tmp_path / "audio", "second", 20, DIM)
    with pytest.raises(DataError, match="'second' lasts 25 s in the manifest, its features 20 s"):
        MomentRetriever.from_features(public, ENTRIES)


def test_features_of_other_encoders_are_refused(tmp_path):
    store_features(tmp_path / "features", "new", models={"joint": "x"}, dtype="bfloat16")
    checkpoint = save_member(tmp_path / "checkpoint", "X", feature_dir=str(tmp_path / "features"), encoder="old")
    with pytest.raises(DataError, match=rf"{NEW} \(bfloat16, joint=x\), .* was trained on version old \(float32\); extract"):
        MomentRetriever.from_features(checkpoint, ENTRIES)


def test_members_read_the_features_of_their_own_combo(tmp_path):
    store_features(tmp_path / "features")
    store_features(tmp_path / "others", combo="Y")
    places = {"X": {"feature_dir": str(tmp_path / "features")}, "Y": {"feature_dir": str(tmp_path / "others")}}
    members = [str(save_member(tmp_path / name, name[0], seed, **places[name[0]])) for seed, name in enumerate(["X0", "X1", "Y0"])]
    system = MomentRetriever.from_features(load_system("submit1", members=members), ENTRIES)
    recording = system.encode("first")
    heard = [member.heard(recording).streams for member in system.members]
    assert [list(streams) for streams in heard] == [list(STREAMS[name][0]) for name in "XXY"]
    assert torch.equal(heard[2]["joint"], OwnFeatures(tmp_path / "others").audio("first")["joint"])
    assert not torch.equal(heard[2]["joint"], heard[0]["joint"])
    assert system.retrieve(recording, "a dog barks").encoder == "X+Y"
