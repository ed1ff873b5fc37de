"""`MomentRetriever`: the Python API. A checkpoint, its encoders and a verifier behind `encode` and `retrieve`."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from qamdetr.config import Config, InferenceConfig, VerifierConfig
from qamdetr.errors import ConfigError, QamDetrError
from qamdetr.features.base import OnStage
from qamdetr.features.pipeline import prepare
from qamdetr.inference import sections as long_audio
from qamdetr.inference.candidates import Decoded, DecodeProtocol, answers, overlap_limit
from qamdetr.inference.checkpoint import DEFAULT_CHECKPOINT, load_changed
from qamdetr.inference.rerank import Ranking, choose_beta, rank
from qamdetr.inference.trained_encoder import ComboEncoder, open_encoder
from qamdetr.model.qam_detr import QamDetr
from qamdetr.types import Recording, Result, TextFeatures
from qamdetr.verifiers.base import DEFAULT_VERIFIER, Verifier
from qamdetr.verifiers.registry import Verifiers

if TYPE_CHECKING:
    from typing_extensions import Self  # in `typing` from Python 3.11 on

_Features = TypeVar("_Features")

_PAIRS_PER_FORWARD = 8
"""Pairs of section and query that run through the network at once; bounds memory for long recordings and many queries."""

_INVISIBLE = {"Cc", "Cf"}
"""Unicode categories of control and format characters, such as the zero-width space."""


class MomentRetriever:
    """Finds the moments of recordings that match sentences. Holds no state of a user; threads may share one.

    Example:
        >>> retriever = MomentRetriever.from_pretrained()
        >>> recording = retriever.encode("walk.wav")
        >>> best = retriever.retrieve(recording, "a dog barks").moments[0]
    """

    def __init__(self, model: QamDetr, config: Config, encoder: ComboEncoder, *, device: str | None = None) -> None:
        """Put the parts together.

        Raises:
            ConfigError: No such device here.
        """
        self.model = _move(model.eval(), device)
        self.config = config
        self.encoder = encoder
        self._verifiers = Verifiers(config.verifier)

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path = DEFAULT_CHECKPOINT,
        *,
        overrides: Sequence[str] = (),
        device: str | None = None,
        encoder_models: Mapping[str, str] | None = None,
    ) -> Self:
        """Load a checkpoint and the encoders that it was trained on.

        Args:
            name_or_dir: Name of a shipped checkpoint, or a checkpoint folder.
            overrides: `section.key=value` changes of the checkpoint's configuration, such as `inference.nms_iou=1`.
            device: Where network and encoders run, such as `cuda`; None leaves the network on the CPU, and the encoders to
                `features.base.open_streams`.
            encoder_models: Stream -> hub id or folder, over the checkpoint's `data.encoder_models`.

        Raises:
            CheckpointError: The checkpoint, or its encoders' weights, cannot be used.
            ConfigError: `overrides` change the network, there is no such device, or `encoder_models` names a stream that is not its.
        """
        model, config = load_changed(name_or_dir, overrides)
        encoder = open_encoder(config, name_or_dir, device=device, models=encoder_models)
        return cls(model, config, encoder, device=device)

    @property
    def verifier(self) -> str:
        """Name of the verifier that answers where none is named."""
        return DEFAULT_VERIFIER

    @property
    def verifier_settings(self) -> VerifierConfig:
        """Settings of verifiers given by name."""
        return self.config.verifier

    def encode(self, path: str | Path, on_stage: OnStage | None = None) -> Recording:
        """Encode an audio file once; any number of queries may follow.

        Args:
            path: The audio file.
            on_stage: Called before each stream with its name and the recording's length in seconds, for whoever shows progress.

        Raises:
            AudioError: The file cannot be used.
        """
        with torch.inference_mode():
            return self.encoder.encode_recording(path) if on_stage is None else self.encoder.encode_recording(path, on_stage)

    def retrieve(
        self,
        recording: Recording,
        query: str,
        *,
        top_k: int = 10,
        verifier: str | Verifier = DEFAULT_VERIFIER,
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
        verifier: str | Verifier = DEFAULT_VERIFIER,
        beta: float | None = None,
        protocol: DecodeProtocol = "exact",
        bypass: Collection[str] = (),
    ) -> list[Result]:
        """Answer several queries on one recording, in their order.

        Args:
            recording: From `encode`.
            queries: Sentences.
            top_k: Most moments to return per query.
            verifier: A verifier or its name (`inference.verifiers.registry`); a named one is made once and kept, with the checkpoint's
                `verifier` settings. It looks at the decoder's best candidates (`inference.top_k` of the checkpoint, or `top_k` if that is
                more). When it fails, the decoder's ranking stands and a note in the result says so.
            beta: Weight of the verifier's score, in [0, 1]; None takes the checkpoint's for this verifier. Without verifier, results say 0.
            protocol: `official` rounds windows as the field's evaluation does; see `candidates.round_officially`.
            bypass: Components to leave out of the network; see `QamDetr.forward`.

        Raises:
            QamDetrError: An empty query, `top_k` under 1, `beta` outside [0, 1], or an unknown verifier.
        """
        settings = self.config.inference
        checker = self._verifiers.get(verifier) if isinstance(verifier, str) else verifier
        ranking = Ranking(checker, choose_beta(beta, settings, checker), top_k, settings.top_k, protocol)
        texts = [self.encoder.encode_query(check_query(query)) for query in queries]
        decoded = self.decode(recording, texts, protocol=protocol, bypass=bypass)
        name = self.encoder.name
        return [
            rank(recording, query, text, answer, ranking, found=self.is_found(answer), encoder=name)
            for query, text, answer in zip(queries, texts, decoded, strict=True)
        ]

    @torch.inference_mode()
    def decode(
        self,
        recording: Recording,
        texts: Sequence[Mapping[str, TextFeatures]],
        *,
        protocol: DecodeProtocol = "exact",
        bypass: Collection[str] = (),
    ) -> list[Decoded]:
        """Run the network on every section for every query; per query the merged candidates and the saliency.

        Args:
            recording: May hold more streams than the network reads, in any order.
            texts: Encoded queries, likewise.
            protocol: `official` keeps doubles, as the field does; nothing is rounded yet.
            bypass: See `QamDetr.forward`.
        """
        settings: InferenceConfig = self.config.inference
        audio = _in_order(recording.streams, self.config.model.audio_streams)
        queries = [_in_order(text, self.config.model.text_streams) for text in texts]
        sections = long_audio.split(recording.num_clips, settings.section_clips, settings.section_overlap_clips)
        pairs = [(query, section) for query in queries for section in sections]
        decoded: list[Decoded] = []
        for begin in range(0, len(pairs), _PAIRS_PER_FORWARD):
            chunk = pairs[begin : begin + _PAIRS_PER_FORWARD]
            # Where all pairs are of one section, its audio is prepared and projected once for all of them.
            parts = sections if len(sections) == 1 else [section for _, section in chunk]
            batch = prepare([long_audio.section_streams(audio, section) for section in parts], [text for text, _ in chunk])
            output = self.model(batch.to(self._device), bypass=bypass)
            durations = [long_audio.section_duration(section, recording.duration_seconds) for _, section in chunk]
            lengths = [section.num_clips for _, section in chunk]
            decoded += answers(output, durations, lengths, settings, protocol=protocol)
        nms_iou = overlap_limit(settings, protocol)
        merged = []
        for at in range(0, len(pairs), len(sections)):
            found, curves = zip(*decoded[at : at + len(sections)], strict=True)
            moments = long_audio.merge_candidates(sections, found, recording.duration_seconds, nms_iou)
            merged.append(Decoded(moments, long_audio.merge_saliency(sections, curves)))
        return merged

    def is_found(self, decoded: Decoded) -> bool:
        """Whether the best decoder score reaches the checkpoint's calibrated threshold."""
        return bool(decoded.candidates) and decoded.best_score >= self.config.inference.found_threshold

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def check_query(query: str) -> str:
    """Return the query, or refuse one that cannot be read.

    Raises:
        QamDetrError: Nothing but blanks and invisible characters, or bytes that are not text.
    """
    if all(letter.isspace() or unicodedata.category(letter) in _INVISIBLE for letter in query):
        raise QamDetrError("The query is empty; describe the sound in a few words, such as 'a dog barks'.")
    if any("\ud800" <= letter <= "\udfff" for letter in query):
        raise QamDetrError(f"The query {query!a} holds bytes that are not UTF-8 text; type it again or convert it to UTF-8.")
    return query


def _move(model: QamDetr, device: str | None) -> QamDetr:
    try:
        return model if device is None else model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: a PyTorch without CUDA
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ConfigError(
            f"The network cannot run on device {device!r} ({reason}); choose cpu, or a device that PyTorch finds here."
        ) from error


def _in_order(streams: Mapping[str, _Features], wanted: Iterable[str]) -> dict[str, _Features]:
    """Pick the streams that a network reads, in its order: main stream first."""
    return {name: streams[name] for name in wanted}
