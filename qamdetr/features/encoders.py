"""Opens encoders by the names of their streams, and turns files into `Recording`s and queries into `TextFeatures`."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from qamdetr.audio import num_clips
from qamdetr.errors import ConfigError
from qamdetr.features.base import AudioEncoder, EncoderOptions, FrontEndEncoder, OnStage, OpenedStream, TextEncoder, get_combo
from qamdetr.features.hub import MissingModelError, locate
from qamdetr.features.pocket import open_mel_stats, open_pocket
from qamdetr.sample_stream import listen
from qamdetr.types import Recording, TextFeatures

PEAK_COLUMNS = 4000
"""Columns of the waveform overview: some four per pixel of a wide screen, to look closer at."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_CUDA_BATCH_CLIPS = 64

_Encoder = TypeVar("_Encoder", AudioEncoder, TextEncoder)

_opening = threading.RLock()


class ComboEncoder:
    """All encoders of one combo behind two methods: one for recordings, one for queries."""

    def __init__(self, name: str, audio: Mapping[str, AudioEncoder], text: Mapping[str, TextEncoder], fingerprint: str) -> None:
        self.name = name
        self.audio = audio
        self.text = text
        self.fingerprint = fingerprint
        """Short hash of all weights; feature caches are valid for one fingerprint only."""

    def encode_recording(self, path: str | Path, on_stage: OnStage | None = None) -> Recording:
        """Read a file to its end, then run every audio stream on it; memory does not grow with its length but for what is kept of it.

        The first reading finds what is wrong with the file before any network runs, and feeds the front ends of the pocket encoders.
        Encoders that need the samples read the file again, each for itself: that costs little beside their networks.

        Args:
            path: The audio file.
            on_stage: Called before each stream.

        Raises:
            AudioError: The file cannot be used.
        """
        path = Path(path)
        openers = {encoder.open_front_end for encoder in self.audio.values() if isinstance(encoder, FrontEndEncoder)}
        front_ends = {open_front_end: open_front_end() for open_front_end in openers}
        sound = listen(path, [*front_ends.values()], peak_columns=PEAK_COLUMNS)
        kept = {open_front_end: front_end.finish() for open_front_end, front_end in front_ends.items()}
        clips = num_clips(sound.duration_seconds)
        streams: dict[str, Tensor] = {}
        for name, encoder in self.audio.items():
            if on_stage is not None:
                on_stage(name, sound.duration_seconds)
            if isinstance(encoder, FrontEndEncoder):
                rows = encoder.encode_front_end(kept[encoder.open_front_end])
            else:
                rows = encoder.encode_audio(sound.at(encoder.sample_rate_hz))
            # Resampling may round a recording of whole seconds up by a sample, hence the cut.
            streams[name] = rows[:clips]
        return Recording(name=path.name, path=str(path), duration_seconds=sound.duration_seconds, streams=streams, peaks=sound.peaks)

    def encode_query(self, query: str) -> dict[str, TextFeatures]:
        """Encode a query with every text stream, main stream first."""
        return {name: encoder.encode_text(query) for name, encoder in self.text.items()}

    @property
    def num_parameters(self) -> int:
        """Parameters of all networks of all encoders, shared ones counted once."""
        parts: list[object] = [*self.audio.values(), *self.text.values()]
        parameters: dict[int, int] = {}
        for part in parts:
            if isinstance(part, nn.Module):
                parameters |= {id(parameter): parameter.numel() for parameter in part.parameters()}
            elif type(part).__module__.startswith("qamdetr."):  # an encoder, or what it is made of
                parts.extend(getattr(part, "__dict__", {}).values())
        return sum(parameters.values())


def load_combo(
    name: str,
    *,
    models: Mapping[str, str] | None = None,
    dtype: str = "float32",
    device: str | None = None,
    download: bool = True,
) -> ComboEncoder:
    """Open the encoders of a combo.

    Args:
        name: One of `features.base.COMBOS`.
        models: Stream -> hub id or folder in the place of the stream's default; see `features.hub.locate`.
        dtype: `float32` or `bfloat16`, of the big encoders' weights; the pocket encoders stay float32.
        device: As PyTorch names it; None = CUDA where there is one, else the CPU. The pocket encoders stay on the CPU.
        download: Whether missing weights may be fetched from the hub.

    Raises:
        ConfigError: Unknown combo, stream, type or device.
        CheckpointError: The weights of an encoder are missing or damaged.
    """
    combo = get_combo(name)
    return load_streams(combo.audio_streams, combo.text_streams, name=name, models=models, dtype=dtype, device=device, download=download)


