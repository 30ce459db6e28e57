"""Vary a batch of drawings at once: turn, move, zoom, mirror, put on a ground, change its colours."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = STD = (0.5, 0.5, 0.5)


def augment(rgba: Tensor, mirrors: Tensor, monochrome: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """uint8 [B, S, S, 4] → normalised float32 [B, 3, size, size].

    mirrors, monochrome: bool [B]; a monochrome drawing is black, so it is tinted and its ground kept light.
    """
    batch = len(rgba)
    pixels = rgba.permute(0, 3, 1, 2).float().div_(255)
    alpha = pixels[:, 3:]
    tint = _uniform(batch, 3, 0, 0.6, draw) * (_uniform(batch, 1, 0, 1, draw) < 0.5) * monochrome[:, None]
    ink = pixels[:, :3] + tint[:, :, None, None]
    moved = F.grid_sample(
        torch.cat([ink * alpha, alpha], 1), _grid(batch, mirrors, size, draw), mode="bilinear", align_corners=False
    )
    picture = moved[:, :3] + (1 - moved[:, 3:]) * _grounds(batch, monochrome, size, draw)
    picture = _coarse(_colours(picture, draw), draw)
    return (picture.clamp_(0, 1) - 0.5).div_(0.5)


def _uniform(rows: int, columns: int, low: float, high: float, draw: torch.Generator) -> Tensor:
    return torch.rand(rows, columns, generator=draw) * (high - low) + low


def _grid(batch: int, mirrors: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """Sampling grids [B, size, size, 2] of small rotations, zooms, stretches, shifts and mirrorings."""
    turned = (_uniform(batch, 1, 0, 1, draw) < 0.7).float()
    angle = (_uniform(batch, 1, -15, 15, draw) * turned * math.pi / 180)[:, 0]
    zoom = torch.exp(_uniform(batch, 1, math.log(0.9), math.log(1.4), draw))
    stretch = torch.exp(_uniform(batch, 1, -0.1, 0.1, draw))
    flip = torch.where((_uniform(batch, 1, 0, 1, draw)[:, 0] < 0.5) & mirrors, -1.0, 1.0)
    across, down = (zoom * stretch)[:, 0], (zoom / stretch)[:, 0]
    shift = _uniform(batch, 2, -0.12, 0.12, draw)
    theta = torch.stack(
        [
            torch.stack([flip * across * angle.cos(), -down * angle.sin(), shift[:, 0]], 1),
            torch.stack([flip * across * angle.sin(), down * angle.cos(), shift[:, 1]], 1),
        ],
        1,
    )
    return F.affine_grid(theta, [batch, 4, size, size], align_corners=False)


def _grounds(batch: int, light: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """White for half of the batch, else one colour or a gradient between two: [B, 3, size, size]."""
    floor = torch.where(light, 0.75, 0.0)[:, None]
    first, second = (floor + (1 - floor) * _uniform(batch, 3, 0, 1, draw) for _ in range(2))
    kind = _uniform(batch, 1, 0, 1, draw)
    first = torch.where(kind < 0.5, torch.ones(()), first)
    second = torch.where(kind < 0.75, first, second)
    line = torch.linspace(0, 1, size)
    direction = _uniform(batch, 1, 0, 1, draw)[:, :, None]
    ramp = (direction * line[None, :, None] + (1 - direction) * line[None, None, :])[:, None]
    return first[:, :, None, None] + (second - first)[:, :, None, None] * ramp


def _colours(picture: Tensor, draw: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation; the hue stays."""
    batch = len(picture)
    bright, contrast, saturation = (_uniform(batch, 1, 0.7, 1.3, draw)[:, :, None, None] for _ in range(3))
    picture = picture * bright
    grey = picture.mean(1, keepdim=True)
    picture = grey + (picture - grey) * saturation
    middle = grey.mean((2, 3), keepdim=True)
    return middle + (picture - middle) * contrast


def _coarse(picture: Tensor, draw: torch.Generator) -> Tensor:
    """A tenth of the batch as if it had been a smaller picture."""
    few = max(1, len(picture) // 10)
    small = int(torch.randint(20, 48, (), generator=draw))
    chosen = torch.randperm(len(picture), generator=draw)[:few]
    size = picture.shape[-1]
    coarse = F.interpolate(picture[chosen], (small, small), mode="bilinear", antialias=True)
    picture[chosen] = F.interpolate(coarse, (size, size), mode="bilinear")
    return picture
