"""Verifiers: second opinions on the decoder's best candidates (report, section 2.3). They score; boundaries are not their business."""

from qamdetr.verifiers import pocket, qwen_omni, server  # importing them registers them
from qamdetr.verifiers.base import DEFAULT_VERIFIER, VERIFIERS, Verifier, check_verifier, make_verifier, verifier, verifier_names

__all__ = ["DEFAULT_VERIFIER", "VERIFIERS", "Verifier", "check_verifier", "make_verifier", "verifier", "verifier_names"]
__all__ += ["pocket", "qwen_omni", "server"]
