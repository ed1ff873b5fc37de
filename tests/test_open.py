"""The open vocabulary, from files through training to answers: whichever encoder stands there, the network is the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_models import tiny_hub
from tiny_system import write_sound

from qamdetr import cli
from qamdetr.config import Config, build
from qamdetr.data.manifest import QueryEntry, write_manifest
from qamdetr.errors import ConfigError, QamDetrError
from qamdetr.features import bank
from qamdetr.features.base import get_combo, joint_of
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.training.loop import train

QUERIES = ("a dog barks", "rain")
SECONDS = {"walk": 6.2, "street": 4.0}
SENTENCES = ("a bell", "speech", "wind in the trees", "an engine", "a door")


@pytest.fixture(scope="module", autouse=True)
def short_bank(tmp_path_factory: pytest.TempPathFactory):
    """Five sentences instead of hundreds, and a cache folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QAMDETR_CACHE", str(tmp_path_factory.mktemp("cache")))
        for user in ("qamdetr.features.bank", "qamdetr.features.store"):
            patch.setattr(f"{user}.bank_sentences", lambda: SENTENCES)
        yield


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Stream -> folder of its tiny model."""
    folders = tiny_hub(tmp_path_factory.mktemp("hub"))
    return folders | {"ms_clap_joint": folders["ms_clap"]}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, hub: dict[str, str]) -> Path:
    """`manifest.jsonl`, `audio/`, and `features/` of two joint spaces, extracted by the command."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "audio").mkdir()
    for seed, (vid, seconds) in enumerate(SECONDS.items()):
        write_sound(folder / "audio" / f"{vid}.wav", seconds, seed)
    entries = [QueryEntry(f"{vid}{at}", query, vid, SECONDS[vid], ((1.0, 2.25),)) for vid in SECONDS for at, query in enumerate(QUERIES)]
    write_manifest(folder / "manifest.jsonl", entries)
    for encoder in ("pocket", "laion_clap"):
        told = ["extract", "--combo", f"open:{encoder}", "--clip-seconds", "0.5", "--manifest", str(folder / "manifest.jsonl")]
        model = ["--encoder", f"{encoder}={hub[encoder]}"] if encoder in hub else []
        assert cli.main([*told, "--feature-dir", str(folder / "features"), *model]) == 0
    return folder


@pytest.fixture(scope="module")
def checkpoint(scenes: Path, tmp_path_factory: pytest.TempPathFactory, hub: dict[str, str]) -> Path:
    """A network trained on two spaces at once, each bent."""
    model = {"dim": 16, "num_heads": 2, "ffn_dim": 32, "encoder": "transformer", "encoder_layers": 1, "decoder": "dense", "affinity": True}
    model |= {"clip_seconds": 0.5, "audio_streams": {"open": 0, "mel_stats": 24}, "text_streams": {"pocket": 256}}
    manifest = str(scenes / "manifest.jsonl")
    data = {"train_manifest": manifest, "val_manifest": manifest, "feature_dir": str(scenes / "features"), "crop_probability": 0.5}
    data |= {"combo": "open:pocket", "more_spaces": ["open:laion_clap"], "space_bend": 1.0}
    options = {"epochs": 3, "batch_size": 2, "output_dir": str(tmp_path_factory.mktemp("runs")), "tracker": ""}
    config = build(Config, {"model": model, "data": data, "train": options})
    return train(config, Path(config.train.output_dir) / "run").best_dir


