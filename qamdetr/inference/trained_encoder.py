"""The encoders that a checkpoint was trained on: found by its configuration, and held to their version where it is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from qamdetr.config import Config
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.features.base import COMBOS, AudioStream, OnStage, TextStream
from qamdetr.features.store import describe_settings
from qamdetr.types import Recording, TextFeatures


class ComboEncoder(Protocol):
    """What the retriever needs of a combo of encoders (`features.base.open_streams` gives one)."""

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
    def audio(self) -> Mapping[str, AudioStream]:
        """Stream -> encoder."""
        ...

    @property
    def text(self) -> Mapping[str, TextStream]:
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
        ConfigError: `models` names a stream that the checkpoint does not have.
    """
    check_streams(models or {}, {str(checkpoint): config})
    try:
        return _open(config, checkpoint, device, {**config.data.encoder_models, **(models or {})})
    except CheckpointError as error:
        named = {stream: model for stream, model in config.data.encoder_models.items() if stream not in (models or {})}
        gone = [stream for stream, model in named.items() if model in str(error) and not Path(model).expanduser().exists()]
        if not gone or "--encoder" in str(error):
            raise
        remedy = " ".join(f"--encoder {stream}=FOLDER" for stream in gone)
        raise CheckpointError(f"{checkpoint}: {error} Where it lies elsewhere now, name it with `{remedy}`.") from error


def check_streams(models: Iterable[str], configs: Mapping[str, Config]) -> None:
    """Refuse models for streams that no checkpoint has.

    Args:
        models: The streams.
        configs: Checkpoint -> its configuration.

    Raises:
        ConfigError: Names the first such stream.
    """
    known = dict.fromkeys(stream for config in configs.values() for stream in streams_of(config))
    for stream in models:
        if stream not in known:
            verb = "has" if len(configs) == 1 else "have"
            raise ConfigError(f"--encoder: {', '.join(configs)} {verb} no stream {stream!r}, only {', '.join(known)}.")


def streams_of(config: Config) -> list[str]:
    """Streams whose encoders a checkpoint may open: those of its network, and those of its combo."""
    combo = COMBOS.get(config.data.combo)
    of_combo = (*combo.audio_streams, *combo.text_streams) if combo else ()
    return list(dict.fromkeys((*config.model.audio_streams, *config.model.text_streams, *of_combo)))


def _open(config: Config, checkpoint: str | Path, device: str | None, models: Mapping[str, str]) -> LoadedEncoder:
    from qamdetr.features.base import STREAMS, Combo, open_streams

    data, model = config.data, config.model
    options: dict[str, Any] = {"models": dict(models), "dtype": data.encoder_dtype, "device": device}
    wanted = own_versions(data.encoder)
    public = {*data.audio_features, *data.text_features}
    only_public = not wanted and bool(data.encoder or public)
    encoder: LoadedEncoder | None = None
    if not only_public:
        combo = COMBOS.get(data.combo) or Combo(tuple(model.audio_streams), tuple(model.text_streams))
        encoder = open_streams(*combo, name=data.combo, **options)
        if wanted and [encoder.fingerprint] != wanted:
            chosen = {stream: models.get(stream, "") for stream in streams_of(config) if stream in STREAMS and STREAMS[stream].hub}
            opened = f" ({describe_settings(chosen, data.encoder_dtype)})" if chosen else ""
            remedy = "name the models and the type of its features with --encoder and --set data.encoder_dtype" if chosen else ""
            raise CheckpointError(
                f"{checkpoint} was trained on version {', '.join(wanted)} of the {encoder.name} encoders, here is version "
                f"{encoder.fingerprint}{opened}; features would not fit: {remedy or 'restore those encoders'}, or train again on these."
            )
    if encoder is None or public:
        name = "+".join(dict.fromkeys([*model.audio_streams, *model.text_streams]))
        encoder = open_streams(tuple(model.audio_streams), tuple(model.text_streams), name=name, **options)
    return encoder


def own_versions(version: str) -> list[str]:
    """Parts of `data.encoder` that name encoders; the others name public files, whose digits differ from one data set to the next."""
    return [part for part in version.split("+") if part and not part.startswith("public-")]
