"""A recording as a `Sound`: mono samples at any rate, parts, peaks and spectrum, on the file's own clock, in bounded memory.

PyAV (FFmpeg's libraries) decodes whatever people record with. Headers are not believed: what counts is what can be decoded, and wherever
less is heard than the file holds, or not all of its channels and tracks, a note says so.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import math
import os
import shutil
import stat
import sys
import tempfile
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, Protocol

import av
import numpy as np
import soundfile
import soxr
from av.container import InputContainer

from qamdetr.errors import AudioError

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".opus", ".oga", ".caf", ".w64", ".rf64", ".bwf", ".voc"),
    *(".m4a", ".m4b", ".mp4", ".m4v", ".webm", ".mkv", ".mka", ".mov", ".aac", ".wma", ".wmv", ".3gp", ".3g2", ".avi", ".flv", ".amr"),
    *(".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".mp2", ".ac3", ".eac3", ".ape", ".wv", ".tta"),
)
"""Endings under which recordings are looked for in folders; `Sound` itself goes by content."""

MAX_SECONDS = 24 * 3600.0
"""Longest recording that is read unless the caller says otherwise; memory does not grow with it, time does."""

MIN_SECONDS = 0.1
"""Shorter files hold no sound that a one-second clip could describe."""

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
"""Sample rates outside are taken for a broken header."""

BANDS = 160
"""Rows of a spectrogram."""

# Only real media containers: a playlist could make FFmpeg open other files or addresses.
_DEMUXERS = (
    "mov,mp4,m4a,3gp,matroska,webm,aac,ac3,eac3,asf,avi,flv,mpegts,mpeg,amr,aiff,caf,ogg,mp3,wav,w64,flac,ape,wv,tta,au,"
    "dts,dtshd,truehd,voc,ircam,nistsphere,paf,pvf,avr,iff"
)
_CLOCKLESS = frozenset({"mp3", "aac", "ac3", "eac3", "amr", "dts", "dtshd", "truehd"})  # one packet follows the other, whatever they say
_ANY_ORIGIN = frozenset({"mpegts", "mpeg"})  # the clock was running before the file began
_GUESSED = (_CLOCKLESS - {"mp3"}) | _ANY_ORIGIN | {"ogg"}  # whose duration is FFmpeg's guess

_BLOCK_FRAMES = 1 << 17
_CLOCK_SLACK_SECONDS = 0.05  # delay of encoders, time stamps in whole milliseconds
_OVERLAP_SECONDS = 0.5  # a clock that goes back by less repeats packets, by more begins anew
_MAX_GAP_SECONDS = 3600.0
_MAX_STATED_SECONDS = 100 * 3600.0
_SEEK_AHEAD_SECONDS = 1.0  # decoders of lossy formats need the packets before
_MAX_LEVEL = 1e5
_SILENT_PEAK = 1e-3
_LOST_IN_MEAN = 0.1
_MAX_FAILURES = 200
_SUBTYPES = {"u8": "PCM_U8", "s16": "PCM_16", "s32": "PCM_32", "flt": "FLOAT", "dbl": "DOUBLE"}
_MAX_GROUPS = 1 << 21
_FFT_SECONDS = 0.04
_MAX_FRAMES_PER_COLUMN = 8  # spectra that are averaged; an hour has hundreds that would fit, and they would not change the picture
_CHUNK_SAMPLES = 1 << 20
_POWER_FLOOR = 1e-12
_CONVERT = "convert the file to WAV, FLAC, OGG or MP3"


class Listener(Protocol):
    """Takes a recording in while it is read."""

    rate_hz: int

    def begin(self) -> None:
        """Forget all samples so far: the recording starts, perhaps again, since another channel or track is taken after all."""
        ...

    def feed(self, samples: np.ndarray) -> None:
        """Take the next samples, mono float32 `(n,)` at `rate_hz`."""
        ...


@dataclass(frozen=True)
class Overview:
    """What a picture of a recording needs.

    Attributes:
        peaks: `(2, columns)` lowest and highest sample per column, full scale at [-1, 1].
        levels_db: `(BANDS, columns)` mean power per band, lowest band first.
        top_hz: Upper end of the bands; they are equally wide on the mel scale from 0 Hz on.
    """

    peaks: np.ndarray
    levels_db: np.ndarray
    top_hz: float


def num_clips(duration_seconds: float) -> int:
    """Count the one-second clips of a recording: `ceil(duration)`, at least 1; a microsecond over does not open a new clip."""
    return max(1, math.ceil(round(duration_seconds, 6)))


def resampled_length(num_samples: int, from_hz: int, to_hz: int) -> int:
    """Count the samples that `resample` gives: `ceil(samples * ratio)`, so that `num_clips` is the same before and after."""
    return -(-num_samples * to_hz // from_hz)


def resample(samples: np.ndarray, from_hz: int, to_hz: int | None = None) -> np.ndarray:
    """Change the rate of `(n,)` or `(n, channels)` float32 samples (soxr, high quality)."""
    if isinstance(samples, Waveform):
        return Waveform(resample(samples.samples, samples.sample_rate_hz, from_hz), from_hz)
    if from_hz == to_hz:
        return samples
    length = resampled_length(len(samples), from_hz, to_hz)
    changed = soxr.resample(samples, from_hz, to_hz, quality="HQ")[:length]
    missing = [(0, length - len(changed)), *[(0, 0)] * (samples.ndim - 1)]
    return np.ascontiguousarray(np.pad(changed, missing), dtype=np.float32)


def find_recordings(folder: str | Path) -> dict[str, Path]:
    """Map each `vid` (the stem) to its audio file in a folder, by the endings of `AUDIO_SUFFIXES`.

    Raises:
        AudioError: No such folder, or two files of one stem.
    """
    found: dict[str, Path] = {}
    try:
        paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith("."))
    except OSError as error:
        raise AudioError(f"Cannot list {folder} ({error.strerror})", "give a folder of audio files") from error
    for path in paths:
        if path.stem in found:
            raise AudioError(f"{folder} holds both {found[path.stem].name} and {path.name}", "keep one file per recording")
        found[path.stem] = path
    return found


def stated_seconds(path: str | Path) -> float | None:
    """Length of a recording as its header states it, or FFmpeg guesses it, without decoding; None where that is unknown."""
    try:
        with _open(_pieces(str(path))[0]) as container:
            return container.duration / av.time_base if container.duration and container.duration > 0 else None
    except (av.FFmpegError, OSError, ValueError):
        return None


class Sound:
    """A recording from a file, a pipe, an open file or an array; read when asked, any number of times.

    Args:
        source: A path; `-` or another pipe; an open binary file; or `(samples, rate_hz)` with samples `(n,)` or `(n, channels)`.
        channel: The one that is heard, counted from 1; None for the mean of all, or the loudest where the mean would lose it.
        track: Of several audio tracks the one that is heard, counted from 1; None for the file's default, or the next if that is silent.
        start_seconds: Where `reading`, `blocks` and `samples` begin, on the file's own clock.
        end_seconds: Where they end; None for the end of the file.
        max_seconds: Whatever is longer is refused.

    Attributes:
        name: File name without its folder.
        path: Where the file lies; empty when it came from memory.

    Raises:
        AudioError: By everything that reads: the file is missing, a folder, empty, no audio, shorter than `MIN_SECONDS` or longer than
            `max_seconds`, or has no such channel, track or part.
    """

    def __init__(
        self,
        source: str | Path | BinaryIO | tuple[np.ndarray, int],
        *,
        channel: int | None = None,
        track: int | None = None,
        start_seconds: float = 0.0,
        end_seconds: float | None = None,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        label = str(source) if isinstance(source, (str, Path)) else str(getattr(source, "name", "the recording"))
        self.name = "stdin" if label == "-" else Path(label).name
        self.path = label if isinstance(source, (str, Path)) else ""
        self.start_seconds, self.end_seconds = start_seconds, math.inf if end_seconds is None else end_seconds
        if not 0 <= start_seconds < self.end_seconds:
            raise AudioError(f"{label} cannot be read from {start_seconds:g} s to {self.end_seconds:g} s", "let it end after it starts")
        self._source, self._label = source, label
        self._channel, self._track, self._max_seconds = channel, track, max_seconds
        self._file = ""
        self._facts: _Facts | None = None
        self._peaks: np.ndarray | None = None

    @property
    def rate_hz(self) -> int:
        """The recording's own sample rate."""
        return self._known().rate_hz

    @property
    def channels(self) -> int:
        """Channels of the track."""
        return self._known().channels

    @property
    def subtype(self) -> str:
        """What soundfile calls the samples that `part(mono=False)` gives; lossy formats have `PCM_16`."""
        return self._known().subtype

    @property
    def duration_seconds(self) -> float:
        """How much sound there is from `start_seconds` on, by what can really be decoded; reads it, unless it was read before."""
        facts = self._known(all_of_it=True)
        return facts.num_samples / facts.rate_hz

    @property
    def notes(self) -> tuple[str, ...]:
        """Whatever was decided on the way: where the file ends early, which channel or track is heard, what was silenced or filled."""
        return self._known(all_of_it=True).notes

    @property
    def peaks(self) -> np.ndarray:
        """`(2, columns)` float32 minima and maxima of the waveform in [-1, 1], after `reading(peak_columns=...)`."""
        assert self._peaks is not None, "reading(peak_columns=...) comes first"
        return self._peaks

    def reading(self, listeners: Sequence[Listener] = (), peak_columns: int = 0) -> Iterator[float | None]:
        """Read the recording once and feed all listeners; yields the share that is done, in [0, 1], or None where that is unknown.

        Where the mean of the channels turns out to lose the sound, or the track to be silent, all begins anew with a better choice.
        """
        envelope = PeakEnvelope()
        resamplers: dict[int, StreamResampler] = {}
        with contextlib.closing(self._listening()) as blocks:
            for block in blocks:
                if block.begins:
                    envelope = PeakEnvelope()
                    resamplers = {wanted: StreamResampler(block.rate_hz, wanted) for wanted in {at.rate_hz for at in listeners}}
                    for listener in listeners:
                        listener.begin()
                if peak_columns:
                    envelope.add(block.samples)
                _hand_out({rate: resampler.add(block.samples) for rate, resampler in resamplers.items()}, listeners)
                yield block.share
        _hand_out({rate: resampler.finish() for rate, resampler in resamplers.items()}, listeners)
        if peak_columns:
            self._peaks = envelope.columns(peak_columns)

    def blocks(self, rate_hz: int | None = None) -> Iterator[np.ndarray]:
        """Yield mono float32 samples `(n,)` in blocks; put together they are `samples`."""
        facts = self._known(choice=True)
        resampler = StreamResampler(facts.rate_hz, rate_hz or facts.rate_hz)
        with contextlib.closing(self._listening()) as blocks:
            for block in blocks:
                yield resampler.add(block.samples)
        yield resampler.finish()

    def samples(self, rate_hz: int | None = None) -> np.ndarray:
        """Return all mono float32 samples, `(ceil(n * rate_hz / own rate),)`."""
        held = _Buffer()
        resampler = StreamResampler(1, 1)
        for block in self._listening():
            if block.begins:
                held, resampler = _Buffer(), StreamResampler(block.rate_hz, rate_hz or block.rate_hz)
            held.add(resampler.add(block.samples))
        held.add(resampler.finish())
        return held.finish()

    def part(self, start_seconds: float, end_seconds: float, *, rate_hz: int | None = None, mono: bool = True) -> np.ndarray:
        """Read `[start, end)` on the file's own clock, whatever range the sound was opened for; less where the file ends before.

        Returns:
            `(n,)` float32; with `mono=False` `(n, channels)`, as the file holds them, integers too, unless they are resampled.
        """
        own = self._known(choice=mono).rate_hz
        wanted = rate_hz or own
        # The margins keep the resampler's filter off the edges; where the first one begins, both rates have a sample.
        step, margin = (own // math.gcd(own, wanted), own // 10) if wanted != own else (1, 0)
        first = max(0, round(start_seconds * own) - margin) // step * step
        parts = list(self._between(first / own, (round(end_seconds * own) + margin) / own, mono=mono))
        samples = np.concatenate(parts) if parts else np.empty((0,) if mono else (0, self.channels), dtype=np.float32)
        if wanted != own:
            samples = resample(samples if mono else _to_float(samples), own, wanted)
            begin = first * wanted // own
            samples = samples[max(0, round(start_seconds * wanted) - begin) : max(0, round(end_seconds * wanted) - begin)]
        return samples

    def part_blocks(self, start_seconds: float, end_seconds: float) -> Iterator[np.ndarray]:
        """Yield `part(mono=False)` block by block, in bounded memory."""
        return self._between(start_seconds, end_seconds, mono=False)

    def part_peaks(self, start_seconds: float, end_seconds: float, columns: int) -> np.ndarray:
        """Draw `[start, end)` of the file's clock, to a millisecond or so; what lies after the recording's end is silent.

        Returns:
            `(2, columns)` float32 minima and maxima in [-1, 1]; fewer columns where there are fewer samples.
        """
        first, last = round(start_seconds * self.rate_hz), round(end_seconds * self.rate_hz)
        missing = max(1, last - first)
        columns = min(columns, missing)
        envelope = PeakEnvelope()
        for block in self._between(start_seconds, end_seconds, mono=True, rough=True):
            envelope.add(block)
            missing -= len(block)
        while missing > 0:
            envelope.add(np.zeros(min(missing, _BLOCK_FRAMES), dtype=np.float32))
            missing -= _BLOCK_FRAMES
        return envelope.columns(columns)

    def overview(self, columns: int) -> Overview:
        """Draw the recording, with little memory whatever its length; fewer columns come back where there are fewer samples."""
        facts = self._known(all_of_it=True)
        return _overview(self.blocks(), facts.num_samples, facts.rate_hz, min(columns, facts.num_samples))

    def _known(self, *, choice: bool = False, all_of_it: bool = False) -> _Facts:
        """Tell what is known of the recording; before that, read its begin, or all of it where length, notes or the choice are wanted."""
        file = self._opened()
        facts = self._facts or next(iter(self._kept(file)), None)
        if facts is None:
            run = _Run(file, self._label, self._track)
            with contextlib.closing(run.blocks()) as blocks:
                next(blocks, None)
            run.check(self._channel)
            settled = (run.tracks == 1 or self._track is not None) and (run.channels == 1 or self._channel is not None)
            facts = _Facts(run.rate_hz, run.channels, run.subtype, settled, track=run.track, channel=self._channel, plain=run.plain)
        self._facts = facts
        if facts.num_samples == 0 and (all_of_it or (choice and not facts.settled)):
            for _ in self._listening():
                pass
        return self._facts

    def _listening(self) -> Generator[_Block]:
        """Yield the mono blocks of the chosen range; where a better choice of track or channel shows at the end, all of them once more."""
        file, known = self._opened(), self._known()
        track, channel = (known.track, known.channel) if known.num_samples else (self._track, self._channel)
        silent: list[int] = []
        better = True
        while better:
            run, levels, taken = _Run(file, self._label, track), _Levels(), 0
            for native in run.between(self.start_seconds, self.end_seconds, known.origin if known.exact else None):
                samples = run.cleaned(native)
                mono = _mix(samples, channel)
                levels.add(samples, mono)
                begins, taken = taken == 0, taken + len(mono)
                if taken > self._max_seconds * run.rate_hz:
                    limit = f"{self._max_seconds / 60:.4g} minutes"
                    raise AudioError(f"{self._label} lasts more than {limit}; the longest that can be used is {limit}", "cut it into parts")
                yield _Block(mono, run.rate_hz, run.share, begins)
            run.check(channel)
            self._check_length(run, taken, known)
            others = [other for other in run.order if other not in {*silent, run.track}]
            better = False
            if not known.num_samples and self._track is None and levels.peak < _SILENT_PEAK and others:
                silent.append(run.track)
                track, better = others[0], True
            elif not known.num_samples and channel is None and levels.lost_in_mean:
                channel, better = levels.loudest, True
        if not known.num_samples:
            notes = (*run.notes(), *self._choices(run, channel, silent))
            origin = (run.origin, run.steady, run.exact)
            self._facts = _Facts(run.rate_hz, run.channels, run.subtype, True, taken, notes, run.track, channel, run.plain, *origin)
            self._kept(file).append(self._facts)

    def _between(self, start_seconds: float, end_seconds: float, *, mono: bool, rough: bool = False) -> Iterator[np.ndarray]:
        """Yield `(n,)` float32, or `(n, channels)` as they are, of a part; goes straight there where the file's clock can be relied on."""
        facts = self._known(choice=mono)
        if not facts.plain and start_seconds > 2 * _SEEK_AHEAD_SECONDS:
            facts = self._known(all_of_it=True)
        run = _Run(self._opened(), self._label, facts.track)
        seek = facts.plain or facts.exact or (rough and facts.steady)
        for native in run.between(start_seconds, end_seconds, facts.origin if seek else None):
            yield _mix(run.cleaned(native), facts.channel) if mono else native.T

    def _check_length(self, run: _Run, taken: int, known: _Facts) -> None:
        if known.num_samples not in {0, taken}:
            raise AudioError(f"{self._label} was changed while it was read", "open it again")
        seconds = taken / run.rate_hz
        if taken == 0:
            raise AudioError(
                f"{self._label} lasts {run.seconds:.1f} s; it cannot be read from {self.start_seconds:g} s on", "start earlier"
            )
        if seconds < MIN_SECONDS:
            shown = f"{seconds:.3f}" if seconds < MIN_SECONDS - 0.0005 else f"{seconds:.6f}"
            raise AudioError(f"{self._label} lasts {shown} s; the shortest that can be used is {MIN_SECONDS} s.")

    def _choices(self, run: _Run, channel: int | None, silent: Sequence[int]) -> Iterator[str]:
        if self._track is None and run.tracks > 1:
            why = f", since track {', '.join(map(str, silent))} is silent" if silent else ""
            yield f"audio track {run.track} of {run.tracks} is heard{why}"
        if self._channel is None and channel is not None:
            yield f"channel {channel} of {run.channels} is heard alone: in the mean of all its sound would be lost"

    def _kept(self, file: str) -> list[_Facts]:
        state = Path(file).stat()
        return _facts_of(file, state.st_size, state.st_mtime_ns, self._channel, self._track, self.start_seconds, self.end_seconds)

    def _opened(self) -> str:
        """Give the path of a plain file to read; pipes, open files and arrays are first written to one.

        Raises:
            AudioError: There is nothing to read.
        """
        try:
            if not self._file:
                self._file = self._on_disk()
            if Path(self._file).is_dir():
                raise AudioError(f"{self._label} is a folder", "give an audio file")
            with Path(self._file).open("rb") as file:
                head = file.read(64)
        except FileNotFoundError:
            raise AudioError(f"{self._label} does not exist", "check the name and the folder") from None
        except (OSError, ValueError) as error:
            raise AudioError(f"{self._label} cannot be opened ({error})", "check the name and the permissions") from error
        if not head:
            raise AudioError(f"{self._label} is empty (0 bytes)", "record or export it again")
        if head.startswith(b"version https://git-lfs"):
            raise AudioError(f"{self._label} is a Git LFS pointer, not the sound itself", "fetch it with git lfs pull")
        return self._file

    def _on_disk(self) -> str:
        source = self._source
        if isinstance(source, (str, Path)) and self._label != "-":
            mode = Path(source).stat().st_mode
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                return str(source)
            if not stat.S_ISFIFO(mode):
                raise AudioError(f"{source} is a device", "give an audio file")
        handle, file = tempfile.mkstemp(prefix="qamdetr-", suffix=".audio")
        if self.path:  # what came through a pipe can be had from nowhere else, now or later
            self.path = file
            atexit.register(Path(file).unlink, missing_ok=True)
        else:
            weakref.finalize(self, Path(file).unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as copy:
            if isinstance(source, tuple):
                samples, rate = np.asarray(source[0]), int(source[1])
                subtype = {"i2": "PCM_16", "i4": "PCM_32", "f8": "DOUBLE"}.get(samples.dtype.str[1:], "FLOAT")
                samples = samples if subtype != "FLOAT" else samples.astype(np.float32)
                soundfile.write(copy, samples, rate, subtype, format="W64")
            elif isinstance(source, (str, Path)):
                with contextlib.nullcontext(sys.stdin.buffer) if self._label == "-" else Path(source).open("rb") as pipe:
                    shutil.copyfileobj(pipe, copy)
            else:
                shutil.copyfileobj(source, copy)
        return file


class _Block(NamedTuple):
    """Mono samples `(n,)` float32, the share that is read with them, and whether all before them are to be forgotten."""

    samples: np.ndarray
    rate_hz: int
    share: float | None
    begins: bool


@dataclass(frozen=True)
class _Facts:
    """What is known of a recording: of its begin, or, once `num_samples` is told, of all that was asked for.

    Attributes:
        settled: `track` and `channel` are final; channel None is the mean of all.
        plain: PCM in a plain container, where a sample's place in the file is its time.
        origin: The container's time, in seconds, of the first sample.
        steady: The container's clock runs through, so that it can be sought by.
        exact: And it counts samples, or finer.
    """

    rate_hz: int
    channels: int
    subtype: str
    settled: bool
    num_samples: int = 0
    notes: tuple[str, ...] = ()
    track: int | None = None
    channel: int | None = None
    plain: bool = False
    origin: float = 0.0
    steady: bool = False
    exact: bool = False


@functools.lru_cache(maxsize=256)
def _facts_of(*key: object) -> list[_Facts]:
    """Keep what was found out of a file as it is now, so that only the first to ask reads it; a list for the caller to fill."""
    return []


class _Run:
    """One reading of one audio track, from begin to end, with what is found on the way.

    Attributes:
        track, tracks: Counted from 1, and how many there are; `order` is the one in which they are tried.
        share: How much of the file is read, in [0, 1].
        seconds: How much sound was read.
    """

    def __init__(self, file: str, label: str, track: int | None) -> None:
        self._file, self._label, self._wanted = file, label, track
        self.track, self.tracks, self.order = track or 1, 0, [1]
        self.rate_hz = self.channels = 0
        self.subtype = ""
        self.share: float | None = None
        self.origin, self.steady, self.exact, self.plain = 0.0, True, False, False
        self._base, self._tick, self._clock, self._first = 0.0, 0.0, True, True
        self._others_end = 0.0  # of pictures and other tracks
        self._placed = 0  # samples that have arrived, with the silence between them
        self._position = 0  # samples that were given out
        self._form: tuple[str, str, int] = ("", "", 0)  # sample type, channels and rate of the first frame
        self._converter_form = self._form
        self._converter: av.AudioResampler | None = None
        self._failures, self._failed_at = 0, -1
        self._gap_samples, self._first_gap = 0, 0
        self._odd, self._notes = 0, list[str]()
        self._ended = ""

    @property
    def seconds(self) -> float:
        """How much sound was read."""
        return self._placed / max(self.rate_hz, 1)

    def between(self, start_seconds: float, end_seconds: float, origin: float | None = None) -> Iterator[np.ndarray]:
        """Yield the samples `(channels, n)` of a part, in their own type; with `origin`, from the facts, without reading what is before."""
        if origin is not None and start_seconds > 2 * _SEEK_AHEAD_SECONDS:
            self.origin = origin
            try:
                yield from self._cut(self.blocks(start_seconds), start_seconds, end_seconds)
            except _SeekError:
                self.__init__(self._file, self._label, self._wanted)  # type: ignore[misc]
            else:
                return
        yield from self._cut(self.blocks(), start_seconds, end_seconds)

    def _cut(self, blocks: Iterator[np.ndarray], start_seconds: float, end_seconds: float) -> Iterator[np.ndarray]:
        for samples in blocks:
            begin = self._position - samples.shape[1]
            first = max(0, round(start_seconds * self.rate_hz) - begin)
            last = samples.shape[1] if math.isinf(end_seconds) else round(end_seconds * self.rate_hz) - begin
            if first < min(last, samples.shape[1]):
                yield samples[:, first:last]
            if last <= samples.shape[1] and not math.isinf(end_seconds):
                return

    def blocks(self, seek_seconds: float = 0.0) -> Generator[np.ndarray]:
        """Yield all samples `(channels, n)`, integers or floats as the decoder gives them; silence where the file's clock has a gap."""
        try:
            for piece in _pieces(self._file):
                with _open(piece) as container:
                    for samples in self._decoded(container, piece, seek_seconds):
                        self._position += samples.shape[1]
                        yield samples
        except (av.FFmpegError, OSError, ValueError) as error:
            with Path(self._file).open("rb") as file:
                head = file.read(12)
            if head[4:8] == b"ftyp" and not self.rate_hz:
                raise AudioError(
                    f"{self._label} breaks off before its index, which MP4 files have at the end", "copy or export it again"
                ) from error
            raise self._undecodable() from error

    def check(self, channel: int | None) -> None:
        """Say why nothing could be read.

        Raises:
            AudioError: No samples, or no such channel.
        """
        if not self.rate_hz:
            raise (
                self._undecodable()
                if self._failures
                else AudioError(f"{self._label} holds no samples (length 0 s)", "record or export it again")
            )
        if channel is not None and not 1 <= channel <= self.channels:
            raise AudioError(f"{self._label} has {_count(self.channels, 'channel')}; there is no channel {channel}", "count from 1")

    def cleaned(self, native: np.ndarray) -> np.ndarray:
        """Return `(channels, n)` float32, full scale at [-1, 1]; what can be no sound (not finite, or far beyond full scale) becomes 0."""
        samples = _to_float(native)
        if native.dtype.kind == "f" and not np.abs(samples).max(initial=0.0) <= _MAX_LEVEL:
            odd = ~(np.abs(samples) <= _MAX_LEVEL)
            self._odd += int(odd.sum())
            samples = np.where(odd, np.float32(0), samples)
        return samples

    def notes(self) -> Iterator[str]:
        """Tell what was lost or filled on the way."""
        yield from self._notes
        if self._gap_samples > _CLOCK_SLACK_SECONDS * self.rate_hz:
            missing, first = self._gap_samples / self.rate_hz, self._first_gap / self.rate_hz
            yield f"{missing:.1f} s of sound are missing in the file, first at {_clock(first)}"
        if self._failures > 2:
            yield f"{self._failures} pieces of the file could not be decoded"
        if self._odd:
            yield f"{_count(self._odd, 'sample')} that can be no sound (not finite, or far beyond full scale) were silenced"
        if self._ended:
            yield self._ended

    def _undecodable(self) -> AudioError:
        return AudioError(
            f"{self._label} cannot be decoded as audio: it is damaged, or something else", f"check that it plays, or {_CONVERT}"
        )

    def _decoded(self, container: InputContainer, piece: _Piece, seek_seconds: float) -> Iterator[np.ndarray]:
        stream = self._chosen(container)
        form = container.format.name
        self._clock = form not in _CLOCKLESS
        self._base = (container.start_time or 0) / av.time_base if form in _ANY_ORIGIN else 0.0
        self.plain = piece.plain and stream.codec_context.name.startswith("pcm_")
        self._tick = float(stream.time_base or 0)
        self._first = True
        if seek_seconds:
            container.seek(max(0, int((self.origin + seek_seconds - _SEEK_AHEAD_SECONDS) / self._tick)), stream=stream)
        began = self._placed
        fifo = av.AudioFifo()
        for frame in self._frames(container, stream, piece):
            if not self.rate_hz:
                self._describe(frame, lossy=stream.codec_context.codec.lossy)
            late = self._late(frame, seek_seconds)
            if late < 0:
                continue
            if late:
                yield from _drain(fifo)
                yield from self._silence(late)
            self._placed += frame.samples
            frame.pts = None
            for part in self._converted(frame):
                fifo.write(part)
            if fifo.samples >= _BLOCK_FRAMES:
                yield from _drain(fifo)
        yield from _drain(fifo)
        self.exact = self.steady and self._failures == 0 and not (form == "ogg" and stream.codec_context.name == "flac")
        self.exact &= self._tick * self.rate_hz <= 1.0 and form not in _ANY_ORIGIN
        self._ended = self._where_it_ends(container, piece, began)

    def _chosen(self, container: InputContainer) -> av.AudioStream:
        """Choose the audio track that is wanted, by default the container's own; those without a decoder do not count."""
        if not container.streams.audio:
            raise AudioError(f"{self._label} has no audio track", "give a file with sound")
        streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
        if not streams:
            raise self._undecodable()
        self.tracks = len(streams)
        marked = [index for index, stream in enumerate(streams, 1) if stream.disposition & av.stream.Disposition.default]
        self.order = [*marked, *(index for index in range(1, len(streams) + 1) if index not in marked)]
        self.track = self._wanted or self.order[0]
        if not 1 <= self.track <= len(streams):
            raise AudioError(f"{self._label} has {_count(len(streams), 'audio track')}; there is no track {self.track}", "count from 1")
        return streams[self.track - 1]

    def _frames(self, container: InputContainer, stream: av.AudioStream, piece: _Piece) -> Iterator[av.AudioFrame]:
        """Decode packet by packet; what is damaged is skipped, and counted."""
        ticks = {other.index: float(other.time_base or 0) for other in container.streams}
        packets = container.demux()
        while self._failures < _MAX_FAILURES:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                self._failures += 1
                packets = container.demux()
                continue
            if packet is None:
                return
            if packet.stream_index != stream.index:
                if packet.pts is not None:
                    self._others_end = max(self._others_end, (packet.pts + (packet.duration or 0)) * ticks[packet.stream_index])
                continue
            if packet.size == 0 and packet.dts is not None:
                continue  # an empty packet would tell the decoder that this is the end
            if packet.pos is not None and packet.pos > 0:
                self.share = min(1.0, (piece.begin + packet.pos) / piece.file_bytes)
            try:
                frames = packet.decode()
            except av.FFmpegError:
                self._failures += 1
                self._failed_at = self._placed
            else:
                yield from (frame for frame in frames if isinstance(frame, av.AudioFrame))

    def _late(self, frame: av.AudioFrame, seek_seconds: float) -> int:
        """Count the samples that are missing before a frame by the file's clock; -1 if the frame was there already."""
        if self._first:
            self._first = False
            return self._begin_late(frame, seek_seconds)
        if not self._clock or frame.pts is None:
            return 0
        lag = frame.pts * self._tick - self.origin - self._placed / self.rate_hz
        if abs(lag) <= _CLOCK_SLACK_SECONDS:
            return 0
        if -_OVERLAP_SECONDS < lag < 0:
            self.steady = False
            return -1
        if lag < 0 or lag > _MAX_GAP_SECONDS:
            self.origin += lag
            self.steady = False
            if lag > 0:
                self._notes.append(f"the file's clock jumps by {_clock(lag)} at {_clock(self.seconds)}; times count on without the jump")
            return 0
        self._first_gap = self._first_gap if self._gap_samples else self._placed
        missing = round(lag * self.rate_hz)
        self._gap_samples += missing
        return missing

    def _begin_late(self, frame: av.AudioFrame, seek_seconds: float) -> int:
        """Find out where the clock stands at the first frame; see `_late`."""
        time = 0.0 if frame.pts is None else frame.pts * self._tick
        if seek_seconds:
            self._placed = self._position = round((time - self.origin) * self.rate_hz)
            if frame.pts is None or not 0 <= self._placed <= seek_seconds * self.rate_hz:
                raise _SeekError
            return 0
        if self._placed:  # a joined file
            self.origin, self.steady = time - self.seconds, False
            return 0
        late = time - self._base
        if not self._clock or late <= _CLOCK_SLACK_SECONDS or late > _MAX_GAP_SECONDS:
            self.origin = time
            if self._clock and late > _MAX_GAP_SECONDS:
                self._notes.append(f"the file's clock begins at {_clock(late)}; times count from there")
            return 0
        self.origin = self._base
        return round(late * self.rate_hz)

    def _describe(self, frame: av.AudioFrame, *, lossy: bool) -> None:
        if not MIN_RATE_HZ <= frame.sample_rate <= MAX_RATE_HZ:
            remedy = "give the recording at its original rate" if frame.sample_rate < MIN_RATE_HZ else _CONVERT
            stated = f"{self._label} states a sample rate of {frame.sample_rate} Hz; {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz can be used"
            raise AudioError(stated, remedy)
        self.rate_hz, self.channels = frame.sample_rate, frame.layout.nb_channels
        self._form = (frame.format.name, frame.layout.name, frame.sample_rate)
        self.subtype = "PCM_16" if lossy else _SUBTYPES.get(frame.format.name.rstrip("p"), "PCM_16")

    def _converted(self, frame: av.AudioFrame) -> list[av.AudioFrame]:
        """Bring frames whose rate, channels or type differ from the first one's, as in joined files, to those."""
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form == self._form:
            return [frame]
        if form != self._converter_form:
            self._converter_form = form
            self._converter = av.AudioResampler(*self._form)
        assert self._converter is not None
        return list(self._converter.resample(frame))

    def _silence(self, missing: int) -> Iterator[np.ndarray]:
        name = self._form[0].rstrip("p")
        dtype, silent = {"u8": (np.uint8, 128), "s16": (np.int16, 0), "s32": (np.int32, 0), "dbl": (np.float64, 0)}.get(
            name, (np.float32, 0)
        )
        self._placed += missing
        for begin in range(0, missing, _BLOCK_FRAMES):
            yield np.full((self.channels, min(_BLOCK_FRAMES, missing - begin)), silent, dtype=dtype)

    def _where_it_ends(self, container: InputContainer, piece: _Piece, began: int) -> str:
        """Compare what was decoded with what the file states, or with how such files end."""
        form = container.format.name
        start, length = (container.start_time or 0) / av.time_base, (container.duration or 0) / av.time_base
        ends = max(self.origin + self.seconds, self._others_end)
        if piece.stated_share:
            stated = self.origin + (began + (self._placed - began) * piece.stated_share) / max(self.rate_hz, 1)
        elif form in _GUESSED or (form == "mp3" and not _has_xing(piece)):
            stated = 0.0
        else:
            stated = length if form.startswith("matroska") else start + length
        if stated - ends > max(0.25, 0.005 * stated) and stated <= _MAX_STATED_SECONDS:
            short, long = _clock(self.seconds), _clock(stated - self.origin)
            return f"the file ends after {short} of {long}" if short != long else f"the file ends after {ends:.1f} s of {stated:.1f} s"
        if (not stated and self._failed_at == self._placed) or (form == "ogg" and not _has_last_page(piece)):
            return f"the file breaks off after {_clock(self.seconds)}"
        return ""


class _SeekError(Exception):
    """The container cannot be sought in; it can be read from its begin."""


class _Piece(NamedTuple):
    """A file, or one of several that were joined to it, with a header that states what is there.

    Attributes:
        path: The file.
        file_bytes: Its size.
        begin, end: Bytes of the piece in it.
        plain: A container of chunks, one of which holds all samples.
        patches: Place in the file -> bytes that belong there.
        stated_share: Bytes of sound that the header stated, over those that are there; 0 where it states nothing.
    """

    path: str
    file_bytes: int
    begin: int
    end: int
    plain: bool = False
    patches: tuple[tuple[int, bytes], ...] = ()
    stated_share: float = 0.0


class _Chunks(NamedTuple):
    """How a container of chunks is built: bytes before the first, of a name, of a size; whether sizes count name and size; alignment."""

    head: int
    name: int
    size: int
    order: Literal["little", "big"]
    whole: bool
    align: int
    samples: bytes


_RIFF = _Chunks(12, 4, 4, "little", False, 2, b"data")
_CONTAINERS = {
    **{(magic, b"WAVE"): _RIFF for magic in (b"RIFF", b"RF64", b"BW64")},
    (b"RIFX", b"WAVE"): _RIFF._replace(order="big"),
    **{(b"FORM", form): _Chunks(12, 4, 4, "big", False, 2, b"SSND") for form in (b"AIFF", b"AIFC")},
    (b"riff", b"\xa5\xd6\x28\xdb"): _Chunks(40, 16, 8, "little", True, 8, b"data"),
    (b"caff", b"desc"): _Chunks(8, 4, 8, "big", False, 1, b"data"),
}
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICS")


def _pieces(path: str) -> list[_Piece]:
    """Look at the chunks of a file; most are one piece, nothing of which needs mending."""
    size = Path(path).stat().st_size
    pieces: list[_Piece] = []
    with Path(path).open("rb") as file:
        begin = 0
        while begin < size and (piece := _piece(file, path, begin, size)):
            pieces.append(piece)
            begin = piece.end
    return pieces or [_Piece(path, size, 0, size)]


def _piece(file: BinaryIO, path: str, begin: int, size: int) -> _Piece | None:
    file.seek(begin)
    head = file.read(16)
    patches: list[tuple[int, bytes]] = []
    if head[:4] == b".snd":
        data, stated = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big")
        unknown = stated in {0, 0xFFFFFFFF}
        patches = [(begin + 8, b"\xff" * 4)] if unknown else []
        return _Piece(path, size, begin, size, True, tuple(patches), 0.0 if unknown else stated / max(1, size - begin - data))
    chunks = _chunks_of(head)
    if chunks is None:
        return None
    at = begin + chunks.head
    long_size: tuple[int, int, int] | None = None
    while at + chunks.name + chunks.size <= size:
        name, stated, body = _chunk(file, at, chunks)
        if name == b"ds64":
            file.seek(body + 8)
            long_size = int.from_bytes(file.read(8), "little"), body + 8, 8
        elif name == b"COMM" and chunks.samples == b"SSND":
            patches.append((body + 2, b"\0" * 4))  # frames; FFmpeg refuses some numbers and needs none
        elif name[:4] == chunks.samples:
            stated, field, width = long_size if long_size and stated == 0xFFFFFFFF else (stated, at + chunks.name, chunks.size)
            end, share = _where_samples_end(file, body, stated, size, chunks)
            if share < 0:
                whole = size - body + (body - at if chunks.whole else 0)
                known = whole if width == 8 or chunks.order == "big" else 0
                patches.append((field, min(known, 256**width - 1).to_bytes(width, chunks.order)))
            mended = patches if share < 0 or begin or end < size or chunks.samples == b"SSND" else []
            return _Piece(path, size, begin, end, True, tuple(mended), max(share, 0.0))
        at = body + stated + -stated % chunks.align
    return None


def _where_samples_end(file: BinaryIO, body: int, stated: int, size: int, chunks: _Chunks) -> tuple[int, float]:
    """Find the end of a piece, and the share that was stated of the sound that is there: 0 if none was, -1 if the header must be mended."""
    there = size - body
    if stated > there:
        unstated = stated >= 0x7FF00000 if chunks.size == 4 else stated >= 1 << 40 or stated == 0xFFFFFFFF
        return size, (0.0 if chunks.size == 4 else -1.0) if unstated else stated / max(there, 1)
    # Files of more than 4 GB state what is left of their size.
    for samples in range(stated, there + 1, 1 << 32 if chunks.size == 4 else there + 1):
        end = _behind_samples(file, body + samples + -samples % chunks.align, size, chunks)
        if end >= 0:
            return end, 1.0 if samples == stated else -1.0
    return size, -1.0


def _behind_samples(file: BinaryIO, at: int, size: int, chunks: _Chunks) -> int:
    """Return where the piece ends whose samples end here: with other chunks, before a joined file; -1 if what follows is sound."""
    while at + chunks.name + chunks.size <= size:
        file.seek(at)
        head = file.read(16)
        if head.startswith(_TAGS):
            return size
        if _chunks_of(head):
            return at
        name, stated, body = _chunk(file, at, chunks)
        if not all(32 <= letter < 127 for letter in name[:4]):
            return -1
        at = body + stated + -stated % chunks.align
    return size if at <= size + chunks.align else -1


def _chunks_of(head: bytes) -> _Chunks | None:
    return _CONTAINERS.get((head[:4], head[8:12])) or _CONTAINERS.get((head[:4], head[4:8]))


def _chunk(file: BinaryIO, at: int, chunks: _Chunks) -> tuple[bytes, int, int]:
    """Read the name of a chunk, the bytes that it states for its body, and where that begins."""
    file.seek(at)
    head = file.read(chunks.name + chunks.size)
    stated = int.from_bytes(head[chunks.name :], chunks.order)
    return head[: chunks.name], max(0, stated - len(head)) if chunks.whole else stated, at + len(head)


class _Mended(io.RawIOBase):
    """A piece of a file, with its patches, for FFmpeg to read."""

    def __init__(self, file: BinaryIO, piece: _Piece) -> None:
        self._file, self._piece, self._at = file, piece, piece.begin

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at - self._piece.begin

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(self._piece.begin, offset + (self._piece.begin, self._at, self._piece.end)[whence])
        return self.tell()

    def read(self, size: int = -1) -> bytes:
        self._file.seek(self._at)
        left = max(0, self._piece.end - self._at)
        data = bytearray(self._file.read(left if size < 0 else min(size, left)))
        for place, patch in self._piece.patches:
            for offset, byte in enumerate(patch, place - self._at):
                if 0 <= offset < len(data):
                    data[offset] = byte
        self._at += len(data)
        return bytes(data)


@contextlib.contextmanager
def _open(piece: _Piece) -> Iterator[InputContainer]:
    """Open a container; nothing but this file is read, whatever it says."""
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    with contextlib.ExitStack() as stack:
        source: str | _Mended = f"file:{piece.path}"
        if piece.patches or piece.begin or piece.end < piece.file_bytes:
            source = _Mended(stack.enter_context(Path(piece.path).open("rb")), piece)
        yield stack.enter_context(av.open(source, "r", container_options=options, metadata_errors="replace", buffer_size=1 << 18))


def _has_xing(piece: _Piece) -> bool:
    """Whether an MP3 file states its length."""
    with Path(piece.path).open("rb") as file:
        head = file.read(10)
        tag = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)) + 10 if head[:3] == b"ID3" else 0
        file.seek(tag)
        frame = file.read(4096)
    return b"Xing" in frame or b"Info" in frame or b"VBRI" in frame


