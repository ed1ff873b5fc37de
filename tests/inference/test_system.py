"""Recipes of systems: the shipped ones say what the report says, and mistakes in any are one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from stored_features import OwnFeatures
from tiny_streams import DIM, STREAMS, save_member, tiny_combos
from tiny_system import write_sound

import qamdetr.features.base
from qamdetr.config import CONFIG_DIR, SYSTEM_DIR
from qamdetr.data.manifest import QueryEntry
from qamdetr.errors import CheckpointError, ConfigError, DataError, QamDetrError
from qamdetr.inference.system import load_system, open_stored_system, open_system
from qamdetr.types import TextFeatures

SUBMISSIONS = {"submit1": ("abc", "none", None), "submit2": ("abc", "qwen2.5-omni", 0.35), "submit3": ("a", "qwen2.5-omni", 0.45),
               "submit4": ("b", "qwen2.5-omni", 0.30)}  # fmt: skip
"""Combos, verifier and beta of the report's sections 2.3 and 4.2."""


def write(folder: Path, text: str) -> Path:
    path = folder / "system.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_the_submissions_are_the_reports(name: str) -> None:
    system = load_system(name)
    combos, verifier, beta = SUBMISSIONS[name]
    assert (system.verify_with, system.top_k) == (verifier, 10)
    assert beta is None or system.beta == beta
    runs = [re.fullmatch(r"runs/combo_([abc])_finetune-s(\d)/best", member.checkpoint) for member in system.members.values()]
    assert sorted({run[1] for run in runs}) == list(combos)
    for combo in combos:
        assert len({run[2] for run in runs if run[1] == combo}) >= 2, "several seeds of each combo"
        assert (CONFIG_DIR / f"combo_{combo}_finetune.yaml").is_file()
    assert len({run.string for run in runs}) == len(runs)
    assert {member.weight for member in system.members.values()} == {1.0}


def test_submit2_ranks_the_candidates_of_submit1_anew() -> None:
    one, two = load_system("submit1"), load_system("submit2")
    assert (one.members, one.merge, one.merge_iou) == (two.members, two.merge, two.merge_iou)


def test_every_shipped_system_loads_and_says_what_it_is() -> None:
    files = sorted(SYSTEM_DIR.glob("*.yaml"))
    assert {path.stem for path in files if not path.stem.startswith("_")} == set(SUBMISSIONS)
    for path in files:
        assert path.read_text(encoding="utf-8").startswith("# ")
        assert load_system(path.stem).members


def test_members_may_be_named_listed_or_given(tmp_path: Path) -> None:
    named = load_system(write(tmp_path, "members: {one: runs/x, two: {checkpoint: runs/y, weight: 2}}"))
    assert [(name, m.checkpoint, m.weight) for name, m in named.members.items()] == [("one", "runs/x", 1.0), ("two", "runs/y", 2.0)]
    listed = load_system(write(tmp_path, "members: [runs/x, {checkpoint: runs/y, weight: 2}]"), ["merge=nms", "members.runs/x.weight=3"])
    assert [(m.checkpoint, m.weight) for m in listed.members.values()] == [("runs/x", 3.0), ("runs/y", 2.0)]
    assert listed.merge == "nms"
    given = load_system("submit2", members=["a", "b"])
    assert [m.checkpoint for m in given.members.values()] == ["a", "b"]
    assert (given.verify_with, given.beta) == ("qwen2.5-omni", 0.35)
    weighted = load_system("submit3", ["members.a-s1.weight=0.5"])
    assert [m.weight for m in weighted.members.values()] == [1.0, 0.5, 1.0]
    assert [m.checkpoint for m in load_system("submit1", ["members=[x]"]).members.values()] == ["x"]


