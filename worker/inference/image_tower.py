"""open_clip's image towers with their dear parts replaced by lighter ones of the same arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from clip_queue.worker.inference.blocks import Blocks
from clip_queue.worker.inference.libraries import ModifiedResNet, VisionTransformer
from clip_queue.worker.inference.linear import Linear


def lighten(tower: Any, layer: type[Linear] = Linear) -> None:
    """Replace what can be replaced, in an image tower on its device and at its precision.

    Args:
        layer: the kind of a vision transformer's linear layers.
    """
    if type(tower) is VisionTransformer:
        if tower.attn_pool is None and tower.pool_type == "tok":
            places = len(tower.positional_embedding)
            tower.transformer = Blocks.of(tower.transformer, layer, places) or tower.transformer
        tower.conv1 = Patches.of(tower.conv1, layer) or tower.conv1
    if type(tower) is ModifiedResNet:
        tower.attnpool = AttentionPool(tower.attnpool)


class Patches(nn.Module):
    """In the place of a vision transformer's convolution, whose patches lie side by side: a linear layer does it."""

    @staticmethod
    def of(conv: Any, layer: type[Linear] = Linear) -> Patches | None:
        """None where this is not what the convolution does, or where it is no quicker."""
        plain = (
            type(conv) is nn.Conv2d
            and conv.kernel_size == conv.stride
            and conv.padding == (0, 0)
            and conv.dilation == (1, 1)
            and conv.groups == 1
        )
        return Patches(conv, layer) if plain and conv.weight.device.type == "cpu" else None

    def __init__(self, conv: nn.Conv2d, layer: type[Linear]) -> None:
        super().__init__()
        self._height, self._width = conv.kernel_size
        self._linear = layer(conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels, height, width) as (n, features, height, width), the last two in patches."""
        n, channels = x.shape[:2]
        down, across = x.shape[2] // self._height, x.shape[3] // self._width
        whole = x[:, :, : down * self._height, : across * self._width].permute(0, 2, 3, 1)
        lines = whole.reshape(n, down, self._height, across, self._width * channels)
        patches = lines.transpose(2, 3).reshape(n * down * across, -1)
        features: torch.Tensor = self._linear(patches)
        return features.view(n, down, across, -1).permute(0, 3, 1, 2)


class AttentionPool(nn.Module):
    """In the place of a ResNet's ``AttentionPool2d``, which computes every place and returns the first."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self._heads = pool.num_heads
        self._places = pool.positional_embedding
        self._q = Linear(pool.q_proj.weight, pool.q_proj.bias)
        kv = (pool.k_proj, pool.v_proj)
        self._kv = Linear(torch.cat([part.weight for part in kv]), torch.cat([part.bias for part in kv]))
        self._out = Linear(pool.c_proj.weight, pool.c_proj.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The features (n, dimension) of (n, width, height of the map, width of the map)."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self._places
        n, length, width = x.shape
        q = self._q(x[:, 0]).view(n, self._heads, 1, -1)
        k, v = self._kv(x.reshape(-1, width)).view(n, length, 2, self._heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        features: torch.Tensor = self._out(functional.scaled_dot_product_attention(q, k, v).reshape(n, width))
        return features
