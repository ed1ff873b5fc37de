"""The frozen dataclasses that cross rooms. Masks are True = valid; times are seconds unless the name says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self  # in `typing` from Python 3.11 on

Window = tuple[float, float]
"""`(start, end)` in seconds."""

TEF_DIM = 2
"""Temporal endpoint features of clip i of T: `(i / T, (i + 1) / T)`, the last columns of the main audio stream."""


class _Movable:
    """Gives a dataclass of tensors a `to(device)` that returns a moved copy."""

    def to(self, device: torch.device | str) -> Self:
        """Return a copy with every tensor (also inside mappings) on `device`."""

        def move(value: Any) -> Any:  # noqa: ANN401 - fields are tensors, mappings of tensors, or plain values
            if isinstance(value, Tensor):
                return value.to(device)
            if isinstance(value, Mapping):
                return {key: move(item) for key, item in value.items()}
            return value

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type, type-var]


@dataclass(frozen=True)
class Recording:
    """One encoded audio file.

    Attributes:
        name: File name without its folder.
        path: Where the audio lies, for playing and cropping; empty when it came from memory.
        duration_seconds: True length; `num_clips = ceil(duration_seconds)`.
        streams: Audio features, stream name -> `(clips, dim_s)`, as the encoder gives them (not yet normalised, no tef).
        peaks: `(2, columns)` minimum and maximum of the waveform per column, in [-1, 1], for drawing.
        notes: What reading the file has decided on its own, such as "the file ends after 0:45 of 1:30".
        start_seconds: Where it begins on the file's own clock, if only a part was encoded; clips and `duration_seconds` count from there.
        channel, track: What was asked to be heard of it; None leaves the choice to `audio.Sound`.
    """

    name: str
    path: str
    duration_seconds: float
    streams: Mapping[str, Tensor]
    peaks: np.ndarray
    notes: tuple[str, ...] = ()
    start_seconds: float = 0.0
    channel: int | None = None
    track: int | None = None

    @property
    def num_clips(self) -> int:
        """Number of one-second feature steps."""
        return int(next(iter(self.streams.values())).shape[0])


@dataclass(frozen=True)
class TextFeatures:
    """One encoded query of one text stream.

    Attributes:
        tokens: `(tokens, dim_s)`.
        offsets: Character range `[begin, end)` of each token in the query; `(0, 0)` for special tokens.
        pooled: `(joint_dim,)` unit vector in the space of the stream's audio partner, or None when it has none.
    """

    tokens: Tensor
    offsets: tuple[tuple[int, int], ...]
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Batch(_Movable):
    """Model input, made by `features.pipeline` alone.

    Attributes:
        audio: Stream name -> `(batch, clips, dim_s)`, normalised; the first stream is the main one and ends with the two tef columns.
        audio_mask: `(batch, clips)` bool, True = valid.
        text: Stream name -> `(batch, tokens, dim_s)`, auxiliary streams already averaged onto the main stream's tokens.
        text_mask: `(batch, tokens)` bool, True = valid.
        text_pooled: `(batch, joint_dim)` unit query vectors in the main audio stream's space, or None when there is no joint space.
    """

    audio: Mapping[str, Tensor]
    audio_mask: Tensor
    text: Mapping[str, Tensor]
    text_mask: Tensor
    text_pooled: Tensor | None = None

    def with_text_of(self, index: Tensor) -> Batch:
        """Return a batch that pairs the audio of item `i` with the text of item `index[i]`; `index` is `(batch,)` int64."""
        return replace(
            self,
            text={name: value[index] for name, value in self.text.items()},
            text_mask=self.text_mask[index],
            text_pooled=None if self.text_pooled is None else self.text_pooled[index],
        )

    def take(self, index: Tensor) -> Batch:
        """Return a batch of the items `index` with audio and text together; `index` is `(n,)` int64."""
        picked = replace(
            self,
            audio={name: value[index] for name, value in self.audio.items()},
            audio_mask=self.audio_mask[index],
        )
        return picked.with_text_of(index)


@dataclass(frozen=True)
class Targets(_Movable):
    """Ground truth of a batch.

    Attributes:
        spans_cxw: `(total, 2)` spans of all items one after the other, in [0, 1] of each item's `num_clips` seconds.
        num_spans: Spans per item; `sum(num_spans) == total`; 0 where the query's sound is absent.
        saliency: `(batch, clips)` 1 where a clip lies in any ground-truth window (by overlap share, in [0, 1]), else 0.
        negative_index: `(batch,)` int64, the item whose text is known not to describe this item's audio, or -1 where the batch has none.
    """

    spans_cxw: Tensor
    num_spans: tuple[int, ...]
    saliency: Tensor
    negative_index: Tensor


@dataclass(frozen=True)
class DecoderOutput(_Movable):
    """What one decoder layer predicts for its moment queries.

    Attributes:
        logits: `(batch, moment_queries, 2)`; class 0 is foreground.
        spans_cxw: `(batch, moment_queries, 2)` in [0, 1].
        quality_logits: `(batch, moment_queries)`; sigmoid gives the predicted IoU; None without the quality head.
    """

    logits: Tensor
    spans_cxw: Tensor
    quality_logits: Tensor | None


@dataclass(frozen=True)
class ModelOutput(_Movable):
    """Everything `QamDetr.forward` returns; matcher, losses and decoding of candidates read only this.

    Attributes:
        decoder: Output of the last decoder layer.
        auxiliary: Outputs of the earlier decoder layers, first layer first.
        saliency: `(batch, clips)` raw scores; padded clips hold the lowest float.
        negative_saliency: `(negatives, clips)` raw scores of the audio paired with a wrong query, or None when not asked for.
        negative_mask: `(negatives, clips)` bool of valid clips, or None likewise.
        gates: Stream name -> sigmoid gate in [0, 1], as `audio/<stream>` and `text/<stream>`, detached.
    """

    decoder: DecoderOutput
    auxiliary: tuple[DecoderOutput, ...]
    saliency: Tensor
    negative_saliency: Tensor | None = None
    negative_mask: Tensor | None = None
    gates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A predicted window with its scores before ranking.

    Attributes:
        start_seconds, end_seconds: Window inside the recording; never empty.
        foreground, quality: In [0, 1]; from the decoder, or, where segments of the saliency are pooled with its candidates, also from the
            saliency: see `inference.candidates`. Without the quality head, or with it bypassed, quality is 1 for all.
        decoder_score: `foreground * quality` (report, Eq. 2).
        verifier_score: Normalised probability of "Yes" in [0, 1], or None when no verifier looked at it.
    """

    start_seconds: float
    end_seconds: float
    foreground: float
    quality: float
    decoder_score: float
    verifier_score: float | None = None

    @property
    def window(self) -> Window:
        """`(start, end)` in seconds."""
        return (self.start_seconds, self.end_seconds)


@dataclass(frozen=True)
class Moment(Candidate):
    """A ranked candidate: what the user gets.

    Attributes:
        score: The blended score in [0, 1] (report, Eq. 3).
        likely: Worth showing as an answer; `inference` decides.
    """

    score: float = 0.0
    likely: bool = True


@dataclass(frozen=True)
class Result:
    """The answer to one query on one recording.

    Attributes:
        audio: Path or name of the recording, as the user gave it.
        duration_seconds: Where the recording ends, in seconds of its file.
        query: The user's sentence.
        found: False when the best moment scores below the checkpoint's calibrated threshold ("not in this recording").
        encoder: Name of the combo in use, such as `pocket`.
        verifier: Name of the verifier in use, `none` when the decoder alone ranked.
        beta: Weight of the verifier in the score.
        moments: Best first.
        saliency: One relevance value in [0, 1] per clip, from where the encoded part begins.
        notes: What the user should know (a verifier that failed, words the encoder has never met).
    """

    audio: str
    duration_seconds: float
    query: str
    found: bool
    encoder: str
    verifier: str
    beta: float
    moments: tuple[Moment, ...]
    saliency: tuple[float, ...]
    notes: tuple[str, ...] = ()
