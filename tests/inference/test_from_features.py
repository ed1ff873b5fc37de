"""Answering a manifest from stored features: the serving path, without audio and encoders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stored_features import OwnFeatures, write_audio_file, write_text_file

from qamdetr.cli import main
from qamdetr.config import Config, config_from_dict
from qamdetr.data.collate import Collator
from qamdetr.data.dataset import MomentDataset
from qamdetr.data.manifest import QueryEntry, read_predictions, write_manifest
from qamdetr.errors import ConfigError, DataError, QamDetrError
from qamdetr.features.base import join_fingerprints
from qamdetr.features.store import FeatureStore
from qamdetr.inference.candidates import decode
from qamdetr.inference.checkpoint import save_pretrained
from qamdetr.inference.from_features import open_stored
from qamdetr.model.qam_detr import QamDetr
from qamdetr.types import TextFeatures

DIM = 6
ENTRIES = [
    QueryEntry("q1", "a dog barks", "first", 40.0, None),
    QueryEntry("q2", "rain falls", "first", 40.0, ((3.0, 9.0),)),
    QueryEntry("7", "a dog barks", "second", 25.0, ((1.0, 2.0),), numeric_qid=True),
]


def make_config(folder: Path, **changes: dict) -> Config:
    values: dict = {
        "model": {
            "audio_streams": {"toy": DIM}, "text_streams": {"toy": DIM}, "dim": 16, "num_heads": 2, "ffn_dim": 32,
            "encoder": "transformer", "encoder_layers": 1, "num_moment_queries": 5,
        },
        "data": {"combo": "toy", "feature_dir": str(folder)},
    }  # fmt: skip
    return config_from_dict({**values, **{section: {**values.get(section, {}), **entries} for section, entries in changes.items()}})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A random model on public files of both recordings and all queries."""
    public = {"audio_features": {"toy": str(tmp_path / "audio")}, "text_features": {"toy": str(tmp_path / "text")}}
    config = make_config(tmp_path, data=public)
    torch.manual_seed(0)
    save_pretrained(tmp_path / "checkpoint", QamDetr(config.model), config, half=False)
    for vid, clips in (("first", 40), ("second", 25)):
        write_audio_file(tmp_path / "audio", vid, clips, DIM)
    for entry in ENTRIES:
        write_text_file(tmp_path / "text", entry.qid, 4, DIM)
    write_manifest(tmp_path / "manifest.jsonl", ENTRIES)
    return tmp_path / "checkpoint"


def test_the_answer_is_what_validation_scores(checkpoint: Path) -> None:
    """Training reads batches of a dataset, this reads recording by recording; both must find the same windows."""
    retriever = open_stored(checkpoint, ENTRIES)
    config = retriever.config
    dataset = MomentDataset(ENTRIES, FeatureStore(config.model, config.data))
    labelled = Collator(ENTRIES)([dataset[index] for index in range(len(ENTRIES))])
    with torch.inference_mode():
        output = retriever.model(labelled.batch)
    expected = decode(output, labelled.durations_seconds, labelled.num_clips, nms_iou=config.inference.nms_iou)
    for entry, candidates in zip(ENTRIES, expected, strict=True):
        recording = retriever.encode(entry.vid)
        assert recording.num_clips == entry.duration_seconds
        moments = retriever.retrieve(recording, entry.query).moments
        found = [(moment.start_seconds, moment.end_seconds, moment.score) for moment in moments]
        assert found == [pytest.approx((*c.window, c.decoder_score), abs=1e-4) for c in candidates]


