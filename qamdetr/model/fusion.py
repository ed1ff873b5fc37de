"""Cross-modal fusion of audio and text before the temporal encoder (report, section 2.1)."""

from __future__ import annotations

from torch import Tensor, nn

from qamdetr.model.layers import AttentionBlock, xavier_init


class ThreeWayFusion(nn.Module):
    """Three cross-attention blocks: audio <- text; text <- audio; audio <- the refined text.

    Source: report, section 2.1, after CAD (Nadeem et al., WACV 2024). The report leaves open which audio refines the text: here it is
    the audio that has already seen the query, so that information goes forward through all three blocks.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.audio_from_text = AttentionBlock(dim, num_heads, ffn_dim, dropout)
        self.text_from_audio = AttentionBlock(dim, num_heads, ffn_dim, dropout)
        self.audio_from_refined = AttentionBlock(dim, num_heads, ffn_dim, dropout)
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
            return audio, text
        text = self.text_from_audio(text, audio, audio_mask, source_positions=positions)
        return self.audio_from_refined(audio, text, text_mask, x_positions=positions), text


class TextToAudioFusion(nn.Module):
    """The baseline's fusion: stacked layers in which the audio looks at the unchanged text.

    Source: QD-DETR's text-to-video cross-attention layers.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AttentionBlock(dim, num_heads, ffn_dim, dropout) for _ in range(num_layers))
        xavier_init(self)

    def forward(
        self, audio: Tensor, text: Tensor, audio_mask: Tensor, text_mask: Tensor, positions: Tensor, *, bypass: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Fuse, with the arguments of `ThreeWayFusion.forward`; the text comes back as it was."""
        for layer in self.layers:
            audio = layer(audio, text, text_mask, x_positions=positions)
        return audio, text
