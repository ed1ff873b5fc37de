"""What an encoder is, how one joins the program (`@stream`: importing its file is enough), and how a set of them is opened and run."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from qamdetr.audio import Listener, Sound, num_clips
from qamdetr.errors import CheckpointError, ConfigError
from qamdetr.features.bank import encoded_bank
from qamdetr.features.hub import Hub, MissingModelError, locate
from qamdetr.types import Recording, TextFeatures

PEAK_COLUMNS = 4000  # of the waveform overview: some four per pixel of a wide screen, to look closer at
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OPEN = "open"  # what a stream is called that any encoder with a joint space may stand for; see `joint_of`
LISTEN = "listen"  # stage of `Streams.encoding` in which the encoders take the file in; the others are named after streams

_T = TypeVar("_T")
_Class = TypeVar("_Class", bound="type[Stream]")


class Step(NamedTuple):
    """How far long work is."""

    stage: str
    share: float | None  # that is done, in [0, 1]; None where that cannot be known


class FeatureListener(Listener, Protocol):
    """Takes a recording in while it is read, and keeps what its encoder needs of it; `finish` returns that."""

    def finish(self) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class EncoderOptions:
    """How an encoder runs; of these, the pocket encoders take the hop alone."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    batch_clips: int = 16  # that run through the network at once; bounds memory for long recordings
    clip_seconds: float = 1.0  # from one vector to the next, 1 or 0.5


class Stream:
    """An encoder, opened from the folder of its model and read-only from then on: threads share it."""

    name: str
    label: str  # on the page
    dim: int  # of its audio features; 0 where it has none. Other models than the default may differ
    text_dim: int = 0
    rate_hz: int = 0  # that the audio encoder wants
    hub: Hub | None = None  # the default model; None where nothing has to be fetched
    raw_scale = False  # the size of its vectors carries meaning (loudness); those of other streams are scaled to unit length
    has_audio = has_text = False
    is_joint = False  # clips and `pooled` of queries lie in one space
    fingerprint: str  # changes with all that decides the features; see `weights_fingerprint`
    source = dtype = ""  # hub id or folder (empty = the default) and type it was opened with; both empty where there is no choice

    def __init__(self, folder: Path, options: EncoderOptions) -> None:
        """Open the encoder from the folder of its model, in the hub's layout; that of a stream without `hub` is empty."""
        self.options = options


class AudioStream(Stream):
    """One vector per clip: of the second around it by itself, by `encode_windows`, or with its own `listener` and `features`."""

    has_audio = True

    def encode_windows(self, windows: Tensor) -> Tensor:
        """Encode `(batch, rate_hz)` mono samples on the encoder's device to `(batch, dim)`; a shorter last second comes alone."""
        raise NotImplementedError

    def listener(self) -> FeatureListener:
        """Return what takes the recording in; streams with one and the same `listener` share what it keeps."""
        return WindowListener(self)

    def features(self, kept: Tensor) -> Generator[Step, None, Tensor]:
        """Turn what the listener kept into `(clips, dim)` float32 on the CPU; yields now and then, for whoever waits."""
        yield Step(self.name, 1.0)
        return kept


