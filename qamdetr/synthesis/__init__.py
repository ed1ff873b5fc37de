"""Recordings with known moments, mixed from clips and backgrounds."""
