"""RoBERTa's token states, and offsets that fit them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hub_models import TEXT_DIMS, save_tiny_roberta

from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.features.base import EncoderOptions
from qamdetr.features.roberta import open_roberta


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_roberta(tmp_path_factory.mktemp("roberta"))


@pytest.mark.parametrize("query", ["a dog barks", "Ein Hund bellt — laut!", "🐶🐶 woof", " rain  "])
def test_states_are_those_of_the_stock_model(folder: Path, query: str) -> None:
    from transformers import AutoTokenizer, RobertaModel

    ready = AutoTokenizer.from_pretrained(folder)(query, return_tensors="pt")
    with torch.inference_mode():
        expected = RobertaModel.from_pretrained(folder, add_pooling_layer=False).eval()(**ready).last_hidden_state[0]
    encoder = open_roberta(folder, EncoderOptions()).text
    features = encoder.encode_text(query)
    assert features.pooled is None
    assert features.tokens.dtype == torch.float32
    assert features.tokens.shape == (len(features.offsets), TEXT_DIMS["roberta"])
    assert torch.allclose(features.tokens, expected, atol=1e-5)
    assert features.offsets[0] == features.offsets[-1] == (0, 0)


def test_the_language_model_s_head_is_left_out_and_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture) -> None:
    encoder = open_roberta(folder, EncoderOptions()).text
    assert not any(name.startswith(("lm_head", "pooler")) for name, _ in encoder.model.named_parameters())
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert capfd.readouterr() == ("", "")


def test_the_longest_query_runs_and_a_longer_one_is_refused(folder: Path) -> None:
    encoder = open_roberta(folder, EncoderOptions()).text
    words = " ".join(["a"] * 38)
    assert encoder.encode_text(words).tokens.shape[0] == 40
    with pytest.raises(QamDetrError, match="has 41 tokens; the text encoder roberta reads at most 40"):
        encoder.encode_text(words + " a")


def test_bfloat16_is_near_and_has_another_fingerprint(folder: Path) -> None:
    full, half = (open_roberta(folder, EncoderOptions(dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
    expected, found = (opened.text.encode_text("a dog barks").tokens for opened in (full, half))
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.99
    assert full.fingerprint != half.fingerprint


def test_a_tokeniser_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    small = shutil.copytree(folder, tmp_path / "small")
    weights = load_file(small / "model.safetensors")
    words = weights["roberta.embeddings.word_embeddings.weight"]
    weights["roberta.embeddings.word_embeddings.weight"] = words[:100].clone()
    save_file(weights, small / "model.safetensors", metadata={"format": "pt"})
    config = (small / "config.json").read_text().replace(f'"vocab_size": {len(words)}', '"vocab_size": 100')
    (small / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=f"tokeniser knows {len(words)} tokens, the encoder roberta 100"):
        open_roberta(small, EncoderOptions())
