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
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, Protocol

import av
import numpy as np
import soundfile
import soxr
from av.audio.frame import format_dtypes
from av.container import InputContainer
from av.stream import Disposition

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

_BLOCK_FRAMES, _BLOCK_BYTES = 1 << 16, 1 << 17  # blocks that stay in the processor's cache
_CLOCK_SLACK_SECONDS = 0.05  # delay of encoders, time stamps in whole milliseconds
_STEADY_SECONDS = 0.001
_MAX_GAP_SECONDS = 3600.0
_MAX_STATED_SECONDS = 100 * 3600.0
_SEEK_AHEAD_SECONDS = 1.0  # decoders of lossy formats need the packets before
_MAX_LEVEL = 1e5
_SILENT_POWER = 1e-7
_LOST_IN_MEAN = 0.1
_MAX_FAILURES = 200
_SUBTYPES = {"u8": "PCM_U8", "s16": "PCM_16", "s32": "PCM_24", "flt": "FLOAT", "dbl": "DOUBLE"}  # FFmpeg holds 24 bits as 32
_MAX_GROUPS = 1 << 21
_FFT_SECONDS = 0.04
_MAX_FRAMES_PER_COLUMN = 8  # spectra that are averaged; an hour has hundreds that would fit, and they would not change the picture
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
    """What a picture of a recording needs."""

    peaks: np.ndarray  # `(2, columns)` lowest and highest sample per column, full scale at [-1, 1]
    levels_db: np.ndarray  # `(BANDS, columns)` mean power per band, lowest band first
    top_hz: float  # upper end of the bands; they are equally wide on the mel scale from 0 Hz on


