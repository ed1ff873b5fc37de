"""Several models answer as one: each reads the recording through its own streams, their candidates are merged, then ranked as one's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from qamdetr.config import InferenceConfig, VerifierConfig
from qamdetr.errors import ConfigError
from qamdetr.features.base import AudioStream, Streams, TextStream
from qamdetr.inference.candidates import Decoded, DecodeProtocol
from qamdetr.inference.pools import MergeMethod, check_merge, merge_pools
from qamdetr.inference.rerank import Ranking, rank
from qamdetr.inference.retriever import MomentRetriever, check_query
from qamdetr.inference.trained_encoder import ComboEncoder, LoadedEncoder
from qamdetr.types import Recording, Result, TextFeatures
from qamdetr.verifiers.base import DEFAULT_VERIFIER, Verifier
from qamdetr.verifiers.registry import Verifiers

Texts = Sequence[Mapping[str, TextFeatures]]
"""A query as each member reads it."""

_Encoded = TypeVar("_Encoded")
_Encoder = TypeVar("_Encoder", AudioStream, TextStream)


@dataclass(frozen=True)
class EnsembleRecording(Recording):
    """A recording as each member of an ensemble reads it; in itself it is the first member's.

    Attributes:
        parts: One per member, in their order; members that share encoders share tensors.
    """

    parts: tuple[Recording, ...] = ()


class EnsembleEncoder(Protocol):
    """Encodes for all members at once."""

    @property
    def name(self) -> str:
        """Names of the members' combos."""
        ...

    def encode_recording(self, path: str | Path) -> Sequence[Recording]:
        """Encode a recording: one per member."""
        ...

    def encode_query(self, query: str) -> Texts:
        """Encode a query: one per member."""
        ...


class SeparateEncoders:
    """Asks the encoder of each member; one that serves several members is asked once."""

    def __init__(self, encoders: Sequence[ComboEncoder]) -> None:
        self._encoders = list(encoders)
        self.name = _join_names(encoders)

    def encode_recording(self, path: str | Path) -> list[Recording]:
        """Encode a recording: one per member.

        Raises:
            QamDetrError: As the members' encoders.
        """
        return self._each(lambda encoder: encoder.encode_recording(path))

    def encode_query(self, query: str) -> list[Mapping[str, TextFeatures]]:
        """Encode a query: one per member.

        Raises:
            QamDetrError: As the members' encoders.
        """
        return self._each(lambda encoder: encoder.encode_query(query))

    def _each(self, encode: Callable[[ComboEncoder], _Encoded]) -> list[_Encoded]:
        distinct = {id(encoder): encoder for encoder in self._encoders}
        encoded = {key: encode(encoder) for key, encoder in distinct.items()}
        return [encoded[id(encoder)] for encoder in self._encoders]


class SharedEncoders:
    """Decodes a recording once and runs each stream's encoder once, however many members read the stream.

    Two members may read different models under the same stream name; such streams are kept apart.
    """

    def __init__(self, encoders: Sequence[LoadedEncoder], streams: Sequence[tuple[Sequence[str], Sequence[str]]]) -> None:
        """Join the encoders of the members.

        Args:
            encoders: One per member.
            streams: Audio and text streams that each member reads; the others are not run.
        """
        self.name = _join_names(encoders)
        audio: dict[str, AudioStream] = {}
        text: dict[str, TextStream] = {}
        self._audio = [_register(audio, encoder.audio, wanted) for encoder, (wanted, _) in zip(encoders, streams, strict=True)]
        self._text = [_register(text, encoder.text, wanted) for encoder, (_, wanted) in zip(encoders, streams, strict=True)]
        self._union = Streams(self.name, audio, text)

    def encode_recording(self, path: str | Path) -> list[Recording]:
        """Encode a recording: one per member.

        Raises:
            AudioError: The file cannot be used.
        """
        whole = self._union.encode_recording(path)
        return [replace(whole, streams={name: whole.streams[key] for name, key in keys.items()}) for keys in self._audio]

    def encode_query(self, query: str) -> list[Mapping[str, TextFeatures]]:
        """Encode a query: one per member.

        Raises:
            QamDetrError: An encoder cannot read it.
        """
        whole = self._union.encode_query(query)
        return [{name: whole[key] for name, key in keys.items()} for keys in self._text]


