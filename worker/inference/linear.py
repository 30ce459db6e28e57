"""Linear layers whose weights lie in the order in which they are multiplied fastest.

For most that is oneDNN's own order, into which torch would bring them at every call. At fp32 on a CPU without AVX-512
MKL is quicker from some hundred rows on, with weights transposed: by a fifth in a batch of 16 images of ViT-B/32, while
for one image oneDNN is. There a layer that has few rows as well as many has its weights in both orders. On the first
AMD Zen, which computes AVX2 in halves, oneDNN is quicker with any number of rows. What is chosen depends on the kind of
CPU and not on a measurement, which might come out differently in two workers and give a dataset two kinds of digits.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

SMALL = 1 << 18  # numbers in an fp32 weight below which torch's own order is as quick
FEW = 96  # rows up to which oneDNN's order is quicker than MKL's, of one thread and of two


class Linear(nn.Module):
    """A linear layer, with an activation behind it or a residual added to it.

    Args:
        least: the fewest rows that it is computed for.
    """

    _weight: torch.Tensor
    _bias: torch.Tensor | None
    _packed: torch.Tensor | None

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, activation: nn.Module | None = None, least: int = 1
    ) -> None:
        super().__init__()
        weight, packed = weight.detach(), None
        self._attribute = "none"
        transposed = _worth_transposing(weight)
        if _worth_packing(weight) and not (transposed and least > FEW):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
            self._attribute = "none" if transposed else _attribute(activation)
            if self._attribute != "none":
                activation = None
        if transposed:
            weight = weight.t().contiguous().t()  # the same matrix: only how it lies in memory
        elif packed is not None:
            weight = weight.new_empty(0)  # the packed one is enough
        self._activation = activation
        self.register_buffer("_weight", weight)
        self.register_buffer("_bias", None if bias is None else bias.detach())
        self.register_buffer("_packed", packed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed is None:
            y: torch.Tensor = functional.linear(x, self._weight, self._bias)
        else:
            y = _scripted().linear(x, self._weight, self._packed, self._bias, self._attribute)
        return y if self._activation is None else self._activation(y)

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The residual and the layer's output, in a tensor of its own."""
        if self._packed is None:
            return functional.linear(x, self._weight, self._bias).add_(residual)
        y: torch.Tensor = _scripted().added(x, residual, self._weight, self._packed, self._bias)
        return y


def _worth_packing(weight: torch.Tensor) -> bool:
    """Whether oneDNN is there, also in a torch built without it or of another release, and gains by its own order."""
    here = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if not here or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32 and weight.numel() >= SMALL


def _worth_transposing(weight: torch.Tensor) -> bool:
    """Whether many rows are multiplied faster by MKL."""
    large = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= SMALL
    if not large or not torch.backends.mkl.is_available() or torch.cpu.get_capabilities().get("avx512_f"):
        return False
    return not _computes_halves()


@cache
def _computes_halves(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU is a first Zen: an AMD of family 23 before model 48, or a Hygon. False where nobody can tell."""
    try:
        said = dict(re.findall(r"^(vendor_id|cpu family|model)\s*:\s*(\S+)$", cpuinfo.read_text(), re.MULTILINE))
        vendor, family, model = said["vendor_id"], int(said["cpu family"]), int(said["model"])
    except (OSError, KeyError, ValueError):
        return False
    return (vendor == "AuthenticAMD" and family == 23 and model < 48) or vendor == "HygonGenuine"


def _attribute(activation: nn.Module | None) -> str:
    """oneDNN's name of an activation; ``none`` if it has it not."""
    if type(activation) is nn.SiLU:
        return "swish"
    return "gelu" if type(activation) is nn.GELU and activation.approximate == "none" else "none"


@cache
def _scripted() -> Any:
    """The layer and its sum with a residual, of weights in oneDNN's order or, unless empty, also transposed.

    Compiled, since a trace would keep only the order of the rows that it was recorded with, and takes the operation's
    empty list only within a compiled function.
    """
    source = f"""
def linear(x: Tensor, weight: Tensor, packed: Tensor, bias: Optional[Tensor], activation: str) -> Tensor:
    if x.size(0) > {FEW} and weight.numel() > 0:
        return torch.nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")

def added(x: Tensor, residual: Tensor, weight: Tensor, packed: Tensor, bias: Optional[Tensor]) -> Tensor:
    if x.size(0) > {FEW} and weight.numel() > 0:
        return torch.nn.functional.linear(x, weight, bias).add_(residual)
    return torch.ops.mkldnn._linear_pointwise(x, residual, packed, bias, "add")
"""
    return torch.jit.CompilationUnit(source)
