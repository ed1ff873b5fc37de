"""`MomentRetriever`: the Python API. A checkpoint, its encoders and a verifier behind `encode` and `retrieve`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from qamdetr.config import Config, InferenceConfig
from qamdetr.errors import CheckpointError, QamDetrError
from qamdetr.features.pipeline import prepare
from qamdetr.inference import candidates, long_audio
from qamdetr.inference.candidates import DecodeProtocol
from qamdetr.inference.pretrained import DEFAULT_CHECKPOINT, load_pretrained
from qamdetr.inference.rerank import check_beta, rerank
from qamdetr.inference.segments import pool_segments
from qamdetr.inference.verifiers.base import DEFAULT_VERIFIER, Verifier
from qamdetr.inference.verifiers.registry import get_verifier
from qamdetr.models.qam_detr import QamDetr
from qamdetr.types import Candidate, Moment, Recording, Result, TextFeatures

if TYPE_CHECKING:
    from typing_extensions import Self  # in `typing` from Python 3.11 on

_PAIRS_PER_FORWARD = 8
"""Pairs of section and query that run through the network at once; bounds memory for long recordings and many queries."""


class ComboEncoder(Protocol):
    """What the retriever needs of a combo of encoders (`features.encoders.load_combo` gives one)."""

    @property
    def name(self) -> str:
        """Name of the combo."""
        ...

    def encode_recording(self, path: str | Path) -> Recording:
        """Encode an audio file."""
        ...

    def encode_query(self, query: str) -> Mapping[str, TextFeatures]:
        """Encode a query: stream -> features, main stream first."""
        ...


class MomentRetriever:
    """Finds the moments of recordings that match sentences. Holds no state of a user; threads may share one.

    Example:
        >>> retriever = MomentRetriever.from_pretrained()
        >>> recording = retriever.encode("walk.wav")
        >>> best = retriever.retrieve(recording, "a dog barks").moments[0]
    """

    def __init__(self, model: QamDetr, config: Config, encoder: ComboEncoder) -> None:
        self.model = model.eval()
        self.config = config
        self.encoder = encoder

    @classmethod
    def from_pretrained(cls, name_or_dir: str | Path = DEFAULT_CHECKPOINT) -> Self:
        """Load a checkpoint and the encoders that it was trained on.

        Args:
            name_or_dir: Name of a shipped checkpoint, or a checkpoint folder.

        Raises:
            CheckpointError: The checkpoint, or its encoders' weights, cannot be used.
        """
        from qamdetr.features.encoders import load_combo

        model, config = load_pretrained(name_or_dir)
        encoder = load_combo(config.data.combo)
        wanted = config.data.encoder
        if wanted and encoder.fingerprint != wanted:
            raise CheckpointError(
                f"{name_or_dir} was trained on version {wanted} of the {encoder.name} encoders, here is version {encoder.fingerprint}; "
                "features would not fit: restore those encoders, or train again on these."
            )
        return cls(model, config, encoder)

    def encode(self, path: str | Path) -> Recording:
        """Encode an audio file once; any number of queries may follow.

        Raises:
            AudioError: The file cannot be used.
        """
        with torch.inference_mode():
            return self.encoder.encode_recording(path)

    def retrieve(
        self,
        recording: Recording,
        query: str,
        *,
        top_k: int = 10,
        verifier: str = DEFAULT_VERIFIER,
        beta: float | None = None,
        protocol: DecodeProtocol = "exact",
        bypass: Collection[str] = (),
    ) -> Result:
        """Answer one query; see `retrieve_many`."""
        return self.retrieve_many(recording, [query], top_k=top_k, verifier=verifier, beta=beta, protocol=protocol, bypass=bypass)[0]

    @torch.inference_mode()
    def retrieve_many(
        self,
        recording: Recording,
        queries: Sequence[str],
        *,
        top_k: int = 10,
        verifier: str = DEFAULT_VERIFIER,
        beta: float | None = None,
        protocol: DecodeProtocol = "exact",
        bypass: Collection[str] = (),
    ) -> list[Result]:
        """Answer several queries on one recording, in their order.

        Args:
            recording: From `encode`.
            queries: Sentences.
            top_k: Most moments to return per query.
            verifier: `none` or `pocket`. It looks at the decoder's best candidates (`inference.top_k` of the checkpoint, or `top_k` if
                that is more). When it fails, the decoder's ranking stands and a note in the result says so.
            beta: Weight of the verifier's score, in [0, 1]; None takes the checkpoint's. Results without verifier state 0.
            protocol: `official` rounds windows as the field's evaluation does; see `candidates.round_officially`.
            bypass: Components to leave out of the network; see `QamDetr.forward`.

        Raises:
            QamDetrError: An empty query, `top_k` under 1, `beta` outside [0, 1], or an unknown verifier.
        """
        if top_k < 1:
            raise QamDetrError(f"top_k is {top_k}; it must be at least 1.")
        beta = self.config.inference.beta if beta is None else beta
        check_beta(beta)
        checker = get_verifier(verifier, self.config.verifier)
        texts = [self.encoder.encode_query(check_query(query)) for query in queries]
        found = self._decode(recording, texts, protocol, bypass)
        return [
            self._rank(recording, query, text, decoded, saliency, checker, beta, top_k)
            for query, text, (decoded, saliency) in zip(queries, texts, found, strict=True)
        ]

    def _decode(
        self, recording: Recording, texts: Sequence[Mapping[str, TextFeatures]], protocol: DecodeProtocol, bypass: Collection[str]
    ) -> list[tuple[list[Candidate], Tensor]]:
        """Run the network on every section for every query; per query the merged candidates and saliency `(clips,)` in [0, 1]."""
        settings: InferenceConfig = self.config.inference
        # Segments of the saliency repeat what the decoder found, so with them doubles are always dropped.
        nms_iou = 1.0 if protocol == "official" and settings.segment_threshold <= 0 else settings.nms_iou
        sections = long_audio.split(recording.num_clips, settings.section_clips, settings.section_overlap_clips)
        pairs = [(text, section) for text in texts for section in sections]
        decoded: list[list[Candidate]] = []
        saliency: list[Tensor] = []
        for begin in range(0, len(pairs), _PAIRS_PER_FORWARD):
            chunk = pairs[begin : begin + _PAIRS_PER_FORWARD]
            batch = prepare([long_audio.section_streams(recording.streams, section) for _, section in chunk], [text for text, _ in chunk])
            output = self.model(batch, bypass=bypass)
            durations = [long_audio.section_duration(section, recording.duration_seconds) for _, section in chunk]
            lengths = [section.num_clips for _, section in chunk]
            curves = [row[:length].sigmoid() for row, length in zip(output.saliency, lengths, strict=True)]
            found = candidates.decode(output, durations, lengths, nms_iou=nms_iou)
            decoded += [
                pool_segments(windows, curve.numpy(), duration, settings, nms_iou=nms_iou)
                for windows, curve, duration in zip(found, curves, durations, strict=True)
            ]
            saliency += curves
        per_query = len(sections)
        answers = []
        for at in range(0, len(pairs), per_query):
            merged = long_audio.merge_candidates(sections, decoded[at : at + per_query], recording.duration_seconds, nms_iou)
            if protocol == "official":  # last of all: the field rounds what it submits, not what it computes with
                merged = [candidates.round_officially(candidate, recording.duration_seconds) for candidate in merged]
            answers.append((merged, long_audio.merge_saliency(sections, saliency[at : at + per_query])))
        return answers

    def _rank(
        self,
        recording: Recording,
        query: str,
        text: Mapping[str, TextFeatures],
        decoded: list[Candidate],
        saliency: Tensor,
        verifier: Verifier | None,
        beta: float,
        top_k: int,
    ) -> Result:
        """Verify, blend, cut to `top_k`, and decide whether the sound is there at all."""
        scores: list[float] | None = None
        notes: tuple[str, ...] = ()
        if verifier is not None:
            decoded = decoded[: max(top_k, self.config.inference.top_k)]
            try:
                scores = verifier.verify(recording, query, text, decoded)
            except Exception as error:
                # Whatever a verifier does, the decoder's answer must survive.
                reason = " ".join(str(error).split()) or type(error).__name__
                notes = (f"Verifier {verifier.name} failed ({reason}); the moments are ranked by the decoder alone.",)
        moments: tuple[Moment, ...] = rerank(decoded, scores, beta)[:top_k]
        best = max((candidate.decoder_score for candidate in decoded), default=None)
        return Result(
            audio=recording.path or recording.name,
            duration_seconds=recording.duration_seconds,
            query=query,
            found=best is not None and best >= self.config.inference.found_threshold,
            encoder=self.encoder.name,
            verifier=verifier.name if verifier is not None and scores is not None else "none",
            beta=beta if scores is not None else 0.0,
            moments=moments,
            saliency=tuple(saliency.tolist()),
            notes=notes,
        )


def check_query(query: str) -> str:
    """Return the query, or refuse one that cannot be read.

    Raises:
        QamDetrError: Nothing but blanks, or bytes that are not text.
    """
    if not query.strip():
        raise QamDetrError("The query is empty; describe the sound in a few words, such as 'a dog barks'.")
    if any("\ud800" <= letter <= "\udfff" for letter in query):
        raise QamDetrError(f"The query {query!a} holds bytes that are not UTF-8 text; type it again or convert it to UTF-8.")
    return query
