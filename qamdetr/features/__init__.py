"""Encoders: audio and text in, per-clip and per-token features out."""