def load_streams(
    audio_streams: Sequence[str],
    text_streams: Sequence[str],
    *,
    name: str,
    models: Mapping[str, str] | None = None,
    dtype: str = "float32",
    device: str | None = None,
    download: bool = True,
) -> ComboEncoder:
    """Open the encoders of any streams. Each is opened once in a process and shared by all that ask for it: they are read-only.

    Args:
        audio_streams: Main stream first.
        text_streams: Main stream first.
        name: What results and caches call this set.
        models: Stream -> hub id or folder, as in `load_combo`.
        dtype: As in `load_combo`.
        device: As in `load_combo`.
        download: As in `load_combo`.

    Raises:
        ConfigError: Unknown stream, type or device, or a stream that has no encoder for its modality.
        CheckpointError: The weights of an encoder are missing or damaged.
    """
    models = dict(models or {})
    device = _check(models, dtype, device)
    wanted = sorted({*audio_streams, *text_streams})
    _locate_all([stream for stream in wanted if stream in _HUB_OPENERS], models, download=download)
    opened = {stream: _open(stream, models.get(stream, ""), dtype, device) for stream in wanted}
    audio: dict[str, AudioEncoder] = {}
    text: dict[str, TextEncoder] = {}
    for stream in audio_streams:
        audio[stream] = _present(opened[stream].audio, stream, "audio")
    for stream in text_streams:
        text[stream] = _present(opened[stream].text, stream, "text")
    fingerprint = hashlib.sha256("".join(stream.fingerprint for stream in opened.values()).encode()).hexdigest()[:16]
    return ComboEncoder(name, audio, text, fingerprint)


def forget_streams() -> None:
    """Let go of all opened encoders: those that nobody else holds free their memory, and the next call reads the files anew."""
    _open_pocket_stream.cache_clear()
    _open_hub_stream.cache_clear()


def _locate_all(streams: Sequence[str], models: Mapping[str, str], *, download: bool) -> None:
    """Find the models of all streams before the first is read, so that all that are missing are told at once."""
    wanted = {stream: models.get(stream, "") for stream in streams}
    if "ms_clap" in wanted and not wanted["ms_clap"]:
        wanted["gpt2"] = ""  # the hub's ms_clap has no tokeniser of its own
    missing: list[MissingModelError] = []
    for name, model in wanted.items():
        # Where one cannot be reached, nobody should wait for the others' time-outs.
        missing += _problem(name, model, download=download and not missing)
    if missing:
        raise MissingModelError.together(missing)


def _problem(name: str, model: str, *, download: bool) -> list[MissingModelError]:
    try:
        locate(name, model, download=download)
    except MissingModelError as error:
        return [error]
    return []


def _open(stream: str, model: str, dtype: str, device: str) -> OpenedStream:
    # Two threads that ask at once must not hold the weights twice.
    with _opening:
        if stream in _POCKET_OPENERS:
            return _open_pocket_stream(stream)
        if stream in _HUB_OPENERS:
            return _open_hub_stream(stream, model, dtype, device)
    raise ConfigError(f"Unknown stream {stream!r}; there are encoders for {', '.join([*_POCKET_OPENERS, *_HUB_OPENERS])}.")


@functools.cache
def _open_pocket_stream(stream: str) -> OpenedStream:
    return _POCKET_OPENERS[stream]()


@functools.cache
def _open_hub_stream(stream: str, model: str, dtype: str, device: str) -> OpenedStream:
    batch_clips = _CUDA_BATCH_CLIPS if device.startswith("cuda") else EncoderOptions.batch_clips
    return _HUB_OPENERS[stream](locate(stream, model), EncoderOptions(device, DTYPES[dtype], batch_clips))


def _open_laion_clap(source: Path, options: EncoderOptions) -> OpenedStream:
    from qamdetr.features.laion_clap import open_laion_clap

    return open_laion_clap(source, options)


def _open_ms_clap(source: Path, options: EncoderOptions) -> OpenedStream:
    from qamdetr.features.ms_clap import open_ms_clap

    return open_ms_clap(source, options)


def _open_wavlm(source: Path, options: EncoderOptions, *, name: str) -> OpenedStream:
    from qamdetr.features.wavlm import open_wavlm

    return open_wavlm(source, options, name=name)


def _open_roberta(source: Path, options: EncoderOptions) -> OpenedStream:
    from qamdetr.features.roberta import open_roberta

    return open_roberta(source, options)


_POCKET_OPENERS: dict[str, Callable[[], OpenedStream]] = {"pocket": open_pocket, "mel_stats": open_mel_stats}

_HUB_OPENERS: dict[str, Callable[[Path, EncoderOptions], OpenedStream]] = {
    "laion_clap": _open_laion_clap,
    "ms_clap": _open_ms_clap,
    **{name: functools.partial(_open_wavlm, name=name) for name in ("wavlm_base", "wavlm_base_plus", "wavlm_large")},
    "roberta": _open_roberta,
}


def _check(models: Mapping[str, str], dtype: str, device: str | None) -> str:
    """Check what is asked of the big encoders; returns the device."""
    unknown = sorted(set(models) - set(_HUB_OPENERS))
    if unknown:
        raise ConfigError(f"There is no pretrained encoder {unknown[0]!r} to choose a model for; known are {', '.join(_HUB_OPENERS)}.")
    if dtype not in DTYPES:
        raise ConfigError(f"Encoders cannot run in {dtype!r}; choose one of {', '.join(DTYPES)}.")
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: a PyTorch without CUDA
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ConfigError(
            f"Encoders cannot run on device {device!r} ({reason}); choose cpu, or a device that PyTorch finds here."
        ) from error
    return device


def _present(encoder: _Encoder | None, stream: str, modality: str) -> _Encoder:
    if encoder is None:
        raise ConfigError(f"Stream {stream!r} has no {modality} encoder; take it out of the {modality} streams.")
    return encoder
