"""Random changes of support images: small affine warps and flips."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ANGLE = math.radians(10)
MAX_SHIFT = 0.1
MAX_SCALE = 0.1


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Return changed copies of images [n, C, H, W].

    ``affine``: turned by up to 10 degrees, moved by up to 5 % of the side and scaled by up to
    10 %, the border repeated. ``flip``: mirrored left-right and top-bottom, each with probability
    1/2. ``affine+flip``: both. ``none``: the images themselves. The draws come from ``generator``
    (a CPU generator, so that every device sees the same ones).
    """
    if "flip" in kind:
        images = _flip(images, generator)
    if "affine" in kind:
        images = _warp(images, generator)
    return images


def _flip(images: Tensor, generator: torch.Generator) -> Tensor:
    draws = torch.rand(2, len(images), 1, 1, 1, generator=generator).to(images.device)
    images = torch.where(draws[0] < 0.5, images.flip(-1), images)
    return torch.where(draws[1] < 0.5, images.flip(-2), images)


def _warp(images: Tensor, generator: torch.Generator) -> Tensor:
    draws = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle, scale = draws[0] * MAX_ANGLE, 1 + draws[1] * MAX_SCALE
    # The sampling grid spans [-1, 1], so a shift of s moves the image by s / 2 of its side.
    across, down = draws[2] * MAX_SHIFT, draws[3] * MAX_SHIFT
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([cosine, -sine, across], 1), torch.stack([sine, cosine, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