def test_command_answers_every_query_in_order(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint.parent
    arguments = ["--checkpoint", str(checkpoint), "--manifest", str(folder / "manifest.jsonl"), "--from-features"]
    assert main(["predict", *arguments, "--output", str(folder / "exact.jsonl")]) == 0
    exact = read_predictions(folder / "exact.jsonl")
    assert [(entry.qid, entry.vid, entry.numeric_qid) for entry in exact] == [(e.qid, e.vid, e.numeric_qid) for e in ENTRIES]
    for entry, truth in zip(exact, ENTRIES, strict=True):
        assert entry.pred_relevant_windows
        assert all(0 <= start <= end <= truth.duration_seconds for start, end, _ in entry.pred_relevant_windows)
    assert main(["predict", *arguments, "--output", str(folder / "official.jsonl"), "--protocol", "official", "--top-k", "3"]) == 0
    official = read_predictions(folder / "official.jsonl")
    assert all(start == round(start) for entry in official for start, _, _ in entry.pred_relevant_windows)
    assert all(len(entry.pred_relevant_windows) == 3 for entry in official)
    assert capsys.readouterr().out == ""


def test_features_may_lie_elsewhere(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "audio").rename(tmp_path / "moved")
    with pytest.raises(DataError, match=r"2 recordings"):
        open_stored(checkpoint, ENTRIES)
    moved = open_stored(checkpoint, ENTRIES, [f"data.audio_features={{toy: {tmp_path / 'moved'}}}"])
    assert moved.encode("second").num_clips == 25


@pytest.mark.parametrize("override", ["model.num_moment_queries=6", "model.audio_streams={toy: 5}"])
def test_another_network_is_refused(checkpoint: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="changes the model section"):
        open_stored(checkpoint, ENTRIES, [override])


def test_features_of_another_length_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    write_audio_file(tmp_path / "audio", "second", 20, DIM)
    with pytest.raises(DataError, match="'second' lasts 25 s in the manifest, its features 20 s"):
        open_stored(checkpoint, ENTRIES)


NEW = join_fingerprints({"toy": "new"})


def test_features_of_other_encoders_are_refused(tmp_path: Path) -> None:
    cache = OwnFeatures(tmp_path, "new")
    for vid, clips in (("first", 40), ("second", 25)):
        cache.write_audio(vid, {"toy": torch.randn(clips, DIM)})
    for entry in ENTRIES:
        cache.write_text(entry.query, {"toy": TextFeatures(torch.randn(3, DIM), ((0, 1), (1, 2), (2, 3)))})
    for version, message in (("old", f"encoder version {NEW}, .* was trained on version old"), (NEW, None), ("", None)):
        config = make_config(tmp_path, data={"combo": "toy", "feature_dir": str(tmp_path), "encoder": version})
        save_pretrained(tmp_path / "checkpoint", QamDetr(config.model), config, half=False)
        if message is None:
            assert open_stored(tmp_path / "checkpoint", ENTRIES).encode("first").num_clips == 40
        else:
            with pytest.raises(DataError, match=message):
                open_stored(tmp_path / "checkpoint", ENTRIES)


def test_features_of_another_type_are_refused_with_both_types(tmp_path: Path) -> None:
    cache = OwnFeatures(tmp_path, "new", models={"toy": "clap"}, dtype="bfloat16")
    for vid, clips in (("first", 40), ("second", 25)):
        cache.write_audio(vid, {"toy": torch.randn(clips, DIM)})
    for entry in ENTRIES:
        cache.write_text(entry.query, {"toy": TextFeatures(torch.randn(3, DIM), ((0, 1), (1, 2), (2, 3)))})
    config = make_config(tmp_path, data={"combo": "toy", "feature_dir": str(tmp_path), "encoder": "old"})
    save_pretrained(tmp_path / "checkpoint", QamDetr(config.model), config, half=False)
    with pytest.raises(DataError, match=rf"version {NEW} \(bfloat16, toy=clap\), .* was trained on version old \(float32\); extract"):
        open_stored(tmp_path / "checkpoint", ENTRIES)


def test_a_label_file_beside_a_recording_is_no_recording(tmp_path: Path) -> None:
    audio_dir = tmp_path / "sounds"
    audio_dir.mkdir()
    recordings = {vid: audio_dir / f"{vid}.flac" for vid in ("first", "second")}
    cache = OwnFeatures(tmp_path, recordings=recordings)
    for (vid, path), clips in zip(recordings.items(), (40, 25), strict=True):
        path.write_text(f"sound of {vid}")
        path.with_suffix(".txt").write_text("a label")
        cache.write_audio(vid, {"toy": torch.randn(clips, DIM)})
    for entry in ENTRIES:
        cache.write_text(entry.query, {"toy": TextFeatures(torch.randn(3, DIM), ((0, 1), (1, 2), (2, 3)))})
    config = make_config(tmp_path)
    save_pretrained(tmp_path / "checkpoint", QamDetr(config.model), config, half=False)
    recording = open_stored(tmp_path / "checkpoint", ENTRIES, audio_dir=audio_dir).encode("second")
    assert (recording.num_clips, recording.path) == (25, str(recordings["second"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.wav", "--query", "rain", "--from-features"], "--from-features goes with --manifest"),
        (["--manifest", "m.jsonl", "--output", "p", "--from-features", "--encoder", "toy=x"], "--encoder goes with audio"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_unused_names_do_not_matter(checkpoint: Path) -> None:
    """A manifest of fewer queries reads only theirs."""
    (checkpoint.parent / "text" / "qidq2.npz").unlink()
    assert open_stored(checkpoint, [ENTRIES[0], ENTRIES[2]]).encode("second").num_clips == 25
    with pytest.raises(QamDetrError, match="1 query"):
        open_stored(checkpoint, ENTRIES)