class TextStream(Stream):
    """Turns a query into one vector per token."""

    has_text = True

    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query; raises `QamDetrError` where it is longer than the encoder can read: nothing is cut silently."""
        raise NotImplementedError


STREAMS: dict[str, type[Stream]] = {}


def stream(
    name: str, *, dim: int, text_dim: int = 0, rate_hz: int = 0, hub: Hub | None = None, label: str = "", raw_scale: bool = False
) -> Callable[[_Class], _Class]:
    """Register an encoder class; the rest as in `Stream`, with `text_dim` = `dim` unless said otherwise."""

    def register(encoder: _Class) -> _Class:
        encoder.name, encoder.label, encoder.hub, encoder.raw_scale = name, label or name, hub, raw_scale
        encoder.dim, encoder.text_dim, encoder.rate_hz = dim * encoder.has_audio, (text_dim or dim) * encoder.has_text, rate_hz
        STREAMS[name] = encoder
        return encoder

    return register


class WindowListener:
    """Runs an encoder second by second over a recording while it is read, in batches that bound memory.

    Clips of half a second are seen with a quarter of a second on both sides, silence beyond the ends.
    """

    def __init__(self, encoder: AudioStream) -> None:
        self._encoder, self.rate_hz, self._batch = encoder, encoder.rate_hz, encoder.options.batch_clips
        self._hop = round(encoder.rate_hz * encoder.options.clip_seconds)
        self.begin()

    def begin(self) -> None:
        """Forget what was heard."""
        self._held = [np.zeros((self.rate_hz - self._hop) // 2, dtype=np.float32)]
        self._rows: list[Tensor] = []

    def feed(self, samples: np.ndarray) -> None:
        """Take the next samples `(n,)`; whole batches run at once."""
        self._held.append(samples)
        if sum(map(len, self._held)) >= self._batch * self._hop + self.rate_hz - self._hop:
            self._encode(self._batch)

    def finish(self) -> Tensor:
        """Return `(clips, dim)` float32 on the CPU; a last second that is not full is encoded at its true length."""
        if self._hop < self.rate_hz:
            unheard = sum(map(len, self._held)) - (self.rate_hz - self._hop) // 2
            self._held.append(np.zeros(-(-unheard // self._hop) * self._hop - unheard + (self.rate_hz - self._hop) // 2, dtype=np.float32))
        self._encode(1)
        if self._hop == self.rate_hz and len(rest := self._held[0]):
            self._run(torch.from_numpy(rest)[None])
        return torch.cat(self._rows)

    def _encode(self, unit: int) -> None:
        """Encode the seconds that are held, in whole units of so many, and keep what later ones see."""
        held = torch.from_numpy(np.concatenate(self._held))
        seconds = held.unfold(0, self.rate_hz, self._hop) if len(held) >= self.rate_hz else held.new_empty(0, self.rate_hz)
        whole = len(seconds) // unit * unit
        for part in torch.split(seconds[:whole], self._batch) if whole else ():
            self._run(part.contiguous())
        self._held = [held[whole * self._hop :].numpy().copy()]

    @torch.inference_mode()
    def _run(self, seconds: Tensor) -> None:
        self._rows.append(self._encoder.encode_windows(seconds.to(self._encoder.options.device)).float().cpu())


class Streams:
    """A set of opened encoders (stream -> encoder, main stream first), all of one hop, and their version; see `join_fingerprints`."""

    def __init__(
        self,
        name: str,
        audio: Mapping[str, AudioStream],
        text: Mapping[str, TextStream],
        clip_seconds: float = 1.0,
        joint: TextStream | None = None,
    ) -> None:
        self.name, self.clip_seconds, self.joint = name, clip_seconds, joint
        self.audio, self.text = dict(audio), dict(text)
        own = {key: each.fingerprint for key, each in [*audio.items(), *text.items()] if key != OPEN}  # any encoder may stand there
        self.fingerprint = join_fingerprints(own)

    @functools.cached_property
    def bank(self) -> Tensor | None:
        """The bank in the joint space, `(sentences, dim)`; None without `joint`."""
        return None if self.joint is None else encoded_bank(self.joint)

    def encoding(self, sound: Sound, only: Sequence[str] = ()) -> Generator[Step, None, Recording]:
        """Read a recording once, feeding every audio stream (or `only` some); yields how far that is, and stops when it is closed."""
        encoders = {name: self.audio[name] for name in only or self.audio}
        listeners: dict[object, FeatureListener] = {}
        for encoder in encoders.values():
            if encoder.listener not in listeners:
                listeners[encoder.listener] = encoder.listener()
        for share in sound.reading([*listeners.values()], peak_columns=PEAK_COLUMNS):
            yield Step(LISTEN, share)
        kept = {listener: each.finish() for listener, each in listeners.items()}
        rows = {}
        for name, encoder in encoders.items():
            # Resampling may round a recording of whole seconds up by a sample, and the last clip need not fill a second: hence the cut.
            count = num_clips(sound.duration_seconds - sound.unheard_seconds, self.clip_seconds)
            rows[name] = (yield from encoder.features(kept[encoder.listener]))[:count]
        facts = (sound.name, sound.path, sound.duration_seconds, rows, sound.peaks, sound.notes)
        return Recording(*facts, clip_seconds=self.clip_seconds, unheard_seconds=sound.unheard_seconds, bank=self.bank)

    def encode(self, sound: Sound, only: Sequence[str] = ()) -> Recording:
        """Encode a recording; see `encoding`."""
        return finish(self.encoding(sound, only))

    def encode_query(self, query: str) -> dict[str, TextFeatures]:
        """Encode a query with every text stream, main stream first."""
        encoded = {name: encoder.encode_text(query) for name, encoder in self.text.items()}
        return encoded if self.joint is None else in_joint_space(encoded, self.joint.encode_text(query))

    @property
    def num_parameters(self) -> int:
        """Parameters of all networks of all encoders, shared ones counted once."""
        parts = [part for encoder in (*self.audio.values(), *self.text.values()) for part in vars(encoder).values()]
        return sum({id(value): value.numel() for part in parts if isinstance(part, nn.Module) for value in part.parameters()}.values())


def in_joint_space(text: Mapping[str, TextFeatures], joint: TextFeatures) -> dict[str, TextFeatures]:
    """Give the main stream of an encoded query the vector of another encoder, in whose space the recording's main stream is."""
    (main, features), *others = text.items()
    return {main: replace(features, pooled=joint.pooled), **dict(others)}