def num_clips(duration_seconds: float, clip_seconds: float = 1.0) -> int:
    """Count the clips of a recording: `ceil(duration / clip)`, at least 1; a microsecond over does not open a new clip."""
    return max(1, math.ceil(round(duration_seconds, 6) / clip_seconds))


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Change the rate of `(n,)` or `(n, channels)` float32 samples (soxr, high quality), as `StreamResampler` does."""
    if from_hz == to_hz:
        return samples
    resampler = StreamResampler(from_hz, to_hz, samples.shape[1:])
    return np.concatenate([resampler.add(samples), resampler.finish()])


def find_recordings(folder: str | Path) -> dict[str, Path]:
    """Map each `vid` (the stem) to its audio file in a folder, by `AUDIO_SUFFIXES`; no folder, and two of one stem, are `AudioError`s."""
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
        with _open(next(_pieces(str(path))), str(path)) as container:
            return container.duration / av.time_base if container.duration and container.duration > 0 else None
    except (AudioError, OSError, ValueError):
        return None


class Sound:
    """A recording from a file, a pipe, an open file or an array; read when asked, any number of times.

    Args:
        source: A path; `-` or another pipe; an open binary file; or `(samples, rate_hz)` with samples `(n,)` or `(n, channels)`.
        channel: The one that is heard, counted from 1; None for the mean of all, or the loudest where the mean would lose it.
        track: Of several audio tracks the one that is heard, counted from 1; None for the file's default, or the next if that is silent.
        start_seconds: Where `reading` and `samples` begin, on the file's own clock.
        end_seconds: Where they end; None for the end of the file.
        max_seconds: Whatever is longer is refused.

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
        self.path = label if isinstance(source, (str, Path)) else ""  # where the file lies; empty when it came from memory
        self.start_seconds, self.end_seconds = start_seconds, math.inf if end_seconds is None else end_seconds
        if not 0 <= start_seconds < self.end_seconds:
            end = "its end" if end_seconds is None else f"{end_seconds:g} s"
            raise AudioError(f"cannot be read from {start_seconds:g} s to {end}", "start at 0 or later, and end after that", label)
        self.peaks = np.zeros((2, 0), dtype=np.float32)  # `(2, columns)` minima and maxima in [-1, 1], after `reading(peak_columns=...)`
        self.unheard_seconds = 0.0  # of the begin, which the listeners of `reading` do not get
        self._source, self._label, self._file = source, label, ""
        self._channel, self._track, self._max_seconds = channel, track, max_seconds
        self._facts: _Run | None = None

    @property
    def rate_hz(self) -> int:
        """The recording's own sample rate."""
        return self._known().rate_hz

    @property
    def subtype(self) -> str:
        """What soundfile calls the samples that `part(mono=False)` gives; lossy formats have `PCM_16`."""
        return self._known().subtype

    @property
    def duration_seconds(self) -> float:
        """How much sound there is from `start_seconds` on, by what can really be decoded."""
        return self._known().num_samples / self.rate_hz

    @property
    def notes(self) -> tuple[str, ...]:
        """Whatever was decided on the way: where the file ends early, which channel or track is heard, what was silenced or filled."""
        return (*self._known().losses(), *self._known().notes)

    def reading(self, listeners: Sequence[Listener] = (), peak_columns: int = 0) -> Iterator[float | None]:
        """Read the recording once and feed all listeners; yields the share that is done, in [0, 1], or None where that is unknown.

        Where the mean of the channels turns out to lose the sound, or the track to be silent, all begins anew with a better choice.
        """

        def hand_out(samples: dict[int, np.ndarray]) -> None:
            for listener in listeners:
                listener.feed(samples[listener.rate_hz])

        again = False
        with contextlib.closing(self._listening()) as blocks:
            for run, mono, begins in blocks:
                if begins:
                    # Another channel or track is heard than the one whose silence was measured.
                    self.unheard_seconds, again = 0.0 if again else self.unheard_seconds, True
                    peaks = PeakEnvelope()
                    resamplers = {listener.rate_hz: StreamResampler(run.rate_hz, listener.rate_hz) for listener in listeners}
                    for listener in listeners:
                        listener.begin()
                    unheard = round(self.unheard_seconds * run.rate_hz)
                if peak_columns:
                    peaks.add(mono)
                hand_out({rate: resampler.add(mono[unheard:]) for rate, resampler in resamplers.items()})
                unheard = max(0, unheard - len(mono))
                yield run.share
        hand_out({rate: resampler.finish() for rate, resampler in resamplers.items()})
        if peak_columns:
            self.peaks = peaks.columns(peak_columns)

    def silent_seconds(self) -> float:
        """Return how long there is nothing but zeros from `start_seconds` on; 0 where that is over a minute, or all."""
        silent = 0
        with contextlib.closing(self._listening()) as blocks:
            for run, mono, begins in blocks:
                heard = np.flatnonzero(mono)
                silent = (0 if begins else silent) + (int(heard[0]) if len(heard) else len(mono))
                if len(heard) or silent > 60 * run.rate_hz:
                    return silent / run.rate_hz if silent <= 60 * run.rate_hz else 0.0
        return 0.0

    def samples(self, rate_hz: int | None = None) -> np.ndarray:
        """Return all mono float32 samples, `(ceil(n * rate_hz / own rate),)`."""
        for run, mono, begins in self._listening():
            if begins:
                parts, resampler = list[np.ndarray](), StreamResampler(run.rate_hz, rate_hz or run.rate_hz)
            parts.append(resampler.add(mono))
        return np.concatenate([*parts, resampler.finish()])

    def part(self, start_seconds: float, end_seconds: float, *, rate_hz: int | None = None, mono: bool = True) -> np.ndarray:
        """Read `[start, end)` on the file's own clock, whatever range the sound was opened for; less where the file ends before.

        It is `(n,)` float32; with `mono=False` `(n, channels)`, or the chosen channel, as the file holds them, unless they are resampled.
        """
        own = self.rate_hz
        wanted = rate_hz or own
        # The margins keep the resampler's filter off the edges; where the first one begins, both rates have a sample.
        step, margin = (own // math.gcd(own, wanted), own // 10) if wanted != own else (1, 0)
        first = max(0, round(start_seconds * own) - margin) // step * step
        parts = list(self.part_blocks(first / own, (round(end_seconds * own) + margin) / own, mono=mono))
        samples = np.concatenate(parts) if parts else np.empty((0,) if mono else (0, 1), dtype=np.float32)
        if wanted != own:
            samples = resample(samples if mono else _to_float(samples), own, wanted)
            begin = first * wanted // own
            samples = samples[max(0, round(start_seconds * wanted) - begin) : max(0, round(end_seconds * wanted) - begin)]
        return samples

    def part_blocks(self, start_seconds: float, end_seconds: float, *, mono: bool = True, rough: bool = False) -> Iterator[np.ndarray]:
        """Yield what `part` gives in blocks; goes straight there if the container's clock counts samples, or, `rough`, milliseconds."""
        facts = self._known()
        for seek in (facts.exact or (rough and facts.steady), False):
            run = _Run(self._opened(), self._label, facts.track, facts.channel)
            try:
                for native in run.between(start_seconds, end_seconds, facts.origin if seek else None):
                    yield run.mono(native)[1] if mono else native[self._channel - 1 : self._channel].T if self._channel else native.T
            except io.UnsupportedOperation:  # then from the begin
                continue
            return

    def part_peaks(self, start_seconds: float, end_seconds: float, columns: int) -> np.ndarray:
        """Draw `[start, end)` of the file's clock, to a millisecond or so, as `peaks`; what lies after the recording's end is silent."""
        missing = max(1, round(end_seconds * self.rate_hz) - round(start_seconds * self.rate_hz))
        columns = min(columns, missing)
        peaks = PeakEnvelope()
        for block in self.part_blocks(start_seconds, end_seconds, rough=True):
            peaks.add(block)
            missing -= len(block)
        peaks.add(np.zeros(max(missing, 0), dtype=np.float32))
        return peaks.columns(columns)

    def overview(self, columns: int) -> Overview:
        """Draw the recording, with little memory whatever its length; fewer columns come back where there are fewer samples."""
        facts = self._known()
        columns = min(columns, facts.num_samples)
        fft_samples = max(64, 2 ** round(math.log2(_FFT_SECONDS * facts.rate_hz)))  # fewer than the shortest recording has
        window, bands = np.hanning(fft_samples).astype(np.float32), _bands(facts.rate_hz, fft_samples)
        # Some spectra, evenly spread, are averaged in each column.
        frames = min(_MAX_FRAMES_PER_COLUMN, math.ceil(facts.num_samples / columns / fft_samples)) * columns
        starts = (np.arange(frames) + 0.5) * facts.num_samples / frames - fft_samples / 2
        starts = starts.clip(0, facts.num_samples - fft_samples).astype(np.int64)
        peaks, power = PeakEnvelope(), list[np.ndarray]()
        held, begin = np.empty(0, dtype=np.float32), 0
        for _, block, _ in self._listening():
            peaks.add(block)
            held = np.concatenate([held, block])
            passed = max(0, len(held) - fft_samples + 1)
            if passed:
                here = starts[np.searchsorted(starts, begin) : np.searchsorted(starts, begin + passed)] - begin
                spectra = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(held, fft_samples)[here] * window)
                power.append(np.square(np.abs(spectra)) @ bands.T)
            held, begin = held[passed:], begin + passed
        levels = np.concatenate(power).reshape(columns, -1, BANDS).mean(axis=1).T
        return Overview(peaks.columns(columns), 10.0 * np.log10(np.maximum(levels, _POWER_FLOOR)), facts.rate_hz / 2)

    def _known(self) -> _Run:
        """Give a whole reading of the chosen range, which is the first one if there was none yet."""
        self._facts = self._facts or next(iter(self._kept()), None)
        if self._facts is None:
            deque(self._listening(), maxlen=0)
        assert self._facts is not None
        return self._facts

    def _listening(self) -> Generator[tuple[_Run, np.ndarray, bool]]:
        """Yield the reading, mono blocks `(n,)` of the chosen range, and whether all before are to be forgotten.

        Where a better choice of track or channel shows at the end, all of them come once more.
        """
        kept = self._kept()
        known = self._facts or next(iter(kept), None)
        track, channel = (known.track, known.channel) if known else (self._track, self._channel)
        silent: list[int] = []
        while True:
            run, levels = _Run(self._file, self._label, track, channel), _Levels()
            for native in run.between(self.start_seconds, self.end_seconds):
                samples, mono = run.mono(native)
                if known is None:
                    levels.add(samples, mono)
                begins, run.num_samples = run.num_samples == 0, run.num_samples + len(mono)
                if run.num_samples > self._max_seconds * run.rate_hz:
                    limit = f"{self._max_seconds / 3600:.4g} hours" if self._max_seconds > 7200 else f"{self._max_seconds / 60:.4g} minutes"
                    raise AudioError(f"lasts more than {limit}; the longest that can be used is {limit}", "cut it into parts", self._label)
                yield run, mono, begins
            self._check(run)
            if known is not None:
                if run.num_samples != known.num_samples:
                    raise AudioError("was changed while it was read", "open it again", self._label)
                self._facts = known
                return
            others = [other for other in run.order if other not in {*silent, run.track}]
            if self._track is None and levels.loudest_block < _SILENT_POWER and others:
                silent.append(run.track)
                track = others[0]
            elif channel is not None or not (channel := levels.loudest_where_the_mean_loses_it()):
                break
        if self._track is None and run.tracks > 1:
            why = f", since track {', '.join(map(str, silent))} is silent" if silent else ""
            run.notes.append(f"audio track {run.track} of {run.tracks} is heard{why}")
        if self._channel is None and channel is not None:
            run.notes.append(f"channel {channel} of {run.channels} is heard alone: in the mean of all its sound would be lost")
        self._facts = run
        kept.append(run)

    def _check(self, run: _Run) -> None:
        """Refuse what holds no sound, or less than can be used."""
        if not run.rate_hz:
            raise AudioError("holds no samples (length 0 s)", "record or export it again", self._label)
        if not run.num_samples:
            lasts = f"lasts {run.seconds:.1f} s; it cannot be read from {self.start_seconds:g} s on"
            raise AudioError(lasts, "start earlier", self._label)
        if (seconds := run.num_samples / run.rate_hz) < MIN_SECONDS:
            raise AudioError(f"lasts {seconds:.5g} s; the shortest that can be used is {MIN_SECONDS} s.", subject=self._label)

    def _kept(self) -> list[_Run]:
        """Find the place for the reading of this choice of the file as it is now; empty until it was read."""
        file = self._opened()
        state = Path(file).stat()
        return _readings(file, state.st_size, state.st_mtime_ns, self._channel, self._track, self.start_seconds, self.end_seconds)

    def _opened(self) -> str:
        """Give the path of a plain file to read; pipes, open files and arrays are first written to one."""
        try:
            self._file = self._file or self._on_disk()
            if Path(self._file).is_dir():
                raise AudioError("is a folder", "give an audio file", self._label)
            with Path(self._file).open("rb") as file:
                head = file.read(64)
        except FileNotFoundError:
            raise AudioError("does not exist", "check the name and the folder", self._label) from None
        except (OSError, ValueError) as error:
            raise AudioError(f"cannot be opened ({error})", "check the name and the permissions", self._label) from error
        if not head:
            raise AudioError("is empty (0 bytes)", "record or export it again", self._label)
        if head.startswith(b"version https://git-lfs"):
            raise AudioError("is a Git LFS pointer, not the sound itself", "fetch it with git lfs pull", self._label)
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
                samples, rate = np.asarray(source[0]), source[1]
                least = samples.shape[1] if samples.ndim == 2 else 1
                if samples.ndim not in (1, 2) or len(samples) < least or not 1 <= float(rate) < 2**31:
                    what = f"is an array of shape {samples.shape} at {rate!r} Hz"
                    raise AudioError(what, "give (n,) or (n, channels), not (channels, n), and its rate", self._label)
                soundfile.write(copy, _to_float(samples), int(rate), "FLOAT", format="W64")
            elif not isinstance(source, (str, Path)) and not hasattr(source, "read"):
                raise AudioError(f"is {type(source).__name__}", "give a path, an open binary file or (samples, rate_hz)", self._label)
            elif isinstance(source, (str, Path)):
                with contextlib.nullcontext(sys.stdin.buffer) if self._label == "-" else Path(source).open("rb") as pipe:
                    shutil.copyfileobj(pipe, copy)
            else:
                shutil.copyfileobj(source, copy)
        return file


