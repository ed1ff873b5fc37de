"""Streams are opened once and shared, every combo goes all the way on tiny models, and a new encoder is one file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hub_models import AUDIO_DIMS, TEXT_DIMS, encode_samples, put_in_cache, save_tiny_laion_clap
from tiny_system import tiny_config, write_sound

from qamdetr.audio import Sound, find_recordings
from qamdetr.config import Config, load_config
from qamdetr.data.manifest import QueryEntry, write_manifest
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.features import base
from qamdetr.features.base import COMBOS, STREAMS, AudioStream, EncoderOptions, Streams, get_combo, open_streams
from qamdetr.features.extract import extract
from qamdetr.features.store import FeatureStore
from qamdetr.inference.checkpoint import save_checkpoint
from qamdetr.inference.retriever import MomentRetriever
from qamdetr.model.qam_detr import QamDetr
from qamdetr.training.loop import train

QUERIES = ("a dog barks twice", "Regen fällt 🌧")
SECONDS = {"walk": 5.4, "street": 4.0}


def test_combos_share_their_streams(hub_folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    base._open.cache_clear()
    opened: list[str] = []
    monkeypatch.setattr(base, "_locate_all", lambda *_, **__: None)
    monkeypatch.setattr(base, "locate", lambda name, hub, model: opened.append(name) or Path(model))
    first, second, third = (open_streams(*COMBOS[name], models=hub_folders, device="cpu") for name in "ABC")
    alone = [open_streams((name,), (), models=hub_folders, device="cpu").num_parameters for name in ("laion_clap", "wavlm_base")]
    both = open_streams(("laion_clap", "wavlm_base"), ("laion_clap",), models=hub_folders, device="cpu")
    assert both.num_parameters == sum(alone) > 0, "shared ones count once"
    assert sorted(opened) == sorted((AUDIO_DIMS.keys() | TEXT_DIMS.keys()) - {"pe_a_frame"})
    assert first.audio["laion_clap"] is second.text["laion_clap"] is third.audio["laion_clap"]
    open_streams(*COMBOS["B"], models=hub_folders, dtype="bfloat16", device="cpu")
    assert len(opened) == 8, "another type is another network"


def test_all_missing_models_are_told_at_once_before_any_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub_folders: dict[str, str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    base._open.cache_clear()
    with pytest.raises(CheckpointError) as caught:
        open_streams(*COMBOS["A"], download=False)
    hubs = [STREAMS[name].hub for name in ("laion_clap", "ms_clap", "wavlm_base_plus")]
    for hub in [*hubs, STREAMS["ms_clap"].hub.beside]:
        assert hub.command in str(caught.value)
    assert (str(caught.value).count(" && "), "\n" in str(caught.value)) == (3, False)
    # The weights' repository of MS-CLAP has no tokeniser; a folder of one's own may.
    (tmp_path / "bare").mkdir()
    shutil.copy(Path(hub_folders["ms_clap"]) / "CLAP_weights_2023.pth", tmp_path / "bare")
    put_in_cache(tmp_path, "ms_clap", tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"The tokeniser of ms_clap \(openai-community/gpt2 .*beside the weights of ms_clap"):
        open_streams(*COMBOS["ms_clap"], download=False)
    assert not base.is_here("ms_clap")
    put_in_cache(tmp_path, "gpt2", Path(hub_folders["ms_clap"]))
    assert base.is_here("ms_clap")
    found = open_streams(*COMBOS["ms_clap"], device="cpu", download=False)
    assert found.fingerprint == open_streams(*COMBOS["ms_clap"], models=hub_folders, device="cpu").fingerprint
    base._open.cache_clear()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: open_streams(*COMBOS["B"], models={"wavlm": "x"}), "no pretrained encoder 'wavlm' .*known are laion_clap"),
        (lambda hub_folders: open_streams(*COMBOS["B"], models=hub_folders, device="meta"), "cannot run on device 'meta'"),
        (lambda hub_folders: open_streams(("roberta",), (), models=hub_folders), "'roberta' has no audio encoder"),
        (lambda _: open_streams(("nobody",), ()), "Unknown stream 'nobody'; there are encoders for .*pocket"),
    ],
)
def test_mistakes_are_named(hub_folders: dict[str, str], call, message: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=message):
        call(hub_folders)


class Ramp(AudioStream):
    """One number per clip; may be closed in the middle."""

    def __init__(self, rate_hz: int) -> None:
        super().__init__(Path(), EncoderOptions(batch_clips=2))
        self.name = self.fingerprint = f"at {rate_hz}"
        self.rate_hz, self.heard = rate_hz, 0

    def encode_windows(self, windows: torch.Tensor) -> torch.Tensor:
        self.heard += len(windows)
        return torch.ones(len(windows), 1)


def test_a_sample_gained_by_resampling_opens_no_clip() -> None:
    streams = Streams("x", {f"at {rate}": Ramp(rate) for rate in (7_001, 11_025, 16_000)}, {})
    recording = streams.encode(Sound((np.full(3 * 11_025, 0.1, np.float32), 11_025)))
    assert [len(rows) for rows in recording.streams.values()] == [3, 3, 3]
    assert list(recording.streams) == list(streams.audio), "the order of the set, not of the rates"


def test_one_reading_feeds_all_and_whoever_waits_may_leave(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(120 * 16_000, 0.1), 16_000)
    ramp = Ramp(16_000)
    work = Streams("x", {"ramp": ramp}, {}).encoding(Sound(tmp_path / "a.wav"))
    steps = [next(work), next(work)]
    assert steps[0].stage == "listen"
    assert steps[0].share < steps[1].share < 1
    assert not torch.is_inference_mode_enabled(), "inference mode never spans a yield"
    heard = ramp.heard
    work.close()
    assert 0 < ramp.heard == heard < 120
    pocket = open_streams(*COMBOS["pocket"])
    assert [*dict.fromkeys(step.stage for step in pocket.encoding(Sound(tmp_path / "a.wav")))] == ["listen", "pocket", "mel_stats"]


@pytest.mark.parametrize("seconds", [0.4, 20.3])
def test_a_file_gives_what_its_samples_give_at_once(hub_folders: dict[str, str], tmp_path: Path, seconds: float) -> None:
    soundfile.write(tmp_path / "a.flac", 0.3 * np.random.default_rng(0).uniform(-1, 1, (round(seconds * 22_050), 2)), 22_050)
    streams = open_streams(*COMBOS["A"], models=hub_folders, device="cpu")
    rows = streams.encode(Sound(tmp_path / "a.flac")).streams
    for name, encoder in streams.audio.items():
        whole = encode_samples(encoder, Sound(tmp_path / "a.flac").samples(encoder.rate_hz))
        torch.testing.assert_close(rows[name], whole[: len(rows[name])], atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`manifest.jsonl` and `audio/`."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "audio").mkdir()
    for seed, (vid, seconds) in enumerate(SECONDS.items()):
        write_sound(folder / "audio" / f"{vid}.wav", seconds, seed)
    entries = [QueryEntry(f"{vid}{at}", query, vid, SECONDS[vid], ((1.0, 2.5),)) for vid in SECONDS for at, query in enumerate(QUERIES)]
    write_manifest(folder / "manifest.jsonl", entries)
    return folder


def settings(scenes: Path, folder: Path, combo: str, audio: dict[str, int], text: dict[str, int]) -> Config:
    """A small network on some streams; all queries are one batch, so that an epoch is a step. LAION-CLAP's streams share a space."""
    config, manifest = tiny_config(), str(scenes / "manifest.jsonl")
    similarity = next(iter(audio)) == "laion_clap"
    return replace(
        config,
        model=replace(config.model, audio_streams=audio, text_streams=text, similarity=similarity),
        data=replace(config.data, train_manifest=manifest, val_manifest=manifest, feature_dir=str(folder / "features"), combo=combo),
        train=replace(config.train, epochs=1, batch_size=4, output_dir=str(folder), tracker=""),
    )


