"""The one path from encoder outputs to model input: align text streams, normalise, append tef, pad. Training and serving both use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from qamdetr.features.base import STREAMS
from qamdetr.types import Batch, TextFeatures


def temporal_endpoint_feature(num_clips: int) -> Tensor:
    """Return `(num_clips, 2)` rows `(i / T, (i + 1) / T)`.

    Source: QD-DETR's tef; here always over the clips that the model sees.
    """
    edges = torch.arange(num_clips + 1, dtype=torch.float32) / max(num_clips, 1)
    return torch.stack([edges[:-1], edges[1:]], dim=-1)


def align_tokens(auxiliary: TextFeatures, main: TextFeatures) -> Tensor:
    """Average an auxiliary text stream onto the main stream's tokens by overlap of character ranges.

    Tokens without characters (special tokens) and tokens that overlap nothing take the mean of the auxiliary tokens.

    Returns:
        `(main tokens, auxiliary dim)`.
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


def prepare(audio: Sequence[Mapping[str, Tensor]], text: Sequence[Mapping[str, TextFeatures]]) -> Batch:
    """Make model input of encoded recordings and queries, item by item in the same order.

    Args:
        audio: Per item: stream -> `(clips, dim_s)`, main stream first; or one item, which all queries are asked of.
        text: Per item: stream -> features of the query, main stream first.
    """
    audio_streams = list(audio[0])
    text_streams = list(text[0])
    audio_rows: dict[str, list[Tensor]] = {name: [] for name in audio_streams}
    text_rows: dict[str, list[Tensor]] = {name: [] for name in text_streams}
    for item in audio:
        for position, name in enumerate(audio_streams):
            rows = scale_stream(name, item[name])
            if position == 0:
                rows = torch.cat([rows, temporal_endpoint_feature(rows.shape[0])], dim=-1)
            audio_rows[name].append(rows)
    for query in text:
        main = query[text_streams[0]]
        for position, name in enumerate(text_streams):
            tokens = query[name].tokens if position == 0 else align_tokens(query[name], main)
            text_rows[name].append(scale_stream(name, tokens))
    pooled = [query[text_streams[0]].pooled for query in text]
    joint = [vector for vector in pooled if vector is not None]
    padded_audio = {name: pad_rows(rows) for name, rows in audio_rows.items()}
    padded_text = {name: pad_rows(rows) for name, rows in text_rows.items()}
    return Batch(
        audio=padded_audio,
        audio_mask=row_mask(audio_rows[audio_streams[0]]),
        text=padded_text,
        text_mask=row_mask(text_rows[text_streams[0]]),
        text_pooled=torch.stack(joint).float() if len(joint) == len(pooled) else None,
    )


def pad_rows(rows: Sequence[Tensor]) -> Tensor:
    """Stack `(rows_i, dim)` tensors to `(batch, max rows, dim)` with zeros at the end."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def row_mask(rows: Sequence[Tensor]) -> Tensor:
    """`(batch, max rows)` bool, True where `pad_rows` put a real row."""
    lengths = torch.tensor([row.shape[0] for row in rows])
    return torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
