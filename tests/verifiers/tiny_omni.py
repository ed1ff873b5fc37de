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

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    merges = []

    def join(left, right):
        if (left, right) not in merges:
            merges.append((left, right))
        vocabulary.setdefault(left + right, len(vocabulary))

    for word in words:
        spelled = word.strip()
        for end in range(2, len(spelled) + 1):
            join(spelled[: end - 1], spelled[end - 1])
        if word.startswith(" "):
            join("Ġ", spelled)
    tokenizer = Qwen2TokenizerFast(vocab=vocabulary, merges=merges, pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token=None)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROL_TOKENS)})
    return tokenizer


def make_config(tokenizer):
    from transformers import Qwen2_5OmniConfig

    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in CONTROL_TOKENS}
    vocabulary = len(tokenizer) + 3  # the published models, too, have a few rows that no token uses
    thinker = {
        "audio_config": {
            "d_model": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "num_mel_bins": 16,
            "output_dim": 32,
        },
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
        "text_config": {
            "vocab_size": vocabulary,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
        },
        "audio_token_index": ids["<|AUDIO|>"],
        "image_token_index": ids["<|IMAGE|>"],
        "video_token_index": ids["<|VIDEO|>"],
        "audio_start_token_id": ids["<|audio_bos|>"],
        "audio_end_token_id": ids["<|audio_eos|>"],
        "tie_word_embeddings": False,
        "vision_start_token_id": ids["<|vision_bos|>"],
        "vision_end_token_id": ids["<|vision_eos|>"],
    }
    talker = {
        "vocab_size": 20,
        "embedding_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        **{
            f"tts_{name}_token_id": 0
            for name in ("text_start", "text_end", "text_pad", "codec_start", "codec_end", "codec_pad", "codec_mask")
        },
        **{f"{name}_token_id": 0 for name in ("vision_start", "vision_end", "audio_start", "audio_end")},
        **{f"{name}_token_index": 0 for name in ("audio", "image", "video")},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    }
    token2wav = {
        "dit_config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
            "emb_dim": 8,
            "num_embeds": 8,
            "mel_dim": 8,
            "enc_dim": 8,
            "enc_emb_dim": 8,
            "enc_channels": [8] * 5,
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


def make_extractor(max_seconds):
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=16, chunk_length=max_seconds)


def save_omni(folder: Path, *, thinker_only=False, words=tuple(WORDS), seed=0, max_seconds=MAX_SECONDS) -> Path:
    """Save the whole model, or its Thinker alone; returns the folder."""
    from transformers import Qwen2_5OmniForConditionalGeneration

    tokenizer = make_tokenizer(words)
    torch.manual_seed(seed)
    model = Qwen2_5OmniForConditionalGeneration(make_config(tokenizer))
    with torch.no_grad():
        for parameter in model.thinker.parameters():
            parameter.mul_(3)  # far enough from uniform logits that answers differ
    (model.thinker if thinker_only else model).save_pretrained(folder, max_shard_size="50KB")
    tokenizer.save_pretrained(folder)
    make_extractor(max_seconds).save_pretrained(folder)
    return folder
