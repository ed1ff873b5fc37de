"""Every pretrained encoder in small: random weights, saved as the hub has them."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers

from qamdetr.features.base import STREAMS, AudioStream, finish
from qamdetr.features.clap import _HTSAT_NAMES
from qamdetr.features.ms_clap import GPT2_TOKENIZER

AUDIO_DIMS = {"laion_clap": 16, "ms_clap": 64, "wavlm_base": 12, "wavlm_base_plus": 12, "wavlm_large": 16}
TEXT_DIMS = {"laion_clap": 64, "ms_clap": 128, "roberta": 20, "pe_a_frame": 32}

_WAVLM_SEEDS = {"wavlm_base": 1, "wavlm_base_plus": 2, "wavlm_large": 3}

SENTENCES = (
    "a dog barks twice while rain falls on a tin roof",
    "someone speaks, then a door closes with a loud bang",
    "birds sing in the distance; a car passes by",
    "water is poured into a glass and music plays!!",
)


def byte_level_tokenizer(special_tokens: list[str], *, trim_offsets: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=400, special_tokens=special_tokens, initial_alphabet=alphabet))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return tokenizer


def save_tiny_roberta_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = byte_level_tokenizer(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], trim_offsets=True)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return _saved(tokenizer, folder, tokenizer_class="RobertaTokenizer", model_max_length=512, mask_token="<mask>", **names)


def save_tiny_gpt2_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = byte_level_tokenizer(["<|endoftext|>"], trim_offsets=False)
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return _saved(tokenizer, folder, tokenizer_class="GPT2Tokenizer", model_max_length=1024, **names)


def _saved(tokenizer: Tokenizer, folder: Path, **settings: object) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": False, **settings}))
    return tokenizer


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Give every weight, and the statistics of batch norms, a value that matters."""
    generator, constants = torch.Generator().manual_seed(seed), ("logit_scale_a", "logit_scale_t", "melW", "attn_mask")
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_mean"):
                value.copy_(torch.randn(value.shape, generator=generator) * 5 - 30)
            elif name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) * 200 + 50)
            elif value.is_floating_point() and not name.endswith(constants) and ".stft." not in name:
                spread = 0.5 if "relative_position" in name else value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
                base = 1.0 if value.ndim == 1 and name.endswith("weight") else 0.0
                value.copy_(base + torch.randn(value.shape, generator=generator) * spread)


def tiny_audio_settings(fusion: bool = False) -> dict:
    sizes = {"patch_embeds_hidden_size": 8, "depths": [2, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2], "hidden_size": 64}
    return {**sizes, "projection_dim": 16, "enable_fusion": fusion, "fusion_type": "aff_2d" if fusion else None}


def tiny_clap(*, seed: int = 0, fusion: bool = False, words: int = 400):
    from transformers import ClapConfig, ClapModel

    text = {"vocab_size": words, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 96}
    text |= {"max_position_embeddings": 66, "layer_norm_eps": 1e-5}
    model = ClapModel(ClapConfig(text_config=text, audio_config=tiny_audio_settings(fusion), projection_dim=16)).eval()
    randomise(model, seed)
    return model


def save_tiny_laion_clap(folder: Path, *, seed: int = 0, fusion: bool = False) -> Path:
    """Save a `ClapModel` in the hub's layout (joint space of 16, token states of 64; at most 64 tokens)."""
    from transformers import ClapFeatureExtractor

    words = save_tiny_roberta_tokenizer(folder).get_vocab_size()
    tiny_clap(seed=seed, fusion=fusion, words=words).save_pretrained(folder)
    ClapFeatureExtractor(frequency_min=50, truncation="fusion" if fusion else "rand_trunc").save_pretrained(folder)
    return folder


def save_tiny_laion_clap_checkpoint(folder: Path, *, fusion: bool = False) -> Path:
    """Save the weights of `save_tiny_laion_clap` as the package `laion-clap` does, with a tokeniser beside; return the `.pt`."""
    model = tiny_clap(fusion=fusion, words=save_tiny_roberta_tokenizer(folder).get_vocab_size())
    state = {f"audio_branch.{name}": value for name, value in original_htsat_names(model.audio_model.audio_encoder.state_dict()).items()}
    state |= {f"text_branch.{name}": value for name, value in model.text_model.state_dict().items()}
    for modality, projection in (("audio", model.audio_projection), ("text", model.text_projection)):
        for number, layer in ((0, projection.linear1), (2, projection.linear2)):
            state |= {f"{modality}_projection.{number}.{name}": value for name, value in layer.state_dict().items()}
    state["audio_transform.sequential.0.weight"] = torch.zeros(16, 16)  # a head of the package's training that no feature passes through
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, folder / "630k-tiny-best.pt")
    return folder / "630k-tiny-best.pt"


