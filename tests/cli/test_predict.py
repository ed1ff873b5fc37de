"""`predict`: results of recordings and manifests, by a checkpoint or a system, what is heard of a file, notes on stderr."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from sounds import encode
from tiny_streams import save_member, tiny_combos
from tiny_system import write_sound

import qamdetr.features.base
from qamdetr import cli
from qamdetr.data.manifest import QueryEntry, read_manifest, read_predictions, write_manifest
from qamdetr.evaluation.submission import check_output
from qamdetr.features.extract import extract
from qamdetr.inference.retriever import MomentRetriever

CHALLENGE_NAME = "Muster_UNI_task6_2.output.jsonl"
ENTRIES = [
    QueryEntry(qid, query, vid, seconds, None, numeric_qid=True)
    for qid, query, vid, seconds in (
        ("7", "a dog barks", "street", 12.0),
        ("8", "rain on a roof", "yard", 6.6),
        ("9", "a door", "street", 12.0),
    )
]


def test_json_has_one_object_per_pair_and_encodes_each_recording_once(tmp_path, predict, encoder):
    one, two = write_sound(tmp_path / "犬 é.wav", 8.3), write_sound(tmp_path / "b.flac", 5)
    asked = ["--query", "a dog barks", "--query", "雨が降る", "--top-k", 2, "--verifier", "pocket", "--beta", 0.25, "--format", "json"]
    status, out, err = predict(one, two, *asked, one)
    assert (status, err) == (0, "")
    objects = json.loads(out)
    assert [(item["audio"], item["query"]) for item in objects] == [(str(p), q) for p in (one, two) for q in ("a dog barks", "雨が降る")]
    assert encoder.encoded == [str(one), str(two)]
    for item in objects:
        assert (item["encoder"], item["verifier"], item["beta"], len(item["moments"])) == ("tiny", "pocket", 0.25, 2)
        best = item["moments"][0]
        assert best["score"] == pytest.approx(0.75 * best["decoder_score"] + 0.25 * best["verifier_score"], abs=1e-5)
    assert (objects[0]["duration"], len(objects[0]["saliency"])) == (8.3, 9)
    assert predict(one, "--query", "a dog", two)[1].count("'a dog'") == 2, "a table is the default"


def test_what_is_heard_of_a_file(tmp_path, predict, monkeypatch):
    for name, seed in (("one", 0), ("two", 1)):
        write_sound(tmp_path / f"{name}.wav", 12, seed=seed)
    one, two = (soundfile.read(tmp_path / f"{name}.wav", dtype="float32")[0] for name in ("one", "two"))
    soundfile.write(tmp_path / "part.wav", one[3 * 8000 : 9 * 8000], 8000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([one, two], axis=1), 8000)
    tracks = encode(tmp_path / "tracks.mkv", one, two, codec="pcm_s16le", rate=8000)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO((tmp_path / "two.wav").read_bytes())))

    def windows(path, *options):
        status, out, _ = predict(path, "--query", "a dog", "--all", "--format", "json", *options)
        assert status == 0
        return [[moment[key] for key in ("start", "end", "score")] for moment in json.loads(out)[0]["moments"]]

    second = windows(tmp_path / "two.wav")
    assert second != windows(tmp_path / "one.wav")
    for source in (["-"], [tmp_path / "stereo.wav", "--channel", 2], [tracks, "--track", 2]):
        assert np.allclose(windows(*source), second, atol=0.01), source
    part = windows(tmp_path / "one.wav", "--from", 3, "--to", 9)
    assert np.allclose(part, np.add(windows(tmp_path / "part.wav"), [3, 3, 0]), atol=0.01)
    scores = [score for _, _, score in second]
    kept = windows(tmp_path / "two.wav", "--min-score", scores[1])
    assert 1 <= len(kept) < len(scores) and min(score for *_, score in kept) >= scores[1] - 1e-4


def test_what_is_written_is_a_file_a_whole_archive_or_a_figure(tmp_path, predict):
    sounds = [write_sound(tmp_path / "a.wav", 8), write_sound(tmp_path / "b.flac", 5)]

    def written(sounds, name, *more):
        target = tmp_path / f"new-{name}" / f"labels é.{name}"
        assert predict(*sounds, "--query", "a dog", "--top-k", 2, "--all", *more, "--format", name, "--output", target)[:2] == (0, "")
        assert list(target.parent.iterdir()) == [target]
        return target

    assert written(sounds, "audacity").read_text(encoding="utf-8").count("a dog") == 4
    for name, ending in (("zip", ".wav"), ("zip-flac", ".flac")):
        first, *others = zipfile.ZipFile(written(sounds, name)).namelist()
        assert (first, [Path(other).suffix for other in others]) == ("moments.csv", [ending] * 4)
        assert all(Path(other).name.startswith(("a_", "b_")) for other in others)
    for name, magic in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        assert written(sounds[:1], name, "--query", "a bell").read_bytes().startswith(magic)


def test_one_bad_file_among_several_keeps_the_results_of_the_others(tmp_path, predict):
    good = write_sound(tmp_path / "good.wav", 8)
    (tmp_path / "bad.wav").write_text("no sound")
    status, out, err = predict(tmp_path / "bad.wav", good, tmp_path / "gone.wav", "--query", "a dog", "--format", "json")
    assert status == 2
    assert [item["audio"] for item in json.loads(out)] == [str(good)]
    assert err.startswith("qamdetr: error: 2 of 3 recordings could not be used: ")
    assert "gone.wav does not exist" in err
    assert err.count("\n") == 1


@pytest.fixture
def system(tmp_path, monkeypatch, capsys):
    """Run `predict` in a folder with a system of two combos, a manifest, its recordings and their features."""
    monkeypatch.chdir(tmp_path)
    combos, _ = tiny_combos()
    monkeypatch.setattr(qamdetr.features.base, "open_streams", lambda *streams, name, **options: combos[name])
    Path("audio").mkdir()
    recordings = [("street", write_sound(Path("audio/street.wav"), 12)), ("yard", write_sound(Path("audio/yard.flac"), 6.6, seed=1))]
    write_manifest(Path("m.jsonl"), ENTRIES)
    for seed, name in enumerate(("X0", "Y0", "X1")):
        save_member(tmp_path / name, name[0], seed, feature_dir="features", encoder=combos[name[0]].fingerprint)
    Path("mine.yaml").write_text("members: [X0, Y0, X1]\nbeta: 0.45\nverify_with: pocket\n")
    for combo in combos.values():
        extract(recordings, [entry.query for entry in ENTRIES], Path("features"), combo, show_progress=False)

    def run(*args):
        status = cli.main(["predict", *map(str, args)])
        return status, *capsys.readouterr()

    return run


OF_MANIFEST = ["--manifest", "m.jsonl", "--system", "mine.yaml"]
STORED = [*OF_MANIFEST, "--from-features"]


def test_a_manifest_becomes_predictions_in_its_order_from_audio_and_from_features(system):
    assert system(*OF_MANIFEST, "--output", "audio.jsonl") == (0, "", "")
    assert system(*STORED, "--output", "features.jsonl")[0] == 0
    for heard, read, entry in zip(read_predictions("audio.jsonl"), read_predictions("features.jsonl"), ENTRIES, strict=True):
        assert (heard.qid, heard.query, heard.vid, heard.numeric_qid) == (entry.qid, entry.query, entry.vid, True)
        assert heard.pred_relevant_windows[0] == pytest.approx(read.pred_relevant_windows[0], abs=0.02)  # the cache rounds to float16
        assert len(heard.pred_relevant_windows) == len(read.pred_relevant_windows) > 1
        scores = [score for _, _, score in heard.pred_relevant_windows]
        assert scores == sorted(scores, reverse=True)
    assert system(*STORED, "--output", "official.jsonl", "--protocol", "official")[0] == 0
    windows = [window for entry in read_predictions("official.jsonl") for window in entry.pred_relevant_windows]
    assert all(value == round(value) for window in windows for value in window[:2])


def test_members_and_settings_may_be_changed(system):
    def answered(*options):
        return json.loads(system("audio/street.wav", "--query", "a dog", "--format", "json", *options)[1])[0]

    of_two = ["--system", "submit2", "--members", "X0", "--members", "Y0"]
    for more, told in (
        (["--verifier", "pocket"], ("X+Y", "pocket", 0.35)),
        (["--verifier", "none"], ("X+Y", "none", 0.0)),
        (["--verifier", "pocket", "--beta", 0.1, "--set", "merge=pool"], ("X+Y", "pocket", 0.1)),
    ):
        answer = answered(*of_two, *more)
        assert (answer["encoder"], answer["verifier"], answer["beta"]) == told
    assert answered("--checkpoint", "X0")["found"]
    assert not answered("--checkpoint", "X0", "--set", "inference.found_threshold=1")["found"]


def test_the_challenges_file_is_whole_or_predictions_lie_beside_it(system):
    assert system(*STORED, "--output", CHALLENGE_NAME) == (0, "", "")
    lines = [json.loads(line) for line in Path(CHALLENGE_NAME).read_text().splitlines()]
    assert [line["qid"] for line in lines] == [7, 8, 9]
    assert check_output(Path(CHALLENGE_NAME), read_manifest("m.jsonl", clamp=False)) == []
    Path(CHALLENGE_NAME).unlink()
    Path("audio/yard.flac").write_text("no sound")
    status, _, err = system(*OF_MANIFEST, "--output", CHALLENGE_NAME)
    assert status == 2
    assert "1 of 2 recordings could not be used" in err
    assert f"{CHALLENGE_NAME} is not written" in err
    assert not Path(CHALLENGE_NAME).exists()
    assert [entry.qid for entry in read_predictions("Muster_UNI_task6_2.predictions.jsonl")] == ["7", "9"]


def test_a_verifier_that_listens_gets_the_recordings_beside_features(system, oracle):
    oracle.needs_audio = True
    oracle.says = lambda recording, query, window: Path(recording.path).is_file() and window[0] / recording.duration_seconds
    call = [*STORED, "--output", "p.jsonl", "--verifier", "oracle", "--beta", 1]
    assert system(*call)[0] == 0
    starts = [[start for start, _, _ in entry.pred_relevant_windows] for entry in read_predictions("p.jsonl")]
    assert all(row == sorted(row, reverse=True) for row in starts)
    Path("audio").rename("elsewhere")
    status, _, err = system(*call)
    assert (status, err.count("\n")) == (2, 1)
    assert "Verifier oracle listens to the recordings" in err and "take --verifier pocket" in err
    assert system(*call, "--audio-dir", "elsewhere")[0] == 0


def test_a_verifier_that_fails_leaves_the_decoders_ranking_and_notes(system, oracle):
    assert system(*STORED, "--verifier", "none", "--output", "decoder.jsonl")[0] == 0
    oracle.deaf = [entry.query for entry in ENTRIES]
    dead = ["--verifier", "server", "--verifier-url", "http://127.0.0.1:9/v1", "--set", "verifier.retries=0"]
    for options, told in (
        (
            ["--verifier", "oracle"],
            "3 of 3 queries: Verifier oracle failed (it is out of order); the moments are ranked by the decoder alone.\n",
        ),
        (dead, "verifier server cannot answer, so the decoder alone will"),
    ):
        status, _, err = system(*STORED, *options, "--output", "failed.jsonl")
        assert (status, err[: len(told) + 9]) == (0, f"qamdetr: {told}")
        assert Path("failed.jsonl").read_text() == Path("decoder.jsonl").read_text()


def test_heard_lists_the_known_sounds_of_each_recording(monkeypatch, capsys, shipped, examples):
    monkeypatch.setattr(MomentRetriever, "from_pretrained", lambda *_, **__: shipped)
    choices = []
    monkeypatch.setattr(shipped, "encode", lambda path, **choice: choices.append(choice) or examples[Path(path).name])
    streets = ["assets/street.ogg", "assets/empty-room.ogg"]
    assert cli.main(["heard", *streets, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["audio"] for row in told] == streets
    siren = next(row for row in told[0]["heard"] if row["kind"] == "alarm/siren")
    assert (siren["wording"], siren["count"], siren["tier"]) == ("a siren wails", 1, "found")
    assert cli.main(["heard", *streets, "--from", "10", "--to", "20.5", "--channel", "1"]) == 0
    assert choices == [{}, {}, *2 * [{"channel": 1, "start_seconds": 10.0, "end_seconds": 20.5}]]
    assert f"{siren['score']:.3f}    1 x  found   a siren wails (alarm/siren)" in capsys.readouterr().out