def test_settings_of_members_go_to_every_member() -> None:
    system = load_system("submit3", ["data.feature_dir=elsewhere", "inference.nms_iou=1", "verifier.batch_size=2"])
    assert {m.overrides for m in system.members.values()} == {("data.feature_dir=elsewhere", "inference.nms_iou=1")}
    assert system.verifier.batch_size == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("members: {a: x}\nmerg: nms", "Unknown key 'merg'; known here: members, merge"),
        ("members: {a: x}\nmerge: vote", "merge is 'vote'; it must be one of pool, nms, fusion"),
        ("members: {a: x}\nmerge_iou: 2", "merge_iou is 2.0; it must be from 0.0 to 1.0"),
        ("members: {a: x}\nbeta: 1.5", "beta is 1.5; it must be from 0.0 to 1.0"),
        ("members: {a: x}\ntop_k: 0", "top_k is 0; it must be at least 1"),
        ("members: {a: x}\nverify_with: ear", "Verifier 'ear' is not known; choose one of none, pocket"),
        ("members: {a: x}\nverifier: {batch: 2}", "Unknown key 'verifier.batch'"),
        ("members: {a: x}\nverifier: pocket", "verifier is 'pocket'; a system names its verifier in `verify_with`"),
        ("members: {a: x}\nverifier: no", "verifier is False; a system names its verifier in `verify_with`"),
        ("members: {a: x}\nbeta: 0.2\nbeta: 0.3", "system.yaml: the key 'beta' stands twice, in lines 2 and 3"),
        ("members: [x/best, ./x/best/]", "members x/best and ./x/best/ are one checkpoint, ./x/best/; name it once"),
        ("members: {a: x, b: {checkpoint: x/, weight: 2}}", "members a and b are one checkpoint, x/; name it once"),
        ("members:", "members is empty"),
        ("members: {a: {weight: 2}}", "members.a.checkpoint is missing"),
        ("members: {a: {checkpoint: x, weight: 0}}", "The weight of member x is 0.0; it must be above 0"),
        ("members: {a: {checkpoint: x, weight: .nan}}", "The weight of member x is nan"),
        ("members: {a: {checkpoint: x, seed: 1}}", "Unknown key 'members.a.seed'"),
        ("members: [x, x]", "members lists x twice"),
        ("members: [3]", "members lists 3"),
        ("members: []", "members is empty"),
        ("beta: 0.3", "members is empty"),
        ("members: 5", "members is 5"),
        ("extends: submit9", "No system 'submit9': give a YAML file or one of submit1, submit2, submit3, submit4"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(QamDetrError) as caught:
        load_system(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bare_no_is_the_verifier_none(tmp_path: Path) -> None:
    assert load_system(write(tmp_path, "extends: submit2\nverify_with: no")).verify_with == "none"
    assert load_system("submit2", ["verify_with=no"]).verify_with == "none"


def test_a_checkpoint_counts_once_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_member(tmp_path / "X", "X")
    (tmp_path / "link").symlink_to("X")
    for other in ("X/", "./X", str(tmp_path / "X"), "link"):
        with pytest.raises(ConfigError, match="are one checkpoint"):
            load_system("submit1", members=["X", other])
    monkeypatch.setattr("qamdetr.config.CHECKPOINT_DIR", tmp_path / "shipped")
    save_member(tmp_path / "shipped" / "pocket", "X")
    with pytest.raises(ConfigError, match="members pocket and shipped/pocket are one checkpoint"):
        load_system("submit1", members=["pocket", "shipped/pocket"])
    several = "members: {a: X, b: {checkpoint: X, overrides: [inference.nms_iou=1]}}"
    assert len(load_system(write(tmp_path, several)).members) == 2, "other settings make another member"


def test_missing_members_are_named_with_the_commands_that_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_member(tmp_path / "runs" / "combo_a_finetune-s1" / "best", "X")
    with pytest.raises(CheckpointError) as caught:
        open_system(load_system("submit1"))
    told = str(caught.value)
    assert "8 of the system's 9 members are missing" in told
    assert "a-s0 (runs/combo_a_finetune-s0/best)" in told
    assert "a-s1" not in told
    assert "`python train.py --config combo_a_finetune --seeds 0 2`" in told
    assert "`python train.py --config combo_c_finetune --seeds 0 1 2`" in told
    with pytest.raises(CheckpointError, match=r"1 of the system's 1 members are missing: nowhere; No checkpoint 'nowhere'"):
        open_stored_system(load_system("submit1", members=["nowhere"]), [])


@pytest.fixture
def shared_combos(monkeypatch: pytest.MonkeyPatch):
    combos, runs = tiny_combos()
    asked: list[tuple[str, dict]] = []
    monkeypatch.setattr(
        qamdetr.features.base, "open_streams", lambda *streams, name, **options: asked.append((name, options)) or combos[name]
    )
    return combos, runs, asked


def test_a_system_opens_with_each_encoder_once(tmp_path: Path, shared_combos) -> None:
    _, runs, asked = shared_combos
    members = [str(save_member(tmp_path / f"{combo}{seed}", combo, seed)) for combo in "XY" for seed in (0, 1)]
    system = load_system("submit1", ["inference.found_threshold=0.25", "merge=pool"], members=members)
    ensemble = open_system(system, encoder_models={"joint": "my/joint"})
    assert asked == [(combo, {"models": {"joint": "my/joint"}, "dtype": "float32", "device": None}) for combo in "XXYY"]
    assert {member.config.inference.found_threshold for member in ensemble.members} == {0.25}
    recording = ensemble.encode(write_sound(tmp_path / "a.wav", 9.5))
    assert runs == {"joint": 1, "loud": 1, "soft": 1}
    result = ensemble.retrieve(recording, "a dog", top_k=100)
    assert (result.encoder, len(result.moments)) == ("X+Y", 4 * 5)


def test_each_member_gets_the_models_of_its_own_streams(tmp_path: Path, shared_combos) -> None:
    _, _, asked = shared_combos
    members = [str(save_member(tmp_path / combo, combo)) for combo in "XY"]
    system = load_system("submit1", members=members)
    open_system(system, encoder_models={"words": "mine", "joint": "ours"})
    assert [options["models"] for _, options in asked] == [{"joint": "ours"}, {"words": "mine", "joint": "ours"}]
    del asked[:]
    with pytest.raises(ConfigError, match=r"--encoder: .*X, .*Y have no stream 'wavlm_base', only joint, loud, soft, words\."):
        open_system(system, encoder_models={"joint": "ours", "wavlm_base": "x"})
    assert asked == []


def test_a_member_whose_network_would_change_is_refused(tmp_path: Path, shared_combos) -> None:
    member = save_member(tmp_path / "m", "X")
    path = write(tmp_path, f"members: {{a: {{checkpoint: {member}, overrides: [model.num_moment_queries=6]}}}}")
    with pytest.raises(ConfigError, match="changes the model section"):
        open_system(load_system(path))


def test_members_read_the_features_of_their_own_combo(tmp_path: Path) -> None:
    entries = [QueryEntry("q1", "a dog", "first", 12.0, None), QueryEntry("q2", "rain", "second", 7.5, None)]
    generator = torch.Generator().manual_seed(0)
    for audio, text in STREAMS.values():
        cache = OwnFeatures(tmp_path / "features")
        for vid, clips in (("first", 12), ("second", 8)):
            cache.write_audio(vid, {name: torch.randn(clips, DIM, generator=generator) for name in audio})
        for entry in entries:
            tokens = torch.randn(3, DIM, generator=generator)
            cache.write_text(entry.query, {name: TextFeatures(tokens, ((0, 1), (1, 2), (2, 3))) for name in text})
    data = {"feature_dir": str(tmp_path / "features")}
    members = [str(save_member(tmp_path / name, name[0], seed, **data)) for seed, name in enumerate(["X0", "X1", "Y0"])]
    ensemble = open_stored_system(load_system("submit1", members=members), entries)
    recording = ensemble.encode("first")
    assert recording.parts[0] is recording.parts[1], "read once for two members"
    assert [list(part.streams) for part in recording.parts] == [list(STREAMS[name][0]) for name in "XXY"]
    expected = OwnFeatures(tmp_path / "features").audio("first")["joint"]
    assert torch.equal(recording.parts[2].streams["joint"], expected)
    assert ensemble.retrieve(recording, "a dog").encoder == "X+Y"
    save_member(Path(members[2]), "Y", **data, encoder="another")
    with pytest.raises(DataError, match=r"encoder version [0-9a-f]{16}, "):
        open_stored_system(load_system("submit1", members=members), entries)
