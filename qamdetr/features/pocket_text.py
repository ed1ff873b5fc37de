"""The pocket text encoder: a two-layer Transformer that imitates a sentence encoder (distilled by `training.pocket_text`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import normalize

from qamdetr.errors import QamDetrError
from qamdetr.types import TextFeatures

MAX_TOKENS = 256


@dataclass(frozen=True)
class PocketTextConfig:
    """Size of the text encoder. `sentence_dim` is the teacher's; `dim` the pocket streams'."""

    vocab_size: int = 30522
    embedding_dim: int = 128
    dim: int = 256
    num_layers: int = 2
    num_heads: int = 4
    ffn_dim: int = 512
    sentence_dim: int = 384
    dropout: float = 0.1


class PocketTextModel(nn.Module):
    """Token ids to token states, a sentence vector in the teacher's space, and a joint vector in the audio's space.

    Source: architecture ours; teacher all-MiniLM-L6-v2 (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2).
    """

    def __init__(self, config: PocketTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.input = nn.Linear(config.embedding_dim, config.dim)
        self.position = nn.Parameter(torch.randn(MAX_TOKENS, config.dim) * 0.02)
        layer = nn.TransformerEncoderLayer(
            config.dim, config.num_heads, config.ffn_dim, config.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.dim)
        self.sentence = nn.Linear(config.dim, config.sentence_dim)
        self.joint = nn.Linear(config.sentence_dim, config.dim, bias=False)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode token ids.

        Args:
            ids: `(batch, tokens)` int64, at most `MAX_TOKENS` long.
            mask: `(batch, tokens)` bool, True = valid.

        Returns:
            Token states `(batch, tokens, dim)` and unit sentence vectors `(batch, sentence_dim)` in the teacher's space.
        """
        x = self.input(self.embedding(ids)) + self.position[: ids.shape[1]]
        x = self.norm(self.layers(x, src_key_padding_mask=~mask))
        weights = mask.unsqueeze(-1).to(x.dtype)
        mean = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return x, normalize(self.sentence(mean), dim=-1)

    def to_joint(self, sentence: Tensor) -> Tensor:
        """Map teacher-space sentence vectors `(…, sentence_dim)` to unit vectors `(…, dim)` in the audio's space."""
        return normalize(self.joint(sentence), dim=-1)


class PocketTextEncoder:
    """The text stream `pocket`: `(tokens, 256)` states with character offsets, and the pooled joint vector."""

    name = "pocket"

    def __init__(self, model: PocketTextModel, tokenizer: Tokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.dim = model.config.dim

    @torch.inference_mode()
    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query.

        Raises:
            QamDetrError: The query is longer than the encoder can read; nothing is cut silently.
        """
        encoding = self.tokenizer.encode(query)
        if len(encoding.ids) > MAX_TOKENS:
            raise QamDetrError(
                f"The query has {len(encoding.ids)} tokens; the pocket text encoder reads at most {MAX_TOKENS}. Use a shorter sentence."
            )
        ids = torch.tensor([encoding.ids])
        tokens, sentence = self.model(ids, torch.ones_like(ids, dtype=torch.bool))
        return TextFeatures(
            tokens=tokens[0].float().clone(),
            offsets=tuple((int(begin), int(end)) for begin, end in encoding.offsets),
            pooled=self.model.to_joint(sentence)[0].float().clone(),
        )


def pack_state(model: PocketTextModel) -> dict[str, Tensor]:
    """Return the weights for storing: float16, and the word table as int8 with one scale per word (it is most of the file)."""
    state = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    table = model.embedding.weight.detach().float()
    scale = table.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127
    state["embedding.weight"] = (table / scale).round().to(torch.int8)
    state["embedding.scale"] = scale.half()
    return state


def unpack_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `pack_state`, up to rounding; everything float32."""
    unpacked = {name: value.float() for name, value in state.items()}
    if "embedding.scale" in unpacked:
        unpacked["embedding.weight"] = unpacked["embedding.weight"] * unpacked.pop("embedding.scale")
    return unpacked


def encode_batch(tokenizer: Tokenizer, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Tokenise sentences to padded ids `(batch, tokens)` and their mask; training only (cuts at `MAX_TOKENS`)."""
    rows = [torch.tensor(encoding.ids[:MAX_TOKENS]) for encoding in tokenizer.encode_batch(list(sentences))]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1])[None, :] < lengths[:, None]
