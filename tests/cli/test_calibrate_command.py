"""`calibrate`: the curve against `predict` and `evaluate`, what is written and what stays, verifiers that fail, mistakes."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch
import yaml
from stored_features import OwnFeatures
from tiny_system import save_tiny, tiny_config, write_sound

from qamdetr import cli, files
from qamdetr.audio import Sound
from qamdetr.config import load_config
from qamdetr.data.manifest import QueryEntry, write_manifest
from qamdetr.errors import QamDetrError
from qamdetr.inference.checkpoint import save_checkpoint
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.model.qam_detr import QamDetr
from qamdetr.verifiers import base as registry

QUERIES = ("a dog barks", "rain", "a bell rings", "someone speaks", "an engine", "wind")


class OracleVerifier:
    """Knows where the true windows are; fails for the queries in `deaf`."""

    name = "oracle"
    identity = "oracle"
    needs_audio = False

    def __init__(self, truth, deaf=()):
        self.truth, self.deaf, self.asked, self.paths, self.missing = truth, deaf, [], [], False

    def check(self):
        if self.missing:
            raise QamDetrError("The oracle has left; call it back.")

    def verify(self, recording, query, text, candidates):
        self.asked.append((recording.name, query))
        self.paths.append(recording.path)
        if query in self.deaf:
            raise QamDetrError("it is out of order")
        return [max((overlap(candidate.window, true) for true in self.truth[query]), default=0.0) for candidate in candidates]


def overlap(one, other):
    shared = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / (max(one[1], other[1]) - min(one[0], other[0]))


@pytest.fixture
def checkpoint(tmp_path, encoder):
    folder = save_tiny(tmp_path / "model", beta=0.2, beta_by_verifier={"server": 0.45})
    (folder / "README.md").write_text("a card", encoding="utf-8")
    return folder


@pytest.fixture
def entries(tmp_path, checkpoint, encoder):
    """Three recordings, two queries each; what is true is one of the tiny model's own candidates, but not its first."""
    retriever = MomentRetriever.from_pretrained(checkpoint)
    made = []
    for number, query in enumerate(QUERIES):
        vid = f"r{number // 2}"
        path = tmp_path / "audio" / f"{vid}.wav"
        path.parent.mkdir(exist_ok=True)
        recording = retriever.encode(path if path.exists() else write_sound(path, 20 + number, seed=number))
        moment = retriever.retrieve(recording, query).moments[-1]
        made.append(QueryEntry(f"q{number}", query, vid, recording.duration_seconds, (moment.window,)))
    encoder.encoded.clear()
    return made


@pytest.fixture
def manifest(tmp_path, entries):
    absent = QueryEntry("absent", "a whale", "no-such-recording", 30.0, ())
    write_manifest(tmp_path / "val.jsonl", [*entries, absent])
    return tmp_path / "val.jsonl"


@pytest.fixture
def oracle(monkeypatch, entries):
    verifier = OracleVerifier({entry.query: entry.relevant_windows for entry in entries})
    verifier.settings = []

    def make(settings):
        verifier.settings.append(settings)
        return verifier

    monkeypatch.setitem(registry.VERIFIERS, "oracle", registry.VerifierInfo("Oracle", False, make))
    return verifier


@pytest.fixture
def calibrate(checkpoint, manifest, oracle, capsys):
    """Run the command with checkpoint and manifest; returns (exit status, stdout, stderr)."""

    def run(*args, verifier="oracle"):
        arguments = ["calibrate", "--checkpoint", checkpoint, "--manifest", manifest, "--verifier", verifier, *args]
        status = cli.main(list(map(str, arguments)))
        return status, *capsys.readouterr()

    return run


def save_seed(folder, config, seed):
    torch.manual_seed(seed)
    save_checkpoint(folder, QamDetr(config.model), config)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_weight_is_written_and_nothing_else_changes(calibrate, checkpoint, manifest):
    before, old = contents(checkpoint), load_config(checkpoint / "config.yaml")
    status, out, err = calibrate("--json")
    assert status == 0
    chosen = json.loads(out)["beta"]
    assert chosen > 0, "the oracle helps"
    after, new = contents(checkpoint), load_config(checkpoint / "config.yaml")
    assert new.inference.beta_by_verifier == {"server": 0.45, "oracle": chosen}
    assert replace(new, inference=replace(new.inference, beta_by_verifier={"server": 0.45})) == old
    assert yaml.safe_load(after["config.yaml"])["inference"]["beta_by_verifier"]["oracle"] == chosen
    assert {**after, "config.yaml": b""} == {**before, "config.yaml": b""}
    assert err == (
        "qamdetr: 1 of 7 queries have no true windows and were left out.\n"
        f"qamdetr: inference.beta_by_verifier.oracle: {chosen:g} is now in {checkpoint / 'config.yaml'}.\n"
    )


