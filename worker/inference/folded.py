"""What a tower multiplies and adds by constants is folded into its weights, before those are rounded."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clip_queue.worker.inference.libraries import Bottleneck, ModifiedResNet, QuickGELU, ResidualAttentionBlock

QUICK = 1.702  # QuickGELU is x · sigmoid(1.702 x)


def fold(model: nn.Module) -> None:
    """Fold a model's constants: its features are the same but for rounding."""
    for part in list(model.modules()):
        if isinstance(part, ResidualAttentionBlock) and type(part.mlp.gelu) is QuickGELU:
            _fold_quick_gelu(part.mlp)
        elif isinstance(part, ModifiedResNet | Bottleneck):
            _fold_batch_norms(part)


def _fold_quick_gelu(mlp: Any) -> None:
    """QuickGELU is silu(1.702 x) / 1.702, one operation for three once the factors are in the layers around."""
    for parameter in mlp.c_fc.parameters():
        parameter.mul_(QUICK)
    mlp.c_proj.weight.div_(QUICK)
    mlp.gelu = nn.SiLU()


def _fold_batch_norms(part: Any) -> None:
    for number in "123":
        norm = getattr(part, f"bn{number}")
        if type(norm) is nn.BatchNorm2d:
            setattr(part, f"conv{number}", fuse_conv_bn_eval(getattr(part, f"conv{number}"), norm))
            setattr(part, f"bn{number}", nn.Identity())
    down = getattr(part, "downsample", None)
    if down is not None and type(down[2]) is nn.BatchNorm2d:
        down[1], down[2] = fuse_conv_bn_eval(down[1], down[2]), nn.Identity()
