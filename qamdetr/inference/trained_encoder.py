"""The encoders that a checkpoint was trained on: found by its configuration, and held to their version where it is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from qamdetr.config import Config
from qamdetr.errors import CheckpointError
from qamdetr.features.base import AudioEncoder, OnStage, TextEncoder
from qamdetr.types import Recording, TextFeatures


class ComboEncoder(Protocol):
    """What the retriever needs of a combo of encoders (`features.encoders.load_combo` gives one)."""

    @property
    def name(self) -> str:
        """Name of the combo."""
        ...

    def encode_recording(self, path: str | Path, on_stage: OnStage | None = None) -> Recording:
        """Encode an audio file; `on_stage` is called before each stream."""
        ...

    def encode_query(self, query: str) -> Mapping[str, TextFeatures]:
        """Encode a query: stream -> features, main stream first."""
        ...


class LoadedEncoder(ComboEncoder, Protocol):
    """A combo of encoders opened from their weights."""

    @property
    def audio(self) -> Mapping[str, AudioEncoder]:
        """Stream -> encoder."""
        ...

    @property
    def text(self) -> Mapping[str, TextEncoder]:
        """Stream -> encoder."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the encoders' weights or code would give other features."""
        ...


def open_encoder(
    config: Config, checkpoint: str | Path, *, device: str | None = None, models: Mapping[str, str] | None = None
) -> LoadedEncoder:
    """Open the encoders that a checkpoint was trained on, and compare their version where it is known.

    Public features do not say which version of an encoder made them. A checkpoint that was trained on them alone gets the encoders of the
    streams that it reads, unchecked; one that was trained on public and own features gets those too, and what made its own is compared.

    Args:
        config: Of the checkpoint.
        checkpoint: Its name, for messages.
        device: See `MomentRetriever.from_pretrained`.
        models: Likewise.

    Raises:
        CheckpointError: Weights are missing, or of another version.
    """
    from qamdetr.features.encoders import load_combo, load_streams

    data, model = config.data, config.model
    options: dict[str, Any] = {"models": {**data.encoder_models, **(models or {})}, "dtype": data.encoder_dtype, "device": device}
    wanted = own_versions(data.encoder)
    public = {*data.audio_features, *data.text_features}
    only_public = not wanted and bool(data.encoder or public)
    encoder: LoadedEncoder | None = None
    if not only_public:
        encoder = load_combo(data.combo, **options)
        if wanted and [encoder.fingerprint] != wanted:
            raise CheckpointError(
                f"{checkpoint} was trained on version {', '.join(wanted)} of the {encoder.name} encoders, here is version "
                f"{encoder.fingerprint}; features would not fit: restore those encoders, or train again on these."
            )
    if encoder is None or public:
        name = "+".join(dict.fromkeys([*model.audio_streams, *model.text_streams]))
        encoder = load_streams(tuple(model.audio_streams), tuple(model.text_streams), name=name, **options)
    return encoder


def own_versions(version: str) -> list[str]:
    """Parts of `data.encoder` that name encoders; the others name public files, whose digits differ from one data set to the next."""
    return [part for part in version.split("+") if part and not part.startswith("public-")]
