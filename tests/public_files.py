"""Public feature files as the field publishes them, made of random numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_audio_file(folder: Path, vid: str, num_clips: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    """Write `{vid}.npz` and return what it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = 8 * np.random.default_rng((seed, num_clips)).standard_normal((num_clips, dim)).astype(np.float32)
    np.savez(folder / f"{vid}.npz", features=rows)
    return rows


def write_text_file(folder: Path, qid: str, num_tokens: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    """Write `qid{qid}.npz` and return what it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng((seed, num_tokens)).standard_normal((num_tokens, dim)).astype(np.float32)
    np.savez(folder / f"qid{qid}.npz", last_hidden_state=rows)
    return rows
