"""Encoders of recordings and queries, the store of what they gave, and the one path from there to model input."""

# Importing an encoder's file registers its streams.
from qamdetr.features import clap, ms_clap, pe_a_frame, pocket, roberta, wavlm

__all__ = ["clap", "ms_clap", "pe_a_frame", "pocket", "roberta", "wavlm"]
