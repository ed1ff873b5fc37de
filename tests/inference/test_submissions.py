"""The report's four submissions from start to end, as their recipes stand, with every model in small.

Tiny encoders of combos A, B and C in the hub's own layout, nine random checkpoints where the recipes look for them, a tiny Qwen2.5-Omni,
two recordings of noise: extracted, answered from features and from audio, written as the challenge wants it and checked.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_omni
import torch
import yaml
from challenge import METADATA
from hub_models import AUDIO_DIMS, TEXT_DIMS
from tiny_system import write_sound

from qamdetr.cli import main
from qamdetr.config import load_config
from qamdetr.data.manifest import QueryEntry, write_manifest
from qamdetr.evaluation.submission import fill_metadata
from qamdetr.features.base import COMBOS, open_streams
from qamdetr.inference.checkpoint import save_checkpoint
from qamdetr.model.qam_detr import QamDetr

pytestmark = pytest.mark.slow

TEAM = "Muster_UNI_task6"
QUERIES = {"one": ("a bell rings", "a horn sounds"), "two": ("wind blows",)}


def save_members(folder: Path, models: dict[str, str]) -> None:
    """Random checkpoints of each combo's own config, at a small width, where the recipes look for them."""
    for combo in "ABC":
        config = load_config(f"combo_{combo.lower()}_finetune", ["model.dim=16", "model.num_heads=2", "model.ffn_dim=32"])
        audio = {stream: AUDIO_DIMS[stream] for stream in config.model.audio_streams}
        text = {stream: TEXT_DIMS[stream] for stream in config.model.text_streams}
        version = open_streams(*COMBOS[combo], models=models).fingerprint
        model = replace(config.model, audio_streams=audio, text_streams=text)
        config = replace(config, model=model, data=replace(config.data, encoder=version, encoder_models=models))
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
    (folder / "scenes" / "audio").mkdir(parents=True)
    entries = []
    for seed, (vid, queries) in enumerate(QUERIES.items()):
        write_sound(folder / "scenes" / "audio" / f"{vid}.flac", 14, seed=seed)
        entries += [QueryEntry(f"{vid}_{number}", query, vid, 14.0, ((1.0, 5.0),)) for number, query in enumerate(queries)]
    write_manifest(folder / "scenes" / "manifest.jsonl", entries)
    for combo in "ABC":
        encoders = [part for stream in sorted({*sum(COMBOS[combo], ())}) for part in ("--encoder", f"{stream}={models[stream]}")]
        places = ["--manifest", str(folder / "scenes" / "manifest.jsonl"), "--feature-dir", str(folder / "features")]
        assert main(["extract", *places, "--combo", combo, *encoders]) == 0
    return folder


def windows(path: str) -> list[list[list[float]]]:
    return [json.loads(line)["pred_relevant_windows"] for line in Path(path).read_text().splitlines()]


def predict(name: str, output: str, *options: str) -> list[list[list[float]]]:
    assert main(["predict", "--system", name, "--manifest", "scenes/manifest.jsonl", *options, "--output", output]) == 0
    return windows(output)


def test_all_four_run_to_files_that_the_challenge_takes(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    files, scored = [], {}
    for name in ("submit1", "submit2", "submit3", "submit4"):
        options = ["--from-features"]
        if name != "submit1":
            options += ["--verifier-model", "omni", "--set", "verifier.cache_dir=answers"]
        output, description = f"{TEAM}_{name[-1]}.output.jsonl", Path(f"{TEAM}_{name[-1]}.meta.yaml")
        bounds = predict(name, output, *options)
        assert capsys.readouterr().err.count("Verifier") == 0, "no verifier failed"
        if name in ("submit1", "submit2"):
            scored[name] = predict(name, f"{name}.jsonl", *options)
            assert [[window[:2] for window in entry] for entry in scored[name]] == bounds
        description.write_text(yaml.safe_dump(fill_metadata(METADATA, {"submission": {"label": f"{TEAM}_{name[-1]}"}})), encoding="utf-8")
        files += [output, str(description)]
    assert main(["submit", "--check", *files, "--manifest", "scenes/manifest.jsonl"]) == 0
    assert "OK: 4 systems, 3 queries" in capsys.readouterr().out

    for one, two in zip(scored["submit1"], scored["submit2"], strict=True):
        assert {tuple(window[:2]) for window in one} == {tuple(window[:2]) for window in two}, "the verifier ranks, and moves nothing"
    assert scored["submit1"] != scored["submit2"], "but it does rank"


def test_features_and_audio_give_the_same_answer(work, monkeypatch):
    monkeypatch.chdir(work)
    read, heard = predict("submit1", "read.jsonl", "--from-features"), predict("submit1", "heard.jsonl")
    for one, two in zip(read, heard, strict=True):
        # The cache holds float16; candidates of nearly equal scores may change places.
        assert sorted(one) == [pytest.approx(window, abs=0.05) for window in sorted(two)]
