"""The one path from encoder outputs to model input: align text streams, normalise, append tef, pad. Training and serving both use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from qamdetr.features.base import STREAMS
from qamdetr.types import Batch, TextFeatures


def temporal_endpoint_feature(num_clips: int) -> Tensor:
    """Return `(num_clips, 2)` rows `(i / T, (i + 1) / T)`: QD-DETR's tef, here always over the clips that the model sees."""
    edges = torch.arange(num_clips + 1, dtype=torch.float32) / max(num_clips, 1)
    return torch.stack([edges[:-1], edges[1:]], dim=-1)


def align_tokens(auxiliary: TextFeatures, main: TextFeatures) -> Tensor:
    """Average an auxiliary text stream onto the main stream's tokens by overlap of character ranges; `(main tokens, auxiliary dim)`.

    Tokens without characters (special tokens) and tokens that overlap nothing take the mean of the auxiliary tokens.
    """
    if not main.offsets or not auxiliary.offsets:
        return auxiliary.tokens.mean(dim=0, keepdim=True).expand(main.tokens.shape[0], -1)
    main_range = torch.tensor(main.offsets, dtype=torch.float32)
    aux_range = torch.tensor(auxiliary.offsets, dtype=torch.float32)
    begin = torch.maximum(main_range[:, None, 0], aux_range[None, :, 0])
    end = torch.minimum(main_range[:, None, 1], aux_range[None, :, 1])
    overlap = (end - begin).clamp(min=0)
    share = overlap.sum(dim=1, keepdim=True)
    uniform = torch.full_like(overlap, 1.0 / overlap.shape[1])
    weights = torch.where(share > 0, overlap / share.clamp(min=1e-9), uniform)
    return weights @ auxiliary.tokens


def scale_stream(name: str, features: Tensor) -> Tensor:
    """L2-normalise each row, except for streams whose size carries meaning."""
    features = features.float()
    return features if name in STREAMS and STREAMS[name].raw_scale else normalize(features, dim=-1)


def prepare(audio: Sequence[Mapping[str, Tensor]], text: Sequence[Mapping[str, TextFeatures]], bank: Tensor | None = None) -> Batch:
    """Make model input of encoded recordings and queries, item by item in the same order.

    Args:
        audio: Per item: stream -> `(clips, dim_s)`, main stream first; or one item, which all queries are asked of.
        text: Per item: stream -> features of the query, main stream first.
        bank: `(sentences, dim)` in the main stream's joint space, for networks that compare the query with others.
    """
    main_audio, main_text = next(iter(audio[0])), next(iter(text[0]))
    audio_rows = {name: [scale_stream(name, item[name]) for item in audio] for name in audio[0]}
    audio_rows[main_audio] = [torch.cat([rows, temporal_endpoint_feature(len(rows))], dim=-1) for rows in audio_rows[main_audio]]
    text_rows = {main_text: [scale_stream(main_text, query[main_text].tokens) for query in text]}
    for name in list(text[0])[1:]:
        text_rows[name] = [scale_stream(name, align_tokens(query[name], query[main_text])) for query in text]
    joint = [query[main_text].pooled for query in text]
    pooled = [vector for vector in joint if vector is not None]
    return Batch(
        audio={name: pad_rows(rows) for name, rows in audio_rows.items()},
        audio_mask=row_mask(audio_rows[main_audio]),
        text={name: pad_rows(rows) for name, rows in text_rows.items()},
        text_mask=row_mask(text_rows[main_text]),
        text_pooled=torch.stack(pooled).float() if len(pooled) == len(joint) else None,
        bank=None if bank is None else normalize(bank.float(), dim=-1),
    )


def pad_rows(rows: Sequence[Tensor]) -> Tensor:
    """Stack `(rows_i, dim)` tensors to `(batch, max rows, dim)` with zeros at the end."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def row_mask(rows: Sequence[Tensor]) -> Tensor:
    """`(batch, max rows)` bool, True where `pad_rows` put a real row."""
    lengths = torch.tensor([row.shape[0] for row in rows])
    return torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