def _has_last_page(piece: _Piece) -> bool:
    """Whether the last page of an Ogg file says that it is the last."""
    with Path(piece.path).open("rb") as file:
        file.seek(max(0, piece.end - (1 << 17)))
        tail = file.read()
    page = tail.rfind(b"OggS\0")
    return page < 0 or bool(tail[page + 5] & 4)


def _drain(fifo: av.AudioFifo) -> Iterator[np.ndarray]:
    frame = fifo.read()
    if frame is not None:
        samples = frame.to_ndarray()
        yield samples if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels).T


def _to_float(samples: np.ndarray) -> np.ndarray:
    """Bring samples of any type to float32, full scale at [-1, 1]; the same shape."""
    if samples.dtype == np.uint8:
        floats: np.ndarray = samples.astype(np.float32) - np.float32(128)
        floats /= np.float32(128)
        return floats
    with np.errstate(over="ignore"):
        floats = np.ascontiguousarray(samples, dtype=np.float32)
    if samples.dtype.kind == "i":
        floats *= np.float32(0.5 ** (8 * samples.itemsize - 1))
    return floats


def _mix(samples: np.ndarray, channel: int | None) -> np.ndarray:
    """Take one channel of `(channels, n)`, or the mean of all."""
    if channel is not None or len(samples) == 1:
        return samples[(channel or 1) - 1]
    if len(samples) == 2:  # the same bits as the mean's, in a fraction of its time
        mono: np.ndarray = (samples[0] + samples[1]) / np.float32(2)
        return mono
    mean: np.ndarray = samples.mean(axis=0, dtype=np.float32)
    return mean


