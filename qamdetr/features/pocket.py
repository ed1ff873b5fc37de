"""The pocket encoders, which come with the project, for sound and for words in one space; and `mel_stats`, of the same mel spectrum."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, conv1d, normalize, pad

from qamdetr.config import CHECKPOINT_DIR
from qamdetr.errors import CheckpointError
from qamdetr.features.base import AudioStream, EncoderOptions, Step, TextStream, stream
from qamdetr.features.hub import HubTokenizer, one_line
from qamdetr.features.known import KnownSounds
from qamdetr.types import TextFeatures

POCKET_CHECKPOINT = "pocket-encoder"
MAX_TOKENS = 256
SAMPLE_RATE_HZ = 24_000
HOP_SAMPLES = 375
FRAMES_PER_CLIP = SAMPLE_RATE_HZ // HOP_SAMPLES  # 64, in the second that every vector sees, whatever the hop
FFT_SAMPLES = 1024
_OVERLAP_SAMPLES = FFT_SAMPLES - HOP_SAMPLES  # what the frames of some clips see beyond them
NUM_MELS = 64
MIN_HZ, MAX_HZ = 40.0, 11_800.0
LOG_FLOOR = 1e-8
MEL_STATS_DIM = 24

SILENT_DB = -48.0  # mean mel power of noise at about -60 dB full scale; seconds below it, and far under the loudest, are silent
SILENT_BELOW_LOUDEST_DB = 40.0

_SECTION_SECONDS = 120
_SECTION_MARGIN_SECONDS = 4
_FRONT_END_CLIPS = 8  # whose spectrum is held at once


@functools.cache
def mel_filterbank() -> Tensor:
    """Return `(mels, bins)` Slaney mel filters, float32."""
    import librosa

    filters = librosa.filters.mel(sr=SAMPLE_RATE_HZ, n_fft=FFT_SAMPLES, n_mels=NUM_MELS, fmin=MIN_HZ, fmax=MAX_HZ)
    return torch.from_numpy(filters.astype(np.float32))


def mel_power(samples: np.ndarray) -> Tensor:
    """Return mel power `(mels, 64 * ceil(n / 24000))` of mono samples `(n,)`, the last clip padded with silence."""
    front_end = MelFrontEnd()
    front_end.feed(samples)
    return front_end.finish()


class MelFrontEnd:
    """Takes mono samples at 24 kHz in as they come and keeps their mel power, 16 kB per clip; the same bits however they are cut."""

    rate_hz = SAMPLE_RATE_HZ

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what was heard."""
        # One array that grows in place, frames first: small ones among the spectra that come and go would scatter the memory.
        self._power, self._frames = np.empty((0, NUM_MELS), dtype=np.float32), 0
        # Frames are centred: the first reaches half a window before the recording.
        self._held = [np.zeros(FFT_SAMPLES // 2, dtype=np.float32)]

    def feed(self, samples: np.ndarray) -> None:
        """Take the next samples `(n,)` float32."""
        self._held.append(samples)
        if sum(map(len, self._held)) >= _FRONT_END_CLIPS * SAMPLE_RATE_HZ + _OVERLAP_SAMPLES:
            self._take()

    def finish(self) -> Tensor:
        """Return mel power `(mels, 64 * ceil(n / 24000))` of all `n` samples, and let go of it."""
        held_samples = sum(map(len, self._held))
        clips = -(-(held_samples - FFT_SAMPLES // 2) // SAMPLE_RATE_HZ)
        self._held.append(np.zeros(clips * SAMPLE_RATE_HZ + _OVERLAP_SAMPLES - held_samples, dtype=np.float32))
        self._take()
        power = torch.from_numpy(self._power[: self._frames]).T.contiguous()
        self.begin()
        return power

    def _take(self) -> None:
        """Turn the whole clips that are held into power, and go on behind them."""
        held, window = torch.from_numpy(np.concatenate(self._held)), torch.hann_window(FFT_SAMPLES)
        clips = (len(held) - _OVERLAP_SAMPLES) // SAMPLE_RATE_HZ
        for begin in range(0, clips, _FRONT_END_CLIPS):
            end = min(begin + _FRONT_END_CLIPS, clips)
            part = held[begin * SAMPLE_RATE_HZ : end * SAMPLE_RATE_HZ + _OVERLAP_SAMPLES]
            spectrum = torch.stft(part, FFT_SAMPLES, HOP_SAMPLES, window=window, center=False, return_complex=True)
            power = mel_filterbank() @ (spectrum.real.square() + spectrum.imag.square())
            filled = self._frames + power.shape[1]
            if filled > len(self._power):
                self._power.resize((filled * 3 // 2, NUM_MELS), refcheck=False)
            self._power[self._frames : filled] = power.T.numpy()
            self._frames = filled
        self._held = [held[clips * SAMPLE_RATE_HZ :].numpy().copy()]


def log_mel(power: Tensor) -> Tensor:
    """Return log mel power scaled to about [-1, 1]: silence (the floor) is -1."""
    return (torch.log10(power + LOG_FLOOR) + 3.0) / 5.0


class PocketAudioModel(nn.Module):
    """Log-mel frames to one unit vector per clip in the joint space; the light mix with neighbouring clips starts as the identity."""

    def __init__(self, channels: Sequence[int] = (32, 64, 128, 256), dim: int = 256) -> None:
        super().__init__()
        stem, *stages = channels
        # A learned shift per band makes the network's start independent of the recording's overall colour.
        self.band_bias = nn.Parameter(torch.zeros(1, 1, NUM_MELS, 1))
        self.stem = nn.Sequential(nn.Conv2d(1, stem, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        blocks: list[nn.Module] = []
        for index, (source, target) in enumerate(zip((stem, *stages), stages, strict=False)):
            pair: list[nn.Module] = []
            for width in (source, target):
                pair += [nn.Conv2d(width, target, 3, padding=1, bias=False), nn.BatchNorm2d(target), nn.ReLU()]
            blocks += [*([nn.AvgPool2d(2)] if index else []), nn.Sequential(*pair)]
        self.stages = nn.Sequential(*blocks)
        self.frame = nn.Sequential(nn.Conv1d(2 * stages[-1], dim, 1), nn.ReLU())
        self.smooth = nn.Conv1d(dim, dim, 3, padding=1, groups=dim)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(2 * dim, dim), nn.ReLU(), nn.Dropout(0.2))
        self.context = nn.Conv1d(dim, dim, 3, padding=1)
        nn.init.zeros_(self.context.weight)
        nn.init.zeros_(self.context.bias)  # type: ignore[arg-type]
        self.output = nn.Linear(dim, dim)

    def forward(self, log_mels: Tensor, clip_seconds: float = 1.0) -> Tensor:
        """Encode `(batch, mels, 64 * seconds)` log-mels to unit vectors `(batch, clips, dim)`, a clip for each `clip_seconds`."""
        return normalize(self.output(self.hidden(log_mels, clip_seconds)).float(), dim=-1)

    def hidden(self, log_mels: Tensor, clip_seconds: float = 1.0) -> Tensor:
        """Encode log-mels likewise to the states before the joint space; a clip of any hop is seen with the second around its middle."""
        # Loudness of the last second and a half or so is taken away: a far dog is a dog.
        level = avg_pool1d(log_mels.mean(dim=1, keepdim=True), 97, stride=1, padding=48, count_include_pad=False)
        x = ((log_mels - level).unsqueeze(1) + self.band_bias).contiguous(memory_format=torch.channels_last)
        x = self.stages(self.stem(x))
        x = torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1)
        x = self.frame(x)
        x = x + self.smooth(x)
        second = x.shape[2] * FRAMES_PER_CLIP // log_mels.shape[-1]
        hop = round(second * clip_seconds)
        clips = pad(x, ((second - hop) // 2,) * 2, mode="replicate").unfold(2, second, hop)
        hidden: Tensor = self.head(torch.cat([clips.mean(dim=-1), clips.amax(dim=-1)], dim=1).transpose(1, 2))
        apart = second // hop  # the neighbours are those a second away
        mixed = conv1d(hidden.transpose(1, 2), self.context.weight, self.context.bias, padding=apart, dilation=apart)
        return hidden + mixed.transpose(1, 2)


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


def audible_clips(power: Tensor, clip_seconds: float = 1.0) -> Tensor:
    """Return `(clips,)` bool of mel power `(mels, 64 * seconds)`: False where what is seen of a clip is silent, see `SILENT_DB`."""
    # The outermost frames reach into the neighbouring seconds.
    seen = at_hop(lambda part: part.reshape(NUM_MELS, -1, FRAMES_PER_CLIP)[:, :, 2:-2].mean(dim=(0, 2)), power, clip_seconds)
    level_db = 10 * torch.log10(seen + 1e-12)
    return (level_db > SILENT_DB) | (level_db > level_db.max() - SILENT_BELOW_LOUDEST_DB)


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
    """Token ids to token states, a sentence vector in the teacher's space (`sentence_dim`), and a joint vector in the audio's (`dim`).

    Source: architecture ours; teacher all-MiniLM-L6-v2 (https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2).
    """

    def __init__(self, vocab_size: int = 30522, dim: int = 256, sentence_dim: int = 384, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 128)
        self.input = nn.Linear(128, dim)
        self.position = nn.Parameter(torch.randn(MAX_TOKENS, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, dropout, activation="gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.sentence = nn.Linear(dim, sentence_dim)
        self.joint = nn.Linear(sentence_dim, dim, bias=False)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn ids and mask `(batch, tokens <= MAX_TOKENS)` into states `(batch, tokens, dim)` and unit vectors `(batch, sentence_dim)`."""
        x = self.input(self.embedding(ids)) + self.position[: ids.shape[1]]
        x = self.norm(self.layers(x, src_key_padding_mask=~mask))
        weights = mask.unsqueeze(-1).to(x.dtype)
        mean = (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return x, normalize(self.sentence(mean), dim=-1)

    def to_joint(self, sentence: Tensor) -> Tensor:
        """Map teacher-space sentence vectors `(…, sentence_dim)` to unit vectors `(…, dim)` in the audio's space."""
        return normalize(self.joint(sentence), dim=-1)


def unpack_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo the packing of stored weights (`recipes.pocket.text.pack_state`), up to rounding; everything float32."""
    unpacked = {name: value.float() for name, value in state.items()}
    if "embedding.scale" in unpacked:
        unpacked["embedding.weight"] = unpacked["embedding.weight"] * unpacked.pop("embedding.scale")
    return unpacked


@stream("pocket", dim=256, rate_hz=SAMPLE_RATE_HZ, label="pocket")
class Pocket(AudioStream, TextStream):
    """`(clips, 256)` unit vectors in the joint space, zero for silent clips; `(tokens, 256)` states and the pooled joint vector."""

    listener, hops_seconds = MelFrontEnd, (1.0, 0.5)

    def __init__(self, folder: Path, options: EncoderOptions) -> None:
        super().__init__(folder, options)  # the weights are the shipped ones, whatever these say
        from safetensors.torch import load_file

        folder = CHECKPOINT_DIR / POCKET_CHECKPOINT
        files = [folder / name for name in ("audio.safetensors", "text.safetensors", "tokenizer.json")]
        audio, text = PocketAudioModel(), PocketTextModel()
        try:
            audio.load_state_dict(load_file(files[0]))  # stored in half precision
            text.load_state_dict(unpack_state(load_file(files[1])))
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
        return KnownSounds.beside(self._folder)

    def features(self, kept: Tensor) -> Generator[Step, None, Tensor]:
        """Encode mel power `(mels, 64 * seconds)` in sections, so that memory stays bounded; they overlap to agree at the seams."""
        seconds, hop = kept.shape[-1] // FRAMES_PER_CLIP, self.options.clip_seconds
        rows = []
        for begin in range(0, seconds, _SECTION_SECONDS):
            yield Step(self.name, begin / seconds)
            end = min(begin + _SECTION_SECONDS, seconds)
            first, last = max(begin - _SECTION_MARGIN_SECONDS, 0), min(end + _SECTION_MARGIN_SECONDS, seconds)
            with torch.inference_mode():
                section = kept[:, first * FRAMES_PER_CLIP : last * FRAMES_PER_CLIP]
                encoded = self.audio_model(log_mel(section).unsqueeze(0), hop)[0]
                rows.append(encoded[round((begin - first) / hop) : round((end - first) / hop)])
        return torch.cat(rows) * audible_clips(kept, hop)[:, None]

    @torch.inference_mode()
    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query; see `TextStream`."""
        ids, offsets = self._tokenizer.encode(query)
        batch = torch.tensor([ids])
        tokens, sentence = self.text_model(batch, torch.ones_like(batch, dtype=torch.bool))
        return TextFeatures(tokens[0].float().clone(), offsets, self.text_model.to_joint(sentence)[0].float().clone())


@stream("mel_stats", dim=MEL_STATS_DIM, rate_hz=SAMPLE_RATE_HZ, label="mel statistics", raw_scale=True)
class MelStats(AudioStream):
    """The handcrafted stream; see `mel_stats`. At any hop each clip is described by the second around its middle."""

    fingerprint = "mel_stats-1"
    listener, hops_seconds = MelFrontEnd, (1.0, 0.5)

    def features(self, kept: Tensor) -> Generator[Step, None, Tensor]:
        """Describe mel power `(mels, 64 * seconds)`."""
        yield Step(self.name, 0.0)
        return at_hop(mel_stats, kept, self.options.clip_seconds)
