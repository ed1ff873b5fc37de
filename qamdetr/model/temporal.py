"""The Transformer temporal encoder of the baseline; the BiMamba encoder lives in `bimamba.py`."""

from __future__ import annotations

from torch import Tensor, nn

from qamdetr.model.layers import AttentionBlock, xavier_init


class TransformerEncoder(nn.Module):
    """Stacked post-norm self-attention blocks with PReLU.

    Source: the official baseline (QD-DETR's encoder).
    """

    def __init__(self, dim: int, num_layers: int, *, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AttentionBlock(dim, num_heads, ffn_dim, dropout) for _ in range(num_layers))
        xavier_init(self)

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Encode `x` `(batch, clips, dim)` with `mask` `(batch, clips)` bool and `positions` shaped like `x`; same shape out."""
        for layer in self.layers:
            x = layer(x, x, mask, x_positions=positions, source_positions=positions)
        return x
