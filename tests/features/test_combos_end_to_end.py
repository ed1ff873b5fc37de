"""Combos A, B and C from disk to a prediction: real loaders, a feature cache, one step of training, a checkpoint, an answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hub_clap_models import save_tiny_laion_clap
from hub_models import AUDIO_DIMS, TEXT_DIMS, tiny_hub

from qamdetr.audio import find_recordings
from qamdetr.cli import main
from qamdetr.config import Config, config_from_dict, load_config, save_config
from qamdetr.data.collate import Collator
from qamdetr.data.dataset import MomentDataset
from qamdetr.data.manifest import QueryEntry, read_manifest, write_manifest
from qamdetr.errors import CheckpointError
from qamdetr.features.base import COMBOS
from qamdetr.features.cache import FeatureCache
from qamdetr.features.encoders import load_combo
from qamdetr.features.extract import extract
from qamdetr.features.feature_store import FeatureStore
from qamdetr.inference import retriever as serving
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.training.loop import train
from qamdetr.types import Batch

QUERIES = ("a dog barks twice", "Regen fällt 🌧")
SECONDS = {"walk": 5.4, "street": 4.0}
FLOAT16 = 2e-3
"""What float16 in the cache may change of a unit vector's components."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`manifest.jsonl`, and `audio/` with a mono and a stereo file at rates of their own."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "audio").mkdir()
    rng = np.random.default_rng(0)
    for vid, rate, channels in (("walk", 22_050, 1), ("street", 44_100, 2)):
        time = np.arange(round(SECONDS[vid] * rate)) / rate
        sound = 0.3 * np.sin(2 * np.pi * (300 + 200 * np.floor(time)) * time) + 0.05 * rng.standard_normal(len(time))
        soundfile.write(folder / "audio" / f"{vid}.wav", np.stack([sound] * channels, axis=1), rate)
    write_manifest(
        folder / "manifest.jsonl",
        [QueryEntry(f"{vid}{at}", query, vid, SECONDS[vid], ((1.0, 2.5),)) for vid in SECONDS for at, query in enumerate(QUERIES)],
    )
    return folder


def settings(scenes: Path, folder: Path, combo: str, models: dict[str, str]) -> Config:
    """A small network on the combo's streams; all queries are one batch, so that an epoch is a step."""
    return config_from_dict(
        {
            "model": {
                "audio_streams": {stream: AUDIO_DIMS[stream] for stream in COMBOS[combo].audio_streams},
                "text_streams": {stream: TEXT_DIMS[stream] for stream in COMBOS[combo].text_streams},
                "dim": 16,
                "num_heads": 2,
                "ffn_dim": 32,
                "similarity": True,  # LAION-CLAP's clips and queries share a space
                "encoder": "transformer",
                "encoder_layers": 1,
                "num_moment_queries": 5,
            },
            "data": {
                "train_manifest": str(scenes / "manifest.jsonl"),
                "val_manifest": str(scenes / "manifest.jsonl"),
                "feature_dir": str(folder / "features"),
                "combo": combo,
                "encoder_models": models,
            },
            "train": {"epochs": 1, "batch_size": 4, "output_dir": str(folder), "tracker": ""},
        }
    )


@dataclass
class System:
    """A combo that has gone all the way."""

    config: Config
    fingerprint: str
    best: Path
    steps: int