def test_the_retriever_uses_what_was_written(calibrate, checkpoint, entries, tmp_path):
    _, out, _ = calibrate("--json")
    retriever = MomentRetriever.from_pretrained(checkpoint)
    recording = retriever.encode(tmp_path / "audio" / "r0.wav")
    assert retriever.retrieve(recording, "rain", verifier="oracle").beta == json.loads(out)["beta"]
    assert retriever.retrieve(recording, "rain", verifier="oracle", beta=0.9).beta == 0.9
    assert retriever.retrieve(recording, "rain", verifier="pocket").beta == 0.2


def test_each_query_is_asked_once_and_each_recording_encoded_once(calibrate, oracle, encoder, tmp_path):
    calibrate("--dry-run")
    assert sorted(oracle.asked) == sorted((f"r{number // 2}.wav", query) for number, query in enumerate(QUERIES))
    assert encoder.encoded == [str(tmp_path / "audio" / f"r{number}.wav") for number in range(3)]


def test_every_point_is_what_predict_and_evaluate_give(calibrate, checkpoint, manifest, entries, tmp_path, capsys):
    _, out, _ = calibrate("--json", "--dry-run", "--grid", 0, 0.2, 0.6, 1)
    curve = json.loads(out)["curve"]
    assert len({point["R1@0.7"] for point in curve}) > 1, "the weight must matter, or the comparison says nothing"
    truth, predictions = tmp_path / "truth.jsonl", tmp_path / "p.jsonl"
    write_manifest(truth, entries)
    for point in curve:
        common = ["--checkpoint", checkpoint, "--manifest", truth, "--verifier", "oracle", "--output", predictions]
        assert cli.main(list(map(str, ["predict", *common, "--beta", point["beta"]]))) == 0
        capsys.readouterr()
        assert cli.main(["evaluate", str(predictions), str(truth), "--json"]) == 0
        scores = json.loads(capsys.readouterr().out)
        assert {name: point[name] for name in ("R1@0.5", "R1@0.7", "mAP")} == {name: scores[name] for name in ("R1@0.5", "R1@0.7", "mAP")}


def test_a_dry_run_shows_the_curve_and_writes_nothing_but_the_figure(calibrate, checkpoint, tmp_path):
    before = contents(checkpoint)
    status, out, err = calibrate("--dry-run", "--figure", tmp_path / "curve.svg")
    assert status == 0
    assert contents(checkpoint) == before
    assert (tmp_path / "curve.svg").read_bytes().startswith(b"<?xml")
    lines = out.splitlines()
    assert lines[0].split() == ["beta", "R1@0.5", "R1@0.7", "mAP"]
    assert [line.split()[0] for line in lines[1:22]] == [f"{step / 20:.2f}" for step in range(21)]
    marks = {line.split()[0]: line.split(maxsplit=4)[4] for line in lines[1:22] if len(line.split()) > 4}
    assert marks["0.00"] == "decoder alone"
    assert marks["1.00"].startswith("verifier alone")
    assert all(marks[beta].startswith("report") for beta in ("0.30", "0.35", "0.45"))
    (chosen,) = [beta for beta, text in marks.items() if "chosen" in text]
    assert lines[-1].startswith(f"Chosen: {float(chosen):g}. ")
    assert "no true windows" in err


def test_a_grid_without_zero_is_still_compared_with_the_decoder_alone(calibrate):
    _, out, _ = calibrate("--json", "--dry-run", "--grid", 0.9, 0.3)
    answer = json.loads(out)
    assert [point["beta"] for point in answer["curve"]] == [0, 0.3, 0.9]
    assert answer["curve"][0]["marks"] == ["decoder alone", "not in the grid"]
    gain = answer["gain"]["R1@0.7"]
    by_beta = {point["beta"]: point["R1@0.7"] for point in answer["curve"]}
    assert gain["difference"] == pytest.approx(by_beta[answer["beta"]] - by_beta[0], abs=0.01)
    assert gain["verdict"] == "undecided", "three recordings cannot show anything"