@pytest.mark.parametrize("encoder", ["pocket", "laion_clap", "ms_clap", "pe_a_frame"])
def test_any_encoder_answers_whether_training_met_it_or_not(
    encoder: str, checkpoint: Path, scenes: Path, hub: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    stream = joint_of(f"open:{encoder}")
    model = ["--encoder", f"{stream}={hub[stream]}"] if stream in hub else []
    sound = str(scenes / "audio" / "walk.wav")
    asked = ["predict", sound, "--query", QUERIES[0], "--checkpoint", str(checkpoint), "--encoder", encoder, *model, "--format", "json"]
    assert cli.main([*asked, "--verifier", "pocket"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["encoder"], told["verifier"], len(told["saliency"])) == (f"open:{encoder}", "pocket", 13)
    assert all(0 <= moment["start"] < moment["end"] <= 6.2 for moment in told["moments"])
    retriever = MomentRetriever.from_pretrained(f"{checkpoint}:{encoder}", encoder_models={stream: hub[stream]} if stream in hub else None)
    recording = retriever.encode(sound)
    like = retriever.retrieve_like(recording, (1.0, 2.0))
    assert like.query.startswith("like 1-2 s (nearest known: ") and like.moments
    assert recording.bank.shape == (len(SENTENCES), recording.streams["open"].shape[1])


@pytest.mark.parametrize("encoder", ["pocket", "laion_clap"])
def test_stored_features_answer_as_the_encoder_does(encoder: str, checkpoint: Path, scenes: Path, hub: dict[str, str]) -> None:
    models = {encoder: hub[encoder]} if encoder in hub else None
    retriever = MomentRetriever.from_pretrained(f"{checkpoint}:{encoder}", encoder_models=models)
    heard = retriever.retrieve(retriever.encode(scenes / "audio" / "walk.wav"), QUERIES[0])
    entries = [QueryEntry("walk0", QUERIES[0], "walk", SECONDS["walk"], None)]
    stored = MomentRetriever.from_features(f"{checkpoint}:{encoder}", entries, audio_dir=scenes / "audio")
    assert stored.retrieve(stored.encode("walk"), QUERIES[0]).saliency == pytest.approx(heard.saliency, abs=5e-3)


def test_the_bank_is_encoded_once_and_a_torn_or_strange_file_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tiny_system import TinyEncoder

    monkeypatch.setenv("QAMDETR_CACHE", str(tmp_path))
    encoder, asked = TinyEncoder().text["pocket"], []
    encode = encoder.encode_text
    monkeypatch.setattr(encoder, "encode_text", lambda query: asked.append(query) or encode(query))
    first = bank.encoded_bank(encoder)
    assert torch.equal(bank.encoded_bank(encoder), first) and asked == list(SENTENCES)
    (kept,) = (tmp_path / "bank").iterdir()
    kept.write_bytes(kept.read_bytes()[:60])
    assert torch.equal(bank.encoded_bank(encoder), first) and len(asked) == 2 * len(SENTENCES)
    monkeypatch.setattr(bank, "write_whole", lambda *_: (_ for _ in ()).throw(OSError("full")))
    kept.unlink()
    assert torch.equal(bank.encoded_bank(encoder), first), "a full disk costs time alone"


MISTAKES = [
    (["--encoder", "roberta"], "Stream 'roberta' has no space that clips and queries share; choose one of .*laion_clap"),
    (["--encoder", "clap9"], "Unknown stream 'clap9'; choose one of pocket|laion_clap"),
    (
        ["--encoder", "pocket", "--encoder", "laion_clap"],
        "--encoder names pocket and laion_clap; one of them can hear a recording at a time",
    ),
    (
        ["--encoder", "pocket", "--checkpoint", "qam-detr-pocket"],
        "reads features of pocket, mel_stats alone.*take the checkpoint qam-detr-open",
    ),
    (["--encoder", "pocket", "--system", "submit1"], "--encoder NAME goes with one checkpoint"),
]


@pytest.mark.parametrize(("told", "line"), MISTAKES)
def test_mistakes_are_one_line(told: list[str], line: str, scenes: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = told if {"--checkpoint", "--system"} & {*told} else [*told, "--checkpoint", str(checkpoint)]
    assert cli.main(["predict", str(scenes / "audio" / "walk.wav"), "--query", "rain", *named]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    with pytest.raises(QamDetrError, match=line):
        raise QamDetrError(error)


def test_a_space_with_nan_and_features_before_the_projection_are_refused(
    checkpoint: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from tiny_system import TinyEncoder

    monkeypatch.setenv("QAMDETR_CACHE", str(tmp_path))
    encoder = TinyEncoder().text["pocket"]
    encode = encoder.encode_text
    monkeypatch.setattr(encoder, "encode_text", lambda query: replace(encode(query), pooled=encode(query).pooled * float("nan")))
    with pytest.raises(QamDetrError, match="Of 5 sentences, 5 have no finite vector in the joint space of pocket"):
        bank.encoded_bank(encoder)
    np.savez(tmp_path / "walk.npz", features=np.ones((13, 768), np.float32))
    entries = [QueryEntry("walk0", QUERIES[0], "walk", SECONDS["walk"], None)]
    public = [f"data.audio_features.open={tmp_path}"]
    with pytest.raises(QamDetrError, match=r"have 768; extract again: .*before its projection"):
        stored = MomentRetriever.from_features(f"{checkpoint}:laion_clap", entries, overrides=public, audio_dir=scenes / "audio")
        stored.retrieve(stored.encode("walk"), QUERIES[0])


def test_open_combos_bring_mel_statistics_and_the_pocket_words() -> None:
    assert get_combo("open:laion_clap") == (("laion_clap", "mel_stats"), ("pocket", "laion_clap"))
    assert get_combo("open:pocket") == (("pocket", "mel_stats"), ("pocket",))
    with pytest.raises(ConfigError, match=r"Unknown combo 'opn:pocket'; choose one of pocket, A.*, or open:STREAM"):
        get_combo("opn:pocket")
