"""The registry: every combo from disk, streams shared between combos, versions that follow what decides the features."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import soundfile
import torch
import yaml
from hub_models import AUDIO_DIMS, TEXT_DIMS, put_in_cache, tiny_hub

from qamdetr import audio
from qamdetr.config import CHECKPOINT_DIR
from qamdetr.errors import AudioError, CheckpointError, ConfigError
from qamdetr.features import encoders
from qamdetr.features.base import COMBOS
from qamdetr.features.encoders import ComboEncoder, forget_streams, load_combo, load_streams
from qamdetr.features.hub import HUB_MODELS
from qamdetr.sample_stream import SampleStream
from qamdetr.types import TextFeatures

BIG_COMBOS = [name for name in COMBOS if name != "pocket"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny_hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2.6 s of stereo noise at a rate that is nobody's."""
    path = tmp_path_factory.mktemp("sound") / "sound.wav"
    soundfile.write(path, 0.3 * np.random.default_rng(0).uniform(-1, 1, (57_330, 2)), 22_050)
    return path


@pytest.mark.parametrize("name", BIG_COMBOS)
def test_every_combo_opens_and_gives_its_streams_in_order(models: dict[str, str], sound: Path, name: str) -> None:
    combo = load_combo(name, models=models, device="cpu")
    recording = combo.encode_recording(sound)
    assert recording.num_clips == 3
    assert recording.duration_seconds == pytest.approx(2.6)
    assert {stream: tuple(rows.shape) for stream, rows in recording.streams.items()} == {
        stream: (3, AUDIO_DIMS[stream]) for stream in COMBOS[name].audio_streams
    }
    texts = combo.encode_query("a dog barks")
    assert {stream: features.tokens.shape[1] for stream, features in texts.items()} == {
        stream: TEXT_DIMS[stream] for stream in COMBOS[name].text_streams
    }
    assert tuple(recording.streams) == COMBOS[name].audio_streams
    assert tuple(texts) == COMBOS[name].text_streams
    for rows in (*recording.streams.values(), *(features.tokens for features in texts.values())):
        assert rows.dtype == torch.float32
        assert rows.device.type == "cpu"
        assert bool(torch.isfinite(rows).all())


def test_only_laion_clap_has_a_joint_space(models: dict[str, str], sound: Path) -> None:
    combo = load_combo("C", models=models, device="cpu")
    texts = combo.encode_query("a dog barks")
    assert texts["roberta"].pooled is None
    assert texts["laion_clap"].pooled.shape == combo.encode_recording(sound).streams["laion_clap"].shape[1:]
    assert texts["laion_clap"].pooled.norm().item() == pytest.approx(1, abs=1e-5)