@pytest.fixture(scope="module", params=["A", "B", "C"])
def system(request: pytest.FixtureRequest, scenes: Path, models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> System:
    folder = tmp_path_factory.mktemp(request.param)
    config = settings(scenes, folder, request.param, models)
    combo = load_combo(request.param, models=models)
    report = extract(find_recordings(scenes / "audio").items(), QUERIES, Path(config.data.feature_dir), combo, show_progress=False)
    assert (report.recordings, report.queries) == (2, 2)
    run = train(config, folder / "run")
    (row,) = map(json.loads, (run.directory / "metrics.jsonl").read_text().splitlines())
    return System(config, combo.fingerprint, run.best_dir, row["step"])


def test_a_checkpoint_of_one_step_answers_on_audio(system: System, scenes: Path) -> None:
    assert system.steps == 1
    assert load_config(system.best / "config.yaml").data.encoder == system.fingerprint
    retriever = MomentRetriever.from_pretrained(system.best)
    for vid, seconds in SECONDS.items():
        recording = retriever.encode(scenes / "audio" / f"{vid}.wav")
        assert set(recording.streams) == set(COMBOS[system.config.data.combo].audio_streams)
        for result in retriever.retrieve_many(recording, [*QUERIES, "a query that training never saw"]):
            assert result.encoder == system.config.data.combo
            assert result.moments
            assert all(0 <= moment.start_seconds < moment.end_seconds <= seconds for moment in result.moments)
            assert len(result.saliency) == recording.num_clips


def test_serving_feeds_the_network_what_training_fed_it(system: System, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[Batch] = []
    prepare = serving.prepare
    monkeypatch.setattr(serving, "prepare", lambda audio, text: fed.append(prepare(audio, text)) or fed[-1])
    retriever = MomentRetriever.from_pretrained(system.best)
    entries = read_manifest(scenes / "manifest.jsonl")
    store = FeatureStore(system.config.model, system.config.data, find_recordings(scenes / "audio"))
    dataset, collate = MomentDataset(entries, store), Collator(entries)
    for index, entry in enumerate(entries):
        retriever.retrieve(retriever.encode(scenes / "audio" / f"{entry.vid}.wav"), entry.query)
        served, trained = fed.pop(), collate([dataset[index]]).batch
        for kind, dims in (("audio", AUDIO_DIMS), ("text", TEXT_DIMS)):
            ours, theirs = getattr(served, kind), getattr(trained, kind)
            assert list(ours) == list(theirs) == list(getattr(system.config.model, f"{kind}_streams"))
            for name, rows in ours.items():
                assert rows.shape == theirs[name].shape
                assert rows.shape[-1] in (dims[name], dims[name] + 2)  # the main stream ends with tef
                assert torch.allclose(rows, theirs[name], atol=FLOAT16), name
        assert torch.equal(served.audio_mask, trained.audio_mask)
        assert torch.equal(served.text_mask, trained.text_mask)
        assert torch.allclose(served.text_pooled, trained.text_pooled, atol=FLOAT16)
    assert not fed


def test_cached_features_tell_recordings_apart(system: System) -> None:
    """What the comparison above rests on: features of another recording or query are far from equal."""
    cache = FeatureCache(Path(system.config.data.feature_dir), system.config.data.combo)
    walk, street = cache.audio("walk"), cache.audio("street")
    for name in walk:
        assert not torch.allclose(*(torch.nn.functional.normalize(rows[:4], dim=-1) for rows in (walk[name], street[name])), atol=FLOAT16)
    first, second = (cache.text(query) for query in QUERIES)
    for name in first:
        assert not torch.allclose(first[name].tokens[1], second[name].tokens[1], atol=FLOAT16)


def test_other_weights_are_refused(system: System, tmp_path: Path) -> None:
    others = {"laion_clap": str(save_tiny_laion_clap(tmp_path, seed=9))}
    with pytest.raises(CheckpointError, match=f"trained on version {system.fingerprint}"):
        MomentRetriever.from_pretrained(system.best, encoder_models=others)


def test_settings_of_extraction_alone_serve_the_checkpoint(scenes: Path, models: dict[str, str], tmp_path: Path) -> None:
    """What was said to `extract` need not be said again to training or to `predict`."""
    streams = COMBOS["B"].audio_streams
    given = [part for stream in streams for part in ("--encoder", f"{stream}={models[stream]}")]
    config = settings(scenes, tmp_path, "B", {})
    source = ["--manifest", str(scenes / "manifest.jsonl"), "--feature-dir", config.data.feature_dir]
    assert main(["extract", "--combo", "B", "--dtype", "bfloat16", "--device", "cpu", *given, *source]) == 0
    best = train(config, tmp_path / "run").best_dir
    data = load_config(best / "config.yaml").data
    assert (data.encoder_dtype, data.encoder_models) == ("bfloat16", {stream: models[stream] for stream in streams})
    retriever = MomentRetriever.from_pretrained(best, device="cpu")
    assert retriever.retrieve(retriever.encode(scenes / "audio" / "walk.wav"), QUERIES[0]).moments
    answers = [str(tmp_path / name) for name in ("features.jsonl", "audio.jsonl")]
    asked = ["predict", "--checkpoint", str(best), "--manifest", str(scenes / "manifest.jsonl")]
    assert main([*asked, "--from-features", "--output", answers[0]]) == 0
    assert main([*asked, "--output", answers[1]]) == 0


def test_a_checkpoint_trained_on_public_ms_clap_serves_with_the_live_encoder(
    scenes: Path, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    combo = load_combo("ms_clap", models=models)
    folders = {kind: tmp_path / kind for kind in ("clap", "clap_text")}
    for folder in folders.values():
        folder.mkdir()
    for vid in SECONDS:
        rows = combo.encode_recording(scenes / "audio" / f"{vid}.wav").streams["ms_clap"]
        np.savez(folders["clap"] / f"{vid}.npz", features=rows.numpy())
    for entry in read_manifest(scenes / "manifest.jsonl"):
        tokens = combo.encode_query(entry.query)["ms_clap"].tokens
        np.savez(folders["clap_text"] / f"qid{entry.qid}.npz", last_hidden_state=tokens.numpy())
    # The combo has more streams than the model; their encoders are not here and must not be asked for.
    others = {"laion_clap": str(tmp_path / "absent"), "wavlm_base_plus": str(tmp_path / "absent")}
    config = settings(scenes, tmp_path, "A", {**others, "ms_clap": models["ms_clap"]})
    config = replace(
        config,
        model=replace(
            config.model,
            audio_streams={"ms_clap": AUDIO_DIMS["ms_clap"]},
            text_streams={"ms_clap": TEXT_DIMS["ms_clap"]},
            similarity=False,
        ),
        data=replace(config.data, audio_features={"ms_clap": str(folders["clap"])}, text_features={"ms_clap": str(folders["clap_text"])}),
    )
    best = train(config, tmp_path / "run").best_dir
    trained = load_config(best / "config.yaml")
    assert trained.data.encoder.startswith("public-")
    # Elsewhere the public files are not there either.
    save_config(replace(trained, data=replace(trained.data, audio_features={}, text_features={})), best / "config.yaml")

    fed: list[Batch] = []
    prepare = serving.prepare
    monkeypatch.setattr(serving, "prepare", lambda audio, text: fed.append(prepare(audio, text)) or fed[-1])
    retriever = MomentRetriever.from_pretrained(best)
    recording = retriever.encode(scenes / "audio" / "walk.wav")
    assert list(recording.streams) == ["ms_clap"]
    assert retriever.retrieve(recording, QUERIES[0]).moments
    entries = read_manifest(scenes / "manifest.jsonl")
    dataset = MomentDataset(entries, FeatureStore(config.model, config.data, find_recordings(scenes / "audio")))
    stored = Collator(entries)([dataset[0]]).batch
    assert torch.allclose(fed[0].audio["ms_clap"], stored.audio["ms_clap"], atol=1e-5)
    assert torch.allclose(fed[0].text["ms_clap"], stored.text["ms_clap"], atol=1e-5)
