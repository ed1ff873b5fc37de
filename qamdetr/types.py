"""The frozen dataclasses that cross rooms. Masks are True = valid; times are seconds unless the name says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self  # in `typing` from Python 3.11 on

Tier = Literal["found", "perhaps", "nothing found"]

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
    """One encoded audio file."""

    name: str  # file name without its folder
    path: str  # where the audio lies, for playing and cropping; empty when it came from memory
    duration_seconds: float  # true length; `num_clips = ceil((duration_seconds - unheard_seconds) / clip_seconds)`
    streams: Mapping[str, Tensor]  # audio features, stream name -> `(clips, dim_s)`, as the encoder gives them (not yet normalised, no tef)
    peaks: np.ndarray  # `(2, columns)` minimum and maximum of the waveform per column, in [-1, 1], for drawing
    notes: tuple[str, ...] = ()  # what reading the file has decided on its own, such as "the file ends after 0:45 of 1:30"
    choice: Mapping[str, Any] = field(default_factory=dict)  # what of the file was encoded, as arguments of `audio.Sound`; empty for all
    clip_seconds: float = 1.0  # from one feature step to the next
    unheard_seconds: float = 0.0  # silence at its begin that was not encoded, so that clips are counted from the first sound
    bank: Tensor | None = None  # `(sentences, dim)` of the main stream's joint space, where the network compares queries with a bank

    @property
    def start_seconds(self) -> float:
        """Where it begins on the file's own clock; clips and `duration_seconds` count from there."""
        return float(self.choice.get("start_seconds", 0.0))

    @property
    def num_clips(self) -> int:
        """Number of feature steps."""
        return int(next(iter(self.streams.values())).shape[0])


@dataclass(frozen=True)
class TextFeatures:
    """One encoded query of one text stream."""

    tokens: Tensor  # `(tokens, dim_s)`
    offsets: tuple[tuple[int, int], ...]  # character range `[begin, end)` of each token in the query; `(0, 0)` for special tokens
    pooled: Tensor | None = None  # `(joint_dim,)` unit vector in the space of the stream's audio partner, or None when it has none
    sentence: Tensor | None = None  # `(sentence_dim,)` unit vector of its meaning alone, where the encoder gives one


@dataclass(frozen=True)
class Batch(_Movable):
    """Model input, made by `features.pipeline` alone."""

    # Stream name -> `(batch, clips, dim_s)`, normalised; the first stream is the main one and ends with the two tef columns.
    audio: Mapping[str, Tensor]
    audio_mask: Tensor  # `(batch, clips)` bool, True = valid
    text: Mapping[str, Tensor]  # stream name -> `(batch, tokens, dim_s)`, auxiliary streams already averaged onto the main stream's tokens
    text_mask: Tensor  # `(batch, tokens)` bool, True = valid
    # `(batch, joint_dim)` unit query vectors in the main audio stream's space, or None when there is no joint space.
    text_pooled: Tensor | None = None
    bank: Tensor | None = None  # `(sentences, joint_dim)` unit vectors in that space, of the bank; None where the network reads none


@dataclass(frozen=True)
class Targets(_Movable):
    """Ground truth of a batch."""

    spans_cxw: Tensor  # `(total, 2)` spans of all items one after the other, in [0, 1] of all clips of each item
    num_spans: tuple[int, ...]  # spans per item; `sum(num_spans) == total`; 0 where the query's sound is absent
    saliency: Tensor  # `(batch, clips)` 1 where a clip lies in any ground-truth window (by overlap share, in [0, 1]), else 0
    # `(batch,)` int64, the item whose text is known not to describe this item's audio, or -1 where the batch has none.
    negative_index: Tensor