def test_the_last_candidate_that_the_verifier_sees_may_come_first(calibrate, oracle, entries, tmp_path):
    config = tiny_config(top_k=15, nms_iou=1.0)
    many = save_seed(tmp_path / "many", replace(config, model=replace(config.model, num_moment_queries=15)), seed=0)
    retriever = MomentRetriever.from_pretrained(many)
    for entry in entries:
        recording = retriever.encode(tmp_path / "audio" / f"{entry.vid}.wav")
        oracle.truth[entry.query] = [retriever.retrieve(recording, entry.query, top_k=15).moments[-1].window]
    write_manifest(tmp_path / "val.jsonl", [replace(entry, relevant_windows=tuple(oracle.truth[entry.query])) for entry in entries])
    _, out, _ = calibrate("--checkpoint", many, "--json", "--grid", 1)
    decoder_alone, oracle_alone = json.loads(out)["curve"]
    assert oracle_alone["R1@0.7"] == 100 > decoder_alone["R1@0.7"]


def test_the_verifier_s_options_go_over_the_checkpoint_s(calibrate, oracle):
    calibrate("--dry-run", "--verifier-model", "m", "--verifier-url", "http://x/v1", "--set", "verifier.retries=7")
    (settings,) = oracle.settings
    assert (settings.model, settings.url, settings.retries) == ("m", "http://x/v1", 7)


def test_queries_that_a_verifier_fails_on_keep_the_decoder_s_ranking(calibrate, oracle, checkpoint):
    oracle.deaf = QUERIES[:2]
    status, out, err = calibrate("--json")
    assert status == 0
    answer = json.loads(out)
    assert (answer["num_queries"], answer["num_unverified"]) == (6, 2)
    assert "2 of 6 queries are ranked by the decoder alone at every beta. Verifier oracle failed (it is out of order)" in err
    assert load_config(checkpoint / "config.yaml").inference.beta_by_verifier["oracle"] == answer["beta"]


def test_a_verifier_that_always_fails_is_an_error(calibrate, oracle, checkpoint):
    oracle.deaf, before = QUERIES, contents(checkpoint)
    status, out, err = calibrate()
    assert (status, out) == (2, "")
    assert "No query of 6 was verified, so nothing was written: Verifier oracle failed (it is out of order)" in err
    assert contents(checkpoint) == before


@pytest.mark.parametrize("source", ["audio", "features"])
def test_a_verifier_that_is_not_there_is_an_error_before_any_work(calibrate, oracle, encoder, stored, checkpoint, monkeypatch, source):
    oracle.missing, before, read = True, contents(checkpoint), []
    monkeypatch.setattr(type(encoder), "encode_query", lambda self, query: read.append(query))
    status, out, err = calibrate(*(stored if source == "features" else []))
    assert (status, out, err) == (2, "", "qamdetr: error: The oracle has left; call it back.\n")
    assert (encoder.encoded, read, oracle.asked) == ([], [], [])
    assert contents(checkpoint) == before


def test_a_weight_chosen_with_other_settings_is_told_and_not_written(calibrate, checkpoint, monkeypatch):
    before = contents(checkpoint)
    # What is not written need not be writable.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    status, out, err = calibrate("--json", "--set", "inference.nms_iou=0.5", "--set", "data.max_clips=299", "--set", "inference.top_k=9")
    assert status == 0
    assert err.splitlines()[-1] == (
        "qamdetr: nothing was written, as the weight goes with --set inference.nms_iou=0.5 --set inference.top_k=9; put that and "
        f"`inference.beta_by_verifier.oracle: {json.loads(out)['beta']:g}` into the config.yaml of a copy."
    )
    assert contents(checkpoint) == before


@pytest.mark.parametrize("change", ["verifier.model=other", "verifier.dtype=float16", "verifier.four_bit=true", "inference.beta=0.1"])
def test_what_may_change_answers_keeps_the_weight_out(calibrate, checkpoint, change):
    before = contents(checkpoint)
    assert f"nothing was written, as the weight goes with --set {change};" in calibrate("--set", change)[2]
    assert contents(checkpoint) == before


def test_another_model_of_the_verifier_keeps_the_weight_out(calibrate, checkpoint):
    before = contents(checkpoint)
    assert "as the weight goes with --verifier-model 3B; put that" in calibrate("--verifier-model", "3B")[2]
    assert contents(checkpoint) == before


def test_settings_that_change_no_answer_let_the_weight_in(calibrate, checkpoint):
    changes = ["data.num_workers=1", "verifier.url=http://x/v1", "verifier.cache_dir=c", "verifier.retries=0", "verifier.timeout_seconds=1"]
    _, out, _ = calibrate("--json", *(part for change in changes for part in ("--set", change)))
    assert load_config(checkpoint / "config.yaml").inference.beta_by_verifier["oracle"] == json.loads(out)["beta"]