def finish(work: Generator[Step, None, _T]) -> _T:
    """Run long work to its end, and return what it returns."""
    try:
        while True:
            next(work)
    except StopIteration as end:
        result: _T = end.value
        return result


def open_streams(
    audio: Sequence[str],
    text: Sequence[str],
    *,
    name: str = "",
    models: Mapping[str, str] | None = None,
    dtype: str = "float32",
    device: str | None = None,
    download: bool = True,
    clip_seconds: float = 1.0,
    joint: str = "",
) -> Streams:
    """Open the encoders of streams. Each is opened once in a process (for each hop, `clip_seconds`) and shared by all that ask for it.

    `audio` and `text` name streams, main stream first; `name` is what results call this set. `models` (stream -> hub id or folder) take the
    place of defaults, see `hub.locate`; `dtype` and `device` are of the big encoders: the pocket encoders stay in float32 on the CPU.
    `joint` is as from `joint_of`; without it, all streams keep their names, as for `extract`.
    Raises `ConfigError` for what cannot be asked, `CheckpointError` for weights that are missing (told all at once) or damaged.
    """
    models, wanted = dict(models or {}), sorted({*audio, *text})
    if clip_seconds not in (1.0, 0.5):
        raise ConfigError(f"Encoders give a vector for each 1 or 0.5 s, not for each {clip_seconds:g} s", "choose one of both")
    for kind, each in [*(("audio", each) for each in audio), *(("text", each) for each in text)]:
        if each not in STREAMS:
            raise ConfigError(f"Unknown stream {each!r}", f"there are encoders for {', '.join(STREAMS)}")
        if not getattr(STREAMS[each], f"has_{kind}"):
            raise ConfigError(f"Stream {each!r} has no {kind} encoder", f"take it out of the {kind} streams")
    device = _check(models, device)
    _locate_all(wanted, models, download=download)
    with _opening:  # two threads that ask at once must not hold the weights twice
        opened: dict[str, Any] = {}
        for each in wanted:
            how = (models.get(each, ""), dtype, device) if STREAMS[each].hub else ()
            opened[each] = _open(each, *how, clip_seconds=own_hop(each, clip_seconds))
    name = name or "+".join(dict.fromkeys([*audio, *text]))
    if not joint:
        return Streams(name, {each: opened[each] for each in audio}, {each: opened[each] for each in text}, clip_seconds)
    by_role = {OPEN if each == joint else each: opened[each] for each in audio}
    return Streams(name, by_role, {text[0]: opened[text[0]]}, clip_seconds, joint=opened[joint])


def own_hop(stream: str, clip_seconds: float) -> float:
    """Return the hop of a stream in a combo of `clip_seconds`: that, but 1 s where the stream has no audio and the hop means nothing."""
    return clip_seconds if stream not in STREAMS or STREAMS[stream].has_audio else 1.0


_opening = threading.RLock()


@functools.cache
def _open(name: str, model: str = "", dtype: str = "float32", device: str = "cpu", *, clip_seconds: float) -> Stream:
    hub = STREAMS[name].hub
    batch_clips = 64 if device.startswith("cuda") else EncoderOptions.batch_clips
    options = EncoderOptions(device, DTYPES[dtype], batch_clips, clip_seconds)
    encoder = STREAMS[name](locate(name, hub, model) if hub else Path(), options)
    if hub:
        encoder.source, encoder.dtype = model, dtype
    if clip_seconds != 1.0:  # else the version is what it was when all clips lasted a second, which stores and checkpoints name
        encoder.fingerprint = f"{clip_seconds:g}s-{encoder.fingerprint}"
    return encoder


def _check(models: Mapping[str, str], device: str | None) -> str:
    """Check what is asked of the big encoders; returns the device."""
    known = [name for name, encoder in STREAMS.items() if encoder.hub]
    if unknown := sorted(set(models) - set(known)):
        raise ConfigError(f"There is no pretrained encoder {unknown[0]!r} to choose a model for", f"known are {', '.join(known)}")
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: a PyTorch without CUDA
        what = f"Encoders cannot run on device {device!r} ({str(error).splitlines()[0]})"
        raise ConfigError(what, "choose cpu, or a device that PyTorch finds here") from error
    return device