@dataclass(frozen=True)
class DecoderOutput(_Movable):
    """What one decoder layer predicts for its slots: moment queries, or the cells of a dense decoder."""

    logits: Tensor  # `(batch, slots, 2)`; class 0 is foreground
    spans_cxw: Tensor  # `(batch, slots, 2)` in [0, 1]; those of cells may reach beyond the recording
    quality_logits: Tensor | None  # `(batch, slots)`; sigmoid gives the predicted IoU; None without the quality head
    cells: Tensor | None = None  # `(slots, 2)` middle and length of each cell, in clips; None for moment queries, which have no place

    def valid(self, num_clips: Tensor) -> Tensor:
        """Return which slots mean anything, `(batch, slots)` bool, for items of `(batch,)` valid clips: cells that begin among them."""
        if self.cells is None:
            return torch.ones_like(self.logits[..., 0], dtype=torch.bool)
        return self.cells[:, 0] - 0.5 * self.cells[:, 1] < num_clips[:, None]


@dataclass(frozen=True)
class ModelOutput(_Movable):
    """Everything `QamDetr.forward` returns; matcher, losses and decoding of candidates read only this."""

    decoder: DecoderOutput  # output of the last decoder layer
    auxiliary: tuple[DecoderOutput, ...]  # outputs of the earlier decoder layers, first layer first
    saliency: Tensor  # `(batch, clips)` raw scores; padded clips hold the lowest float
    # `(negatives, clips)` raw scores of the audio paired with a wrong query, or None when not asked for.
    negative_saliency: Tensor | None = None
    negative_mask: Tensor | None = None  # `(negatives, clips)` bool of valid clips, or None likewise
    negative_decoder: DecoderOutput | None = None  # what a dense decoder finds there; None also of `detr`, which sees true pairs alone
    # Stream name -> sigmoid gate in [0, 1], as `audio/<stream>` and `text/<stream>`, detached.
    gates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A predicted window with its scores before ranking."""

    start_seconds: float  # inside the recording
    end_seconds: float  # after the start; a window is never empty
    foreground: float  # in [0, 1], as quality
    # From the decoder, or, where segments of the saliency are pooled with its candidates, also from the saliency: see
    # `inference.candidates`. Without the quality head, or with it bypassed, quality is 1 for all.
    quality: float
    decoder_score: float  # `foreground * quality` (report, Eq. 2)
    verifier_score: float | None = None  # normalised probability of "Yes" in [0, 1], or None when no verifier looked at it
    probability: float | None = None  # that it is right, by its decoder score and `inference.score_calibration`; None without

    @property
    def window(self) -> Window:
        """`(start, end)` in seconds."""
        return (self.start_seconds, self.end_seconds)


@dataclass(frozen=True)
class Moment(Candidate):
    """A ranked candidate: what the user gets."""

    score: float = 0.0  # the blended score in [0, 1] (report, Eq. 3), of `probability` where the checkpoint is calibrated
    likely: bool = True  # worth showing as an answer; `inference` decides


@dataclass(frozen=True)
class Heard:
    """A known kind of sound that a recording holds."""

    kind: str  # its name in the table of known sounds, such as `animal/dog`
    wording: str  # the sentence that was asked for
    count: int  # likely moments
    score: float  # of the best
    tier: Tier  # found or perhaps


@dataclass(frozen=True)
class Result:
    """The answer to one query on one recording."""

    audio: str  # path or name of the recording, as the user gave it
    duration_seconds: float  # where the recording ends, in seconds of its file
    query: str  # the user's sentence
    found: bool  # the best moment reaches the checkpoint's calibrated threshold, and the words are understood; see `tier`
    encoder: str  # name of the combo in use, such as `pocket`
    verifier: str  # name of the verifier in use, `none` when the decoder alone ranked
    beta: float  # weight of the verifier in the score
    moments: tuple[Moment, ...]  # best first
    saliency: tuple[float, ...]  # one relevance value in [0, 1] per clip of the file, 0 where it was not heard
    notes: tuple[str, ...] = ()  # what the user should know (a verifier that failed, words the encoder has never met)
    heard: Mapping[str, Any] = field(default_factory=dict, hash=False)  # chosen channel and track, as arguments of `audio.Sound`
    clip_seconds: float = 1.0  # from one value of `saliency` to the next
    perhaps: bool = False  # it does not, and the sound is still more likely there than not
    understood: bool = True  # false when the encoders do not know the query's words; then nothing is found

    @property
    def tier(self) -> Tier:
        """How sure the answer is."""
        return "found" if self.found else "perhaps" if self.perhaps else "nothing found"
