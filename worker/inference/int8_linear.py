"""Linear layers of 8-bit integers: a scale for each row of the weights, a scale and a zero for each row of a batch.

A row's numbers are spread over all steps there are, from its least to its largest, and rounded; 0 stays 0. So a row's
result depends on no other row, and what an item becomes not on whose items share its pass, as it would with one scale
for the whole batch. Sums are exact, within fp32's digits.

How many steps there are is the CPU's (:func:`steps`). With VNNI it is 254, and such numbers are multiplied four times
as fast as fp32. Else it is 180, at twice the speed of fp32: AVX2 adds up pairs of products in 16 bits, which
2 × 180 × 90 does not overflow.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from clip_queue.worker.inference.linear import Linear

LEAST = 1e-30  # scale of a row of zeros
STEPS = (254, 180)


class Int8Linear(Linear):
    """In the place of a :class:`Linear` at fp32; what comes in and out is fp32, (rows, features)."""

    _bias: torch.Tensor
    _scale: torch.Tensor
    _sums: torch.Tensor
    _zeros: torch.Tensor

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        activation: nn.Module | None = None,
        least: int = 1,  # noqa: ARG002 - integers have one order
    ) -> None:
        nn.Module.__init__(self)
        self._steps = steps()
        scale = weight.detach().abs().amax(dim=1).div(self._steps // 2).clamp_min(LEAST)
        rounded = (weight.detach() / scale[:, None]).round()
        self._activation = activation
        self.register_buffer("_packed", torch.ops.onednn.qlinear_prepack(rounded.to(torch.int8), None))
        self.register_buffer("_scale", scale)
        self.register_buffer("_sums", -scale * rounded.sum(dim=1))
        self.register_buffer("_zeros", torch.zeros(len(scale), dtype=torch.int64))
        self.register_buffer("_bias", torch.zeros(len(scale)) if bias is None else bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self._product(x)
        return y if self._activation is None else self._activation(y)

    def added_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self._product(x).add_(residual)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        least = x.amin(1, keepdim=True).clamp_max_(0)
        scale = x.amax(1, keepdim=True).clamp_min_(0).sub_(least).div_(self._steps).clamp_min_(LEAST)
        zero = (least / scale).round_().neg_()
        rounded = (x / scale).add_(zero).round_().to(torch.int16).to(torch.uint8)  # in one step: 7 times as slow
        y: torch.Tensor = _of_integers()(rounded, self._packed, self._scale, self._zeros)
        return y.addr_(zero[:, 0], self._sums).mul_(scale).add_(self._bias)


@cache
def steps() -> int:
    """Steps of an input, from its least to its largest, and of a weight; 0 where integers are not quick."""
    here = torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")
    if not here or not torch.cpu.get_capabilities().get("avx2"):
        return 0
    return next((number for number in STEPS if _exact(number)), 0)


def _exact(number: int) -> bool:
    """Whether the largest sums with so many steps are exact."""
    x, weight = torch.full((33, 128), number + 1), torch.full((48, 128), number // 2)
    packed = torch.ops.onednn.qlinear_prepack(weight.to(torch.int8), None)
    found = _of_integers()(x.to(torch.uint8), packed, torch.ones(48), torch.zeros(48, dtype=torch.int64))
    return torch.equal(found, (x @ weight.T).float())


@cache
def _of_integers() -> Any:
    """oneDNN's product of integers, in fp32; compiled as the operation of :class:`Linear` is."""
    source = """
def product(x: Tensor, weight: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, 0, weight, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
"""
    return torch.jit.CompilationUnit(source).product