def _locate_all(names: Sequence[str], models: Mapping[str, str], *, download: bool) -> None:
    """Find the models of all streams before the first is read, so that all that are missing are told at once."""
    missing: list[tuple[str, Hub]] = []
    reason = ""
    for stream, wanted in [(name, hub) for name in names for hub in hub_models(name, models.get(name, ""))]:
        try:  # where one cannot be reached, nobody should wait for the others' time-outs
            locate(stream, wanted, models.get(stream, ""), download=download and not missing)
        except MissingModelError as error:  # noqa: PERF203 - each may be missing
            missing, reason = [*missing, *error.missing], reason or error.reason
    if missing:
        raise MissingModelError(missing, reason)


def hub_models(name: str, model: str = "") -> list[Hub]:
    """List what a stream needs from the hub; its default also what lies beside it, such as a tokeniser."""
    hub = STREAMS[name].hub
    return [] if hub is None else [hub, hub.beside] if hub.beside and not model else [hub]


def is_here(name: str, model: str = "") -> bool:
    """Whether a stream can be opened without asking a network; `model` as in `open_streams`."""
    try:
        _locate_all([name], {name: model}, download=False)
    except CheckpointError:
        return False
    return True


def join_fingerprints(versions: Mapping[str, str]) -> str:
    """Return 16 hex digits of the versions of a set of streams (stream -> fingerprint), in whatever order; checkpoints name them."""
    return hashlib.sha256("".join(versions[name] for name in sorted(versions)).encode()).hexdigest()[:16]


def weights_fingerprint(code: str, state: Mapping[str, Tensor], *settings: object) -> str:
    """Return 16 hex digits that change with any value of an encoder's weights, its code, or its settings, but not with file or device.

    `code` is the name and version of the code, such as `wavlm-1`; raise the number when features change.
    """
    digest = hashlib.blake2b(repr((code, *settings)).encode(), digest_size=8)
    for name in sorted(name for name, value in state.items() if value.is_floating_point()):
        tensor = state[name].detach()
        flat = tensor.reshape(-1).float()
        spread = flat[torch.linspace(0, max(len(flat) - 1, 0), min(16, len(flat)), dtype=torch.float64).long().to(flat.device)]
        # Whole numbers add up to the same in any order, hence on any number of threads.
        total = int(flat.view(torch.int32).sum(dtype=torch.int64))
        digest.update(f"{name} {tuple(tensor.shape)} {total}".encode() + spread.cpu().numpy().tobytes())
    return digest.hexdigest()


class Combo(NamedTuple):
    """A named set of streams; the first of each modality is the main one."""

    audio_streams: tuple[str, ...]
    text_streams: tuple[str, ...]


COMBOS: dict[str, Combo] = {
    "pocket": Combo(("pocket", "mel_stats"), ("pocket",)),
    "A": Combo(("laion_clap", "ms_clap", "wavlm_base_plus"), ("laion_clap", "ms_clap")),
    "B": Combo(("laion_clap", "ms_clap"), ("laion_clap", "ms_clap")),
    "C": Combo(("laion_clap", "wavlm_base", "wavlm_base_plus", "wavlm_large"), ("laion_clap", "roberta")),
    "laion_clap": Combo(("laion_clap",), ("laion_clap",)),
    "ms_clap": Combo(("ms_clap",), ("ms_clap",)),
}
_JOINT = {"ms_clap": "ms_clap_joint"}  # what people call the encoder -> its stream in the joint space


def get_combo(name: str) -> Combo:
    """Look up a combo; a stream that has both audio and text features is one, too, and so is `open:STREAM`, see `joint_of`."""
    if name in COMBOS:
        return COMBOS[name]
    if joint := joint_of(name):
        return Combo((joint, "mel_stats"), tuple(dict.fromkeys(("pocket", joint))))
    if name in STREAMS and STREAMS[name].has_audio and STREAMS[name].has_text:
        return Combo((name,), (name,))
    raise ConfigError(f"Unknown combo {name!r}", f"choose one of {', '.join(COMBOS)}, or open:STREAM")


def joint_of(name: str) -> str:
    """Return the stream that stands as `OPEN` in the combo `open:STREAM`, empty of other combos.

    Its clips are the main audio stream there, and its vectors of whole queries take the place of the main text stream's.
    """
    kind, _, joint = name.partition(":")
    if kind != OPEN:
        return ""
    joint = _JOINT.get(joint, joint)
    if joint not in STREAMS or not STREAMS[joint].is_joint:
        able = ", ".join(stream for stream in STREAMS if STREAMS[stream].is_joint)
        what = f"Stream {joint!r} has no space that clips and queries share" if joint in STREAMS else f"Unknown stream {joint!r}"
        raise ConfigError(what, f"choose one of {able}")
    return joint
