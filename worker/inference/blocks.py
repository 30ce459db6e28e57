"""The transformer of open_clip's towers in fewer and larger operations: the same weights, the same arithmetic.

open_clip calls some forty modules and operations a block; here it is a dozen, and what multiplies also adds the
residual and applies the activation, where it can. Of the last block only the place is computed that the tower pools.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from clip_queue.worker.inference.libraries import LayerNorm, ResidualAttentionBlock
from clip_queue.worker.inference.linear import Linear


class Blocks(nn.Module):
    """In the place of a tower's ``Transformer``: (n, length, width) to (n, 1, width), the place that is pooled."""

    @staticmethod
    def of(transformer: Any, layer: type[Linear] = Linear, least: int = 1) -> Blocks | None:
        """The blocks of a transformer on its device, at its precision; None if they are not all of the plain kind.

        They are taken out of the transformer, so that no more than one has its weights in two orders.

        Args:
            layer: the kind of its linear layers.
            least: the fewest places of an image or a text.
        """
        blocks = list(getattr(transformer, "resblocks", ()))
        if not blocks or not all(map(_plain, blocks)):
            return None
        transformer.resblocks = nn.ModuleList()
        before = [_Block(blocks.pop(0), layer, least, least) for _ in range(len(blocks) - 1)]
        return Blocks(before, _LastBlock(blocks.pop(), layer, least, 1))

    def __init__(self, blocks: list[_Block], last: _LastBlock) -> None:
        super().__init__()
        self._blocks, self._last = nn.ModuleList(blocks), last

    def forward(self, x: torch.Tensor, at: torch.Tensor | None = None) -> torch.Tensor:
        """Compute what (n, length, width) becomes at one place of each row.

        Args:
            at: the places (n,), of a tower whose places see those before them; None: the first place, which sees all.
        """
        n, length, width = x.shape
        flat = x.reshape(n * length, width)
        for block in self._blocks:
            flat = block(flat, n, at is not None)
        pooled: torch.Tensor = self._last(flat, n, at)[:, None]
        return pooled


def _plain(block: Any) -> bool:
    """Whether all that happens in a block is what is done here."""
    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return False
    attention = block.attn
    return bool(
        type(attention) is nn.MultiheadAttention
        and attention.batch_first
        and attention._qkv_same_embed_dim
        and attention.in_proj_bias is not None  # type: ignore[redundant-expr]
        and attention.bias_k is None
        and not attention.add_zero_attn
        and all(type(norm) in (LayerNorm, nn.LayerNorm) for norm in (block.ln_1, block.ln_2))
        and all(type(scale) is nn.Identity for scale in (block.ls_1, block.ls_2))
        and type(block.mlp.c_fc) is type(block.mlp.c_proj) is nn.Linear
    )


class _Block(nn.Module):
    """``least`` is the fewest places of an image or a text before the attention, ``behind`` those behind it."""

    def __init__(self, block: Any, layer: type[Linear], least: int, behind: int) -> None:
        super().__init__()
        attention = block.attn
        self.heads: int = attention.num_heads
        self.norm_1, self.norm_2 = block.ln_1, block.ln_2
        self.out = layer(attention.out_proj.weight, attention.out_proj.bias, None, behind)
        self.up = layer(block.mlp.c_fc.weight, block.mlp.c_fc.bias, block.mlp.gelu, behind)
        self.down = layer(block.mlp.c_proj.weight, block.mlp.c_proj.bias, None, behind)
        self._of_input(attention, layer, least)

    def _of_input(self, attention: nn.MultiheadAttention, layer: type[Linear], least: int) -> None:
        self.qkv = layer(attention.in_proj_weight, attention.in_proj_bias, None, least)

    def forward(self, x: torch.Tensor, n: int, causal: bool) -> torch.Tensor:
        q, k, v = self.split(self.qkv(self.norm_1(x)), n, 3)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.rest(x, seen.transpose(1, 2).reshape(x.shape))

    def split(self, x: torch.Tensor, n: int, parts: int) -> tuple[torch.Tensor, ...]:
        """So many parts, each (n, heads, length, width of a head)."""
        return x.view(n, x.shape[0] // n, parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def rest(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        x = self.out.added_to(x, seen)
        return self.down.added_to(x, self.up(self.norm_2(x)))


class _LastBlock(_Block):
    def _of_input(self, attention: nn.MultiheadAttention, layer: type[Linear], least: int) -> None:
        width = attention.embed_dim
        self.q = layer(attention.in_proj_weight[:width], attention.in_proj_bias[:width])
        self.kv = layer(attention.in_proj_weight[width:], attention.in_proj_bias[width:], None, least)

    def forward(self, x: torch.Tensor, n: int, at: torch.Tensor | None) -> torch.Tensor:  # type: ignore[override]
        length = x.shape[0] // n
        y = self.norm_1(x)
        k, v = self.split(self.kv(y), n, 2)
        pick: torch.Tensor | slice[None, None, int] = slice(None, None, length)
        mask = None
        if at is not None:
            pick = torch.arange(0, n * length, length, device=at.device) + at
            mask = (torch.arange(length, device=at.device) <= at[:, None])[:, None, None]
        (q,) = self.split(self.q(y[pick]), n, 1)
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.rest(x[pick], seen.reshape(n, -1))
