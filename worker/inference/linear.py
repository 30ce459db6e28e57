"""Linear layers whose weights lie in oneDNN's own order, into which torch would bring them at every call."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

SMALL = 1 << 18  # numbers in an fp32 weight below which torch's own order is as quick


class Linear(nn.Module):
    """A linear layer, with an activation behind it or a residual added to it."""

    _weight: torch.Tensor
    _bias: torch.Tensor | None
    _packed: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: nn.Module | None = None) -> None:
        super().__init__()
        packed, self._attribute = None, "none"
        if _worth_packing(weight):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
            self._attribute = _attribute(activation)
            if self._attribute != "none":
                activation = None
            weight = weight.new_empty(0)  # the packed one is enough
        self._activation = activation
        self.register_buffer("_weight", weight.detach())
        self.register_buffer("_bias", None if bias is None else bias.detach())
        self.register_buffer("_packed", packed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed is None:
            y: torch.Tensor = functional.linear(x, self._weight, self._bias)
        else:
            y = _pointwise()(x, self._packed, self._bias, self._attribute)
        return y if self._activation is None else self._activation(y)

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The residual and the layer's output, in a tensor of its own."""
        if self._packed is None:
            return functional.linear(x, self._weight, self._bias).add_(residual)
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._packed, self._bias, "add")
        return y


def _worth_packing(weight: torch.Tensor) -> bool:
    """Whether oneDNN is there, also in a torch built without it or of another release, and gains by its own order."""
    here = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if not here or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32 and weight.numel() >= SMALL


def _attribute(activation: nn.Module | None) -> str:
    """oneDNN's name of an activation; ``none`` if it has it not."""
    if type(activation) is nn.SiLU:
        return "swish"
    return "gelu" if type(activation) is nn.GELU and activation.approximate == "none" else "none"


@cache
def _pointwise() -> Any:
    """oneDNN's linear layer. A trace takes the operation's empty list only within a compiled function."""
    source = """
def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor], activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
"""
    return torch.jit.CompilationUnit(source).linear
