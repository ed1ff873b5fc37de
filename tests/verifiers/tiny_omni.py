"""A random Qwen2.5-Omni of a few thousand weights, saved as the hub has it: all parts, tokeniser, feature extractor, sharded weights."""

from __future__ import annotations

from pathlib import Path

import torch

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
    pairs = []
    for word in words:
        spelled = word.strip()
        pairs += [(spelled[: end - 1], spelled[end - 1]) for end in range(2, len(spelled) + 1)]
        pairs += [("Ġ", spelled)] if word.startswith(" ") else []
    merges = list(dict.fromkeys(pairs))
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Qwen2TokenizerFast(vocab=vocabulary, merges=merges, pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token=None)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROL_TOKENS)})
    return tokenizer


def make_config(tokenizer):
    from transformers import Qwen2_5OmniConfig

    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in CONTROL_TOKENS}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, **heads, "max_position_embeddings": 2048}
    rope = {"rope_type": "default", "rope_theta": 1e6}
    sound = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 16, "output_dim": 32}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0]}
    thinker = {
        "audio_config": sound,
        "vision_config": vision,
        "text_config": {
            "vocab_size": len(tokenizer) + 3,  # the published models, too, have a few rows that no token uses
            "tie_word_embeddings": False,
            "rope_parameters": {**rope, "mrope_section": [2, 3, 3]},
            **text,
        },
        **{f"{name.lower()}_token_index": ids[f"<|{name}|>"] for name in ("AUDIO", "IMAGE", "VIDEO")},
        **{f"{name}_start_token_id": ids[f"<|{name}_bos|>"] for name in ("audio", "vision")},
        **{f"{name}_end_token_id": ids[f"<|{name}_eos|>"] for name in ("audio", "vision")},
        "tie_word_embeddings": False,
    }
    tts = ("text_start", "text_end", "text_pad", "codec_start", "codec_end", "codec_pad", "codec_mask")
    talker = {
        "vocab_size": 20,
        "embedding_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "head_dim": 8,
        **heads,
        **{f"tts_{name}_token_id": 0 for name in tts},
        **{f"{name}_token_id": 0 for name in ("vision_start", "vision_end", "audio_start", "audio_end")},
        **{f"{name}_token_index": 0 for name in ("audio", "image", "video")},
        "rope_parameters": {**rope, "mrope_section": [1, 1, 2]},
    }
    small = dict.fromkeys(("head_dim", "emb_dim", "num_embeds", "mel_dim", "enc_dim", "enc_emb_dim"), 8)
    token2wav = {
        "dit_config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "enc_channels": [8] * 5,
            **small,
            "enc_attention_channels": 4,
            "enc_se_channels": 4,
            "look_ahead_layers": [0],
            "look_backward_layers": [0],
        },
        "bigvgan_config": {
            "mel_dim": 8,
            "upsample_initial_channel": 8,
            "upsample_rates": [2],
            "upsample_kernel_sizes": [4],
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3, 5]],
        },
    }
    return Qwen2_5OmniConfig(thinker_config=thinker, talker_config=talker, token2wav_config=token2wav)


def save_omni(folder: Path, *, thinker_only=False, words=tuple(WORDS), seed=0, max_seconds=MAX_SECONDS) -> Path:
    """Save the whole model, or its Thinker alone; returns the folder."""
    from transformers import Qwen2_5OmniForConditionalGeneration, WhisperFeatureExtractor

    tokenizer = make_tokenizer(words)
    torch.manual_seed(seed)
    model = Qwen2_5OmniForConditionalGeneration(make_config(tokenizer))
    with torch.no_grad():
        for parameter in model.thinker.parameters():
            parameter.mul_(3)  # far enough from uniform logits that answers differ
    (model.thinker if thinker_only else model).save_pretrained(folder, max_shard_size="50KB")
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=max_seconds).save_pretrained(folder)
    return folder