def test_a_choice_that_is_worse_than_the_decoder_alone_is_told_and_not_written(calibrate, oracle, entries, manifest, checkpoint, tmp_path):
    """What is true is now the decoder's own best, which a verifier that knows nothing of it can only spoil."""
    retriever, before = MomentRetriever.from_pretrained(checkpoint), contents(checkpoint)
    best = [retriever.retrieve(retriever.encode(tmp_path / "audio" / f"{entry.vid}.wav"), entry.query).moments[0] for entry in entries]
    write_manifest(manifest, [replace(entry, relevant_windows=(moment.window,)) for entry, moment in zip(entries, best, strict=True)])
    status, out, err = calibrate("--json", "--grid", 0.9, 1)
    answer = json.loads(out)
    decoder, *tried = (point["R1@0.7"] for point in answer["curve"])
    assert decoder == 100 > max(tried)
    assert (status, answer["worse_than_decoder"]) == (0, True)
    assert f"nothing was written, as {answer['beta']:g}, the best of the grid, is worse than the decoder alone" in err
    _, text, _ = calibrate("--grid", 0.9, 1)
    assert f"worse than the decoder alone: R1@0.7 {max(tried):.2f} against 100.00, mAP " in text.splitlines()[-1]
    assert contents(checkpoint) == before
    _, out, _ = calibrate("--json", "--grid", 0, 0.9, 1)
    assert (json.loads(out)["beta"], json.loads(out)["worse_than_decoder"]) == (0, False)
    assert load_config(checkpoint / "config.yaml").inference.beta_by_verifier["oracle"] == 0


def test_an_unreadable_recording_keeps_the_curve_but_not_the_weight(calibrate, checkpoint, tmp_path):
    before = contents(checkpoint)
    (tmp_path / "audio" / "r1.wav").write_text("no sound")
    status, out, err = calibrate("--json")
    assert status == 2
    assert json.loads(out)["num_queries"] == 4
    assert "nothing was written" in err
    assert "1 of 3 recordings could not be used" in err
    assert contents(checkpoint) == before


@pytest.fixture
def stored(entries, encoder, tmp_path):
    """Options that read the features of the recordings and queries from a cache."""
    recordings = {entry.vid: tmp_path / "audio" / f"{entry.vid}.wav" for entry in entries}
    cache = OwnFeatures(tmp_path / "features", recordings=recordings)
    for entry in entries:
        cache.write_audio(entry.vid, encoder.encode(Sound(recordings[entry.vid])).streams)
        cache.write_text(entry.query, encoder.encode_query(entry.query))
    encoder.encoded.clear()
    return ["--from-features", "--set", f"data.feature_dir={tmp_path / 'features'}"]


def test_stored_features_need_no_audio_unless_the_verifier_listens(calibrate, stored, oracle, encoder, tmp_path):
    def curve(*more, verifier="pocket"):
        status, out, _ = calibrate("--json", "--dry-run", *more, verifier=verifier)
        assert status == 0
        return json.loads(out)["curve"]

    from_audio = curve()
    encoder.encoded.clear()
    from_features = curve(*stored)
    assert from_features == from_audio
    assert encoder.encoded == []
    moved = (tmp_path / "audio").rename(tmp_path / "moved")
    assert curve(*stored) == from_features
    oracle.needs_audio = True
    status, _, err = calibrate(*stored)
    assert (status, oracle.asked) == (2, [])
    assert "audio" in err
    curve(*stored, "--audio-dir", moved, verifier="oracle")
    assert sorted(set(oracle.paths)) == [str(moved / f"r{number}.wav") for number in range(3)]


def test_what_must_be_named(checkpoint, oracle, manifest, tmp_path, told):
    assert "name it with --checkpoint or --system" in told("calibrate", "--manifest", manifest, "--verifier", "oracle")
    write_manifest(tmp_path / "m.jsonl", [QueryEntry("q", "a dog", "r0", 20.0, None), QueryEntry("p", "a dog", "r0", 20.0, ())])
    start = ["calibrate", "--checkpoint", checkpoint, "--manifest", tmp_path / "m.jsonl"]
    assert "none of the 2 queries has `relevant_windows`" in told(*start, "--verifier", "oracle")
    assert "The verifier is none" in told(*start)


def test_a_query_that_cannot_be_read_is_told_before_any_work(checkpoint, manifest, entries, oracle, encoder, told):
    write_manifest(manifest, [*entries[:-1], replace(entries[-1], query="x" * 201)])
    assert "val.jsonl: query 'q5': The query has 201 letters" in told(
        "calibrate", "--checkpoint", checkpoint, "--manifest", manifest, "--verifier", "oracle"
    )
    assert encoder.encoded == []


