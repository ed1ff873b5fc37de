"""`predict`: results of recordings and manifests, notes on stderr, and files that cannot be used."""

from __future__ import annotations

import json

import pytest
from tiny_system import write_sound

from qamdetr.data.manifest import QueryEntry, read_predictions, write_manifest

KEYS = ["audio", "duration", "query", "found", "encoder", "verifier", "beta", "moments", "saliency", "notes"]
MOMENT_KEYS = ["start", "end", "score", "decoder_score", "foreground", "quality", "verifier_score", "likely"]


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
    encoder.text["pocket"].joint = False
    status, out, err = predict(write_sound(tmp_path / "a.wav", 8), "--query", "a dog", "--verifier", "pocket", "--format", "json")
    assert status == 0
    assert json.loads(out)[0]["verifier"] == "none"
    assert "Verifier pocket failed" in err


def test_output_goes_to_a_file_as_a_whole(tmp_path, predict):
    target = tmp_path / "new" / "labels é.txt"
    status, out, _ = predict(write_sound(tmp_path / "a.wav", 8), "--query", "a dog", "--format", "audacity", "--all", "--output", target)
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


def test_mistakes_of_single_files(tmp_path, predict):
    status, out, err = predict(tmp_path / "gone.wav", "--query", "a dog")
    assert (status, out) == (2, "")
    assert err == f"qamdetr: error: {tmp_path / 'gone.wav'} does not exist; check the name and the folder.\n"
    (tmp_path / "file").touch()
    status, _, err = predict(write_sound(tmp_path / "a.wav", 3), "--query", "a dog", "--output", tmp_path / "file" / "x")
    assert status == 2
    assert err.count("\n") == 1
