"""The pretrained encoders in small: equal numbers to Transformers and to the CLAPs' packages, any length, types, versions, damage."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_models import (
    AUDIO_DIMS,
    TEXT_DIMS,
    encode_samples,
    randomise,
    save_tiny_gpt2_tokenizer,
    save_tiny_laion_clap,
    save_tiny_laion_clap_checkpoint,
    save_tiny_ms_clap,
    save_tiny_roberta_tokenizer,
)
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, normalize

from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.features import clap
from qamdetr.features.base import STREAMS, EncoderOptions
from qamdetr.features.ms_clap import WEIGHTS_FILE

QUERY = "a dog barks twice, then silence"


@pytest.fixture(scope="module")
def folders(hub_folders: dict[str, str]) -> dict[str, Path]:
    return {name: Path(folder) for name, folder in hub_folders.items()}


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> dict:
    return {name: STREAMS[name](folder, EncoderOptions()) for name, folder in folders.items()}


def sounds(rate_hz: int, seconds: float) -> torch.Tensor:
    """A tone that glides, gets louder and has noise around it, so that each second differs."""
    time = torch.arange(int(rate_hz * seconds)) / rate_hz
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    glide = torch.sin(2 * torch.pi * (300 + 700 * time) * time)
    return (0.05 + 0.1 * time / seconds) * glide + 0.02 * noise * torch.sin(torch.pi * 3 * time).square()


def noise(name: str, seconds: float) -> np.ndarray:
    return sounds(STREAMS[name].rate_hz, seconds).numpy()


@pytest.mark.parametrize("name", AUDIO_DIMS)
def test_each_second_begun_has_a_row_of_its_own_whatever_the_batch(folders: dict, encoders: dict, name: str) -> None:
    encoder, rate, samples = encoders[name], encoders[name].rate_hz, noise(name, 3.3)
    for length in (1, 399, rate, rate + 1):
        rows = encode_samples(encoder, samples[:length])
        assert rows.shape == (-(-length // rate), AUDIO_DIMS[name]) == (len(rows), encoder.dim)
        assert rows.dtype == torch.float32
        assert rows.isfinite().all()
    assert encode_samples(encoder, np.zeros(2 * rate, np.float32)).isfinite().all()
    rows = encode_samples(encoder, samples)
    small = STREAMS[name](folders[name], EncoderOptions(batch_clips=2))
    torch.testing.assert_close(encode_samples(small, samples), rows, atol=1e-5, rtol=0)
    alone = torch.cat([encode_samples(encoder, part) for part in np.split(samples, range(rate, len(samples), rate))])
    torch.testing.assert_close(alone, rows, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*AUDIO_DIMS, "roberta"])
def test_bfloat16_is_close_and_of_another_version(folders: dict, encoders: dict, name: str) -> None:
    half = STREAMS[name](folders[name], EncoderOptions(dtype=torch.bfloat16))
    pairs = []
    if name in AUDIO_DIMS:
        pairs.append((encode_samples(half, noise(name, 2.2)), encode_samples(encoders[name], noise(name, 2.2))))
    if name in TEXT_DIMS:
        pairs.append((half.encode_text(QUERY).tokens, encoders[name].encode_text(QUERY).tokens))
    for found, exact in pairs:
        assert cosine_similarity(found, exact).min() > 0.99
        assert not torch.equal(found, exact)
    assert half.fingerprint != encoders[name].fingerprint


def test_the_device_is_respected(folders: dict) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):  # "meta" holds no numbers, so that only a model moved there fails
        encode_samples(STREAMS["laion_clap"](folders["laion_clap"], EncoderOptions(device="meta")), np.zeros(100, np.float32))


@torch.inference_mode()
@pytest.mark.parametrize("fusion", [False, True])
def test_laion_clap_equals_transformers_from_a_folder_and_from_a_package_s_checkpoint(tmp_path: Path, fusion: bool) -> None:
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    folder = save_tiny_laion_clap(tmp_path, fusion=fusion)
    encoder = STREAMS["laion_clap"](folder, EncoderOptions(batch_clips=2))
    model, extractor = ClapModel.from_pretrained(folder), ClapFeatureExtractor.from_pretrained(folder)
    samples = noise("laion_clap", 3.3)
    seconds = np.split(samples, range(48_000, len(samples), 48_000))
    inputs = extractor(seconds, sampling_rate=48_000, return_tensors="pt")
    # The stock processor calls one clip of a fused batch longer than it is, at random.
    pooled = model.audio_model(inputs["input_features"].float(), is_longer=torch.zeros(4, 1, dtype=torch.bool)).pooler_output
    torch.testing.assert_close(encode_samples(encoder, samples), model.audio_projection(pooled), atol=1e-5, rtol=1e-5)
    output = model.text_model(**AutoTokenizer.from_pretrained(folder)([QUERY], return_tensors="pt"))
    features = encoder.encode_text(QUERY)
    torch.testing.assert_close(features.tokens, output.last_hidden_state[0], atol=1e-5, rtol=1e-5)
    expected = normalize(model.text_projection(output.pooler_output)[0], dim=-1)
    torch.testing.assert_close(features.pooled, expected, atol=1e-5, rtol=1e-5)
    package = STREAMS["laion_clap"](save_tiny_laion_clap_checkpoint(tmp_path / "package", fusion=fusion), EncoderOptions())
    torch.testing.assert_close(encode_samples(package, samples), encode_samples(encoder, samples), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(package.encode_text(QUERY).pooled, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["wavlm_base", "wavlm_base_plus", "wavlm_large"])
def test_wavlm_equals_transformers(folders: dict, encoders: dict, name: str) -> None:
    from transformers import Wav2Vec2FeatureExtractor, WavLMModel

    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folders[name])
    model = WavLMModel.from_pretrained(folders[name]).eval()
    samples = noise(name, 3.3)
    seconds = np.split(samples, range(16_000, len(samples), 16_000))
    ready = (extractor(part, sampling_rate=16_000, return_tensors="pt").input_values for part in seconds)
    expected = torch.stack([model(values).last_hidden_state.mean(dim=1)[0] for values in ready])
    torch.testing.assert_close(encode_samples(encoders[name], samples), expected, atol=1e-5, rtol=1e-5)
    # Only the large model forgets level and offset.
    moved = encode_samples(encoders[name], 0.5 * samples + 0.2)
    assert torch.allclose(moved, expected, atol=1e-3) == (name == "wavlm_large")


@torch.inference_mode()
@pytest.mark.parametrize("query", ["a dog barks", "Ein Hund bellt — laut!", "🐶🐶 woof", " rain  "])
def test_roberta_equals_transformers(folders: dict, encoders: dict, query: str) -> None:
    from transformers import AutoTokenizer, RobertaModel

    ready = AutoTokenizer.from_pretrained(folders["roberta"])(query, return_tensors="pt")
    model = RobertaModel.from_pretrained(folders["roberta"], add_pooling_layer=False).eval()
    features = encoders["roberta"].encode_text(query)
    torch.testing.assert_close(features.tokens, model(**ready).last_hidden_state[0], atol=1e-5, rtol=1e-5)
    assert (features.pooled, features.offsets[0], features.offsets[-1]) == (None, (0, 0), (0, 0))


@torch.inference_mode()
@pytest.mark.parametrize(("clip_seconds", "of_frames"), [(1.0, [25, 25, 25, 8]), (0.5, [12, 13, 12, 13, 12, 13, 8])])
def test_pe_a_frame_is_the_mean_of_transformers_frames(folders: dict, clip_seconds: float, of_frames: list[int]) -> None:
    from transformers import AutoTokenizer, PeAudioFrameLevelModel

    encoder = STREAMS["pe_a_frame"](folders["pe_a_frame"], EncoderOptions(clip_seconds=clip_seconds))
    model = PeAudioFrameLevelModel.from_pretrained(folders["pe_a_frame"]).eval()
    words = AutoTokenizer.from_pretrained(folders["pe_a_frame"])([QUERY], return_tensors="pt")
    samples = noise("pe_a_frame", 3.32)[:-960]  # the last of 83 frames is half there
    output = model(**words, input_values=torch.from_numpy(np.pad(samples, (0, 960), "reflect"))[None, None])
    frames = normalize(output.audio_embeds[0], dim=-1).split(of_frames)
    expected = torch.stack([part.mean(dim=0) for part in frames])
    torch.testing.assert_close(encode_samples(encoder, samples), expected, atol=1e-5, rtol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-2, "the input matters"
    features = encoder.encode_text(QUERY)
    torch.testing.assert_close(features.tokens, output.text_outputs.last_hidden_state[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.pooled, normalize(output.text_audio_embeds[0], dim=-1), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_ms_clap_in_the_joint_space_is_the_package_s_projection_of_what_is_before_it(folders: dict, encoders: dict) -> None:
    joint = STREAMS["ms_clap_joint"](folders["ms_clap"], EncoderOptions())
    state = torch.load(folders["ms_clap"] / WEIGHTS_FILE, weights_only=True)["model"]

    def projected(side: str, vectors: torch.Tensor) -> torch.Tensor:
        part = {name.rpartition("projection.")[2]: value for name, value in state.items() if name.startswith(f"{side}_encoder.projection.")}
        straight = vectors @ part["linear1.weight"].T
        mapped = straight + torch.nn.functional.gelu(straight) @ part["linear2.weight"].T
        return torch.nn.functional.layer_norm(mapped, (24,), part["layer_norm.weight"], part["layer_norm.bias"])

    samples, features = noise("ms_clap", 3.3), joint.encode_text(QUERY)
    expected = projected("audio", encode_samples(encoders["ms_clap"], samples))
    torch.testing.assert_close(encode_samples(joint, samples), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.tokens, encoders["ms_clap"].encode_text(QUERY).tokens)
    torch.testing.assert_close(features.pooled, normalize(projected("caption", features.tokens[-1]), dim=-1), atol=1e-5, rtol=1e-5)
    assert joint.fingerprint != encoders["ms_clap"].fingerprint


def test_an_encoder_of_seconds_sees_half_a_second_with_a_quarter_on_both_sides(folders: dict, encoders: dict) -> None:
    two = STREAMS["laion_clap"](folders["laion_clap"], EncoderOptions(batch_clips=3, clip_seconds=0.5))
    samples, quarter = noise("laion_clap", 3.3), 12_000
    rows = encode_samples(two, samples)
    padded = np.concatenate([np.zeros(quarter, np.float32), samples, np.zeros(48_000, np.float32)])
    for row, moved in enumerate(np.split(padded[begin : begin + 48_000], 1)[0] for begin in range(0, 7 * 24_000, 24_000)):
        torch.testing.assert_close(rows[row], encode_samples(encoders["laion_clap"], moved)[0], atol=1e-5, rtol=1e-5)
    assert len(rows) == 7


@pytest.mark.parametrize(("frames", "pieces"), [(1, 1), (625, 1), (626, 2), (1126, 3), (2000, 4)])
def test_pe_a_frame_hears_long_recordings_in_pieces_that_overlap(encoders: dict, monkeypatch, frames: int, pieces: int) -> None:
    """Frames are numbered by their samples, so that a piece that is cut at a wrong place shows."""
    encoder, heard = encoders["pe_a_frame"], []
    samples = np.repeat(np.arange(frames, dtype=np.float32), 1920)[:-100]  # the last frame is not full

    def number(samples: np.ndarray) -> torch.Tensor:
        heard.append(len(samples) // 1920)
        return torch.from_numpy(samples[::1920, None].copy())

    monkeypatch.setattr(encoder, "encode_frames", number)
    listener = encoder.listener()
    for _ in range(2):  # a listener is used again
        listener.begin()
        heard.clear()
        for begin in range(0, len(samples), 50_000):
            listener.feed(samples[begin : begin + 50_000])
        assert listener.finish()[:, 0].tolist() == list(range(frames))
        assert (len(heard), max(heard) <= 750) == (pieces, True), "30 s at the most"


def test_ms_clap_fills_the_rest_with_itself(encoders: dict) -> None:
    encoder = encoders["ms_clap"]
    rest = torch.from_numpy(noise("ms_clap", 0.3))
    filled = torch.cat([rest] * 4)[: encoder.rate_hz].numpy()
    torch.testing.assert_close(encode_samples(encoder, filled), encode_samples(encoder, rest.numpy()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "most"), [("laion_clap", 64), ("ms_clap", 77), ("roberta", 40), ("pe_a_frame", 64)])
def test_queries_keep_their_words_and_nothing_is_cut(encoders: dict, name: str, most: int) -> None:
    features = encoders[name].encode_text(QUERY)
    assert features.tokens.shape == (len(features.offsets), TEXT_DIMS[name])
    words = [QUERY[begin:end] for begin, end in features.offsets if begin < end]
    assert words[:3] == ["a", "dog", "barks"]
    with pytest.raises(QamDetrError, match=f"reads at most {most}"):
        encoders[name].encode_text("a dog barks " * 40)


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def change_weights(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Change the weights of a folder, in the hub's or in the package's file."""

    def resave(folder: Path) -> None:
        if (folder / WEIGHTS_FILE).is_file():
            weights = torch.load(folder / WEIGHTS_FILE, weights_only=True)["model"]
            change(weights)
            torch.save({"model": weights}, folder / WEIGHTS_FILE)
        else:
            weights = load_file(folder / "model.safetensors")
            change(weights)
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return resave


