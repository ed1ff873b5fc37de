"""QAM-DETR: streams -> fusion -> temporal encoder -> multi-scale context -> decoder -> heads (report, Fig. 1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from qamdetr.config import ModelConfig, switches
from qamdetr.errors import ConfigError
from qamdetr.model.affinity import AffinityProjection, affinities
from qamdetr.model.decoder import MomentDecoder, MomentHeads, SaliencyHead
from qamdetr.model.dense import DenseDecoder
from qamdetr.model.encoder import BiMambaEncoder, TransformerEncoder
from qamdetr.model.fusion import TextToAudioFusion, ThreeWayFusion
from qamdetr.model.layers import clip_positions
from qamdetr.model.multiscale import MultiScaleFusion
from qamdetr.model.streams import GatedStreams
from qamdetr.types import TEF_DIM, Batch, DecoderOutput, ModelOutput


class QamDetr(nn.Module):
    """The whole network; every component is a switch of `ModelConfig`, and the six rows of the report's Table 1 are six of them.

    An item gives the same output alone and in a padded batch (in `eval()`): nothing looks at padded clips or tokens.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build the network with fresh weights.

        Raises:
            ConfigError: A value of `config` that the network cannot be built with.
        """
        super().__init__()
        check_config(config)
        self.config = config
        dim, dropout = config.dim, config.dropout
        self.main_audio = next(iter(config.audio_streams))
        audio_widths = {name: width + (TEF_DIM if name == self.main_audio else 0) for name, width in config.audio_streams.items()}
        self.audio = GatedStreams("audio", audio_widths, dim, config.input_dropout)
        self.text = GatedStreams("text", config.text_streams, dim, config.input_dropout)
        # The similarity has a projection of its own, added after the stream's: as one more column it would stand among unit-norm
        # features behind a LayerNorm, and input dropout would zero it half of the time.
        self.similarity = nn.Linear(1, dim) if config.similarity and not config.affinity else None
        self.affinity = AffinityProjection(dim, dropout) if config.affinity else None
        attention = (dim, config.num_heads, config.ffn_dim, dropout)
        self.fusion: ThreeWayFusion | TextToAudioFusion = (
            ThreeWayFusion(*attention) if config.fusion == "three_way" else TextToAudioFusion(*attention, config.fusion_layers)
        )
        self.encoder: BiMambaEncoder | TransformerEncoder
        if config.encoder == "bimamba":
            self.encoder = BiMambaEncoder(
                dim, config.encoder_layers, state=config.mamba_state, conv=config.mamba_conv, expand=config.mamba_expand, dropout=dropout
            )
        else:
            self.encoder = TransformerEncoder(
                dim, config.encoder_layers, num_heads=config.num_heads, ffn_dim=config.ffn_dim, dropout=dropout
            )
        self.global_token = nn.Parameter(torch.randn(dim)) if config.global_token else None
        # Only attention adds positions; a recurrent encoder knows its place from the order.
        needs_position = config.global_token and config.encoder == "transformer"
        self.global_position = nn.Parameter(torch.randn(dim)) if needs_position else None
        self.multiscale = MultiScaleFusion(dim, config.multiscale_strides, dropout) if config.multiscale else None
        self.decoder: MomentDecoder | DenseDecoder
        if config.decoder == "dense":
            self.decoder = DenseDecoder(dim, config.decoder_strides, dropout, quality=config.quality)
        else:
            self.decoder = MomentDecoder(*attention, num_layers=config.decoder_layers, num_moment_queries=config.num_moment_queries)
            self.heads = MomentHeads(dim, quality=config.quality)
        self.saliency = SaliencyHead(dim)

    @property
    def bypassable(self) -> frozenset[str]:
        """Names that `forward` takes as `bypass`, for this configuration."""
        names = {f"audio/{name}" for name in self.audio.auxiliary} | {f"text/{name}" for name in self.text.auxiliary}
        names |= {name for name, switch in switches().items() if switch.bypassable and switch.is_on(self.config)}
        return frozenset(names)

    def forward(self, batch: Batch, negative_index: Tensor | None = None, bypass: Collection[str] = ()) -> ModelOutput:
        """Predict moments and saliency.

        Args:
            batch: Audio `(batch, clips, dim_s)` and text `(batch, tokens, dim_s)` by stream, with masks; each item has at least one
                valid clip and token. Audio of batch 1 is that of all texts: what does not depend on the text is then computed once.
            negative_index: `(batch,)` int64, the item whose text does not describe this item's audio, -1 for none. Such pairs run
                through the encoder for `negative_saliency` (one row per index >= 0, in order), and through a dense decoder alone.
            bypass: Residual components to leave out of a model that was trained with them: `three_way` (its second and third block),
                `multiscale`, `quality`, `audio/<stream>`, `text/<stream>`.

        Raises:
            ConfigError: A name in `bypass` that this model does not have, or a batch made for another model.
        """
        self._check_bypass(bypass)
        audio = self.audio(self._own_columns(batch.audio), bypass)
        text = self.text(batch.text, bypass)
        audio_mask, text_mask = batch.audio_mask, batch.text_mask
        positions = clip_positions(audio_mask, self.config.dim)
        num_items = text.shape[0]
        if audio.shape[0] != num_items:
            audio, audio_mask = audio.expand(num_items, -1, -1), audio_mask.expand(num_items, -1)
        audio_rows, text_rows = _pair_rows(num_items, negative_index)
        if self.similarity is not None or self.affinity is not None:
            column = self._joint_columns(batch, audio_rows, text_rows)
            audio = column + (audio if audio_rows is None else audio[audio_rows])
        elif audio_rows is not None:
            audio = audio[audio_rows]
        if audio_rows is not None:
            # True pairs and negative pairs share one pass through fusion and encoder.
            text, text_mask = text[text_rows], text_mask[text_rows]
            audio_mask, positions = audio_mask[audio_rows], positions.expand(num_items, -1, -1)[audio_rows]

        memory, query = self._encode(audio, text, audio_mask, text_mask, positions, bypass)
        saliency = self.saliency(memory, query, audio_mask)
        *auxiliary, last = self._decode(memory[:num_items], audio_mask[:num_items], positions[:num_items], bypass)
        negative = None
        if audio_rows is not None and isinstance(self.decoder, DenseDecoder):
            negative = self.decoder(memory[num_items:], audio_mask[num_items:])
        return ModelOutput(
            decoder=last,
            auxiliary=tuple(auxiliary),
            saliency=saliency[:num_items],
            negative_saliency=None if audio_rows is None else saliency[num_items:],
            negative_mask=None if audio_rows is None else audio_mask[num_items:],
            negative_decoder=negative,
            gates={**self.audio.gates(), **self.text.gates()},
        )

    def _encode(
        self, audio: Tensor, text: Tensor, audio_mask: Tensor, text_mask: Tensor, positions: Tensor, bypass: Collection[str]
    ) -> tuple[Tensor, Tensor]:
        """Fuse and encode: memory `(pairs, clips, dim)` and the query's representation `(pairs, dim)`."""
        audio, text = self.fusion(audio, text, audio_mask, text_mask, positions, bypass="three_way" in bypass)
        sequence, mask = audio, audio_mask
        if self.global_token is not None:
            sequence = torch.cat([self.global_token.expand(audio.shape[0], 1, -1), audio], dim=1)
            mask = torch.cat([audio_mask.new_ones(audio.shape[0], 1), audio_mask], dim=1)
        if isinstance(self.encoder, TransformerEncoder):
            if self.global_position is not None:
                positions = torch.cat([self.global_position.expand(positions.shape[0], 1, -1), positions], dim=1)
            memory = self.encoder(sequence, mask, positions)
        else:
            memory = self.encoder(sequence, mask)
        if self.global_token is not None:
            query, memory = memory[:, 0], memory[:, 1:]
        else:
            weight = text_mask[..., None].to(text.dtype)
            query = (text * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
        if self.multiscale is not None and "multiscale" not in bypass:
            memory = self.multiscale(memory, audio_mask)
        return memory, query

    def _decode(self, memory: Tensor, mask: Tensor, positions: Tensor, bypass: Collection[str]) -> list[DecoderOutput]:
        """Find moments in the memory of the true pairs; one output per layer of the decoder."""
        bypass_quality = "quality" in bypass
        if isinstance(self.decoder, DenseDecoder):
            return [self.decoder(memory, mask, bypass_quality=bypass_quality)]
        decoded = self.decoder(memory, mask, positions)
        return [self.heads(content, anchors, bypass_quality=bypass_quality) for content, anchors in decoded]

    def _own_columns(self, audio: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Keep of a main stream of width 0 the tef alone: nothing may depend on the axes of its space."""
        return audio if self.config.audio_streams[self.main_audio] else {**audio, self.main_audio: audio[self.main_audio][..., -TEF_DIM:]}

    def _joint_columns(self, batch: Batch, audio_rows: Tensor | None, text_rows: Tensor | None) -> Tensor:
        """Project what each clip has to do with its pair's query in the joint space: `(pairs, clips, dim)`."""
        clips, mask, pooled = batch.audio[self.main_audio][..., :-TEF_DIM], batch.audio_mask, batch.text_pooled
        switch = "model.similarity" if self.affinity is None else "model.affinity"
        if pooled is None:
            raise ConfigError(
                f"{switch} is on but the encoder gives no pooled query in the audio's space",
                f"set {switch}=false or use a combo with a joint space, such as pocket",
            )
        if pooled.shape[-1] != clips.shape[-1]:
            raise ConfigError(
                f"{switch} is on but pooled queries have {pooled.shape[-1]} columns and clips of {self.main_audio!r} have "
                f"{clips.shape[-1]}",
                f"set {switch}=false"
                if self.affinity is None
                else "extract again: these clips lie in no joint space, such as MS-CLAP's public files, from before its projection",
            )
        if audio_rows is not None:
            clips, mask, pooled = clips.expand(len(pooled), -1, -1)[audio_rows], mask.expand(len(pooled), -1)[audio_rows], pooled[text_rows]
        if self.similarity is not None:
            columns: Tensor = self.similarity(torch.einsum("btd,bd->bt", clips, pooled)[..., None])
            return columns
        if batch.bank is None:
            raise ConfigError("model.affinity is on but there is no bank of sentences", "use a combo open:STREAM, such as open:pocket")
        assert self.affinity is not None
        seen = affinities(clips, pooled, batch.bank, mask, steps_per_second=round(1 / self.config.clip_seconds))
        projected: Tensor = self.affinity(seen)
        return projected

    def _check_bypass(self, bypass: Collection[str]) -> None:
        unknown = sorted(set(bypass) - self.bypassable)
        if unknown:
            known = ", ".join(sorted(self.bypassable)) or "nothing"
            raise ConfigError(f"This model cannot bypass {unknown[0]!r}", f"it can bypass {known}")


def check_config(config: ModelConfig) -> None:
    """Refuse a configuration that no network can be built from.

    Raises:
        ConfigError: Names the key, its value and what it must be.
    """
    # Anchors embed two numbers, each as sines and cosines.
    if config.dim % 4 or config.dim % config.num_heads:
        raise ConfigError(f"model.dim is {config.dim}", f"it must be a multiple of 4 and of model.num_heads ({config.num_heads})")
    empty = [name for name, width in [*config.audio_streams.items(), *config.text_streams.items()] if width == 0]
    if empty and (empty != [next(iter(config.audio_streams))] or not config.affinity):
        remedy = "give it 1 or more columns; the main audio stream alone may have none, with model.affinity=true"
        raise ConfigError(f"The width of stream {empty[0]!r} is 0", remedy)
    if config.multiscale and (not config.multiscale_strides or min(config.multiscale_strides) < 2):
        raise ConfigError(
            f"model.multiscale_strides is {list(config.multiscale_strides)}", "give strides of 2 or more, or set model.multiscale=false"
        )
    if config.decoder == "dense" and list(config.decoder_strides) != (sorted({*config.decoder_strides}) or [1]):
        raise ConfigError(f"model.decoder_strides is {list(config.decoder_strides)}", "give one or more strides, each larger than the last")


def _pair_rows(num_items: int, negative_index: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Rows of audio and of text for all pairs: the items themselves, then the negatives; None where there are no negatives."""
    if negative_index is None:
        return None, None
    rows = (negative_index >= 0).nonzero().squeeze(1)
    if rows.numel() == 0:
        return None, None
    items = torch.arange(num_items, device=negative_index.device)
    return torch.cat([items, rows]), torch.cat([items, negative_index[rows]])