class EnsembleRetriever:
    """Finds moments with several checkpoints; used as `retriever.MomentRetriever`. `inference.system` opens one from a recipe."""

    def __init__(
        self,
        members: Sequence[MomentRetriever],
        encoder: EnsembleEncoder,
        *,
        weights: Sequence[float] | None = None,
        merge: MergeMethod = "nms",
        merge_iou: float = 0.7,
        verifier: str = DEFAULT_VERIFIER,
        beta: float = InferenceConfig.beta,
        top_k: int = InferenceConfig.top_k,
        verifier_settings: VerifierConfig | None = None,
    ) -> None:
        """Put members together.

        Args:
            members: At least one; their own encoders are not asked.
            encoder: Encodes for them all, in their order.
            weights: Above 0, one per member; None = equal.
            merge: How candidates are merged; see `pools.merge_pools`.
            merge_iou: Likewise.
            verifier: Name of the verifier that answers where `retrieve` is given none.
            beta: Weight of the verifier's score, where `retrieve` gives none.
            top_k: Merged candidates that the verifier sees.
            verifier_settings: Of verifiers given by name.

        Raises:
            ConfigError: No member, or a setting out of range.
        """
        check_merge(merge, merge_iou)
        if not members:
            raise ConfigError("A system needs at least one member; name checkpoints.")
        self.members = tuple(members)
        self.encoder = encoder
        self.verifier = verifier
        self._weights = [1.0] * len(members) if weights is None else list(weights)
        self._merge: MergeMethod = merge
        self._merge_iou, self._beta, self._top_k = merge_iou, beta, top_k
        self.verifier_settings = verifier_settings or VerifierConfig()
        self._verifiers = Verifiers(self.verifier_settings)

    @torch.inference_mode()
    def encode(self, path: str | Path) -> EnsembleRecording:
        """Encode an audio file once for all members; any number of queries may follow.

        Raises:
            AudioError: The file cannot be used.
        """
        parts = tuple(self.encoder.encode_recording(path))
        first = {item.name: getattr(parts[0], item.name) for item in fields(Recording)}
        return EnsembleRecording(**first, parts=parts)

    def retrieve(
        self,
        recording: Recording,
        query: str,
        *,
        top_k: int = 10,
        verifier: str | Verifier | None = None,
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
        verifier: str | Verifier | None = None,
        beta: float | None = None,
        protocol: DecodeProtocol = "exact",
        bypass: Collection[str] = (),
    ) -> list[Result]:
        """Answer several queries on one recording, in their order.

        The sound counts as found when the members' best decoder scores, in the weighted mean, reach the weighted mean of their calibrated
        thresholds: each member is compared with its own threshold, and the best of many, which the merged list begins with, is not
        taken for the opinion of all.

        Args:
            recording: From `encode`, or any whose streams suffice for every member.
            queries: Sentences.
            top_k: Most moments to return per query.
            verifier: As `MomentRetriever.retrieve_many`; None takes the system's. One that compares features gets those of the first
                member that has a joint space.
            beta: Weight of the verifier's score, in [0, 1]; None takes the system's.
            protocol: As there.
            bypass: As there; for all members.

        Raises:
            QamDetrError: As there.
        """
        verifier = self.verifier if verifier is None else verifier
        checker = self._verifiers.get(verifier) if isinstance(verifier, str) else verifier
        ranking = Ranking(checker, self._beta if beta is None else beta, top_k, self._top_k, protocol)
        texts = [self.encoder.encode_query(check_query(query)) for query in queries]
        parts = recording.parts if isinstance(recording, EnsembleRecording) else (recording,) * len(self.members)
        by_member = [
            member.decode(part, [text[index] for text in texts], protocol=protocol, bypass=bypass)
            for index, (member, part) in enumerate(zip(self.members, parts, strict=True))
        ]
        results = []
        for query, text, decoded in zip(queries, texts, zip(*by_member, strict=True), strict=True):
            judge = next((index for index, streams in enumerate(text) if next(iter(streams.values())).pooled is not None), 0)
            found = self._is_found(decoded)
            merged = self._merge_decoded(decoded)
            results.append(rank(parts[judge], query, text[judge], merged, ranking, found=found, encoder=self.encoder.name))
        return results

    def _merge_decoded(self, decoded: Sequence[Decoded]) -> Decoded:
        pools = [answer.candidates for answer in decoded]
        merged = merge_pools(pools, self._merge, iou=self._merge_iou, weights=self._weights)
        # Public features of two sources may differ by a clip at the end.
        clips = min(len(answer.saliency) for answer in decoded)
        curves = torch.stack([answer.saliency[:clips] for answer in decoded])
        return Decoded(merged, self._mean(curves))

    def _is_found(self, decoded: Sequence[Decoded]) -> bool:
        margins = [
            answer.best_score - member.config.inference.found_threshold for answer, member in zip(decoded, self.members, strict=True)
        ]
        return any(answer.candidates for answer in decoded) and bool(self._mean(torch.tensor(margins, dtype=torch.float64)) >= 0)

    def _mean(self, values: Tensor) -> Tensor:
        """Weighted mean over the members, `(members, …)` to `(…)`."""
        weights = torch.tensor(self._weights, dtype=values.dtype)
        mean: Tensor = torch.tensordot(weights / weights.sum(), values, dims=1)
        return mean


def _register(union: dict[str, _Encoder], encoders: Mapping[str, _Encoder], wanted: Sequence[str]) -> dict[str, str]:
    """Add the wanted streams to the union, unless they are there; returns stream -> its key in the union."""
    keys = {}
    for stream in wanted:
        same_name = [key for key in union if key.partition("#")[0] == stream]
        known = next((key for key in same_name if union[key] is encoders[stream]), None)
        keys[stream] = known or (f"{stream}#{len(same_name) + 1}" if same_name else stream)
        union[keys[stream]] = encoders[stream]
    return keys


def _join_names(encoders: Sequence[ComboEncoder]) -> str:
    return "+".join(dict.fromkeys(encoder.name for encoder in encoders))
