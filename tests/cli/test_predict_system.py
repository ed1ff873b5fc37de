"""`predict --system`: recordings and manifests, from audio and from features, to predictions and to the challenge's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_streams import save_member, tiny_combos
from tiny_system import write_sound

import qamdetr.features.base
from qamdetr import cli
from qamdetr.config import VerifierConfig
from qamdetr.data.manifest import QueryEntry, read_manifest, read_predictions, write_manifest
from qamdetr.evaluation.submission import check_output
from qamdetr.features.extract import extract
from qamdetr.verifiers import base as registry

ENTRIES = [
    QueryEntry("7", "a dog barks", "street", 12.0, None, numeric_qid=True),
    QueryEntry("8", "rain on a roof", "yard", 6.6, None, numeric_qid=True),
    QueryEntry("9", "a door closes", "street", 12.0, None, numeric_qid=True),
]
CHALLENGE_NAME = "Muster_UNI_task6_2.output.jsonl"


class Listener:
    """A verifier that listens: it opens the recording, and prefers late windows."""

    name, needs_audio = "listener", True

    def __init__(self, settings: VerifierConfig) -> None:
        self.settings = settings
        self.identity = f"listener {settings.model}"
        self.broken = settings.model == "broken"

    def check(self):
        """Nothing can be told beforehand."""

    def verify(self, recording, query, text, candidates):
        if self.broken:
            raise RuntimeError("out of\nmemory")
        assert Path(recording.path).is_file()
        return [candidate.start_seconds / recording.duration_seconds for candidate in candidates]


@pytest.fixture
def opened(monkeypatch):
    """Make a verifier `listener` known; returns the ones that were opened."""
    made: list[Listener] = []
    info = registry.VerifierInfo("Listener", False, lambda settings: made.append(Listener(settings)) or made[-1])
    monkeypatch.setitem(registry.VERIFIERS, "listener", info)
    return made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two recordings with a manifest, and three members of two combos on features that are not extracted yet."""
    monkeypatch.chdir(tmp_path)
    combos, runs = tiny_combos()
    monkeypatch.setattr(qamdetr.features.base, "open_streams", lambda *streams, name, **options: combos[name])
    (tmp_path / "audio").mkdir()
    write_sound(tmp_path / "audio" / "street.wav", 12)
    write_sound(tmp_path / "audio" / "yard.flac", 6.6, seed=1)
    write_manifest(tmp_path / "m.jsonl", ENTRIES)
    for seed, name in enumerate(("X0", "Y0", "X1")):
        save_member(tmp_path / name, name[0], seed, feature_dir="features", encoder=combos[name[0]].fingerprint)
    (tmp_path / "mine.yaml").write_text("members: [X0, Y0, X1]\nbeta: 0.45\nverify_with: pocket\n")
    return tmp_path, combos, runs


@pytest.fixture
def stored(folder):
    """The features of all, extracted."""
    path, combos, _ = folder
    recordings = [("street", path / "audio" / "street.wav"), ("yard", path / "audio" / "yard.flac")]
    for combo in combos.values():
        extract(recordings, [entry.query for entry in ENTRIES], path / "features", combo, show_progress=False)
    return path


def predict(capsys, *args):
    status = cli.main(["predict", *map(str, args)])
    return status, *capsys.readouterr()


def test_recordings_are_answered_by_the_whole_system(folder, capsys):
    path, _, runs = folder
    sounds = [path / "audio" / "street.wav", path / "audio" / "yard.flac"]
    status, out, err = predict(capsys, *sounds, "--query", "a dog", "--query", "rain", "--system", "mine.yaml", "--format", "json")
    assert (status, err) == (0, "")
    answers = json.loads(out)
    assert [(item["audio"], item["query"]) for item in answers] == [(str(s), q) for s in sounds for q in ("a dog", "rain")]
    assert {(item["encoder"], item["verifier"], item["beta"]) for item in answers} == {("X+Y", "pocket", 0.45)}
    assert runs == {"joint": 2, "loud": 2, "soft": 2}
    best = answers[0]["moments"][0]
    assert best["score"] == pytest.approx(0.55 * best["decoder_score"] + 0.45 * best["verifier_score"], abs=1e-5)