def nudge(weights: dict) -> None:
    """Change one value that is none of those that are read one by one."""
    flat = weights[max(weights, key=lambda key: weights[key].numel())].reshape(-1)
    flat[len(flat) // 2 + 1] += 0.01


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("name", "change", "same"),
    [
        ("wavlm_base", as_bin, True),
        ("wavlm_base", change_weights(nudge), False),
        ("wavlm_base", lambda folder: edit(folder / "config.json", '"layer_norm_eps": 1e-05', '"layer_norm_eps": 1e-03'), False),
        ("wavlm_base", lambda folder: edit(folder / "preprocessor_config.json", "false", "true"), False),
        ("ms_clap", lambda folder: save_tiny_ms_clap(folder, seed=5), False),
        ("pe_a_frame", change_weights(nudge), False),
    ],
)
def test_the_version_follows_weights_and_settings_not_files(
    folders: dict, encoders: dict, tmp_path: Path, name: str, change: Callable, same: bool
) -> None:
    folder = shutil.copytree(folders[name], tmp_path / "moved")
    change(folder)
    assert (STREAMS[name](folder, EncoderOptions(batch_clips=3)).fingerprint == encoders[name].fingerprint) is same


DAMAGE = [
    ("laion_clap", lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "vocab.json")], "cannot be read"),
    ("laion_clap", lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs"), "cannot be read"),
    ("laion_clap", lambda folder: edit(folder / "preprocessor_config.json", "48000,", "16000,"), "other settings .16000"),
    ("wavlm_base", shutil.rmtree, "cannot be read as the encoder wavlm_base .*another kind of model"),
    ("wavlm_base", change_weights(lambda state: state.pop("encoder.layers.1.layer_norm.weight")), "lacks 1 weights .*layers.1.layer_norm"),
    ("wavlm_base", lambda folder: edit(folder / "config.json", '"intermediate_size": 24', '"intermediate_size": 28'), "lacks 6 weights"),
    ("pe_a_frame", change_weights(lambda state: state.pop("audio_head.proj.weight")), "lacks 1 weights .*audio_head.proj"),
    ("ms_clap", lambda folder: (folder / WEIGHTS_FILE).unlink(), "cannot be read as the encoder ms_clap .*No such file"),
    ("ms_clap", lambda folder: torch.save({"epoch": 3}, folder / WEIGHTS_FILE), "cannot be read"),
    ("ms_clap", change_weights(lambda state: state.pop("audio_encoder.base.htsat.norm.bias")), "1 weights missing, 0 unknown"),
    ("ms_clap", change_weights(lambda state: [state.pop(key) for key in [*state] if "htsat" in key]), "another kind of model"),
    ("ms_clap", change_weights(lambda state: [state.pop(key) for key in [*state] if "caption" in key]), "another kind of model"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGE)
def test_damaged_models_give_one_line(folders: dict, tmp_path: Path, name: str, damage: Callable, words: str) -> None:
    broken = shutil.copytree(folders[name], tmp_path / "broken")
    damage(broken)
    with pytest.raises(CheckpointError, match=words) as caught:
        STREAMS[name](broken, EncoderOptions())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_checkpoints_open_with_the_scores_of_training_in_them_but_run_no_code(tmp_path: Path, module: bytes) -> None:
    """As written under NumPy 2 and 1; a zip's sums would not fit any more."""
    content = {"best": np.float64(0.5), "count": np.int64(3), "state_dict": {"module.weight": torch.arange(3.0)}}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    edited = (tmp_path / "a.pt").read_bytes().replace(b"numpy._core.multiarray", module)
    (tmp_path / "a.pt").write_bytes(edited)
    assert torch.equal(clap.read_checkpoint(tmp_path / "a.pt", "state_dict")["weight"], torch.arange(3.0))
    torch.save({**content, "more": functools.partial(print, "sprung")}, tmp_path / "trap.pt")
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        clap.read_checkpoint(tmp_path / "trap.pt", "state_dict")


@contextlib.contextmanager
def package_module(package: str, folder: str) -> Iterator[types.ModuleType]:
    """Import HTSAT from a package's inner folder, without the `__init__` files above it and what they need (torchaudio and more)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed (see .ci/run)")
    names = (f"{package}_source", "torchvision", "torchvision.ops", "torchvision.ops.misc", "h5py")
    stand_ins = {name: types.ModuleType(name) for name in names}
    stand_ins[names[0]].__path__ = [str(Path(spec.submodule_search_locations[0]) / folder)]
    stand_ins["torchvision.ops.misc"].FrozenBatchNorm2d = torch.nn.BatchNorm2d
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stand_ins.items():
            patch.setitem(sys.modules, name, module)
        yield importlib.import_module(f"{names[0]}.htsat")


@torch.inference_mode()
@pytest.mark.slow
@pytest.mark.parametrize("filters_stored", [True, False])
def test_ms_clap_equals_the_package(tmp_path: Path, filters_stored: bool) -> None:
    from transformers import GPT2Config, GPT2Model

    tokenizer = save_tiny_gpt2_tokenizer(tmp_path)
    with package_module("msclap", "models") as module:
        wrapper = module.HTSATWrapper(44_100, 1024, 320, 64, 50, 8000, 527, 768).eval()
    gpt2 = GPT2Model(GPT2Config(vocab_size=tokenizer.get_vocab_size(), n_embd=128, n_layer=2, n_head=2)).eval()
    randomise(wrapper.htsat, 1)
    randomise(gpt2, 2)
    state = {f"audio_encoder.base.{name}": value for name, value in wrapper.state_dict().items()}
    state |= {f"audio_encoder.projection.{name}": torch.ones(4) for name in ("linear1.weight", "linear2.weight", "layer_norm.weight")}
    state |= {f"caption_encoder.base.{name}": value for name, value in gpt2.state_dict().items()}
    # Old versions of Transformers stored the causal mask.
    state |= {"caption_encoder.base.h.0.attn.bias": torch.ones(1, 1, 4, 4), "caption_encoder.base.h.0.attn.masked_bias": torch.tensor(-1e4)}
    if not filters_stored:
        state = {name: value for name, value in state.items() if "_extractor." not in name}
    torch.save({"model": {**state, "logit_scale": torch.tensor(1.0)}}, tmp_path / "CLAP_weights_2023.pth")
    encoder = STREAMS["ms_clap"](tmp_path, EncoderOptions(batch_clips=2))

    samples = sounds(44_100, 2.0)
    expected = wrapper(samples.reshape(2, 44_100))["embedding"]
    assert (expected[0] - expected[1]).abs().max() > 1e-2  # the input matters
    torch.testing.assert_close(encode_samples(encoder, samples.numpy()), expected, atol=1e-4, rtol=0)
    # As `CLAPWrapper.preprocess_text` pads: to 77, with "!" (0), masked.
    ids = tokenizer.encode(QUERY + " <|endoftext|>").ids
    padded, mask = torch.tensor([ids + [0] * (77 - len(ids))]), (torch.arange(77) < len(ids))[None].long()
    expected = gpt2(input_ids=padded, attention_mask=mask).last_hidden_state[0, : len(ids)]
    torch.testing.assert_close(encoder.encode_text(QUERY).tokens, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.slow
@pytest.mark.parametrize(("size", "fused"), [("tiny", False), ("base", False), ("tiny", True)])
def test_laion_clap_equals_the_package(tmp_path: Path, size: str, fused: bool) -> None:
    from transformers import ClapFeatureExtractor, RobertaConfig, RobertaModel

    tokenizer = save_tiny_roberta_tokenizer(tmp_path)
    # As `laion_clap/clap_module/model_configs/HTSAT-tiny.json` and `HTSAT-base.json` say.
    sizes = {"model_name": size, "class_num": 3, "window_size": 1024, "hop_size": 480, "sample_rate": 48_000, "mel_bins": 64}
    settings = types.SimpleNamespace(**sizes, fmin=50, fmax=14_000)
    with package_module("laion_clap", "clap_module") as module:
        htsat = module.create_htsat_model(settings, enable_fusion=fused, fusion_type="aff_2d" if fused else "None").eval()
    text_settings = {"vocab_size": tokenizer.get_vocab_size(), "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text_settings |= {"intermediate_size": 96, "max_position_embeddings": 82, "layer_norm_eps": 1e-5, "type_vocab_size": 1}
    roberta = RobertaModel(RobertaConfig(**text_settings)).eval()
    audio_projection, text_projection = (
        torch.nn.Sequential(torch.nn.Linear(dim, 24), torch.nn.ReLU(), torch.nn.Linear(24, 24)) for dim in (htsat.num_features, 128)
    )
    parts = {"audio_branch": htsat, "text_branch": roberta, "audio_projection": audio_projection, "text_projection": text_projection}
    state = {"module.logit_scale_a": torch.tensor(1.0), "module.logit_scale_t": torch.tensor(1.0)}
    for number, (name, part) in enumerate(parts.items()):
        randomise(part, number)
        state |= {f"module.{name}.{key}": value for key, value in part.state_dict().items()}
    state["module.text_branch.embeddings.position_ids"] = torch.arange(82)[None]
    path = tmp_path / "630k-audioset-best.pt"
    torch.save({"epoch": 1, "name": "run", "best": np.float64(0.3), "state_dict": state, "optimizer": {"state": {}}}, path)
    encoder = STREAMS["laion_clap"](path, EncoderOptions(batch_clips=2))

    samples = sounds(48_000, 2.3)
    seconds = torch.split(samples, 48_000)
    longer = torch.zeros(len(seconds), dtype=torch.bool)
    if fused:
        stock = ClapFeatureExtractor(frequency_min=50, truncation="fusion")
        mels = stock([second.numpy() for second in seconds], sampling_rate=48_000, return_tensors="pt")
        inputs = {"mel_fusion": mels["input_features"].float(), "longer": longer}
    else:  # `training.data.get_audio_features` with "repeatpad"
        repeated = [second.repeat(int(480_000 / len(second))) for second in seconds]
        padded = [torch.nn.functional.pad(second, (0, 480_000 - len(second))) for second in repeated]
        inputs = {"waveform": torch.stack(padded), "longer": longer}
    expected = audio_projection(htsat(inputs, device="cpu")["embedding"])
    assert (expected[0] - expected[1]).abs().max() > 1e-2  # the input matters
    torch.testing.assert_close(encode_samples(encoder, samples.numpy()), expected, atol=1e-4, rtol=0)
    output = roberta(torch.tensor([tokenizer.encode(QUERY).ids]))
    features = encoder.encode_text(QUERY)
    torch.testing.assert_close(features.tokens, output.last_hidden_state[0], atol=1e-4, rtol=0)
    pooled = normalize(text_projection(output.pooler_output)[0], dim=-1)
    torch.testing.assert_close(features.pooled, pooled, atol=1e-4, rtol=0)
