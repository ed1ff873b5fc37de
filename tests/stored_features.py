"""Features on disk: as the field publishes them, made of random numbers, and as the project's own encoders would have stored them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from qamdetr.features.store import Kind, StreamFiles, StreamVersion
from qamdetr.types import TextFeatures


def write_audio_file(folder: Path, vid: str, num_clips: int, dim: int = 6, seed: int = 0, key: str = "features") -> np.ndarray:
    """Write `{vid}.npz` and return what it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = 8 * np.random.default_rng((seed, num_clips)).standard_normal((num_clips, dim)).astype(np.float32)
    np.savez(folder / f"{vid}.npz", **{key: rows})
    return rows


def write_text_file(folder: Path, qid: str, num_tokens: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    """Write `qid{qid}.npz` and return what it holds."""
    return write_audio_file(folder, f"qid{qid}", num_tokens, dim, seed, "last_hidden_state")


class OwnFeatures:
    """The features of any streams in a `data.feature_dir`, all of one version; `models` as in `open_streams`."""

    def __init__(self, feature_dir: Path, fingerprint: str = "v1", *, recordings: Mapping[str, Path] | None = None,
                 models: Mapping[str, str] | None = None, dtype: str = "") -> None:  # fmt: skip
        self.feature_dir, self.fingerprint, self.dtype = feature_dir, fingerprint, dtype
        self.models = dict(models or {})
        self.recordings = dict(recordings or {})
        for stream in self.models:
            self.files(stream, "audio")

    def files(self, stream: str, kind: Kind) -> StreamFiles:
        dtype = self.dtype if not self.models or stream in self.models else ""
        return StreamFiles.claimed(
            self.feature_dir, StreamVersion(stream, self.fingerprint, self.models.get(stream, ""), dtype), kind, self.recordings
        )

    def write_audio(self, vid: str, streams: Mapping[str, Tensor]) -> None:
        for name, rows in streams.items():
            self.files(name, "audio").write(vid, rows)

    def write_text(self, query: str, streams: Mapping[str, TextFeatures]) -> None:
        for name, features in streams.items():
            self.files(name, "text").write(query, features)

    def audio(self, vid: str) -> dict[str, Tensor]:
        """Return every stream that has features of a recording."""
        return {name: files.audio(vid) for name, files in self._all("audio").items() if not files.missing([vid])}

    def text(self, query: str) -> dict[str, TextFeatures]:
        """Return every stream that has features of a query."""
        return {name: files.text(query) for name, files in self._all("text").items() if not files.missing([query])}

    def _all(self, kind: Kind) -> dict[str, StreamFiles]:
        versions = [StreamVersion(**json.loads(path.read_text())) for path in sorted(self.feature_dir.glob("*/encoder.json"))]
        return {each.stream: StreamFiles(self.feature_dir / each.folder, kind, recordings=self.recordings) for each in versions}