def test_a_shipped_recipe_runs_with_other_members(folder, capsys):
    sound = folder[0] / "audio" / "street.wav"
    call = [sound, "--query", "a dog", "--system", "submit2", "--members", "X0", "Y0", "--verifier", "pocket", "--format", "json"]
    _, out, _ = predict(capsys, *call)
    assert (json.loads(out)[0]["verifier"], json.loads(out)[0]["beta"]) == ("pocket", 0.35)
    _, out, _ = predict(capsys, *call, "--beta", 0.1, "--set", "merge=pool", "--top-k", 99)
    assert (json.loads(out)[0]["beta"], len(json.loads(out)[0]["moments"])) == (0.1, 10)
    _, out, _ = predict(capsys, *call, "--verifier", "none")
    assert json.loads(out)[0]["verifier"] == "none"


def test_features_give_the_answer_that_audio_gives(stored, capsys):
    manifest = ["--manifest", "m.jsonl", "--system", "mine.yaml"]
    assert predict(capsys, *manifest, "--output", "audio.jsonl")[0] == 0
    assert predict(capsys, *manifest, "--output", "features.jsonl", "--from-features")[0] == 0
    heard, read = (read_predictions(stored / name) for name in ("audio.jsonl", "features.jsonl"))
    assert [entry.qid for entry in read] == [entry.qid for entry in ENTRIES]
    for one, two in zip(heard, read, strict=True):
        # The cache rounds to float16.
        assert one.pred_relevant_windows[0] == pytest.approx(two.pred_relevant_windows[0], abs=0.02)
        assert len(one.pred_relevant_windows) == len(two.pred_relevant_windows) > 1


@pytest.mark.parametrize("source", [[], ["--from-features"]])
def test_the_challenges_file_is_written_by_its_name(stored, capsys, source):
    status, out, err = predict(capsys, "--manifest", "m.jsonl", "--system", "mine.yaml", *source, "--output", CHALLENGE_NAME)
    assert (status, out, err) == (0, "", "")
    lines = [json.loads(line) for line in (stored / CHALLENGE_NAME).read_text().splitlines()]
    assert [list(line) for line in lines] == [["qid", "query", "vid", "duration", "pred_relevant_windows"]] * 3
    assert [line["qid"] for line in lines] == [7, 8, 9]
    assert all(len(window) == 2 for line in lines for window in line["pred_relevant_windows"])
    assert check_output(stored / CHALLENGE_NAME, read_manifest(stored / "m.jsonl", clamp=False)) == []


def test_a_recording_that_is_missing_from_a_submission_leaves_predictions_beside_it(folder, capsys):
    path = folder[0]
    (path / "audio" / "yard.flac").write_text("no sound")
    status, _, err = predict(capsys, "--manifest", "m.jsonl", "--system", "mine.yaml", "--output", CHALLENGE_NAME)
    assert status == 2
    assert "1 of 2 recordings could not be used" in err
    assert f"{CHALLENGE_NAME} is not written" in err
    assert not (path / CHALLENGE_NAME).exists()
    assert [entry.qid for entry in read_predictions(path / "Muster_UNI_task6_2.predictions.jsonl")] == ["7", "9"]


def test_a_verifier_that_listens_gets_the_recordings_beside_features(stored, opened, capsys):
    call = [
        "--manifest",
        "m.jsonl",
        "--system",
        "mine.yaml",
        "--from-features",
        "--output",
        "p.jsonl",
        "--verifier",
        "listener",
        "--beta",
        1,
    ]
    assert predict(capsys, *call)[0] == 0
    assert len(opened) == 1, "opened once for all recordings"
    starts = [[start for start, _, _ in entry.pred_relevant_windows] for entry in read_predictions(stored / "p.jsonl")]
    assert all(row == sorted(row, reverse=True) for row in starts)
    (stored / "audio").rename(stored / "elsewhere")
    status, _, err = predict(capsys, *call)
    assert status == 2
    assert "Verifier listener listens to the recordings" in err
    assert "take --verifier pocket" in err
    assert err.count("\n") == 1
    assert predict(capsys, *call, "--audio-dir", "elsewhere")[0] == 0
    (stored / "elsewhere" / "yard.flac").unlink()
    assert "1 of 2 recordings of m.jsonl are not in elsewhere: yard" in predict(capsys, *call, "--audio-dir", "elsewhere")[2]
    assert predict(capsys, *call[:-4], "--verifier", "pocket")[0] == 0, "features suffice"


