"""The pocket encoders, which come with the project, for sound and for words in one space; and `mel_stats`, of the same mel spectrum."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad, relu6

from qamdetr.config import CHECKPOINT_DIR
from qamdetr.errors import CheckpointError
from qamdetr.features.base import AudioStream, EncoderOptions, Step, TextStream, stream
from qamdetr.features.hub import HubTokenizer, one_line
from qamdetr.features.known import KnownSounds, WordMap
from qamdetr.types import TextFeatures

POCKET_CHECKPOINT = "pocket-encoder"
MAX_TOKENS = 256
SAMPLE_RATE_HZ = 24_000
HOP_SAMPLES = 375
FRAMES_PER_CLIP = SAMPLE_RATE_HZ // HOP_SAMPLES  # 64, in the second that every vector sees, whatever the hop
FFT_SAMPLES = 1024
NUM_MELS = 64
MIN_HZ, MAX_HZ = 40.0, 11_800.0
LOG_FLOOR = 1e-8
MEL_STATS_DIM = 24

HEARD_FRAMES, PATCH_FRAMES = 100, 96  # of 10 ms, in a second; which are seen at once
WIDTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
PATCH_LEVEL = 0.6  # mean magnitude that every patch is brought to, about what ordinary recordings have

SILENT_BELOW_LOUDEST_DB = 40.0

_SECTION_SECONDS, _PATCHES_AT_ONCE = 120, 32  # of which the network's first maps are 25 MB
_SECTION_MARGIN_SECONDS = 4
_FRONT_END_CLIPS = 8  # whose spectrum is held at once


@functools.cache
def mel_filterbank() -> Tensor:
    """Return `(mels, bins)` Slaney mel filters, float32."""
    import librosa

    filters = librosa.filters.mel(sr=SAMPLE_RATE_HZ, n_fft=FFT_SAMPLES, n_mels=NUM_MELS, fmin=MIN_HZ, fmax=MAX_HZ)
    return torch.from_numpy(filters.astype(np.float32))


class MelFrontEnd:
    """Takes mono samples at 24 kHz in as they come and keeps their mel power, 16 kB per clip; the same bits however they are cut."""

    rate_hz, frames_per_second, fft_samples = SAMPLE_RATE_HZ, FRAMES_PER_CLIP, FFT_SAMPLES

    def __init__(self) -> None:
        self.begin()

    def spectrum(self, samples: Tensor) -> Tensor:
        """Return `(mels, frames)` of `(n,)` samples."""
        window = torch.hann_window(FFT_SAMPLES)
        spectrum = torch.stft(samples, FFT_SAMPLES, HOP_SAMPLES, window=window, center=False, return_complex=True)
        return mel_filterbank() @ (spectrum.real.square() + spectrum.imag.square())

    def begin(self) -> None:
        """Forget what was heard."""
        # One array that grows in place, frames first: small ones among the spectra that come and go would scatter the memory.
        self._kept, self._frames = np.empty((0, NUM_MELS), dtype=np.float32), 0
        # Frames are centred: the first reaches half a window before the recording.
        self._held = [np.zeros(self.fft_samples // 2, dtype=np.float32)]
        self._overlap = self.fft_samples - self.rate_hz // self.frames_per_second  # what the frames of some clips see beyond them

    def feed(self, samples: np.ndarray) -> None:
        """Take the next samples `(n,)` float32."""
        self._held.append(samples)
        if sum(map(len, self._held)) >= _FRONT_END_CLIPS * SAMPLE_RATE_HZ + self._overlap:
            self._take()

    def finish(self) -> Tensor:
        """Return `(mels, frames_per_second * ceil(n / 24000))` of all `n` samples, and let go of it."""
        held_samples = sum(map(len, self._held))
        clips = -(-(held_samples - self.fft_samples // 2) // SAMPLE_RATE_HZ)
        self._held.append(np.zeros(clips * SAMPLE_RATE_HZ + self._overlap - held_samples, dtype=np.float32))
        self._take()
        kept = torch.from_numpy(self._kept[: self._frames]).T.contiguous()
        self.begin()
        return kept

    def _take(self) -> None:
        """Turn the whole clips that are held into frames, and go on behind them."""
        held = torch.from_numpy(np.concatenate(self._held))
        clips = (len(held) - self._overlap) // SAMPLE_RATE_HZ
        for begin in range(0, clips, _FRONT_END_CLIPS):
            end = min(begin + _FRONT_END_CLIPS, clips)
            mels = self.spectrum(held[begin * SAMPLE_RATE_HZ : end * SAMPLE_RATE_HZ + self._overlap])
            filled = self._frames + mels.shape[1]
            if filled > len(self._kept):
                self._kept.resize((filled * 3 // 2, NUM_MELS), refcheck=False)
            self._kept[self._frames : filled] = mels.T.numpy()
            self._frames = filled
        self._held = [held[clips * SAMPLE_RATE_HZ :].numpy().copy()]


class EarFrontEnd(MelFrontEnd):
    """As its parent, but keeps mel magnitudes as YAMNet takes them in: 64 bands up to 7.5 kHz of 25 ms every 10 ms; 26 kB per clip.

    Source: https://github.com/tensorflow/models/tree/master/research/audioset/yamnet, there of 16 kHz. Much of what there is to learn from
    holds nothing above 8 kHz.
    """

    frames_per_second, fft_samples = HEARD_FRAMES, 768

    def spectrum(self, samples: Tensor) -> Tensor:
        """Return `(mels, frames)` of `(n,)` samples."""
        length, hop = SAMPLE_RATE_HZ // 40, SAMPLE_RATE_HZ // HEARD_FRAMES
        spectrum = torch.stft(samples, 768, hop, length, torch.hann_window(length), center=False, return_complex=True)
        return ear_filterbank() @ spectrum.abs()


@functools.cache
def ear_filterbank() -> Tensor:
    """Return `(mels, bins)` triangles that are straight in HTK mels, which give magnitudes as of 16 kHz."""
    lowest, highest, bins = (1127 * np.log1p(hz / 700) for hz in (125.0, 7500.0, np.arange(385) * SAMPLE_RATE_HZ / 768))
    edges = np.linspace(lowest, highest, NUM_MELS + 2)[:, None]
    rising, falling = (bins - edges[:-2]) / np.diff(edges, axis=0)[:-1], (edges[2:] - bins) / np.diff(edges, axis=0)[1:]
    filters = np.minimum(rising, falling).clip(min=0) * 2 / 3
    filters[:, 0] = 0
    return torch.from_numpy(filters.astype(np.float32))


def mel_magnitudes(samples: np.ndarray, listener: type[MelFrontEnd] = EarFrontEnd) -> Tensor:
    """Return what a listener keeps, `(64, 100 * ceil(n / 24000))` magnitudes, of mono samples `(n,)`, the last clip padded with silence."""
    front_end = listener()
    front_end.feed(samples)
    return front_end.finish()


def patches(magnitudes: Tensor) -> Tensor:
    """Cut mel magnitudes `(batch, 64, 100 * seconds)` into the log mels `(batch, clips, 96, 64)` seen of each half second.

    Each patch is brought to one level, so that gain cancels: a far dog is a dog, and so is one recorded low.
    """
    hop = HEARD_FRAMES // 2
    beyond = (PATCH_FRAMES - hop) // 2
    seen = pad(magnitudes, (beyond, beyond)).unfold(2, PATCH_FRAMES, hop)
    level = seen.mean(dim=(1, 3), keepdim=True)
    return torch.log(seen * (PATCH_LEVEL / (level + 1e-7)) + 0.001).permute(0, 2, 3, 1)


def log_mel(power: Tensor) -> Tensor:
    """Return log mel power scaled to about [-1, 1]: silence (the floor) is -1."""
    return (torch.log10(power + LOG_FLOOR) + 3.0) / 5.0


class PocketAudioModel(nn.Module):
    """Mel magnitudes to one unit vector per half second in the joint space, each with the second around its middle in view.

    Source: the shape of MobileNet (Howard et al., 2017, https://arxiv.org/abs/1704.04861) as YAMNet has it, which teaches it layer by layer
    (`recipes.pocket.layers`); without batch normalisation.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, halved: Sequence[int] = (0, 2, 4, 6, 12), dim: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (source, target) in enumerate(zip((1, *widths), widths, strict=False)):
            stride = 2 if index in halved else 1
            if index == 0:
                layers.append(CutConvolution(source, target, 3, stride))
            else:
                layers += [CutConvolution(source, source, 3, stride, groups=source), CutConvolution(source, target, 1)]
        self.layers = nn.ModuleList(layers)
        self.straight = nn.Linear(widths[-1], dim)
        self.bent = nn.Sequential(nn.Linear(widths[-1], widths[-1] // 2), nn.ReLU(), nn.Linear(widths[-1] // 2, dim))

    def forward(self, magnitudes: Tensor) -> Tensor:
        """Encode mel magnitudes `(batch, 64, 100 * seconds)` to unit vectors `(batch, clips, dim)`."""
        seen = patches(magnitudes)
        states = torch.cat([self.states(part) for part in torch.split(seen.flatten(0, 1), _PATCHES_AT_ONCE)])
        return self.to_joint(states).reshape(*seen.shape[:2], -1)

    def states(self, seen: Tensor) -> Tensor:
        """Return `(patches, 1024)` from 0 to 6, of `(patches, 96, 64)`: what the teacher's embedding is."""
        x: Tensor = seen.unsqueeze(1).contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            x = layer(x)
        return x.mean(dim=(2, 3))

    def to_joint(self, states: Tensor) -> Tensor:
        """Map states `(…, 1024)` to unit vectors `(…, dim)` in the joint space."""
        return normalize((self.straight(states) + self.bent(states)).float(), dim=-1)


class CutConvolution(nn.Conv2d):
    """A square convolution that gives 0 ... 6; where it halves the map, its margin lies behind it rather than around."""

    def __init__(self, source: int, target: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(source, target, size, stride, padding=size // 2 if stride == 1 else 0, groups=groups)
        around = size // 2
        self.margins = (around,) * 4 if stride == 1 else (0, size - stride) * 2  # of a map, on its four sides

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return relu6(super().forward(x if self.stride == (1, 1) else pad(x, self.margins)), inplace=True)


def at_hop(describe: Callable[[Tensor], Tensor], power: Tensor, clip_seconds: float) -> Tensor:
    """Describe mel power `(mels, 64 * seconds)` by one row per clip, `describe` giving one per second of what it gets.

    Clips of half a second are seen with a quarter of a second on both sides, silence beyond the ends: every other clip from the power moved
    by a quarter of a second, those between from the power moved by three.
    """
    if clip_seconds == 1.0:
        return describe(power)
    quarter = FRAMES_PER_CLIP // 4
    even, odd = describe(pad(power, (quarter, 3 * quarter)))[:-1], describe(pad(power, (3 * quarter, quarter)))[1:]
    return torch.stack([even, odd], dim=1).flatten(0, 1)


def mel_stats(power: Tensor) -> Tensor:
    """Describe each second of mel power `(mels, 64 * seconds)` by hand-made numbers; `(seconds, 24)`, each about in [-1, 1].

    Columns: 16 band levels (mean log power of four mels each), then loudest frame, quietest frame, spread over time, strongest and mean
    onset (rise of log power from frame to frame), spectral centroid, spectral flatness, and the step in level from the second before.
    """
    frames = log_mel(power).reshape(NUM_MELS, -1, FRAMES_PER_CLIP)
    bands = frames.mean(dim=2).reshape(16, 4, -1).mean(dim=1)
    level = frames.mean(dim=0)
    rise = (frames[:, :, 1:] - frames[:, :, :-1]).clamp(min=0).mean(dim=0)
    energy = power.reshape(NUM_MELS, -1, FRAMES_PER_CLIP).mean(dim=2) + LOG_FLOOR
    centroid = (energy * torch.linspace(-1, 1, NUM_MELS)[:, None]).sum(dim=0) / energy.sum(dim=0)
    flatness = energy.log().mean(dim=0).exp() / energy.mean(dim=0)
    mean_level = level.mean(dim=1)
    step = torch.diff(mean_level, prepend=mean_level[:1])
    columns = [level.amax(dim=1), level.amin(dim=1), 4 * level.std(dim=1), 4 * rise.amax(dim=1), 8 * rise.mean(dim=1)]
    columns += [centroid, 2 * flatness - 1, 4 * step]
    return torch.cat([bands.T, torch.stack(columns, dim=1)], dim=1)


class PocketTextModel(nn.Module):
    """Token ids to token states `dim` wide, and a sentence vector in the teacher's space (`sentence_dim`).

    Source: architecture ours; teacher all-MiniLM-L6-v2 (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2).
    """

    def __init__(self, vocab_size: int = 30522, dim: int = 256, sentence_dim: int = 384, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 128)
        self.input = nn.Linear(128, dim)
        self.position = nn.Parameter(torch.randn(MAX_TOKENS, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.sentence = nn.Linear(dim, sentence_dim)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn ids and mask `(batch, tokens <= MAX_TOKENS)` into states `(batch, tokens, dim)` and unit vectors `(batch, sentence_dim)`."""
        x = self.input(self.embedding(ids)) + self.position[: ids.shape[1]]
        x = self.norm(self.layers(x, src_key_padding_mask=~mask))
        weights = mask.unsqueeze(-1).to(x.dtype)
        mean = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return x, normalize(self.sentence(mean), dim=-1)


def unpack_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo the packing of stored weights (`recipes.pocket.text.pack_state`), up to rounding; everything float32."""
    unpacked = {name: value.float() for name, value in state.items()}
    if "embedding.scale" in unpacked:
        unpacked["embedding.weight"] = unpacked["embedding.weight"] * unpacked.pop("embedding.scale")
    return unpacked


@stream("pocket", dim=256, rate_hz=SAMPLE_RATE_HZ, label="pocket")
class Pocket(AudioStream, TextStream):
    """`(clips, 256)` unit vectors in the joint space, zero for silent clips; `(tokens, 256)` states and the pooled joint vector."""

    listener = EarFrontEnd
    is_joint = True
    silent_db = -28.2  # level, in the listener's scale, of noise at about -60 dB full scale

    def __init__(self, folder: Path, options: EncoderOptions) -> None:
        super().__init__(folder, options)  # the weights are the shipped ones, whatever these say
        from safetensors.torch import load_file

        folder = CHECKPOINT_DIR / POCKET_CHECKPOINT
        files = [folder / name for name in ("audio.safetensors", "text.safetensors", "tokenizer.json", "joint.safetensors")]
        audio, text = PocketAudioModel(), PocketTextModel()
        try:
            audio.load_state_dict(load_file(files[0]))  # stored in half precision
            text.load_state_dict(unpack_state(load_file(files[1])))
            self.word_map = WordMap(load_file(files[3]))
            self._tokenizer = HubTokenizer(folder, self.name, max_tokens=MAX_TOKENS, vocab_size=text.embedding.num_embeddings)
        except Exception as error:  # safetensors raises classes of its own, torch RuntimeError
            remedy = "restore it from the repository (with Git LFS: `git lfs pull`), or set QAMDETR_CHECKPOINTS"
            raise CheckpointError(f"{folder} cannot be read ({one_line(error)})", remedy) from error
        self.audio_model = audio.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.text_model = text.eval()
        self._folder = folder
        # Of the files, not of the weights: the shipped checkpoints name this version.
        self.fingerprint = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    @functools.cached_property
    def known_sounds(self) -> KnownSounds | None:
        """What the encoder's words are near to; None where no table of this version lies beside it."""
        return KnownSounds.beside(self._folder, self.word_map)

    def features(self, kept: Tensor) -> Generator[Step, None, Tensor]:
        """Encode what the listener kept in sections, so that memory stays bounded; they overlap to agree at the seams."""
        frames, hop = self.listener.frames_per_second, self.options.clip_seconds
        seconds = kept.shape[-1] // frames
        rows = []
        for begin in range(0, seconds, _SECTION_SECONDS):
            yield Step(self.name, begin / seconds)
            end = min(begin + _SECTION_SECONDS, seconds)
            first, last = max(begin - _SECTION_MARGIN_SECONDS, 0), min(end + _SECTION_MARGIN_SECONDS, seconds)
            with torch.inference_mode():
                encoded = self.encode_section(kept[:, first * frames : last * frames])
                rows.append(encoded[round((begin - first) / hop) : round((end - first) / hop)])
        return torch.cat(rows) * self.audible(kept)[:, None]

    def encode_section(self, kept: Tensor) -> Tensor:
        """Encode mel magnitudes `(64, 100 * seconds)` at once to unit vectors `(clips, 256)`; a second is the mean of its halves."""
        vectors: Tensor = self.audio_model(kept.unsqueeze(0))[0]
        if self.options.clip_seconds == 1.0:
            vectors = normalize(vectors[::2] + vectors[1::2], dim=-1)
        return vectors

    def audible(self, kept: Tensor) -> Tensor:
        """Return `(clips,)` bool: False where a clip is silent, both by itself and beside the loudest, or holds nothing but zeros."""
        frames = round(self.listener.frames_per_second * self.options.clip_seconds)
        level = kept.square().mean(dim=0).reshape(-1, frames)[:, 2:-2].mean(dim=1)  # the outermost reach beyond
        level_db = 10 * torch.log10(level + 1e-12)
        return ((level_db > self.silent_db) | (level_db > level_db.max() - SILENT_BELOW_LOUDEST_DB)) & (level > 0)

    @torch.inference_mode()
    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query; see `TextStream`."""
        ids, offsets = self._tokenizer.encode(query)
        batch = torch.tensor([ids])
        tokens, sentence = self.text_model(batch, torch.ones_like(batch, dtype=torch.bool))
        return TextFeatures(tokens[0].float().clone(), offsets, self.word_map(sentence)[0].float().clone(), sentence[0].clone())


@stream("mel_stats", dim=MEL_STATS_DIM, rate_hz=SAMPLE_RATE_HZ, label="mel statistics", raw_scale=True)
class MelStats(AudioStream):
    """The handcrafted stream, see `mel_stats`, of recordings brought to one level; at any hop of the second around each clip's middle."""

    fingerprint = "mel_stats-2"
    listener = MelFrontEnd

    def features(self, kept: Tensor) -> Generator[Step, None, Tensor]:
        """Describe mel power `(mels, 64 * seconds)`."""
        yield Step(self.name, 0.0)
        heard = kept.sqrt().mean(dim=0)  # magnitudes, as of patches: a slamming door moves their mean little, zeros not at all
        level = heard.sum() / (heard > 0).sum().clamp(min=1)
        return at_hop(mel_stats, kept * (PATCH_LEVEL / (level + 1e-7)) ** 2, self.options.clip_seconds)