def test_combos_share_their_streams(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    forget_streams()
    opened: list[str] = []
    openers = {name: noting(opener, name, opened) for name, opener in encoders._HUB_OPENERS.items()}
    monkeypatch.setattr(encoders, "_HUB_OPENERS", openers)
    first, second, third = (load_combo(name, models=models, device="cpu") for name in ("A", "B", "C"))
    assert sorted(opened) == sorted(AUDIO_DIMS.keys() | TEXT_DIMS.keys())
    assert first.audio["ms_clap"] is second.audio["ms_clap"]
    assert first.audio["laion_clap"] is second.audio["laion_clap"] is third.audio["laion_clap"]
    assert first.text["laion_clap"] is third.text["laion_clap"]
    union = load_streams(list(AUDIO_DIMS), list(TEXT_DIMS), name="union", models=models, device="cpu")
    assert union.audio["wavlm_large"] is third.audio["wavlm_large"]
    assert len(opened) == 6
    load_combo("B", models=models, dtype="bfloat16", device="cpu")
    assert len(opened) == 8, "another type is another network"


def noting(opener, name: str, opened: list[str]):
    def open_and_note(source, options):
        opened.append(name)
        return opener(source, options)

    return open_and_note


def test_threads_that_ask_at_once_open_once(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    forget_streams()
    opened: list[str] = []
    monkeypatch.setitem(encoders._HUB_OPENERS, "roberta", noting(encoders._HUB_OPENERS["roberta"], "roberta", opened))
    threads = [
        threading.Thread(target=load_streams, args=((), ("roberta",)), kwargs={"name": "r", "models": models, "device": "cpu"})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == ["roberta"]


def test_the_pocket_combo_is_the_version_that_checkpoints_were_trained_on() -> None:
    config = yaml.safe_load((CHECKPOINT_DIR / "qam-detr-pocket" / "config.yaml").read_text())
    combo = load_combo("pocket")
    assert combo.fingerprint == config["data"]["encoder"]
    assert (list(combo.audio), list(combo.text)) == (["pocket", "mel_stats"], ["pocket"])
    assert load_combo("pocket", dtype="bfloat16").audio["pocket"] is combo.audio["pocket"], "takes no options"


def test_the_version_follows_the_set_the_weights_and_the_type(models: dict[str, str], tmp_path: Path) -> None:
    def version(name: str, dtype: str = "float32", **changed: str) -> str:
        return load_combo(name, models=models | changed, dtype=dtype, device="cpu").fingerprint

    first = version("A")
    forget_streams()
    assert version("A") == first
    others = tiny_hub(tmp_path)
    assert version("A", **others) == first, "the same weights elsewhere"
    different = [version("A", wavlm_base_plus=others["wavlm_base"]), version("B"), version("C"), version("A", dtype="bfloat16")]
    assert len({first, *different}) == 5


def test_a_set_of_streams_has_the_version_of_the_combo_of_the_same_streams(models: dict[str, str]) -> None:
    combo = load_combo("ms_clap", models=models, device="cpu")
    assert load_streams(("ms_clap",), ("ms_clap",), name="other", models=models, device="cpu").fingerprint == combo.fingerprint


def test_parameters_are_counted_once(models: dict[str, str]) -> None:
    import transformers

    def count(network) -> int:
        return sum(parameter.numel() for parameter in network.parameters())

    clap = count(transformers.ClapModel.from_pretrained(models["laion_clap"])) - 2  # the two scales of its loss
    wavlm = count(transformers.WavLMModel.from_pretrained(models["wavlm_base"]))
    assert load_combo("laion_clap", models=models, device="cpu").num_parameters == clap
    both = load_streams(("laion_clap", "wavlm_base"), ("laion_clap",), name="x", models=models, device="cpu")
    assert both.num_parameters == clap + wavlm


def test_a_missing_model_shows_before_another_is_read(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/absent")
    forget_streams()
    opened: list[str] = []
    openers = {name: noting(opener, name, opened) for name, opener in encoders._HUB_OPENERS.items()}
    monkeypatch.setattr(encoders, "_HUB_OPENERS", openers)
    here = {name: folder for name, folder in models.items() if name != "wavlm_base_plus"}
    with pytest.raises(CheckpointError, match=r"wavlm_base_plus \(microsoft/wavlm-base-plus \(about 378 MB\)\) is not on this machine"):
        load_combo("A", models=here, download=False)
    assert not opened


def test_all_missing_models_are_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    forget_streams()
    with pytest.raises(CheckpointError) as caught:
        load_combo("A", download=False)
    message = str(caught.value)
    assert "\n" not in message
    for name in ("laion_clap", "ms_clap", "wavlm_base_plus", "gpt2"):
        assert HUB_MODELS[name].command in message
    assert message.count(" && ") == 3


def test_ms_clap_s_tokeniser_is_asked_for_with_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: dict[str, str]) -> None:
    """The weights' repository has none; a folder of one's own may."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    forget_streams()
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(Path(models["ms_clap"]) / "CLAP_weights_2023.pth", bare)
    put_in_cache(tmp_path, "ms_clap", bare)
    with pytest.raises(CheckpointError, match=r"The tokeniser of ms_clap \(openai-community/gpt2 .*beside the weights of ms_clap"):
        load_combo("ms_clap", device="cpu", download=False)
    put_in_cache(tmp_path, "gpt2", Path(models["ms_clap"]))
    found = load_combo("ms_clap", device="cpu", download=False)
    assert found.fingerprint == load_combo("ms_clap", models=models, device="cpu").fingerprint
    forget_streams()


def test_a_device_without_values_is_refused(models: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="cannot run on device 'meta'"):
        load_combo("B", models=models, device="meta")


def test_mistakes_are_named(models: dict[str, str]) -> None:
    for call, error, message in (
        (lambda: load_combo("D"), ConfigError, "choose one of pocket, A, B, C"),
        (lambda: load_combo("B", models={"wavlm": "x"}), ConfigError, "no pretrained encoder 'wavlm' .*known are laion_clap"),
        (lambda: load_combo("pocket", models={"pocket": "x"}), ConfigError, "no pretrained encoder 'pocket'"),
        (lambda: load_combo("B", models=models, dtype="float16"), ConfigError, "'float16'; choose one of float32, bfloat16"),
        (lambda: load_combo("B", models=models, device="gpu"), ConfigError, "device 'gpu' .*choose cpu"),
        (lambda: load_streams(("roberta",), (), name="x", models=models), ConfigError, "'roberta' has no audio encoder"),
        (lambda: load_streams((), ("mel_stats",), name="x"), ConfigError, "'mel_stats' has no text encoder"),
        (lambda: load_streams(("beats",), (), name="x"), ConfigError, "Unknown stream 'beats'; there are encoders for pocket"),
        (lambda: load_combo("B", models={"laion_clap": "/absent"}), CheckpointError, "laion_clap is to come from /absent"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_what_is_wrong_with_a_file_shows_before_any_network_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.flac"
    soundfile.write(path, rng.uniform(-0.5, 0.5, 90 * 8_000), 8_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    encoder = Ramp("ramp", 8_000)
    with pytest.raises(AudioError, match=r"(breaks off after|is damaged after) \d"):
        ComboEncoder("x", {"ramp": encoder}, {}, "").encode_recording(path)
    assert encoder.held == []


class Ramp:
    """Counts what it is given."""

    def __init__(self, name: str, rate: int) -> None:
        self.name, self.sample_rate_hz, self.dim = name, rate, 1
        self.held: list[int] = []

    def encode_audio(self, samples: SampleStream) -> torch.Tensor:
        self.held.append(len(samples))
        return torch.arange(-(-len(samples) // self.sample_rate_hz), dtype=torch.float32)[:, None]

    def encode_text(self, query: str) -> TextFeatures:
        raise AssertionError(query)


def test_a_sample_gained_by_resampling_opens_no_clip(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(3 * 11_025, 0.1), 11_025)
    streams = {f"at {rate}": Ramp(f"at {rate}", rate) for rate in (7_001, 11_025, 16_000)}
    recording = ComboEncoder("x", streams, {}, "").encode_recording(tmp_path / "a.wav")
    assert [rows.shape[0] for rows in recording.streams.values()] == [3, 3, 3]
    assert list(recording.streams) == list(streams), "the order of the set, not of the rates"


@pytest.mark.parametrize("seconds", [0.4, 3.0, 40.3])
def test_streams_of_samples_give_what_whole_recordings_give(models: dict[str, str], tmp_path: Path, seconds: float) -> None:
    rate = 22_050
    soundfile.write(tmp_path / "a.flac", 0.3 * np.random.default_rng(0).uniform(-1, 1, (round(seconds * rate), 2)), rate)
    combo = load_combo("A", models=models, device="cpu")
    streams = combo.encode_recording(tmp_path / "a.flac").streams
    for name, encoder in combo.audio.items():
        whole = encoder.encode_audio(audio.load(tmp_path / "a.flac", encoder.sample_rate_hz).samples)
        assert torch.equal(streams[name], whole), name


def test_encoders_are_told_of_in_the_order_they_run(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(11_025, 0.1), 11_025)
    streams = {f"at {rate}": Ramp(f"at {rate}", rate) for rate in (16_000, 8_000)}
    told: list[tuple[str, float, int]] = []

    def on_stage(name: str, seconds: float) -> None:
        told.append((name, seconds, sum(len(encoder.held) for encoder in streams.values())))

    ComboEncoder("x", streams, {}, "").encode_recording(tmp_path / "a.wav", on_stage)
    assert told == [("at 16000", 1.0, 0), ("at 8000", 1.0, 1)]
