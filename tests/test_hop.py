"""Clips of half a second: every position in seconds is what it is with clips of one second, and features of both never meet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_models import encode_samples
from tiny_system import recording_of, tiny_config, tiny_model, tiny_retriever, write_sound

from qamdetr import cli
from qamdetr.audio import find_recordings
from qamdetr.config import Config, InferenceConfig, build, load_config
from qamdetr.data.dataset import Collator, MomentDataset
from qamdetr.data.manifest import QueryEntry, write_manifest
from qamdetr.errors import ConfigError, DataError
from qamdetr.features.base import COMBOS, open_streams
from qamdetr.features.pocket import SAMPLE_RATE_HZ
from qamdetr.features.store import FeatureStore, require_features
from qamdetr.inference.candidates import answers
from qamdetr.inference.checkpoint import save_checkpoint
from qamdetr.inference.retriever import Member, MomentRetriever, load_system
from qamdetr.types import DecoderOutput, ModelOutput
from qamdetr.verifiers.pocket import PocketVerifier

QUERIES = ("a dog barks", "rain")
SECONDS = {"walk": 6.2, "street": 4.0}


def at(config: Config, clip_seconds: float, **data) -> Config:
    return replace(config, model=replace(config.model, clip_seconds=clip_seconds), data=replace(config.data, **data))


@pytest.mark.parametrize("inference", [{}, {"segment_threshold": 0.3}, {"section_clips": 20, "section_overlap_clips": 5, "nms_iou": 1.0}])
@pytest.mark.parametrize("decoder", ["detr", "dense"])
def test_the_same_clips_half_as_long_give_the_same_answer_in_half_the_time(decoder: str, inference: dict, monkeypatch) -> None:
    for limit in ("spans.MIN_WINDOW_SECONDS", "inference.candidates.MIN_SECONDS", "inference.candidates.MIN_REACH_SECONDS",
                  "inference.sections._EDGE_SECONDS", "verifiers.base.MIN_CROP_SECONDS"):  # fmt: skip
        monkeypatch.setattr(f"qamdetr.{limit}", 0.0)
    recording = recording_of(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)))
    half = replace(recording, duration_seconds=30.0, clip_seconds=0.5)
    config = tiny_config(**inference)
    config = replace(config, model=replace(config.model, decoder=decoder))
    retriever = tiny_retriever()
    (one, two) = (
        MomentRetriever([Member(tiny_model(each), each)], retriever.encoder).retrieve(heard, "a dog", top_k=50, verifier=PocketVerifier())
        for each, heard in ((config, recording), (at(config, 0.5), half))
    )
    assert (one.clip_seconds, two.clip_seconds, two.duration_seconds) == (1.0, 0.5, 30.0)
    assert two.saliency == one.saliency
    assert one.moments
    for slow, fast in zip(one.moments, two.moments, strict=True):
        assert fast.window == pytest.approx([0.5 * seconds for seconds in slow.window], abs=1e-6)
        assert (fast.score, fast.verifier_score) == pytest.approx((slow.score, slow.verifier_score), abs=1e-6)


def test_the_same_curve_on_a_finer_grid_gives_the_same_windows() -> None:
    def decode(clip_seconds: float) -> list:
        curve = torch.tensor([0.01] * 6 + [0.99] * 3 + [0.01] * 5 + [0.8] * 1 + [0.01] * 5).logit()
        clips = round(len(curve) / clip_seconds)
        decoder = DecoderOutput(torch.tensor([[[2.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[0.4, 0.2], [0.7, 0.5]]]), torch.zeros(1, 2))
        output = ModelOutput(decoder, (), curve.repeat_interleave(round(1 / clip_seconds))[None])
        settings = InferenceConfig(segment_threshold=0.3, nms_iou=1.0)
        return answers(output, [19.7], [clips], settings, clip_seconds=clip_seconds)[0].candidates

    for coarse, fine in zip(decode(1.0), decode(0.5), strict=True):
        assert fine.window == pytest.approx(coarse.window, abs=0.11), "a clip's share moves an end by less where it is shorter"
        assert fine.foreground == pytest.approx(coarse.foreground, abs=1e-5)


def test_an_encoder_sees_a_second_around_each_half_and_nothing_moves() -> None:
    one, two = (open_streams(*COMBOS["pocket"], clip_seconds=hop).audio for hop in (1.0, 0.5))
    noise = 0.1 * np.random.default_rng(0).standard_normal(9 * SAMPLE_RATE_HZ).astype(np.float32)
    noise[:SAMPLE_RATE_HZ] = noise[8 * SAMPLE_RATE_HZ :] = 0  # so that all three hold the same, and statistics of one level compare
    early, late = (np.roll(noise, quarters * SAMPLE_RATE_HZ // 4) for quarters in (1, 3))
    rows = encode_samples(two["mel_stats"], noise)
    assert len(rows) == len(encode_samples(two["pocket"], noise)) == 18
    # Away from the ends, where frames of the silence beyond them reach into the sound.
    torch.testing.assert_close(rows[4:14:2], encode_samples(one["mel_stats"], early)[2:7], atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[5:15:2], encode_samples(one["mel_stats"], late)[3:8], atol=1e-5, rtol=0)
    burst = noise.copy()
    burst[: 4 * SAMPLE_RATE_HZ] = burst[5 * SAMPLE_RATE_HZ :] = 0
    level = encode_samples(two["mel_stats"], burst)[:, 16]
    assert level.argsort()[-4:].sort().values.tolist() == [7, 8, 9, 10], "a quarter of a second is seen on both sides"
    heard = encode_samples(two["pocket"], burst).norm(dim=-1)
    assert (heard > 0.5).nonzero().flatten().tolist() == [8, 9], "what a clip itself holds decides whether it is silent"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`manifest.jsonl`, `audio/`, and `features/` of both hops, extracted by the command."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "audio").mkdir()
    for seed, (vid, seconds) in enumerate(SECONDS.items()):
        write_sound(folder / "audio" / f"{vid}.wav", seconds, seed)
    entries = [QueryEntry(f"{vid}{at}", query, vid, SECONDS[vid], ((1.0, 2.25),)) for vid in SECONDS for at, query in enumerate(QUERIES)]
    write_manifest(folder / "manifest.jsonl", entries)
    for hop in ([], ["--clip-seconds", "0.5"]):
        told = ["extract", "--manifest", str(folder / "manifest.jsonl"), "--feature-dir", str(folder / "features"), *hop]
        assert cli.main(told) == 0
    return folder


def small(scenes: Path, output: Path, clip_seconds: float) -> Config:
    model = {"dim": 16, "num_heads": 2, "ffn_dim": 32, "encoder": "transformer", "encoder_layers": 1, "decoder": "dense"}
    manifest = str(scenes / "manifest.jsonl")
    data = {"train_manifest": manifest, "val_manifest": manifest, "feature_dir": str(scenes / "features"), "crop_probability": 0.5}
    train = {"epochs": 3, "batch_size": 2, "output_dir": str(output), "tracker": ""}
    inference = {"segment_threshold": 0.3}
    return build(Config, {"model": model | {"clip_seconds": clip_seconds}, "data": data, "train": train, "inference": inference})


def test_features_of_two_hops_lie_side_by_side(scenes: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (scenes / "features").iterdir())
    fingerprints = {hop: open_streams(*COMBOS["pocket"], clip_seconds=hop).audio["pocket"].fingerprint for hop in (1.0, 0.5)}
    assert fingerprints[0.5] == f"0.5s-{fingerprints[1.0]}"
    ours = [f"pocket-{fingerprints[hop][:16]}" for hop in (0.5, 1.0)]
    assert names == sorted([*ours, "mel_stats-mel_stats-2", "mel_stats-0.5s-mel_stats-2"])
    old = scenes / "features" / "mel_stats-mel_stats-2" / "encoder.json"  # as it was written before hops were known
    old.write_text(json.dumps({"stream": "mel_stats", "fingerprint": "mel_stats-2", "source": "", "dtype": ""}))
    recordings = find_recordings(scenes / "audio")
    for hop, clips in ((1.0, 7), (0.5, 13)):
        config = small(scenes, tmp_path, hop)
        store = FeatureStore(config.model, config.data, recordings)
        assert (store.num_clips("walk"), store.clip_seconds) == (clips, hop)
        assert store.encoder_version(["walk"], {"walk0": QUERIES[0]}) == open_streams(*COMBOS["pocket"], clip_seconds=hop).fingerprint
    elsewhere = at(small(scenes, tmp_path, 0.5), 0.5, feature_dir=str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"extract --combo pocket .*--clip-seconds 0\.5`"):
        require_features([(FeatureStore(elsewhere.model, elsewhere.data, recordings), ["walk"], {})])


def test_targets_are_of_the_clips_that_the_model_sees(scenes: Path, tmp_path: Path) -> None:
    config = small(scenes, tmp_path, 0.5)
    store = FeatureStore(config.model, config.data, find_recordings(scenes / "audio"))
    entries = [QueryEntry("a", QUERIES[0], "walk", 6.2, ((1.25, 2.0), (5.0, 6.2)))]
    batch = Collator(entries)([MomentDataset(entries, store)[0]])
    assert (batch.num_clips, batch.clip_seconds) == ((13,), 0.5)
    torch.testing.assert_close(batch.targets.spans_cxw, torch.tensor([[1.625, 0.75], [5.6, 1.2]]) / 6.5)
    expected = [0, 0, 0.5, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0.4]
    torch.testing.assert_close(batch.targets.saliency[0], torch.tensor(expected))
    cropped = MomentDataset(entries, store, crop_probability=1.0, max_clips=5)
    for epoch in range(8):
        cropped.set_epoch(epoch)
        item = cropped[0]
        assert (item.num_clips, item.length_seconds) == (5, 2.5)
        assert item.windows
        for start, end in item.windows:
            assert 0 <= start < end <= item.duration_seconds <= 2.5
    with pytest.raises(DataError, match=r"lasts 13 s in the manifest, its features 6\.5 s"):
        MomentDataset([replace(entries[0], duration_seconds=13.0)], store)


def test_from_files_through_training_to_answers(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qamdetr.training.loop import train

    run = train(small(scenes, tmp_path, 0.5), tmp_path / "run")
    assert load_config(run.best_dir / "config.yaml").model.clip_seconds == 0.5
    sound = scenes / "audio" / "walk.wav"
    capsys.readouterr()
    asked = ["predict", str(sound), "--query", QUERIES[0], "--checkpoint", str(run.best_dir), "--format", "json"]
    assert cli.main(asked) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["clip_seconds"], len(told["saliency"])) == (0.5, 13)
    assert all(0 <= moment["start"] < moment["end"] <= 6.2 for moment in told["moments"])
    retriever = MomentRetriever.from_pretrained(run.best_dir)
    entries = [QueryEntry("walk0", QUERIES[0], "walk", SECONDS["walk"], None)]
    stored = MomentRetriever.from_features(run.best_dir, entries, audio_dir=scenes / "audio")
    given = stored.retrieve(stored.encode("walk"), QUERIES[0])
    assert given.saliency == pytest.approx(told["saliency"], abs=5e-3)
    with pytest.raises(ConfigError, match=r"walk\.wav was encoded in clips of 1 s, and this checkpoint reads clips of 0\.5 s; encode it"):
        retriever.retrieve(MomentRetriever.from_pretrained("ladder-1-baseline").encode(sound), QUERIES[0])


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.clip_seconds is 0\.25; it must be 1\.0 or 0\.5"):
        build(Config, {"model": {"clip_seconds": 0.25}})
    for hop in (1.0, 0.5):
        config = at(load_config("pocket"), hop)
        config = replace(config, model=replace(config.model, dim=16, num_heads=2, ffn_dim=16, encoder="transformer"))
        save_checkpoint(tmp_path / str(hop), tiny_model(config), config)
    with pytest.raises(ConfigError, match=r"read clips of different lengths \(.*1\.0 of 1 s, .*0\.5 of 0\.5 s\)"):
        MomentRetriever.from_system(load_system("submit1", members=[str(tmp_path / "1.0"), str(tmp_path / "0.5")]))