@functools.lru_cache(maxsize=256)
def _readings(*key: object) -> list[_Run]:
    """Keep the reading of a file as it is now, so that only the first to ask reads it; a list for the caller to fill."""
    return []


class _Run:
    """One reading of one audio track, with what is found on the way; a whole one is what is known of the recording."""

    def __init__(self, file: str, label: str, track: int | None, channel: int | None) -> None:
        self._file, self._label, self._track, self.channel = file, label, track, channel
        self.track, self.tracks, self.order = 1, 0, [1]  # the one that is heard, of how many, and which to try in turn
        self.rate_hz = self.channels = self.num_samples = 0
        self.subtype = ""
        self.origin = 0.0  # the container's time, in seconds, of the first sample
        self.steady, self.exact = True, False  # its clock runs through, so that it can be sought by; and it counts samples, or finer
        self.notes: list[str] = []
        self._converters: dict[tuple[object, ...], av.AudioResampler] = {}
        self._form, self._layout, self._block = ("", 0, 0), "", 0  # sample type, channels and rate of the first frame; samples of a block
        self._placed = self._given = 0  # samples that have arrived, with the silence between them; samples that went out
        self._at, self._first_at, self._piece = 0, 0, _Piece("", 1, 0, 1)
        self._sizes = deque[int](maxlen=8)  # of the last packets
        self._failures, self._failed_at, self._odd, self._missing = 0, -1, 0, 0
        self._others_end = 0.0  # of pictures and other tracks, in seconds of the container's clock

    @property
    def share(self) -> float | None:
        """How much of the file was read, in [0, 1]; None where the container does not tell."""
        return min(1.0, (self._piece.begin + self._at) / self._piece.file_bytes) if self._at else None

    @property
    def seconds(self) -> float:
        """How much sound was read."""
        return self._placed / max(self.rate_hz, 1)

    def between(self, start_seconds: float, end_seconds: float, origin: float | None = None) -> Iterator[np.ndarray]:
        """Yield the samples `(channels, n)` of a part, in their own type; with `origin`, from the facts, without reading all before it.

        Raises:
            io.UnsupportedOperation: With `origin`, if that cannot be done; before any samples.
        """
        seek_seconds = start_seconds if origin is not None and start_seconds > 2 * _SEEK_AHEAD_SECONDS else 0.0
        self.origin = origin or 0.0
        for piece in _pieces(self._file):
            with _open(piece, self._label) as container:
                self._at, self._first_at, self._piece = 0, 0, piece
                self._sizes.clear()
                for samples in self._decoded(container, seek_seconds):
                    begin, self._given = self._given, self._given + samples.shape[1]
                    first, last = (round(min(at, 1e9) * self.rate_hz) - begin for at in (start_seconds, end_seconds))
                    if last > 0 and first < samples.shape[1]:
                        yield samples[:, max(0, first) : last]
                    if last <= samples.shape[1]:
                        return
        if self._failures and not self.rate_hz:
            raise _undecodable(self._label)

    def mono(self, native: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `(channels, n)` float32, full scale at [-1, 1], and what is heard of them; what can be no sound is 0."""
        samples = _to_float(native)
        if self.subtype == "PCM_24" and (native & 255).any():
            self.subtype = "PCM_32"
        if native.dtype.kind == "f" and not -_MAX_LEVEL <= samples.min() <= samples.max() <= _MAX_LEVEL:
            odd = ~(np.abs(samples) <= _MAX_LEVEL)
            self._odd += int(odd.sum())
            samples = np.where(odd, np.float32(0), samples)
        if self.channel is not None or len(samples) == 1:
            return samples, np.ascontiguousarray(samples[(self.channel or 1) - 1])
        # Of two channels, the same bits as the mean's in a fraction of its time.
        return samples, (samples[0] + samples[1]) / np.float32(2) if len(samples) == 2 else samples.mean(axis=0, dtype=np.float32)

    def losses(self) -> list[str]:
        """Tell what was silenced, skipped or filled on the way."""
        told = {
            f"{_count(self._odd, 'sample')} that can be no sound (not finite, or far beyond full scale) were silenced": self._odd > 0,
            f"{self._failures} pieces of the file could not be decoded": self._failures > 2,
            f"{self._missing / self.rate_hz:.1f} s of sound are missing within the file; they are taken for silence": self._missing > 0,
        }
        return [note for note, so in told.items() if so]

    def _decoded(self, container: InputContainer, seek_seconds: float) -> Iterator[np.ndarray]:
        """Yield blocks of `(channels, n)`; silence where the file's clock has a gap."""
        stream, form = self._chosen(container), container.format.name
        tick = float(stream.time_base or 0)
        fifo, began, first = av.AudioFifo(), self._placed, True
        if seek_seconds:
            try:
                container.seek(max(0, int((self.origin + seek_seconds - _SEEK_AHEAD_SECONDS) / tick)), stream=stream)
            except av.FFmpegError as error:
                raise io.UnsupportedOperation from error
        elif not began:
            self.origin = (container.start_time or 0) / av.time_base if form in _ANY_ORIGIN else 0.0
        for frame in self._frames(container, stream):
            if not self.rate_hz:
                self._describe(frame, lossy=stream.codec_context.codec.lossy)
            time = None if frame.pts is None else frame.pts * tick
            if first and seek_seconds:
                self._placed = self._given = -1 if time is None else round((time - self.origin) * self.rate_hz)
                if not 0 <= self._placed <= seek_seconds * self.rate_hz:
                    raise io.UnsupportedOperation
            if time is not None and (late := self._late(time, first=first, clockless=form in _CLOCKLESS)):
                yield from _drained(fifo)
                yield from self._silence(late)
                self._placed += late
            first, frame.pts = False, None
            self._placed += frame.samples
            for part in self._alike(frame):
                fifo.write(part)
            if fifo.samples >= self._block:
                yield from _drained(fifo)
        yield from _drained(fifo)
        fine = tick * self.rate_hz <= 1.0 and not (form == "ogg" and stream.codec_context.name == "flac")
        self.exact = self.steady and fine and not self._failures and form not in _ANY_ORIGIN
        self.notes += self._ending(container, began)

    def _alike(self, frame: av.AudioFrame) -> list[av.AudioFrame]:
        """Bring a frame to the first one's form, which joined files may not share."""
        form = (frame.format.name, frame.layout.nb_channels, frame.sample_rate)
        if form == self._form:
            return [frame]
        converter = av.AudioResampler(self._form[0], self._layout, self.rate_hz)
        parts = self._converters.setdefault((*form, frame.layout.name), converter).resample(frame)
        for part in parts:
            part.time_base = frame.time_base
        return parts

    def _silence(self, samples: int) -> Iterator[np.ndarray]:
        dtype = np.dtype(format_dtypes[self._form[0]])
        for begin in range(0, samples, _BLOCK_FRAMES):
            yield np.full((self.channels, min(_BLOCK_FRAMES, samples - begin)), 128 if dtype == np.uint8 else 0, dtype)

    def _chosen(self, container: InputContainer) -> av.AudioStream:
        """Choose the audio track that is wanted, by default the container's own; those without a decoder do not count."""
        if not container.streams.audio:
            raise AudioError("has no audio track", "give a file with sound", self._label)
        streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
        if not streams:
            raise _undecodable(self._label)
        self.tracks = len(streams)
        # False comes before True, and equals stay in their order.
        self.order = sorted(range(1, self.tracks + 1), key=lambda track: not streams[track - 1].disposition & Disposition.default)
        self.track = self._track or self.order[0]
        if not 1 <= self.track <= self.tracks:
            raise AudioError(f"has {_count(self.tracks, 'audio track')}; there is no track {self.track}", "count from 1", self._label)
        return streams[self.track - 1]

    def _frames(self, container: InputContainer, stream: av.AudioStream) -> Iterator[av.AudioFrame]:
        """Decode packet by packet; what is damaged is skipped, and counted."""
        while self._failures <= _MAX_FAILURES:
            packets = container.demux()
            try:
                for packet in packets:
                    if packet.stream_index != stream.index:
                        end = ((packet.pts or 0) + (packet.duration or 0)) * float(packet.time_base or 0)
                        self._others_end = max(self._others_end, end)
                    elif size := packet.size:  # an empty one would tell the decoder that this is the end
                        self._at = packet.pos or self._at
                        self._first_at = self._first_at or self._at
                        self._sizes.append(size)
                        yield from stream.decode(packet)
            except av.FFmpegError:
                self._failures, self._failed_at = self._failures + 1, self._placed
            else:
                break
        with contextlib.suppress(av.FFmpegError):
            yield from stream.decode(None)

    def _describe(self, frame: av.AudioFrame, *, lossy: bool) -> None:
        self.rate_hz, self.channels = frame.sample_rate, frame.layout.nb_channels
        self._form, self._layout = (frame.format.name, self.channels, self.rate_hz), frame.layout.name
        self._block = min(_BLOCK_FRAMES, max(1, _BLOCK_BYTES // (frame.format.bytes * self.channels)))
        self.subtype = "PCM_16" if lossy else _SUBTYPES[frame.format.name.rstrip("p")]
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ:
            remedy = "give the recording at its original rate" if self.rate_hz < MIN_RATE_HZ else _CONVERT
            stated = f"states a sample rate of {self.rate_hz} Hz; {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz can be used"
            raise AudioError(stated, remedy, self._label)
        if self.channel is not None and not 1 <= self.channel <= self.channels:
            raise AudioError(f"has {_count(self.channels, 'channel')}; there is no channel {self.channel}", "count from 1", self._label)

    def _late(self, time: float, *, first: bool, clockless: bool) -> int:
        """Count the samples that are missing before a frame by the file's clock, or find out that the clock has changed.

        Where sound begins late, or packets were lost, silence takes the place. A clock that goes back begins a joined part; one that leaps
        by more than an hour, as when a stream's own clock was kept, is told and not filled.
        """
        lag = time - self.origin - self._placed / self.rate_hz
        if not first and abs(lag) < _STEADY_SECONDS:
            return 0
        goes_on = clockless or (first and self._placed > 0)  # where the part before it ended, whatever it says
        if not goes_on and _CLOCK_SLACK_SECONDS < lag <= _MAX_GAP_SECONDS:
            late = round(lag * self.rate_hz)
            self._missing += 0 if first else late
            return late
        if goes_on or first or abs(lag) > _CLOCK_SLACK_SECONDS:
            self.origin += lag
            self.steady &= (first and not self._placed) or abs(lag) < _STEADY_SECONDS
            if lag > _MAX_GAP_SECONDS and not goes_on:
                self.notes.append(f"the file's clock leaps from {_clock(self.seconds)} to {_clock(time)}; times count on without the leap")
        return 0

    def _ending(self, container: InputContainer, began: int) -> list[str]:
        """Compare what was decoded with what the file states, or with how such files end."""
        form, piece = container.format.name, self._piece
        stated = (container.duration or 0) / av.time_base
        if piece.stated_share:
            stated = self.origin + (began + (self._placed - began) * piece.stated_share) / max(self.rate_hz, 1)
        elif form in _GUESSED or (form == "mp3" and not _states_end(piece, form, self._first_at)):
            stated = 0.0
        elif not form.startswith("matroska"):  # where it is the end, not the length
            stated += (container.start_time or 0) / av.time_base
        if stated - max(self.origin + self.seconds, self._others_end) > max(0.25, 0.005 * stated) and stated <= _MAX_STATED_SECONDS:
            short, long = self.seconds, stated - self.origin
            shown = (_clock(short), _clock(long)) if _clock(short) != _clock(long) else (f"{short:.1f} s", f"{long:.1f} s")
            return [f"the file ends after {shown[0]} of {shown[1]}"]
        *before, last = self._sizes or [0]
        cut_packet = len(before) > 2 and max(before) - min(before) <= 2 and abs(last - before[-1]) > 2
        cut_block = form == "mpegts" and all(piece.file_bytes % block for block in (188, 192, 204))
        undone = self._failed_at == self._placed or cut_packet or cut_block
        breaks_off = (not stated and undone) or (form == "ogg" and not _states_end(piece, form, 0))
        return [f"the file breaks off after {_clock(self.seconds)}"] if breaks_off and self.rate_hz else []


class _Piece(NamedTuple):
    """A file, or one of several that were joined to it, with a header that states what is there."""

    path: str
    file_bytes: int  # of the whole file
    begin: int  # of the piece in it, in bytes
    end: int
    patches: tuple[tuple[int, bytes], ...] = ()  # places in the file, and the bytes that belong there
    stated_share: float = 0.0  # bytes of sound that the header stated, over those that are there; 0 where it states nothing


class _Chunks(NamedTuple):
    """How a container of chunks is built."""

    head: int  # bytes before the first chunk
    name: int  # bytes of a chunk's name
    size: int  # bytes of its size
    order: Literal["little", "big"]
    whole: bool  # sizes count name and size
    align: int


_RIFF, _FORM = _Chunks(12, 4, 4, "little", False, 2), _Chunks(12, 4, 4, "big", False, 2)
_W64, _CAF = _Chunks(40, 16, 8, "little", True, 8), _Chunks(8, 4, 8, "big", False, 1)
_CONTAINERS = {
    **dict.fromkeys(((magic, b"WAVE") for magic in (b"RIFF", b"RF64", b"BW64")), _RIFF),
    **dict.fromkeys(((b"RIFX", b"WAVE"), (b"FORM", b"AIFF"), (b"FORM", b"AIFC")), _FORM),
    (b"riff", b"\xa5\xd6\x28\xdb"): _W64,
    (b"caff", b"desc"): _CAF,
}


def _pieces(path: str) -> Iterator[_Piece]:
    """Find the files that were joined to one, as far as their chunks tell; mostly it is one, nothing of which needs mending."""
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        piece: _Piece | None = _piece(file, path, 0, size) or _Piece(path, size, 0, size)
        while piece:
            yield piece
            piece = _piece(file, path, piece.end, size)


def _piece(file: BinaryIO, path: str, begin: int, size: int) -> _Piece | None:
    """Compare the size that the header states for the samples with the file, and mend it where it is wrong."""
    chunks = _chunks_at(file, begin)
    if chunks is None:
        return _piece_of_other_kinds(file, path, begin, size)
    at, long_size, patches = begin + chunks.head, (0, 0), list[tuple[int, bytes]]()
    while at + chunks.name + chunks.size <= size:
        name, stated, body = _chunk(file, at, chunks)
        if name == b"ds64":
            long_size = int.from_bytes(_bytes(file, body + 8, 8), "little"), body + 8
        if name == b"COMM" and _bytes(file, body + 2, 1) >= b"\x80":  # as many frames as FFmpeg takes for less than none
            patches.append((body + 2, b"\x7f"))
        if name[:4] in {b"data", b"SSND"}:
            long = stated == 0xFFFFFFFF and long_size[1] > 0
            stated, field, width = (*long_size, 8) if long else (stated, at + chunks.name, chunks.size)
            end, share = _samples_end(file, body, stated, size, chunks)
            if not share:
                # A size of 0 means all the rest in WAV files, whose field may be too small for it.
                there = 0 if chunks is _RIFF and not long else size - body + (chunks.name + chunks.size if chunks.whole else 0)
                patches.append((field, min(there, 256**width - 1).to_bytes(width, chunks.order)))
            return _Piece(path, size, begin, end, tuple(patches), share)
        at = body + stated + -stated % chunks.align
    return None


def _piece_of_other_kinds(file: BinaryIO, path: str, begin: int, size: int) -> _Piece | None:
    """Find where another MP4 file was joined to one, and mend AU files that state a length of 0."""
    head = _bytes(file, begin, 16)
    if head[:4] == b".snd" and head[8:12] == bytes(4):
        return _Piece(path, size, begin, size, ((begin + 8, b"\xff" * 4),))
    if head[4:8] != b"ftyp":
        return None
    at = begin
    while (length := int.from_bytes(head[8:] if head[:4] == b"\0\0\0\1" else head[:4], "big")) >= 8 and at + length < size:
        at += length
        head = _bytes(file, at, 16)
        if head[4:8] == b"ftyp":
            return _Piece(path, size, begin, at)
    return _Piece(path, size, begin, size)


def _samples_end(file: BinaryIO, body: int, stated: int, size: int, chunks: _Chunks) -> tuple[int, float]:
    """Find where a piece ends, and the share that was stated of the sound that is there: 0 if none was, or a wrong one."""
    there = size - body
    if stated > there:
        unknown = stated >= (0x7FF00000 if chunks.size == 4 else 0xFFFFFFFF << 8) or stated == 0xFFFFFFFF
        return size, 0.0 if unknown else stated / max(there, 1)
    # Of files over 4 GB the header states what is left when whole times 4 GB are taken away.
    for samples in range(stated, there + 1, 1 << 32 if chunks.size == 4 else there + 1):
        at = body + samples + -samples % chunks.align
        while at + chunks.name + chunks.size <= size and not _chunks_at(file, at):  # which a joined file begins with
            name, length, inside = _chunk(file, at, chunks)
            tag = name.startswith((b"TAG", b"ID3", b"APE"))
            if not (tag or all(32 <= letter < 127 for letter in name[:4])):
                break  # no chunk, hence sound
            at = size if tag else inside + length + -length % chunks.align
        else:
            if at <= size + chunks.align:
                return min(at, size), 1.0 if samples == stated else 0.0
    return size, 0.0


def _bytes(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _chunks_at(file: BinaryIO, at: int) -> _Chunks | None:
    head = _bytes(file, at, 12)
    return _CONTAINERS.get((head[:4], head[8:]))


def _chunk(file: BinaryIO, at: int, chunks: _Chunks) -> tuple[bytes, int, int]:
    """Read the name of a chunk, the bytes that it states for its body, and where that begins."""
    head = _bytes(file, at, chunks.name + chunks.size)
    stated = int.from_bytes(head[chunks.name :], chunks.order)
    return head[: chunks.name], max(0, stated - len(head)) if chunks.whole else stated, at + len(head)


class _Mended:
    """A piece of a file, with its patches, for FFmpeg to read."""

    def __init__(self, file: BinaryIO, piece: _Piece) -> None:
        self._file, self._piece = file, piece
        file.seek(piece.begin)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._file.seek(max(self._piece.begin, offset + (self._piece.begin, self._file.tell(), self._piece.end)[whence]))
        return self.tell()

    def tell(self) -> int:
        return self._file.tell() - self._piece.begin

    def read(self, size: int) -> bytes:
        begin = self._file.tell()
        data = bytearray(self._file.read(min(size, max(0, self._piece.end - begin))))
        for at, patch in self._piece.patches:
            for place, byte in enumerate(patch, at - begin):
                if 0 <= place < len(data):
                    data[place] = byte
        return bytes(data)


@contextlib.contextmanager
def _open(piece: _Piece, label: str) -> Iterator[InputContainer]:
    """Open a container; nothing but this file is read, whatever it says."""
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    with Path(piece.path).open("rb") as file:
        mended = piece.patches or piece.begin or piece.end < piece.file_bytes
        source = _Mended(file, piece) if mended else f"file:{piece.path}"
        try:
            container = av.open(source, "r", container_options=options, metadata_errors="replace", buffer_size=1 << 18)
        except (av.FFmpegError, OSError, ValueError) as error:
            if _bytes(file, 4, 4) == b"ftyp":
                cut = "breaks off before its index, which MP4 files have at the end"
                raise AudioError(cut, "copy or export it again", label) from error
            raise _undecodable(label) from error
        with container:
            yield container


def _undecodable(label: str) -> AudioError:
    return AudioError("cannot be decoded as audio: it is damaged, or something else", f"check that it plays, or {_CONVERT}", label)


def _states_end(piece: _Piece, form: str, first_at: int) -> bool:
    """Whether a file says where it ends: an MP3 in a frame before the first one with sound, an Ogg file on its last page."""
    with Path(piece.path).open("rb") as file:
        if form == "mp3":
            return any(name in _bytes(file, max(0, first_at - 4096), min(first_at, 4096)) for name in (b"Xing", b"Info", b"VBRI"))
        tail = _bytes(file, max(0, piece.end - (1 << 17)), 1 << 17)
    page = tail.rfind(b"OggS\0")
    return page < 0 or bool(tail[page + 5] & 4)


def _drained(fifo: av.AudioFifo) -> Iterator[np.ndarray]:
    frame = fifo.read()
    if frame is not None:
        samples = frame.to_ndarray()
        yield samples if frame.format.is_planar else samples.reshape(frame.samples, -1).T


def _to_float(samples: np.ndarray) -> np.ndarray:
    """Bring samples of any type to float32, full scale at [-1, 1]; the same shape."""
    with np.errstate(over="ignore"):
        floats = samples.astype(np.float32, copy=False)  # in their order: rows of packed samples are strided
    if samples.dtype == np.uint8:
        floats -= np.float32(128)
    if samples.dtype.kind in "iu":
        floats *= np.float32(0.5 ** (8 * samples.itemsize - 1))
    return floats


class _Levels:
    """Power of each channel, and of what is heard, apart from a constant offset."""

    def __init__(self) -> None:
        self.loudest_block, self._count = 0.0, 0
        self._sums = self._squares = np.zeros(1)

    def add(self, samples: np.ndarray, mono: np.ndarray) -> None:
        # Every seventh sample is enough, and a period of seven or fourteen is that of no common tone.
        rows = np.stack([*samples[:, ::7], mono[::7]])
        squares = np.array([np.dot(row, row) for row in rows], dtype=np.float64)
        self.loudest_block = max(self.loudest_block, squares.max() / rows.shape[1])
        self._count += rows.shape[1]
        self._squares = self._squares + squares
        self._sums = self._sums + rows.sum(axis=1)

    def loudest_where_the_mean_loses_it(self) -> int | None:
        """Find the channel with the most power, from 1, if the mean has less than a tenth of it: opposite phases, or one live of many."""
        *channels, mean = self._squares / self._count - np.square(self._sums / self._count)
        return int(np.argmax(channels)) + 1 if mean < _LOST_IN_MEAN * max(channels) else None


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


class StreamResampler:
    """Changes the rate of `(n,)` float32 samples, or `(n, channels)`, block by block.

    All that it returns is `ceil(samples * ratio)` long, so that `num_clips` is the same before and after.
    """

    def __init__(self, from_hz: int, to_hz: int, channels: tuple[int, ...] = ()) -> None:
        self._from_hz, self._to_hz = from_hz, to_hz
        self._soxr = None if from_hz == to_hz else soxr.ResampleStream(from_hz, to_hz, *(channels or (1,)), dtype="float32", quality="HQ")
        self._taken, self._given = 0, 0
        self._nothing = np.empty((0, *channels), dtype=np.float32)

    def add(self, samples: np.ndarray) -> np.ndarray:
        """Take the next samples; returns what can be told by now, less at first."""
        if self._soxr is None:
            return samples
        self._taken += len(samples)
        resampled: np.ndarray = self._soxr.resample_chunk(samples)
        self._given += len(resampled)
        return resampled

    def finish(self) -> np.ndarray:
        """Return the rest; nothing may be added after it."""
        if self._soxr is None:
            return self._nothing
        wanted = -(-self._taken * self._to_hz // self._from_hz) - self._given
        rest: np.ndarray = self._soxr.resample_chunk(self._nothing, last=True)[:wanted]
        return np.concatenate([rest, np.zeros((wanted - len(rest), *rest.shape[1:]), dtype=np.float32)])


class PeakEnvelope:
    """Lowest and highest sample of equal stretches of a recording, for drawing, without holding its samples.

    Up to two million samples are held one by one; of longer recordings, groups of 2, 4, 8 and so on, so that the begin of a stretch is
    off by no more than a millionth of the recording.
    """

    def __init__(self) -> None:
        self._groups = np.empty((2, _MAX_GROUPS), dtype=np.float32)
        self._count, self._group_samples = 0, 1
        self._rest = np.empty(0, dtype=np.float32)

    def add(self, samples: np.ndarray) -> None:
        """Take the next samples `(n,)`, float32."""
        samples = np.concatenate([self._rest, samples])
        while count := min(len(samples) // self._group_samples, _MAX_GROUPS - self._count):
            groups, samples = np.split(samples, [count * self._group_samples])
            rows = groups.reshape(count, self._group_samples)
            self._groups[:, self._count : self._count + count] = rows.min(axis=1), rows.max(axis=1)
            self._count += count
            if self._count == _MAX_GROUPS:
                self._count, self._group_samples = _MAX_GROUPS // 2, 2 * self._group_samples
                lowest, highest = self._groups.reshape(2, self._count, 2)
                self._groups[:, : self._count] = lowest.min(axis=1), highest.max(axis=1)
        self._rest = samples.copy()

    def columns(self, columns: int) -> np.ndarray:
        """Return `(2, columns)` float32 in [-1, 1]: minima, then maxima; stretches repeat samples where there are fewer samples."""
        samples = self._count * self._group_samples + len(self._rest)
        if samples == 0:
            return np.zeros((2, columns), dtype=np.float32)
        ends = [[self._rest.min()], [self._rest.max()]] if len(self._rest) else np.empty((2, 0))
        lowest, highest = np.concatenate([self._groups[:, : self._count], ends], axis=1, dtype=np.float32)
        starts = np.arange(columns, dtype=np.int64) * samples // columns // self._group_samples
        envelope = np.stack([np.minimum.reduceat(lowest, starts), np.maximum.reduceat(highest, starts)])
        return envelope.clip(-1, 1)


def hz_to_mel(frequency_hz: float | np.ndarray) -> float | np.ndarray:
    """Mel (HTK formula) of a frequency in Hz, at least 0."""
    return 2595.0 * np.log10(1.0 + np.asarray(frequency_hz) / 700.0)


def _bands(rate_hz: int, fft_samples: int) -> np.ndarray:
    """Weights `(BANDS, bins)` that sum to 1; a band narrower than a bin takes its neighbours', so that no row stays empty."""
    bins = np.arange(fft_samples // 2 + 1) * rate_hz / fft_samples
    centres_mel = (np.arange(BANDS) + 0.5) / BANDS * hz_to_mel(rate_hz / 2)
    centres = 700.0 * (10.0 ** (centres_mel / 2595.0) - 1.0)
    widths = np.maximum(np.gradient(centres), rate_hz / fft_samples)
    weights: np.ndarray = np.maximum(0.0, 1.0 - np.abs(bins - centres[:, None]) / widths[:, None])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
