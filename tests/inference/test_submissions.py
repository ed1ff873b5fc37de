"""The report's four submissions from start to end, as their recipes stand, with every model in small.

Tiny encoders of combos A, B and C in the hub's own layout, nine random checkpoints where the recipes look for them, a tiny Qwen2.5-Omni,
synthesised scenes: extracted, answered from features and from audio, written as the challenge wants it and checked.
"""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_omni
import torch
import yaml
from hub_models import AUDIO_DIMS, TEXT_DIMS

from qamdetr.cli import main
from qamdetr.config import load_config
from qamdetr.data.manifest import read_manifest
from qamdetr.features.base import COMBOS, open_streams
from qamdetr.inference.checkpoint import save_checkpoint
from qamdetr.inference.retriever import load_system
from qamdetr.model.qam_detr import QamDetr

pytestmark = pytest.mark.slow

SUBMISSIONS = ("submit1", "submit2", "submit3", "submit4")
RATE_HZ = 16_000
TEAM = "Muster_UNI_task6"


def synthesize_scenes(folder: Path) -> Path:
    """Two scenes of 14 to 18 s with two or three sounds; returns their manifest."""
    clips = folder / "clips"
    clips.mkdir()
    time = np.arange(2 * RATE_HZ) / RATE_HZ
    sounds = {
        "bell": np.sin(2 * np.pi * 900 * time),
        "horn": np.sin(2 * np.pi * 200 * time),
        "wind": np.random.default_rng(0).normal(size=len(time)),
    }
    with (clips / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "caption_1"])
        for name, samples in sounds.items():
            soundfile.write(clips / f"{name}.wav", 0.2 * samples, RATE_HZ)
            table.writerow([f"{name}.wav", f"A {name} sounds"])
    sizes = ["--num-scenes", "2", "--min-scene-seconds", "14", "--max-scene-seconds", "18", "--min-groups", "2", "--max-groups", "3"]
    rest = ["--max-occurrences", "2", "--event-max-seconds", "4", "--absent-share", "0", "--sample-rate-hz", str(RATE_HZ)]
    assert main(["synthesize", "--clips", str(clips), "--output", str(folder / "scenes"), *sizes, *rest]) == 0
    return folder / "scenes" / "manifest.jsonl"


def save_members(folder: Path, models: dict[str, str]) -> None:
    """Random checkpoints of each combo's own config, at a small width, where the recipes look for them."""
    for combo in "ABC":
        config = load_config(f"combo_{combo.lower()}_finetune", ["model.dim=16", "model.num_heads=2", "model.ffn_dim=32"])
        audio = {stream: AUDIO_DIMS[stream] for stream in config.model.audio_streams}
        text = {stream: TEXT_DIMS[stream] for stream in config.model.text_streams}
        version = open_streams(*COMBOS[combo], models=models).fingerprint
        config = replace(
            config,
            model=replace(config.model, audio_streams=audio, text_streams=text),
            data=replace(config.data, encoder=version, encoder_models=models),
        )
        for seed in range(3):
            torch.manual_seed(seed)
            save_checkpoint(folder / "runs" / f"combo_{combo.lower()}_finetune-s{seed}" / "best", QamDetr(config.model), config)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, hub_folders: dict[str, str]) -> Path:
    """A working folder as docs/reproduce.md leaves it: runs, features of every combo, and the evaluation set."""
    folder = tmp_path_factory.mktemp("work")
    models = hub_folders
    save_members(folder, models)
    tiny_omni.save_omni(folder / "omni")
    manifest = synthesize_scenes(folder)
    for combo in "ABC":
        streams = {*COMBOS[combo].audio_streams, *COMBOS[combo].text_streams}
        encoders = [part for stream in sorted(streams) for part in ("--encoder", f"{stream}={models[stream]}")]
        assert main(["extract", "--manifest", str(manifest), "--combo", combo, *encoders, "--feature-dir", str(folder / "features")]) == 0
    return folder


def submission(name: str) -> str:
    return f"{TEAM}_{name[-1]}"


def run(work: Path, name: str, *source: str) -> tuple[Path, Path]:
    """Run one submission; returns the challenge's file and the predictions of the same system."""
    output, predictions = work / f"{submission(name)}.output.jsonl", work / f"{name}.jsonl"
    verifier = ["--verifier-model", "omni", "--set", "verifier.cache_dir=answers"] if load_system(name).verify_with != "none" else []
    call = ["predict", "--system", name, "--manifest", "scenes/manifest.jsonl", *source, *verifier]
    for path in (output, predictions):
        assert main([*call, "--output", str(path)]) == 0
    return output, predictions


def windows(path: Path) -> list[list[list[float]]]:
    return [json.loads(line)["pred_relevant_windows"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("source", [["--from-features"], []], ids=["features", "audio"])
def test_all_four_run_to_files_that_the_challenge_takes(work, source, monkeypatch, capsys):
    monkeypatch.chdir(work)
    files, scored = [], {}
    for name in SUBMISSIONS:
        output, predictions = run(work, name, *source)
        assert capsys.readouterr().err.count("Verifier") == 0, "no verifier failed"
        scored[name] = windows(predictions)
        assert [[window[:2] for window in entry] for entry in scored[name]] == windows(output)
        description = work / f"{submission(name)}.meta.yaml"
        description.write_text(yaml.safe_dump(metadata(name)), encoding="utf-8")
        files += [str(output), str(description)]
    assert main(["submit", "--check", *files, "--manifest", "scenes/manifest.jsonl"]) == 0
    entries = read_manifest("scenes/manifest.jsonl")
    assert f"OK: 4 systems, {len(entries)} queries" in capsys.readouterr().out

    for one, two in zip(scored["submit1"], scored["submit2"], strict=True):
        boundaries = [{(start, end) for start, end, _ in entry} for entry in (one, two)]
        assert boundaries[0] == boundaries[1], "the verifier ranks, and moves nothing"
    assert scored["submit1"] != scored["submit2"], "but it does rank"
    assert len({json.dumps(windows) for windows in scored.values()}) == 4


def test_features_and_audio_give_the_same_answer(work, monkeypatch):
    monkeypatch.chdir(work)
    _, read = run(work, "submit1", "--from-features")
    from_features = windows(read)
    _, heard = run(work, "submit1")
    for one, two in zip(from_features, windows(heard), strict=True):
        # The cache holds float16; candidates of nearly equal scores may change places.
        assert sorted(one) == [pytest.approx(window, abs=0.05) for window in sorted(two)]


def metadata(name: str) -> dict:
    """What only people know, made up."""
    return {
        "submission": {
            "label": submission(name),
            "name": name,
            "abbreviation": "QAMDETR",
            "authors": [{"firstname": "Erika", "lastname": "Muster"}],
        },
        "system": {
            "model": {
                "audio_models": ["laion_clap"],
                "text_models": ["laion_clap"],
                "LLMs": None,
                "trainable_parameters": 1,
                "frozen_parameters": 1,
                "loss": "see the report",
            },
            "dataset": {"augmentation": None, "external_data": None, "captions": None},
            "ensemble": None,
        },
        "results": {"development_testing": {"Recall1@0.7": 12.5, "Recall1@0.5": 25.0}},
    }
