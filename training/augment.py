"""Vary a batch of drawings: turn, move, zoom and mirror them, add a background, change their colours."""

import math

import torch
from torch import Tensor
from torch.nn import functional

MEAN = STD = (0.5, 0.5, 0.5)


def augment(rgba: Tensor, mirrors: Tensor, monochrome: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """uint8 [B, S, S, 4] → normalised float32 [B, 3, size, size].

    mirrors, monochrome: bool [B]; a monochrome drawing is black, so it is tinted and its background is light.
    """
    batch = len(rgba)
    tint = _uniform(batch, 3, 0, 0.6, draw) * (_uniform(batch, 1, 0, 1, draw) < 0.5) * monochrome[:, None]
    colours = _uniform(batch, 3, 0.7, 1.3, draw)
    image = _paint(rgba, _affine(batch, mirrors, draw), tint, *_backgrounds(batch, monochrome, draw), colours, size)
    return _coarse(image, draw).sub_(0.5).div_(0.5)


def _paint(
    rgba: Tensor,
    affine: Tensor,
    tint: Tensor,
    first: Tensor,
    second: Tensor,
    direction: Tensor,
    colours: Tensor,
    size: int,
) -> Tensor:
    """Move drawings by `affine` [B, 2, 3], add `tint` [B, 3], lay them on a gradient from `first` to `second`
    [B, 3] along `direction` [B], change brightness, contrast and saturation by `colours` [B, 3]: [B, 3, size, size].
    """
    pixels = rgba.permute(0, 3, 1, 2).float() / 255
    alpha = pixels[:, 3:]
    layers = torch.cat([(pixels[:, :3] + tint[:, :, None, None]) * alpha, alpha], 1)
    grid = functional.affine_grid(affine, [len(rgba), 4, size, size], align_corners=False)
    moved = functional.grid_sample(layers, grid, mode="bilinear", align_corners=False)
    line = torch.linspace(0, 1, size)
    ramp = (direction[:, None, None] * line[None, :, None] + (1 - direction[:, None, None]) * line)[:, None]
    background = first[:, :, None, None] + (second - first)[:, :, None, None] * ramp
    bright, contrast, saturation = colours[:, :, None, None, None].unbind(1)
    image = (moved[:, :3] + (1 - moved[:, 3:]) * background) * bright
    grey = image.mean(1, keepdim=True)
    middle = grey.mean((2, 3), keepdim=True)
    image = grey + (image - grey) * saturation
    return (middle + (image - middle) * contrast).clamp(0, 1)


def _uniform(rows: int, columns: int, low: float, high: float, draw: torch.Generator) -> Tensor:
    return torch.rand(rows, columns, generator=draw) * (high - low) + low


def _affine(batch: int, mirrors: Tensor, draw: torch.Generator) -> Tensor:
    """Small rotations, zooms, stretches, shifts and mirrorings: [B, 2, 3]."""
    turned = (_uniform(batch, 1, 0, 1, draw) < 0.7).float()
    angle = (_uniform(batch, 1, -15, 15, draw) * turned * math.pi / 180)[:, 0]
    zoom = torch.exp(_uniform(batch, 1, math.log(0.9), math.log(1.4), draw))
    stretch = torch.exp(_uniform(batch, 1, -0.1, 0.1, draw))
    flip = torch.where((_uniform(batch, 1, 0, 1, draw)[:, 0] < 0.5) & mirrors, -1.0, 1.0)
    across, down = (zoom * stretch)[:, 0], (zoom / stretch)[:, 0]
    shift = _uniform(batch, 2, -0.12, 0.12, draw)
    return torch.stack(
        [
            torch.stack([flip * across * angle.cos(), -down * angle.sin(), shift[:, 0]], 1),
            torch.stack([flip * across * angle.sin(), down * angle.cos(), shift[:, 1]], 1),
        ],
        1,
    )


def _backgrounds(batch: int, light: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """White for half of the batch, else one colour or a gradient: first, second [B, 3], direction [B]."""
    least = torch.where(light, 0.75, 0.0)[:, None]
    first, second = (least + (1 - least) * _uniform(batch, 3, 0, 1, draw) for _ in range(2))
    kind = _uniform(batch, 1, 0, 1, draw)
    first = torch.where(kind < 0.5, torch.ones(()), first)
    second = torch.where(kind < 0.75, first, second)
    return first, second, _uniform(batch, 1, 0, 1, draw)[:, 0]


def _coarse(image: Tensor, draw: torch.Generator) -> Tensor:
    """A tenth of the batch as if it had been a smaller image."""
    few = max(1, len(image) // 10)
    small = int(torch.randint(20, 48, (), generator=draw))
    chosen = torch.randperm(len(image), generator=draw)[:few]
    size = image.shape[-1]
    coarse = functional.interpolate(image[chosen], (small, small), mode="bilinear", antialias=True)
    image[chosen] = functional.interpolate(coarse, (size, size), mode="bilinear")
    return image