def test_a_verifier_that_fails_leaves_the_decoders_ranking_and_one_note(stored, opened, capsys):
    call = ["--manifest", "m.jsonl", "--system", "mine.yaml", "--from-features"]
    broken = ["--verifier", "listener", "--verifier-model", "broken"]
    status, _, err = predict(capsys, *call, *broken, "--output", "failed.jsonl")
    assert status == 0
    assert opened[0].settings.model == "broken"
    assert err == ("qamdetr: 3 of 3 queries: Verifier listener failed (out of memory); the moments are ranked by the decoder alone.\n")
    assert predict(capsys, *call, "--verifier", "none", "--output", "decoder.jsonl")[0] == 0
    assert (stored / "failed.jsonl").read_text() == (stored / "decoder.jsonl").read_text()


@pytest.mark.parametrize("model", [[], ["--verifier-model", "m"]])
def test_a_verifier_that_is_not_there_is_told_before_the_work(stored, capsys, model):
    call = ["--manifest", "m.jsonl", "--system", "mine.yaml", "--from-features"]
    dead = ["--verifier", "server", "--verifier-url", "http://127.0.0.1:9/v1", "--set", "verifier.retries=0"]
    status, _, err = predict(capsys, *call, *dead, *model, "--output", "failed.jsonl")
    first, last = err.splitlines()
    assert status == 0
    assert first.startswith("qamdetr: verifier server cannot answer, so the decoder alone will rank. ")
    assert "127.0.0.1:9" in first
    assert last.startswith("qamdetr: 3 of 3 queries: Verifier server failed")
    assert predict(capsys, *call, "--verifier", "none", "--output", "decoder.jsonl")[0] == 0
    assert (stored / "failed.jsonl").read_text() == (stored / "decoder.jsonl").read_text()


def test_settings_of_verifier_and_encoders_reach_them(folder, opened, monkeypatch, capsys):
    path, combos, _ = folder
    asked = []
    monkeypatch.setattr(qamdetr.features.base, "open_streams", lambda *streams, name, **options: asked.append(options) or combos[name])
    sound = path / "audio" / "street.wav"
    call = [sound, "--query", "a dog", "--verifier", "listener", "--verifier-model", "big", "--verifier-url", "http://here/v1"]
    call += ["--encoder", "joint=my/joint", "--device", "cpu"]
    of_x, of_y = {"joint": "my/joint"}, {"joint": "my/joint", "soft": "/a=b"}
    for which, models in ((["--checkpoint", "X0"], [of_x]), (["--system", "mine.yaml", "--encoder", "soft=/a=b"], [of_x, of_y, of_x])):
        asked.clear()
        status, _, err = predict(capsys, *call, *which)
        assert (status, err) == (0, "")
        assert (opened[-1].settings.model, opened[-1].settings.url) == ("big", "http://here/v1")
        assert asked == [{"models": of_member, "dtype": "float32", "device": "cpu"} for of_member in models]


def test_settings_of_a_checkpoint_may_be_changed(folder, capsys):
    sound = folder[0] / "audio" / "street.wav"
    call = [sound, "--query", "a dog", "--checkpoint", "X0", "--format", "json"]
    assert json.loads(predict(capsys, *call)[1])[0]["found"]
    assert not json.loads(predict(capsys, *call, "--set", "inference.found_threshold=1")[1])[0]["found"]


def test_help_names_every_verifier(capsys):
    assert cli.main(["predict", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "none, pocket, qwen2.5-omni or server" in said
    assert registry.verifier_names() == ("none", "pocket", "qwen2.5-omni", "server")