def save_tiny_ms_clap(folder: Path, *, seed: int = 0) -> Path:
    """Save `CLAP_weights_2023.pth` in the package's layout and GPT-2's tokeniser beside it (clip vectors of 64, token states of 128)."""
    from transformers import ClapAudioConfig, ClapAudioModel, GPT2Config, GPT2Model

    tokenizer = save_tiny_gpt2_tokenizer(folder)
    audio = ClapAudioModel(ClapAudioConfig(**tiny_audio_settings())).eval()
    sizes = {"n_positions": 96, "n_embd": 128, "n_layer": 2, "n_head": 2, "bos_token_id": None, "eos_token_id": None}
    text = GPT2Model(GPT2Config(vocab_size=tokenizer.get_vocab_size(), **sizes)).eval()
    randomise(audio, seed)
    randomise(text, seed + 1)
    state = {f"audio_encoder.base.htsat.{name}": value for name, value in original_htsat_names(audio.audio_encoder.state_dict()).items()}
    state |= {f"caption_encoder.base.{name}": value for name, value in text.state_dict().items()}
    torch.manual_seed(seed + 2)
    for side, width in (("audio", AUDIO_DIMS["ms_clap"]), ("caption", TEXT_DIMS["ms_clap"])):
        shapes = {"linear1.weight": (24, width), "linear2.weight": (24, 24), "layer_norm.weight": (24,), "layer_norm.bias": (24,)}
        state |= {f"{side}_encoder.projection.{name}": 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    torch.save({"model": state}, folder / "CLAP_weights_2023.pth")
    return folder


def original_htsat_names(state: dict) -> dict:
    """Give a `ClapAudioEncoder`'s weights the names of the packages' HTSAT, with what else their files hold."""
    names = {functools.reduce(lambda name, pair: name.replace(*pair[::-1]), _HTSAT_NAMES, name): value for name, value in state.items()}
    for name in [name for name in names if ".query." in name]:
        parts = [names.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        names[name.replace("query", "qkv")] = torch.cat(parts)
    names["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 64, 64)
    names["tscam_conv.weight"] = torch.zeros(527, 64, 2, 3)
    names["head.weight"] = torch.zeros(527, 527)
    return names


def save_tiny_wavlm(folder: Path, name: str) -> Path:
    """Base models have a group norm over time and take samples as they are; the large one has layer norms and normalises each window."""
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

    large = name == "wavlm_large"
    torch.manual_seed(_WAVLM_SEEDS[name])
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "conv_dim": (8,) * 7}
    sizes |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    norms = {"conv_bias": large, "feat_extract_norm": "layer" if large else "group", "do_stable_layer_norm": large}
    config = WavLMConfig(hidden_size=AUDIO_DIMS[name], **sizes, **norms)
    WavLMModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=large, return_attention_mask=large).save_pretrained(folder)
    return folder


def save_tiny_roberta(folder: Path) -> Path:
    """A language model with its head, as the hub has it; reads at most 40 tokens."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    tokenizer = save_tiny_roberta_tokenizer(folder)
    sizes = {"hidden_size": TEXT_DIMS["roberta"], "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"max_position_embeddings": 42, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    model = RobertaForMaskedLM(RobertaConfig(vocab_size=tokenizer.get_vocab_size(), **sizes))
    randomise(model, seed=4)
    model.save_pretrained(folder)
    return folder


def save_tiny_pe_a_frame(folder: Path) -> Path:
    """Save a `PeAudioFrameLevelModel` in the hub's layout (joint space and token states of 32; at most 64 tokens)."""
    from transformers import PeAudioConfig, PeAudioFrameLevelModel

    words = save_tiny_roberta_tokenizer(folder).get_vocab_size()
    sizes = {"hidden_size": TEXT_DIMS["pe_a_frame"], "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"model_type": "modernbert", "vocab_size": words, "max_position_embeddings": 64, **sizes}
    text |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    dac = {"encoder_hidden_size": 4, "downsampling_ratios": [2, 8, 10, 12], "codebook_dim": 8, "hidden_size": 64}
    model = PeAudioFrameLevelModel(PeAudioConfig(text_config=text, audio_config={"dac_config": dac, "head_dim": 16, **sizes})).eval()
    randomise(model, seed=7)
    model.save_pretrained(folder)
    return folder


def tiny_hub(folder: Path) -> dict[str, str]:
    """Save every encoder under `folder`; returns stream -> its folder, as `open_streams(models=…)` takes it."""
    saved = {
        "laion_clap": save_tiny_laion_clap(folder / "laion_clap"),
        "ms_clap": save_tiny_ms_clap(folder / "ms_clap"),
        "roberta": save_tiny_roberta(folder / "roberta"),
        "pe_a_frame": save_tiny_pe_a_frame(folder / "pe_a_frame"),
        **{name: save_tiny_wavlm(folder / name, name) for name in _WAVLM_SEEDS},
    }
    return {name: str(path) for name, path in saved.items()}


def put_in_cache(cache: Path, model: str, folder: Path) -> Path:
    """Copy a saved model to where the hub's client keeps downloads of the default of `model`; returns the snapshot."""
    wanted = {"gpt2": GPT2_TOKENIZER}.get(model) or STREAMS[model].hub
    assert wanted is not None
    return shutil.copytree(folder, cache / f"models--{wanted.repo.replace('/', '--')}" / "snapshots" / wanted.revision)


def encode_samples(encoder: AudioStream, samples: np.ndarray) -> torch.Tensor:
    """Encode mono samples `(n,)` of any length at the encoder's rate."""
    listener = encoder.listener()
    listener.begin()
    listener.feed(samples)
    return finish(encoder.features(listener.finish()))