@pytest.mark.parametrize("name", ["A", "C"])  # B is a part of A
def test_a_combo_goes_from_files_through_a_step_to_answers(name: str, scenes: Path, hub_folders: dict[str, str], tmp_path: Path) -> None:
    combo = COMBOS[name]
    audio, text = {s: AUDIO_DIMS[s] for s in combo.audio_streams}, {s: TEXT_DIMS[s] for s in combo.text_streams}
    streams = open_streams(*combo, name=name, models=hub_folders, device="cpu")
    report = extract(find_recordings(scenes / "audio").items(), QUERIES, tmp_path / "features", streams, show_progress=False)
    assert (report.recordings, report.queries) == (2, 2)
    run = train(settings(scenes, tmp_path, name, audio, text), tmp_path / "run")
    assert json.loads((run.directory / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
    config = load_config(run.best_dir / "config.yaml")
    assert config.data.encoder == streams.fingerprint
    retriever = MomentRetriever.from_pretrained(run.best_dir, device="cpu")
    recording = retriever.encode(scenes / "audio" / "walk.wav")
    stored = FeatureStore(config.model, config.data, find_recordings(scenes / "audio"))
    for stream, rows in stored.audio("walk").items():
        torch.testing.assert_close(recording.streams[stream], rows, atol=2e-3, rtol=2e-3)  # float16 on disk
    result = retriever.retrieve(recording, QUERIES[0])
    assert result.encoder == name
    assert all(0 <= moment.start_seconds < moment.end_seconds <= SECONDS["walk"] for moment in result.moments)
    with pytest.raises(CheckpointError, match=f"trained on version {streams.fingerprint}"):
        others = {"laion_clap": str(save_tiny_laion_clap(tmp_path / "others", seed=9))}
        MomentRetriever.from_pretrained(run.best_dir, encoder_models=others)


def test_a_stranger_s_encoder_is_one_file(scenes: Path, tmp_path: Path) -> None:
    """`beats_like.py` is outside the package, and importing it is all that is done."""
    import beats_like  # noqa: F401

    assert (STREAMS["beats"].label, STREAMS["beats"].has_audio, STREAMS["beats"].has_text) == ("BEATs, or so", True, True)
    assert get_combo("beats") == (("beats",), ("beats",)), "what `extract --combo beats` opens"
    streams = open_streams(["beats"], ["beats"])
    report = extract(find_recordings(scenes / "audio").items(), QUERIES, tmp_path / "features", streams, show_progress=False)
    assert (report.recordings, report.queries) == (2, 2)
    assert sorted(path.name for path in (tmp_path / "features" / "beats-beats-1").glob("*.npz"))[1].startswith("walk.")
    trained = train(settings(scenes, tmp_path, "beats", {"beats": 5}, {"beats": 4}), tmp_path / "run").best_dir
    mixed = settings(scenes, tmp_path, "mine", {"pocket": 256, "beats": 5}, {"pocket": 256, "beats": 4})
    save_checkpoint(tmp_path / "mixed", QamDetr(mixed.model).eval(), mixed)
    for checkpoint, encoder in ((trained, "beats"), (tmp_path / "mixed", "mine")):
        retriever = MomentRetriever.from_pretrained(checkpoint)
        result = retriever.retrieve(retriever.encode(scenes / "audio" / "walk.wav"), QUERIES[0])
        assert (result.encoder, bool(result.moments)) == (encoder, True)
