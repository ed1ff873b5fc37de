"""A random Qwen2.5-Omni of a few thousand weights, saved as the hub has it: all parts, tokeniser, feature extractor, sharded weights."""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file

MAX_SECONDS = 20
CONTROL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
    *("<|IMAGE|>", "<|vision_bos|>", "<|vision_eos|>", "<|VIDEO|>"),
)
WORDS = ["Yes", "yes", "YES", " Yes", " yes", "No", "no", "NO", " No", " no", "system", "user", "assistant", "moment", " the", " clip"]


def make_tokenizer(words=tuple(WORDS)):
    """Byte-level BPE, as Qwen's, in which each of `words` is one token."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2TokenizerFast

    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = {}  # in order
    for word in words:
        spelled = word.strip()
        merges |= dict.fromkeys((spelled[: end - 1], spelled[end - 1]) for end in range(2, len(spelled) + 1))
        merges |= {("Ġ", spelled): None} if word.startswith(" ") else {}
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Qwen2TokenizerFast(vocab=vocabulary, merges=list(merges), pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token=None)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROL_TOKENS)})
    return tokenizer


def make_config(tokenizer):
    """Settings of a whole model with a small Thinker; the talker and the vocoder stay as published, for they are not loaded."""
    from transformers import Qwen2_5OmniConfig

    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in CONTROL_TOKENS}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    text |= {"max_position_embeddings": 2048, "tie_word_embeddings": False}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}}
    text |= {"vocab_size": len(tokenizer) + 3}  # the published models, too, have a few rows that no token uses
    sound = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 16, "output_dim": 32}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0]}
    thinker = {
        "audio_config": sound,
        "vision_config": vision,
        "text_config": text,
        "tie_word_embeddings": False,
        **{f"{name.lower()}_token_index": ids[f"<|{name}|>"] for name in ("AUDIO", "IMAGE", "VIDEO")},
        **{f"{name}_start_token_id": ids[f"<|{name}_bos|>"] for name in ("audio", "vision")},
        **{f"{name}_end_token_id": ids[f"<|{name}_eos|>"] for name in ("audio", "vision")},
    }
    return Qwen2_5OmniConfig(thinker_config=thinker)


def save_omni(folder: Path, *, thinker_only=False, words=tuple(WORDS), seed=0, max_seconds=MAX_SECONDS) -> Path:
    """Save the whole model, or its Thinker alone; returns the folder."""
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration, WhisperFeatureExtractor

    tokenizer = make_tokenizer(words)
    config = make_config(tokenizer)
    torch.manual_seed(seed)
    model = Qwen2_5OmniThinkerForConditionalGeneration(config.thinker_config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far enough from uniform logits that answers differ
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=max_seconds).save_pretrained(folder)
    model.save_pretrained(folder, max_shard_size="50KB")
    if not thinker_only:
        config.save_pretrained(folder)
        state = {f"thinker.{name}": value for shard in folder.glob("*.safetensors") for name, value in load_file(shard).items()}
        state |= {name: torch.ones(8, 8) for name in ("talker.codec_head.weight", "token2wav.proj_out.weight")}
        save_torch_state_dict(state, folder, max_shard_size="50KB")
    return folder
