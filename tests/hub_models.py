"""Every pretrained encoder in small: random weights, saved as the hub has them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from hub_clap_models import randomise, save_tiny_laion_clap, save_tiny_ms_clap, save_tiny_roberta_tokenizer

from qamdetr.features.base import STREAMS, AudioStream, finish
from qamdetr.features.clap import ROBERTA_TOKENIZER
from qamdetr.features.ms_clap import GPT2_TOKENIZER

AUDIO_DIMS = {"laion_clap": 16, "ms_clap": 64, "wavlm_base": 12, "wavlm_base_plus": 12, "wavlm_large": 16}
TEXT_DIMS = {"laion_clap": 64, "ms_clap": 128, "roberta": 20}

_WAVLM_SEEDS = {"wavlm_base": 1, "wavlm_base_plus": 2, "wavlm_large": 3}


def save_tiny_wavlm(folder: Path, name: str) -> Path:
    """Base models have a group norm over time and take samples as they are; the large one has layer norms and normalises each window."""
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

    large = name == "wavlm_large"
    torch.manual_seed(_WAVLM_SEEDS[name])
    config = WavLMConfig(
        hidden_size=AUDIO_DIMS[name],
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8,) * 7,
        conv_bias=large,
        feat_extract_norm="layer" if large else "group",
        do_stable_layer_norm=large,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    WavLMModel(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=large, return_attention_mask=large).save_pretrained(folder)
    return folder


def save_tiny_roberta(folder: Path) -> Path:
    """A language model with its head, as the hub has it; reads at most 40 tokens."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    tokenizer = save_tiny_roberta_tokenizer(folder)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=TEXT_DIMS["roberta"],
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=42,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    model = RobertaForMaskedLM(config)
    randomise(model, seed=4)
    model.save_pretrained(folder)
    return folder


def tiny_hub(folder: Path) -> dict[str, str]:
    """Save every encoder under `folder`; returns stream -> its folder, as `open_streams(models=…)` takes it."""
    saved = {
        "laion_clap": save_tiny_laion_clap(folder / "laion_clap"),
        "ms_clap": save_tiny_ms_clap(folder / "ms_clap"),
        "roberta": save_tiny_roberta(folder / "roberta"),
        **{name: save_tiny_wavlm(folder / name, name) for name in _WAVLM_SEEDS},
    }
    return {name: str(path) for name, path in saved.items()}


def put_in_cache(cache: Path, model: str, folder: Path, *, branch: str = "") -> Path:
    """Copy a saved model to where the hub's client keeps downloads of the default of `model`; returns the snapshot.

    With `branch`, it is the head of that branch, at a commit that is not the default's.
    """
    wanted = {"gpt2": GPT2_TOKENIZER, "roberta_tokenizer": ROBERTA_TOKENIZER}.get(model) or STREAMS[model].hub
    assert wanted is not None
    home = cache / f"models--{wanted.repo.replace('/', '--')}"
    commit = "0" * 40 if branch else wanted.revision
    snapshot = home / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    if branch:
        (home / "refs").mkdir(parents=True)
        (home / "refs" / branch).write_text(commit)
    return snapshot


def encode_samples(encoder: AudioStream, samples: np.ndarray) -> torch.Tensor:
    """Encode mono samples `(n,)` of any length at the encoder's rate."""
    listener = encoder.listener()
    listener.begin()
    listener.feed(samples)
    return finish(encoder.features(listener.finish()))
