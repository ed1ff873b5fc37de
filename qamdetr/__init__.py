"""QAM-DETR: find the moments of a long recording that match a sentence."""

__version__ = "0.1.0"
