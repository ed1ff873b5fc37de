"""PE-A-Frame, trained to say when a sound is heard: a vector for every 40 ms, and one for the query in the same space."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from qamdetr.features.base import AudioStream, EncoderOptions, Step, TextStream, stream, weights_fingerprint
from qamdetr.features.hub import TOKENIZER, WEIGHTS, Hub, HubTokenizer, load_network, network_settings
from qamdetr.types import TextFeatures

SAMPLE_RATE_HZ = 48_000
PIECE_SECONDS, MARGIN_SECONDS = 20, 5  # encoded at once, and heard beside it on either side: bounds memory

_HUB = Hub("facebook/pe-a-frame-small", "main", 1800, (), (("config.json",), TOKENIZER, WEIGHTS))


@stream("pe_a_frame", dim=1024, rate_hz=SAMPLE_RATE_HZ, hub=_HUB, label="PE-A-Frame")
class PeAFrame(AudioStream, TextStream):
    """PE-A-Frame: the small model, or `facebook/pe-a-frame-base` or `-large` in its place.

    A clip is the mean of the unit vectors of the frames whose middles lie in it; of a query, the states of its tokens and the joint vector.

    Source: Transformers' `PeAudioFrameLevelModel` and `PeAudioFeatureExtractor`. Deliberate difference: recordings longer than half a
    minute are encoded in pieces that overlap, not at once.
    """

    is_joint = True

    def __init__(self, folder: Path, options: EncoderOptions) -> None:
        super().__init__(folder, options)
        from transformers import PeAudioFrameLevelModel

        model = load_network(self.name, PeAudioFrameLevelModel, folder)
        text, audio = model.config.text_config, model.config.audio_config
        text.output_hidden_states = True
        self._tokenizer = HubTokenizer(folder, self.name, max_tokens=text.max_position_embeddings, vocab_size=text.vocab_size)
        settings = (network_settings(text), network_settings(audio), network_settings(audio.dac_config))
        self.fingerprint = weights_fingerprint("pe_a_frame-1", model.state_dict(), str(options.dtype), self._tokenizer.probe, *settings)
        self.frame_samples = int(audio.dac_config.hop_length)
        self.model = model.to(options.device, options.dtype)
        self.dim, self.text_dim = int(model.audio_head.proj.out_features), int(text.hidden_size)

    def listener(self) -> PieceListener:
        """Return what encodes a recording while it is read."""
        return PieceListener(self)

    @torch.inference_mode()
    def encode_frames(self, samples: np.ndarray) -> Tensor:
        """Encode mono `samples` `(frames * frame_samples,)` to unit vectors `(frames, dim)` float32 on the CPU."""
        values = torch.from_numpy(samples).to(self.options.device, self.options.dtype)
        return normalize(self.model.get_audio_embeds(values[None, None])[0].float(), dim=-1).cpu()

    def features(self, kept: Tensor) -> Generator[Step, None, Tensor]:
        """Average the frames `(frames, dim)` of each clip."""
        yield Step(self.name, 1.0)
        hop_samples = round(self.options.clip_seconds * SAMPLE_RATE_HZ)
        clip_of = (2 * torch.arange(len(kept)) + 1) * self.frame_samples // (2 * hop_samples)
        sums = torch.zeros(int(clip_of[-1]) + 1, kept.shape[1]).index_add(0, clip_of, kept)
        return sums / torch.bincount(clip_of)[:, None]

    @torch.inference_mode()
    def encode_text(self, query: str) -> TextFeatures:
        """Encode one query; see `TextStream`."""
        features, output = self._tokenizer.states(self.model.text_model, query)
        joint = self.model.text_audio_head(output.hidden_states[-1][:, 0])[0]
        return replace(features, pooled=normalize(joint.float(), dim=-1).cpu().clone())


class PieceListener:
    """Encodes a recording in overlapping pieces while it is read, so that never more than one piece is held."""

    rate_hz = SAMPLE_RATE_HZ

    def __init__(self, encoder: PeAFrame) -> None:
        self._encoder, self._frame = encoder, encoder.frame_samples
        self._piece, self._beside = (seconds * SAMPLE_RATE_HZ // self._frame for seconds in (PIECE_SECONDS, MARGIN_SECONDS))
        self.begin()

    def begin(self) -> None:
        """Forget what was heard."""
        self._held = np.zeros(0, dtype=np.float32)
        self._done = 0  # frames at the front of what is held whose vectors are there; they are heard beside the next
        self._rows: list[Tensor] = []

    def feed(self, samples: np.ndarray) -> None:
        """Take the next samples `(n,)`; a piece runs once all that is heard beside it is there."""
        self._held = np.concatenate([self._held, samples])
        while len(self._held) >= (frames := self._done + self._piece + self._beside) * self._frame:
            encoded = self._encoder.encode_frames(self._held[: frames * self._frame])
            self._rows.append(encoded[self._done : self._done + self._piece])
            surplus = self._done + self._piece - self._beside
            self._held, self._done = self._held[surplus * self._frame :], self._beside

    def finish(self) -> Tensor:
        """Return `(frames, dim)`; the last frame is filled up with its reflection."""
        rest = -len(self._held) % self._frame
        held = np.pad(self._held, (0, rest), "reflect" if len(self._held) > 1 else "edge")
        return torch.cat([*self._rows, self._encoder.encode_frames(held)[self._done :]])
