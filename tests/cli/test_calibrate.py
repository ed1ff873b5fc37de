"""`calibrate`: the curve against `predict` and `evaluate`, what is written where and what stays, verifiers that fail."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny_system import tiny_config, tiny_model, write_sound

from qamdetr import cli, files
from qamdetr.config import load_config
from qamdetr.data.manifest import QueryEntry, write_manifest
from qamdetr.features.extract import extract
from qamdetr.inference.checkpoint import save_checkpoint
from qamdetr.inference.retriever import MomentRetriever

QUERIES = ("a dog barks", "rain", "a bell rings", "someone speaks", "an engine", "wind")


def overlap(one, other):
    shared = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / (max(one[1], other[1]) - min(one[0], other[0]))


@pytest.fixture
def world(tmp_path, encoder, oracle, capsys):
    """A checkpoint, three recordings with two queries each, and an oracle; true is the model's last candidate of twelve."""
    config = tiny_config(top_k=12, nms_iou=1.0, beta=0.2, beta_by_verifier={"server": 0.45})
    config = replace(config, model=replace(config.model, num_moment_queries=12))
    save_checkpoint(checkpoint := tmp_path / "model", tiny_model(config), config)
    retriever = MomentRetriever.from_pretrained(checkpoint)
    (tmp_path / "audio").mkdir()
    paths = {f"r{number}": write_sound(tmp_path / "audio" / f"r{number}.wav", 20 + number, seed=number) for number in range(3)}
    found = [retriever.retrieve(retriever.encode(paths[f"r{n // 2}"]), query, top_k=12).moments for n, query in enumerate(QUERIES)]
    entries = [QueryEntry(f"q{n}", q, f"r{n // 2}", 20.0 + n // 2, (found[n][-1].window,)) for n, q in enumerate(QUERIES)]
    write_manifest(tmp_path / "truth.jsonl", entries)
    write_manifest(tmp_path / "val.jsonl", [*entries, QueryEntry("absent", "a whale", "no-such-recording", 30.0, ())])
    oracle.truth = {entry.query: entry.relevant_windows[0] for entry in entries}
    oracle.says = lambda recording, query, window: overlap(window, oracle.truth[query])
    encoder.encoded.clear()

    def run(*args, source=("--checkpoint", checkpoint, "--verifier", "oracle")):
        status = cli.main(list(map(str, ["calibrate", *source, "--manifest", tmp_path / "val.jsonl", *args])))
        return status, *capsys.readouterr()

    made = {"checkpoint": checkpoint, "entries": entries, "oracle": oracle, "paths": paths, "found": found, "encoder": encoder}
    return SimpleNamespace(run=run, folder=tmp_path, **made)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_weight_is_written_nothing_else_changes_and_the_retriever_uses_it(world):
    before, old = contents(world.checkpoint), load_config(world.checkpoint / "config.yaml")
    status, out, err = world.run("--json", "--set", "data.num_workers=1", "--set", "verifier.retries=7")  # which change no answer
    chosen = json.loads(out)["beta"]
    assert (status, chosen > 0) == (0, True), "the oracle helps"
    after, new = contents(world.checkpoint), load_config(world.checkpoint / "config.yaml")
    assert new.inference.beta_by_verifier == {"server": 0.45, "oracle": chosen}
    assert replace(new, inference=replace(new.inference, beta_by_verifier={"server": 0.45})) == old
    assert {**after, "config.yaml": b""} == {**before, "config.yaml": b""}
    left_out, told = err.splitlines()
    assert left_out == "qamdetr: 1 of 7 queries have no true windows and were left out."
    assert told == f"qamdetr: inference.beta_by_verifier.oracle: {chosen:g} is now in {world.checkpoint / 'config.yaml'}."
    assert world.oracle.settings[0].retries == 7
    assert sorted(world.oracle.asked) == sorted((f"{entry.vid}.wav", entry.query) for entry in world.entries), "each is asked once"
    assert world.encoder.encoded == list(map(str, world.paths.values())), "each is encoded once"
    retriever = MomentRetriever.from_pretrained(world.checkpoint)
    recording = retriever.encode(world.paths["r0"])
    assert [retriever.retrieve(recording, "rain", verifier=name).beta for name in ("oracle", "pocket")] == [chosen, 0.2]


def test_every_point_is_what_predict_and_evaluate_give_and_zero_is_always_among_them(world, capsys):
    before = contents(world.checkpoint)
    answer = json.loads(world.run("--json", "--dry-run", "--figure", world.folder / "f.svg", "--grid", 1, "--grid", 0.2, "--grid", 0.6)[1])
    assert contents(world.checkpoint) == before and (world.folder / "f.svg").read_bytes().startswith(b"<?xml")
    curve = answer["curve"]
    assert ([point["beta"] for point in curve], curve[-1]["R1@0.7"]) == ([0, 0.2, 0.6, 1], 100), "the last candidate may come first"
    assert curve[0]["marks"] == ["decoder alone", "not in the grid"]
    assert len({point["R1@0.7"] for point in curve}) > 1, "the weight must matter, or the comparison says nothing"
    assert answer["gain"]["R1@0.7"]["verdict"] == "undecided", "three recordings cannot show anything"
    truth, predictions = world.folder / "truth.jsonl", world.folder / "p.jsonl"
    for point in curve:
        asked = ["--checkpoint", world.checkpoint, "--manifest", truth, "--verifier", "oracle", "--output", predictions]
        assert cli.main(list(map(str, ["predict", *asked, "--beta", point["beta"]]))) == 0
        assert cli.main(["evaluate", str(predictions), str(truth), "--json"]) == 0
        scores = json.loads(capsys.readouterr().out)
        assert [point[name] for name in ("R1@0.5", "R1@0.7", "mAP")] == [scores[name] for name in ("R1@0.5", "R1@0.7", "mAP")]


CHANGES = ["--set inference.nms_iou=0.5", "--set verifier.model=m", "--set inference.beta=0.1", "--verifier-model 3B"]


@pytest.mark.parametrize("change", CHANGES)
def test_what_may_change_answers_keeps_the_weight_out(world, change):
    before = contents(world.checkpoint)
    status, out, err = world.run("--json", *change.split())
    line = f"inference.beta_by_verifier.oracle: {json.loads(out)['beta']:g}"
    told = f"nothing was written, as the weight goes with {change}; put that and `{line}` into the config.yaml of a copy."
    assert (status, err.splitlines()[-1]) == (0, f"qamdetr: {told}")
    assert contents(world.checkpoint) == before


def test_verifiers_recordings_disks_and_weights_that_fail(world, monkeypatch):
    before = contents(world.checkpoint)
    world.oracle.missing = True
    assert world.run() == (2, "", "qamdetr: error: The oracle has left; call it back.\n")
    assert (world.encoder.encoded, world.oracle.asked) == ([], []), "told before any work"
    world.oracle.missing, world.oracle.deaf = False, QUERIES
    status, out, err = world.run()
    assert (status, out) == (2, "")
    assert "No query of 6 was verified, so nothing was written: Verifier oracle failed (it is out of order)" in err
    world.oracle.deaf = QUERIES[:2]
    _, out, err = world.run("--json", "--dry-run")
    assert (json.loads(out)["num_queries"], json.loads(out)["num_unverified"]) == (6, 2)
    assert "2 of 6 queries are ranked by the decoder alone at every beta. Verifier oracle failed (it is out of order)" in err
    world.oracle.deaf = ()
    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        status, out, err = world.run("--json")
    assert (status, json.loads(out)["num_queries"]) == (2, 6), "the curve is not lost"
    assert "config.yaml cannot be written (No space left on device)" in err.splitlines()[-1]
    world.paths["r1"].write_text("no sound")
    status, out, err = world.run("--json")
    assert (status, json.loads(out)["num_queries"]) == (2, 4)
    assert "nothing was written" in err and "1 of 3 recordings could not be used" in err
    truth = [replace(entry, relevant_windows=(moments[0].window,)) for entry, moments in zip(world.entries, world.found, strict=True)]
    write_manifest(world.folder / "val.jsonl", truth[:2])
    assert "nothing was written, as 1, the best of the grid, is worse than the decoder alone" in world.run("--grid", 1)[2]
    assert contents(world.checkpoint) == before


def test_stored_features_need_no_audio_unless_the_verifier_listens(world):
    extract(list(world.paths.items()), QUERIES, world.folder / "features", world.encoder, show_progress=False)
    stored = ["--json", "--dry-run", "--from-features", "--set", f"data.feature_dir={world.folder / 'features'}"]
    heard = json.loads(world.run("--json", "--dry-run")[1])["curve"]
    moved = (world.folder / "audio").rename(world.folder / "moved")
    world.encoder.encoded.clear()
    assert json.loads(world.run(*stored)[1])["curve"] == heard
    world.oracle.needs_audio = True
    assert "Verifier oracle listens to the recordings" in world.run(*stored)[2]
    assert world.run(*stored, "--audio-dir", moved)[0] == 0
    assert world.encoder.encoded == []


def test_a_system_of_one_s_own_gets_its_weight_and_keeps_the_rest(world):
    save_checkpoint(world.folder / "other", tiny_model(tiny_config()), tiny_config())
    path, model = world.folder / "mine.yaml", contents(world.checkpoint)
    text = f"# mine\nmembers: [{world.checkpoint}, {world.folder / 'other'}]\nverify_with: oracle\nbeta: 0.5  # guessed\ntop_k: 7\n"
    path.write_text(text, encoding="utf-8")
    own = ("--system", path, "--json")
    for options, told in {
        "--verifier pocket": "nothing was written; put `verify_with: pocket` and `beta: ",
        f"--members {world.checkpoint}": "nothing was written; put `verify_with: oracle`",
        "--set merge=pool": "nothing was written, as the weight goes with --set merge=pool; put that and `verify_with: oracle`",
    }.items():
        status, _, err = world.run(*options.split(), source=own)
        assert (status, path.read_text(encoding="utf-8")) == (0, text)
        assert told in err
    _, out, err = world.run("--set", "verifier.url=http://x/v1", source=own)
    beta = json.loads(out)["beta"]
    assert f"`beta: {beta}` is now in {path}" in err
    assert path.read_text(encoding="utf-8") == text.replace("0.5", str(beta))
    path.write_text(text.replace("beta: 0.5  # guessed\n", ""), encoding="utf-8")
    world.run(source=own)
    assert path.read_text(encoding="utf-8").endswith(f"top_k: 7\nbeta: {beta}\n"), "a system without a weight gets a line"
    path.write_text(odd := f"{{members: [{world.checkpoint}], verify_with: oracle}}\n", encoding="utf-8")
    status, _, err = world.run(source=own)
    assert (status, path.read_text(encoding="utf-8")) == (2, odd)
    assert "laid out in an unusual way; write `beta: " in err
    assert contents(world.checkpoint) == model


def test_without_a_verifier_scores_and_tiers_are_fitted_and_nothing_else_changes(world):
    absent = [replace(entry, qid=f"a{entry.qid}", query=f"no {entry.query}", relevant_windows=()) for entry in world.entries]
    many = [replace(entry, qid=f"{entry.qid}-{n}") for n in range(2) for entry in (*world.entries, *absent)]
    write_manifest(world.folder / "val.jsonl", [*many, QueryEntry("unknown", "a whale", "r0", 20.0, None)])
    before, source = load_config(world.checkpoint / "config.yaml"), ("--checkpoint", world.checkpoint)
    status, out, err = world.run("--json", source=source)
    told, after = json.loads(out), load_config(world.checkpoint / "config.yaml")
    fitted = ("found_threshold", "perhaps_threshold", "score_calibration")
    assert (status, told["num_queries"]) == (0, 24), "the one that nobody knows about does not count"
    assert err.splitlines()[-1] == f"qamdetr: inference.{', '.join(fitted)} are now in {world.checkpoint / 'config.yaml'}."
    assert [
        [list(pair) for pair in value] if isinstance(value, tuple) else value for value in map(after.inference.__getattribute__, fitted)
    ] == [told[name] for name in fitted]
    assert replace(after, inference=replace(after.inference, **{name: getattr(before.inference, name) for name in fitted})) == before
    assert world.oracle.asked == []
    retriever = MomentRetriever.from_pretrained(world.checkpoint)
    best = retriever.retrieve(retriever.encode(world.paths["r0"]), "rain").moments[0]
    assert best.score == pytest.approx(best.probability) != pytest.approx(best.decoder_score)
    kept = contents(world.checkpoint)
    assert (
        "nothing was written, as this is fitted with --set inference.nms_iou=0.5"
        in world.run("--set", "inference.nms_iou=0.5", source=source)[2]
    )
    assert world.run("--dry-run", source=source)[2] == "" and contents(world.checkpoint) == kept
