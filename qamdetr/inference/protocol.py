"""What a checkpoint and a system of several have in common: the retriever that commands and calibration work with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from qamdetr.config import VerifierConfig
from qamdetr.inference.candidates import DecodeProtocol
from qamdetr.types import Recording, Result
from qamdetr.verifiers.base import Verifier


class QueryEncoder(Protocol):
    """What is needed of a retriever's encoder."""

    def encode_query(self, query: str) -> object:
        """Encode a query, or refuse one that cannot be read."""
        ...


class Retriever(Protocol):
    """`retriever.MomentRetriever` and `ensemble.EnsembleRetriever`."""

    @property
    def encoder(self) -> QueryEncoder:
        """Encodes recordings and queries."""
        ...

    @property
    def verifier(self) -> str:
        """Name of the verifier that answers where none is named."""
        ...

    @property
    def verifier_settings(self) -> VerifierConfig:
        """Settings of verifiers given by name."""
        ...

    def encode(self, path: str | Path) -> Recording:
        """Encode a recording.

        Raises:
            AudioError: The file cannot be used.
        """
        ...

    def retrieve_many(
        self,
        recording: Recording,
        queries: Sequence[str],
        *,
        top_k: int = 10,
        verifier: str | Verifier = ...,
        beta: float | None = None,
        protocol: DecodeProtocol = "exact",
    ) -> list[Result]:
        """Answer several queries on one recording, in their order.

        Raises:
            QamDetrError: See `MomentRetriever.retrieve_many`.
        """
        ...