class _Levels:
    """Power of each channel, and of what was made of them, apart from a constant offset."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._count = 0
        self._sums = self._squares = np.zeros(1)

    def add(self, samples: np.ndarray, mono: np.ndarray) -> None:
        self.peak = max(self.peak, float(samples.max()), -float(samples.min()))
        rows = np.vstack([samples, mono[None]])
        self._count += len(mono)
        self._sums = self._sums + rows.sum(axis=1, dtype=np.float64)
        self._squares = self._squares + np.einsum("ij,ij->i", rows, rows)

    @property
    def _powers(self) -> np.ndarray:
        powers: np.ndarray = self._squares / self._count - np.square(self._sums / self._count)
        return powers

    @property
    def loudest(self) -> int:
        """The channel with the most power, counted from 1."""
        return int(self._powers[:-1].argmax()) + 1

    @property
    def lost_in_mean(self) -> bool:
        """Whether the mean has less than a tenth of the loudest channel's power: opposite phases, or one live channel of many."""
        return bool(self._powers[-1] < _LOST_IN_MEAN * self._powers[:-1].max())


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _hand_out(samples: dict[int, np.ndarray], listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.feed(samples[listener.rate_hz])


class _Buffer:
    """Collects blocks in one array that grows in place, so that a long recording is never held twice."""

    def __init__(self) -> None:
        self._samples, self._taken = np.empty(0, dtype=np.float32), 0

    def add(self, samples: np.ndarray) -> None:
        end = self._taken + len(samples)
        if end > len(self._samples):
            self._samples.resize(max(end, len(self._samples) * 3 // 2), refcheck=False)
        self._samples[self._taken : end] = samples
        self._taken = end

    def finish(self) -> np.ndarray:
        self._samples.resize(self._taken, refcheck=False)
        return self._samples


class StreamResampler:
    """`audio.resample` block by block: all that it returns, put together, is the same samples bit by bit."""

    def __init__(self, from_hz: int, to_hz: int) -> None:
        self._from_hz, self._to_hz = from_hz, to_hz
        self._soxr = None if from_hz == to_hz else soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ")
        self._taken, self._given = 0, 0

    def add(self, samples: np.ndarray) -> np.ndarray:
        """Take the next samples `(n,)` float32; returns what can be told by now, less at first."""
        if self._soxr is None:
            return samples
        self._taken += len(samples)
        resampled: np.ndarray = self._soxr.resample_chunk(samples)
        self._given += len(resampled)
        return resampled

    def finish(self) -> np.ndarray:
        """Return the rest; nothing may be added after it."""
        rest = np.empty(0, dtype=np.float32)
        if self._soxr is None:
            return rest
        rest = self._soxr.resample_chunk(rest, last=True)
        wanted = resampled_length(self._taken, self._from_hz, self._to_hz) - self._given
        return np.pad(rest[:wanted], (0, max(wanted - len(rest), 0)))


class PeakEnvelope:
    """Lowest and highest sample of equal stretches of a recording, for drawing, without holding its samples.

    Up to two million samples are held one by one; of longer recordings, groups of 2, 4, 8 and so on, so that the begin of a stretch is
    off by no more than a millionth of the recording.
    """

    def __init__(self) -> None:
        self._lowest: list[np.ndarray] = []
        self._highest: list[np.ndarray] = []
        self._groups, self._group_samples = 0, 1
        self._rest = np.empty(0, dtype=np.float32)

    def add(self, samples: np.ndarray) -> None:
        """Take the next samples `(n,)`, float32."""
        samples = np.concatenate([self._rest, samples]) if len(self._rest) else samples
        whole = len(samples) // self._group_samples * self._group_samples
        self._rest = samples[whole:].copy()
        groups = samples[:whole].reshape(-1, self._group_samples)
        self._lowest.append(groups.min(axis=1))
        self._highest.append(groups.max(axis=1))
        self._groups += len(groups)
        while self._groups > _MAX_GROUPS:
            self._halve()

    def columns(self, columns: int) -> np.ndarray:
        """Return `(2, columns)` float32 in [-1, 1]: minima, then maxima; stretches repeat samples where there are fewer samples."""
        samples = self._groups * self._group_samples + len(self._rest)
        if samples == 0:
            return np.zeros((2, columns), dtype=np.float32)
        ends = [self._rest] if len(self._rest) else []
        lowest = np.concatenate([*self._lowest, *([end.min()] for end in ends)])
        highest = np.concatenate([*self._highest, *([end.max()] for end in ends)])
        starts = np.arange(columns, dtype=np.int64) * samples // columns // self._group_samples
        envelope = np.stack([np.minimum.reduceat(lowest, starts), np.maximum.reduceat(highest, starts)])
        return envelope.clip(-1, 1).astype(np.float32)

    def _halve(self) -> None:
        """Join groups by pairs; one that is left over waits for more samples."""
        lowest, highest = np.concatenate(self._lowest), np.concatenate(self._highest)
        if len(lowest) % 2:
            # Any samples with these two extremes do: only the extremes of a group are ever asked for.
            pair = np.full(self._group_samples, lowest[-1], dtype=np.float32)
            pair[-1] = highest[-1]
            self._rest = np.concatenate([pair, self._rest])
        pairs = len(lowest) // 2
        self._lowest = [lowest[: 2 * pairs].reshape(pairs, 2).min(axis=1)]
        self._highest = [highest[: 2 * pairs].reshape(pairs, 2).max(axis=1)]
        self._groups, self._group_samples = pairs, 2 * self._group_samples


def hz_to_mel(frequency_hz: float | np.ndarray) -> float | np.ndarray:
    """Mel (HTK formula) of a frequency in Hz, at least 0."""
    return 2595.0 * np.log10(1.0 + np.asarray(frequency_hz) / 700.0)


def _overview(blocks: Iterator[np.ndarray], num_samples: int, rate_hz: int, columns: int) -> Overview:
    edges = np.arange(columns + 1, dtype=np.int64) * num_samples // columns
    fft_samples = max(64, 2 ** round(math.log2(_FFT_SECONDS * rate_hz)))
    window, bands = np.hanning(fft_samples).astype(np.float32), _bands(rate_hz, fft_samples)
    frames = min(_MAX_FRAMES_PER_COLUMN, math.ceil(num_samples / columns / fft_samples))
    peaks = np.zeros((2, columns), dtype=np.float32)
    power = np.zeros((BANDS, columns), dtype=np.float32)
    for first, last, piece in _stretches(blocks, edges, fft_samples // 2):
        begins = edges[first:last] - edges[first]
        inner = piece[fft_samples // 2 : len(piece) - fft_samples // 2]
        peaks[0, first:last] = np.minimum.reduceat(inner, begins)
        peaks[1, first:last] = np.maximum.reduceat(inner, begins)
        # The piece begins half a window early, so that a frame whose centre is at sample n of the columns starts at n.
        shares = (np.arange(frames) + 0.5) / frames
        starts = (begins[:, None] + shares * np.diff(edges[first : last + 1])[:, None]).astype(np.int64)
        frame = np.lib.stride_tricks.sliding_window_view(piece, fft_samples)[starts.ravel()] * window
        spectrum = np.square(np.abs(np.fft.rfft(frame))).reshape(last - first, frames, -1).mean(axis=1)
        power[:, first:last] = bands @ spectrum.T
    return Overview(peaks, 10.0 * np.log10(np.maximum(power, _POWER_FLOOR)), rate_hz / 2)


def _stretches(stream: Iterator[np.ndarray], edges: np.ndarray, margin: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Columns `[first, last)` with their mono samples and `margin` more on both sides; zeros where the stream has none."""
    columns = len(edges) - 1
    step = max(1, _CHUNK_SAMPLES * columns // int(edges[-1]))
    held, begin = np.zeros(margin, dtype=np.float32), -margin
    for first in range(0, columns, step):
        last = min(first + step, columns)
        wanted = int(edges[last]) + margin - begin
        parts, length = [held], len(held)
        while length < wanted:
            block = next(stream, None)
            part = np.zeros(wanted - length, dtype=np.float32) if block is None else block
            parts.append(part)
            length += len(part)
        held = np.concatenate(parts)
        yield first, last, held[:wanted]
        passed = int(edges[last]) - margin - begin
        held, begin = held[passed:], begin + passed


def _bands(rate_hz: int, fft_samples: int) -> np.ndarray:
    """Weights `(BANDS, bins)` that sum to 1; a band narrower than a bin takes its neighbours', so that no row stays empty."""
    bins = np.arange(fft_samples // 2 + 1) * rate_hz / fft_samples
    centres_mel = (np.arange(BANDS) + 0.5) / BANDS * hz_to_mel(rate_hz / 2)
    centres = 700.0 * (10.0 ** (centres_mel / 2595.0) - 1.0)
    widths = np.maximum(np.gradient(centres), rate_hz / fft_samples)
    weights: np.ndarray = np.maximum(0.0, 1.0 - np.abs(bins - centres[:, None]) / widths[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)


# The old names, until their last users have moved over.


@dataclass(frozen=True)
class Waveform:
    """Old."""

    samples: np.ndarray
    sample_rate_hz: int

    @property
    def duration_seconds(self) -> float:
        """Old."""
        return len(self.samples) / self.sample_rate_hz


def decode(path: str | Path, *, max_seconds: float = 7200.0) -> Waveform:
    """Old."""
    from qamdetr.audio_blocks import mono_blocks
    from qamdetr.progress import tell

    held, rate = _Buffer(), 0
    with contextlib.closing(mono_blocks(path, max_seconds=max_seconds)) as blocks:
        for block in blocks:
            rate = block.sample_rate_hz
            held.add(block.samples)
            tell(block.share)
    return Waveform(held.finish(), rate)


def load(path: str | Path, sample_rate_hz: int, *, max_seconds: float = 7200.0) -> Waveform:
    """Old."""
    return resample(decode(path, max_seconds=max_seconds), sample_rate_hz)


def crop(waveform: Waveform, start_seconds: float, end_seconds: float) -> Waveform:
    """Old."""
    begin = max(0, round(start_seconds * waveform.sample_rate_hz))
    end = max(begin, round(end_seconds * waveform.sample_rate_hz))
    return Waveform(waveform.samples[begin:end], waveform.sample_rate_hz)
