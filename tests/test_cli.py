"""The command line: contracts of `predict`, `evaluate`, `synthesize` and `extract`, and one line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tiny_system import TinyEncoder, save_tiny, write_sound

import qamdetr.features.encoders
from qamdetr import cli
from qamdetr.data.manifest import PredictionEntry, QueryEntry, read_predictions, write_manifest, write_predictions
from qamdetr.data.scene_recipe import SceneRecipe

KEYS = ["audio", "duration", "query", "found", "encoder", "verifier", "beta", "moments", "saliency"]
MOMENT_KEYS = ["start", "end", "score", "decoder_score", "foreground", "quality", "verifier_score"]


@pytest.fixture
def encoder(monkeypatch):
    encoder = TinyEncoder()
    encoder.fingerprint = "tiny-1"
    monkeypatch.setattr(qamdetr.features.encoders, "load_combo", lambda name: encoder)
    return encoder


@pytest.fixture
def predict(tmp_path, encoder, capsys):
    """Run `predict` with a tiny checkpoint; returns (exit status, stdout, stderr)."""
    checkpoint = save_tiny(tmp_path / "checkpoint")

    def run(*args):
        status = cli.main(["predict", "--checkpoint", str(checkpoint), *map(str, args)])
        return status, *capsys.readouterr()

    return run


def told(capsys, *args):
    """The one line of a mistake."""
    assert cli.main(list(map(str, args))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qamdetr: error: ")
    assert err.count("\n") == 1
    return err


def test_json_has_one_object_per_pair_and_encodes_each_recording_once(tmp_path, predict, encoder):
    one, two = write_sound(tmp_path / "犬 é.wav", 8.3), write_sound(tmp_path / "b.flac", 5)
    status, out, err = predict(one, two, one, "--query", "a dog barks", "--query", "雨が降る", "--top-k", 2, "--format", "json")
    assert (status, err) == (0, "")
    objects = json.loads(out)
    pairs = [(item["audio"], item["query"]) for item in objects]
    assert pairs == [(str(path), query) for path in (one, two) for query in ("a dog barks", "雨が降る")]
    assert encoder.encoded == [str(one), str(two)]
    for item in objects:
        assert list(item) == KEYS
        assert len(item["moments"]) == 2
        assert list(item["moments"][0]) == MOMENT_KEYS
        assert (item["encoder"], item["verifier"]) == ("tiny", "none")
    assert objects[0]["duration"] == 8.3
    assert len(objects[0]["saliency"]) == 9


def test_table_is_the_default_and_audio_may_follow_options(tmp_path, predict):
    one, two = write_sound(tmp_path / "a.wav", 8), write_sound(tmp_path / "b.wav", 8)
    status, out, _ = predict(one, "--query", "a dog", "--top-k", 1, two)
    assert status == 0
    assert out.count("'a dog'") == 2
    assert "rank" in out


def test_verifier_and_beta_reach_the_result(tmp_path, predict):
    sound = write_sound(tmp_path / "a.wav", 8)
    _, out, _ = predict(sound, "--query", "a dog", "--verifier", "pocket", "--beta", 0.25, "--format", "json")
    (result,) = json.loads(out)
    assert (result["verifier"], result["beta"]) == ("pocket", 0.25)
    best = result["moments"][0]
    assert best["score"] == pytest.approx(0.75 * best["decoder_score"] + 0.25 * best["verifier_score"], abs=1e-5)


def test_a_failing_verifier_is_a_note_on_stderr(tmp_path, predict, encoder):
    encoder.joint = False
    status, out, err = predict(write_sound(tmp_path / "a.wav", 8), "--query", "a dog", "--verifier", "pocket", "--format", "json")
    assert status == 0
    assert json.loads(out)[0]["verifier"] == "none"
    assert "Verifier pocket failed" in err


def test_output_goes_to_a_file_as_a_whole(tmp_path, predict):
    target = tmp_path / "new" / "labels é.txt"
    status, out, _ = predict(write_sound(tmp_path / "a.wav", 8), "--query", "a dog", "--format", "audacity", "--output", target)
    assert (status, out) == (0, "")
    assert "a dog" in target.read_text(encoding="utf-8")
    assert [path.name for path in target.parent.iterdir()] == ["labels é.txt"]


def test_one_bad_file_among_several_keeps_the_results_of_the_others(tmp_path, predict):
    good = write_sound(tmp_path / "good.wav", 8)
    (tmp_path / "bad.wav").write_text("no sound")
    status, out, err = predict(tmp_path / "bad.wav", good, tmp_path / "gone.wav", "--query", "a dog", "--format", "json")
    assert status == 2
    assert [item["audio"] for item in json.loads(out)] == [str(good)]
    assert err.startswith("qamdetr: error: 2 of 3 recordings could not be used: ")
    assert "bad.wav" in err
    assert "gone.wav does not exist" in err
    assert err.count("\n") == 1


def test_a_manifest_becomes_predictions_in_its_order(tmp_path, predict, encoder):
    write_sound(tmp_path / "x.1.wav", 8)
    write_sound(tmp_path / "y.flac", 6.5)
    entries = [
        QueryEntry("7", "a dog", "x.1", 8.0, None, numeric_qid=True),
        QueryEntry("q2", "a bell", "y", 7.0, ((6.8, 9.0),)),
        QueryEntry("q3", "rain", "x.1", 8.0, ()),
    ]
    write_manifest(tmp_path / "m.jsonl", entries)
    output = tmp_path / "p.jsonl"
    status, out, err = predict("--manifest", tmp_path / "m.jsonl", "--audio-dir", tmp_path, "--output", output)
    assert (status, out) == (0, "")
    assert err == ""  # the progress bar is for terminals only
    assert len(encoder.encoded) == 2
    predictions = read_predictions(output)
    assert [(entry.qid, entry.query, entry.vid, entry.numeric_qid) for entry in predictions] == [
        ("7", "a dog", "x.1", True),
        ("q2", "a bell", "y", False),
        ("q3", "rain", "x.1", False),
    ]
    for entry in predictions:
        assert entry.pred_relevant_windows
        scores = [score for _, _, score in entry.pred_relevant_windows]
        assert scores == sorted(scores, reverse=True)
    official = tmp_path / "official.jsonl"
    predict("--manifest", tmp_path / "m.jsonl", "--audio-dir", tmp_path, "--output", official, "--protocol", "official")
    windows = [window for entry in read_predictions(official) for window in entry.pred_relevant_windows]
    assert all(value == round(value) for window in windows for value in window[:2])


def test_missing_recordings_of_a_manifest_are_told_at_once(tmp_path, predict, encoder):
    (tmp_path / "audio").mkdir()
    write_sound(tmp_path / "audio" / "a.wav", 8)
    write_manifest(tmp_path / "m.jsonl", [QueryEntry(vid, "q", vid, 8.0, None) for vid in "abc"])
    status, _, err = predict("--manifest", tmp_path / "m.jsonl", "--output", tmp_path / "p.jsonl")
    assert status == 2
    assert "2 of 3 recordings" in err
    assert "b, c; give their folder" in err
    assert encoder.encoded == []


def test_an_unreadable_recording_of_a_manifest_is_left_out_and_told(tmp_path, predict):
    write_sound(tmp_path / "a.wav", 8)
    (tmp_path / "b.wav").write_text("no sound")
    write_manifest(tmp_path / "m.jsonl", [QueryEntry(vid, "q", vid, 8.0, None) for vid in "ab"])
    status, _, err = predict("--manifest", tmp_path / "m.jsonl", "--audio-dir", tmp_path, "--output", tmp_path / "p.jsonl")
    assert status == 2
    assert "1 of 2 recordings could not be used" in err
    assert [entry.qid for entry in read_predictions(tmp_path / "p.jsonl")] == ["a"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["sing"], "invalid choice: 'sing'"),
        (["predict"], "Give at least one AUDIO file and one --query TEXT"),
        (["predict", "a.wav"], "Give at least one AUDIO file and one --query TEXT"),
        (["predict", "a.wav", "--query", " "], "The query is empty"),
        (["predict", "a.wav", "--query", "x", "--top-k", "0"], "--top-k is 0; it must be at least 1"),
        (["predict", "a.wav", "--query", "x", "--top-k", "two"], "invalid int value: 'two'"),
        (["predict", "a.wav", "--query", "x", "--beta", "1.5"], "beta is 1.5; it must lie between 0"),
        (["predict", "a.wav", "--query", "x", "--beta", "nan"], "beta is nan"),
        (["predict", "a.wav", "--query", "x", "--verifier", "qwen2.5-omni"], "not available in this version; choose one of none, pocket"),
        (["predict", "a.wav", "--query", "x", "--verifier", "server"], "not available in this version; choose one of none, pocket"),
        (["predict", "a.wav", "--query", "x", "--format", "xml"], "invalid choice: 'xml'"),
        (["predict", "a.wav", "--query", "x", "--checkpoint", "nope"], "No checkpoint 'nope'"),
        (["predict", "a.wav", "--query", "x", "--audio-dir", "d"], "--audio-dir goes with --manifest"),
        (["predict", "a.wav", "--query", "x", "--output", "/"], "--output / is a folder"),
        (["predict", "a.wav", "--query", "x", "--colour"], "unknown arguments: --colour"),
        (["predict", "--manifest", "m.jsonl"], "--manifest needs --output"),
        (["predict", "--manifest", "m.jsonl", "--query", "x"], "--manifest brings its own"),
        (["predict", "--manifest", "gone.jsonl", "--output", "p.jsonl"], "Cannot read gone.jsonl"),
        (["evaluate", "gone.jsonl", "gone.jsonl"], "Cannot read gone.jsonl"),
        (["evaluate", "a", "b", "c"], "unknown arguments: c"),
        (["synthesize", "--clips", "c"], "the following arguments are required: --output"),
        (["synthesize", "--clips", "c", "--output", "o", "--num-scenes", "0"], "num_scenes is 0; it must be at least 1"),
        (["extract", "--manifest", "gone.jsonl"], "Cannot read gone.jsonl"),
    ],
)
def test_every_mistake_is_one_line(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in told(capsys, *args)


def test_mistakes_of_single_files(tmp_path, predict):
    status, out, err = predict(tmp_path / "gone.wav", "--query", "a dog")
    assert (status, out) == (2, "")
    assert err == f"qamdetr: error: {tmp_path / 'gone.wav'} does not exist; check the name and the folder.\n"
    (tmp_path / "file").touch()
    status, _, err = predict(write_sound(tmp_path / "a.wav", 3), "--query", "a dog", "--output", tmp_path / "file" / "x")
    assert status == 2
    assert err.count("\n") == 1


def test_evaluate_prints_the_contract(tmp_path, capsys):
    write_manifest(
        tmp_path / "t.jsonl", [QueryEntry("1", "q", "v", 60.0, ((0.0, 10.0),), numeric_qid=True), QueryEntry("2", "q", "v", 60.0, ())]
    )
    windows = ((0.0, 8.0, 0.9),)
    write_predictions(tmp_path / "p.jsonl", [PredictionEntry(qid, "q", "v", windows) for qid in "123"])
    assert cli.main(["evaluate", str(tmp_path / "p.jsonl"), str(tmp_path / "t.jsonl"), "--json"]) == 0
    out, err = capsys.readouterr()
    expected = {"R1@0.5": 100.0, "R1@0.7": 100.0, "mAP": 70.0, "mAP@0.5": 100.0, "mAP@0.75": 100.0, "num_queries": 1}
    assert json.loads(out) == expected
    assert "1 of 2 queries have no true windows" in err
    assert "1 predictions belong to no query" in err
    assert cli.main(["evaluate", str(tmp_path / "p.jsonl"), str(tmp_path / "t.jsonl")]) == 0
    assert dict(line.split() for line in capsys.readouterr().out.splitlines()) == {
        k: f"{v:.2f}" if k != "num_queries" else "1" for k, v in expected.items()
    }


def test_evaluate_agrees_with_the_official_evaluator(shared_dir, capsys):
    data = shared_dir / "data"
    predictions, truth = data / "official_baseline" / "castella_val_predictions.jsonl", data / "castella" / "val.jsonl"
    assert cli.main(["evaluate", str(predictions), str(truth), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == {"R1@0.5": 27.56, "R1@0.7": 16.19, "mAP": 11.44, "mAP@0.5": 24.02, "mAP@0.75": 10.26, "num_queries": 352}


def test_synthesize_hands_every_option_to_the_recipe(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("qamdetr.data.synthesis.synthesize", lambda *args: asked.append(args) or tmp_path / "o" / "manifest.jsonl")
    options = ["--clips", "c", "--output", "o", "--num-scenes", "3", "--min-snr-db", "-2.5", "--name", "café"]
    assert cli.main(["synthesize", *options]) == 0
    assert asked == [("c", None, "o", SceneRecipe(num_scenes=3, min_snr_db=-2.5, name="café"))]
    assert capsys.readouterr().out == f"{tmp_path / 'o' / 'manifest.jsonl'}\n"


def test_extract_fills_the_cache_once(tmp_path, encoder, capsys):
    write_sound(tmp_path / "a.wav", 3)
    write_manifest(tmp_path / "m.jsonl", [QueryEntry("1", "a dog", "a", 3.0, ((0.0, 1.0),)), QueryEntry("2", "a cat", "a", 3.0, ())])
    args = ["extract", "--manifest", str(tmp_path / "m.jsonl"), "--audio-dir", str(tmp_path), "--feature-dir", str(tmp_path / "cache")]
    assert cli.main(args) == 0
    assert "encoded 1 recordings and 2 queries" in capsys.readouterr().err
    assert (tmp_path / "cache" / "tiny").is_dir()
    assert cli.main(args) == 0
    assert "encoded 0 recordings and 0 queries" in capsys.readouterr().err
    assert len(encoder.encoded) == 1


def run_python(*args, **options):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, **options)


def test_help_comes_without_loading_torch():
    script = (
        "import sys; from qamdetr.cli import main\n"
        "try: main(['predict', '--help'])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    told = run_python("-c", script)
    assert told.returncode == 0
    assert "--query TEXT" in told.stdout
    assert told.stderr.strip() == "False"


def test_the_module_runs_and_says_its_version():
    told = run_python("-m", "qamdetr", "--version")
    assert (told.returncode, told.stdout.split()[0]) == (0, "qamdetr")


def test_a_terminal_of_another_encoding_and_a_reader_that_leaves(tmp_path):
    told = run_python("-m", "qamdetr", "evaluate", "犬.jsonl", "犬.jsonl", env={"PYTHONIOENCODING": "ascii"}, encoding="utf-8")
    assert told.returncode == 2
    assert "Cannot read 犬.jsonl" in told.stderr
    script = (
        "import sys; from qamdetr import cli\n"
        "def gone(*args): raise BrokenPipeError\n"
        "cli._evaluate = gone; sys.exit(cli.main(['evaluate', 'a', 'b']))"
    )
    left = run_python("-c", script)
    assert (left.returncode, left.stderr) == (1, "")
