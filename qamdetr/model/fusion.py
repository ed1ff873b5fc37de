"""Cross-modal fusion of audio and text before the temporal encoder (report, section 2.1)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from qamdetr.model.layers import AttentionBlock, xavier_init


class ThreeWayFusion(nn.Module):
    """Three cross-attention blocks: audio <- text; text <- audio; audio <- the refined text.

    Source: report, section 2.1, after CAD (Nadeem et al., WACV 2024). The report leaves open which audio refines the text: here it is
    the audio that has already seen the query, so that information goes forward through all three blocks.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float, norm: Literal["post", "pre"]) -> None:
        super().__init__()
        self.audio_from_text = AttentionBlock(dim, num_heads, ffn_dim, dropout, norm)
        self.text_from_audio = AttentionBlock(dim, num_heads, ffn_dim, dropout, norm)
        self.audio_from_refined = AttentionBlock(dim, num_heads, ffn_dim, dropout, norm)
        # Post-norm blocks end with a norm; pre-norm blocks leave a residual stream of any size.
        self.norm_audio = nn.LayerNorm(dim) if norm == "pre" else nn.Identity()
        self.norm_text = nn.LayerNorm(dim) if norm == "pre" else nn.Identity()
        xavier_init(self)

    def forward(
        self, audio: Tensor, text: Tensor, audio_mask: Tensor, text_mask: Tensor, positions: Tensor, *, bypass: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            audio: `(batch, clips, dim)`.
            text: `(batch, tokens, dim)`.
            audio_mask: `(batch, clips)` bool.
            text_mask: `(batch, tokens)` bool.
            positions: `(batch, clips, dim)` of the clips; tokens have none, their encoder has placed them already.
            bypass: Leave out the second and third block; the first stays, or the audio would never meet the query.

        Returns:
            Audio `(batch, clips, dim)` and refined text `(batch, tokens, dim)`.
        """
        audio = self.audio_from_text(audio, text, text_mask, x_positions=positions)
        if bypass:
            return self.norm_audio(audio), self.norm_text(text)
        text = self.norm_text(self.text_from_audio(text, audio, audio_mask, source_positions=positions))
        audio = self.audio_from_refined(audio, text, text_mask, x_positions=positions)
        return self.norm_audio(audio), text


class TextToAudioFusion(nn.Module):
    """The baseline's fusion: stacked layers in which the audio looks at the unchanged text.

    Source: QD-DETR's text-to-video cross-attention layers.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float, norm: Literal["post", "pre"], num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AttentionBlock(dim, num_heads, ffn_dim, dropout, norm) for _ in range(num_layers))
        self.norm_audio = nn.LayerNorm(dim) if norm == "pre" else nn.Identity()
        xavier_init(self)

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        audio_mask: Tensor,
        text_mask: Tensor,
        positions: Tensor,
        *,
        bypass: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Fuse, with the arguments of `ThreeWayFusion.forward`; the text comes back as it was."""
        for layer in self.layers:
            audio = layer(audio, text, text_mask, x_positions=positions)
        return self.norm_audio(audio), text
