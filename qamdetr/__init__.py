"""QAM-DETR: find the moments of a long recording that match a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qamdetr.inference.retriever import MomentRetriever

__version__ = "0.2.0"
__all__ = ["MomentRetriever", "__version__"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - as modules have it
    # PyTorch comes along with the retriever, which not everybody wants who asks for the version.
    if name == "MomentRetriever":
        from qamdetr.inference.retriever import MomentRetriever

        return MomentRetriever
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