def test_a_checkpoint_that_cannot_be_written_is_told_before_any_work(calibrate, oracle, checkpoint, monkeypatch):
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: False if path == checkpoint else real(path, mode))
    status, out, err = calibrate()
    assert (status, out, oracle.asked) == (2, "", [])
    assert err.startswith(f"qamdetr: error: {checkpoint / 'config.yaml'} cannot be written")
    assert "--dry-run" in err
    assert calibrate("--dry-run")[0] == 0


def test_a_disk_that_refuses_at_the_end_keeps_the_curve_and_the_old_configuration(calibrate, checkpoint, monkeypatch):
    before = contents(checkpoint)

    def refuse(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "replace", refuse)
    status, out, err = calibrate("--json")
    assert status == 2
    assert json.loads(out)["num_queries"] == 6
    assert "config.yaml cannot be written (No space left on device)" in err.splitlines()[-1]
    assert contents(checkpoint) == before


@pytest.fixture
def system(tmp_path, checkpoint):
    """A system file of two tiny members, with comments."""
    other = save_seed(tmp_path / "other", tiny_config(), seed=1)
    path = tmp_path / "mine.yaml"
    path.write_text(f"# mine\nmembers: [{checkpoint}, {other}]\nverify_with: oracle\nbeta: 0.5  # guessed\ntop_k: 7\n", encoding="utf-8")
    return path


@pytest.fixture
def calibrate_system(system, manifest, oracle, stored, capsys):
    """As `calibrate`, with the system's verifier."""

    def run(*args):
        status = cli.main(list(map(str, ["calibrate", "--system", system, "--manifest", manifest, "--json", *stored, *args])))
        return status, *capsys.readouterr()

    return run


def test_a_system_of_one_s_own_gets_its_weight_and_keeps_the_rest(calibrate_system, system, checkpoint):
    before, model = system.read_text(encoding="utf-8"), contents(checkpoint)
    status, out, err = calibrate_system()
    assert status == 0
    answer = json.loads(out)
    assert (answer["verifier"], answer["num_queries"]) == ("oracle", 6)
    assert f"`beta: {answer['beta']}` is now in {system}" in err
    assert system.read_text(encoding="utf-8") == before.replace("0.5", str(answer["beta"]))
    assert contents(checkpoint) == model


def test_a_system_without_a_weight_gets_a_line(calibrate_system, system):
    system.write_text(system.read_text(encoding="utf-8").replace("beta: 0.5  # guessed\n", ""), encoding="utf-8")
    _, out, _ = calibrate_system()
    assert system.read_text(encoding="utf-8").endswith(f"top_k: 7\nbeta: {json.loads(out)['beta']}\n")


def test_another_verifier_than_the_system_s_is_told_and_not_written(calibrate_system, system):
    before = system.read_bytes()
    status, out, err = calibrate_system("--verifier", "pocket")
    assert status == 0
    assert f"put `verify_with: pocket` and `beta: {json.loads(out)['beta']}` into a system file of your own" in err
    assert system.read_bytes() == before


def test_a_system_with_other_members_is_another_system(calibrate_system, system, checkpoint):
    before = system.read_bytes()
    status, _, err = calibrate_system("--members", checkpoint)
    assert status == 0
    assert "nothing was written; put `verify_with: oracle`" in err
    assert system.read_bytes() == before


@pytest.mark.parametrize("change", ["merge=pool", "top_k=3", "verify_with=pocket", "inference.nms_iou=0.5"])
def test_a_system_with_other_settings_is_another_system(calibrate_system, system, change):
    before = system.read_bytes()
    status, _, err = calibrate_system("--set", change)
    assert status == 0
    assert f"nothing was written, as the weight goes with --set {change}; put that, `verify_with: " in err
    assert system.read_bytes() == before


def test_one_name_for_the_settings_of_a_verifier(calibrate_system, oracle, system):
    _, out, _ = calibrate_system("--set", "verifier.url=http://x/v1")
    assert oracle.settings[-1].url == "http://x/v1"
    assert f"beta: {json.loads(out)['beta']}  # guessed" in system.read_text(encoding="utf-8")


def test_a_system_in_an_unusual_layout_is_left_alone(calibrate_system, system, checkpoint):
    system.write_text(f"{{members: [{checkpoint}], verify_with: oracle}}\n", encoding="utf-8")
    before = system.read_bytes()
    status, _, err = calibrate_system()
    assert status == 2
    assert "laid out in an unusual way; write `beta: " in err
    assert system.read_bytes() == before
