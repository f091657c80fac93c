"""A network for surfaces: fixed statistics of texture, and layers that learn which of them tell classes apart.

Few labelled pictures are enough to learn those layers, and far too few to learn filters; what makes up a surface is
known besides, whether there are scratches on it or spots. Of a class that nobody has seen the statistics tell as much
as of any other, where learned filters tell what the known classes differ in.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALES = (1, 2, 4)
LEAST_SIZE = 16
"""Pixels of a side: at the coarsest scale a pattern has 3."""
RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
"""The eight neighbours of a pixel, one after another."""
PATTERNS = len(RING) + 2
DIRECTIONS = 8
RADII = (0.01, 0.03, 0.08, 0.16, 0.3, 0.5)
"""Bounds of the rings of the spectrum, in cycles a pixel."""
SECTORS = (0.0, math.pi / 8, 3 * math.pi / 8, math.pi / 2 + 0.1)
"""Bounds between waves across, aslant and along, in radians."""
AT_ONCE = 16
"""Images whose statistics are taken together: what comes between fits into a processor's cache."""
FLAT = 1e-3
"""Added to what is divided by: of an even surface there is no texture."""


class TextureNetwork(nn.Module):
    """Statistics of texture, ``depth`` hidden layers and a linear one: [n, channels, size, size] -> [n, width]."""

    def __init__(self, channels: int, size: int, width: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        units = statistics_of(torch.zeros(1, channels, size, size)).shape[1]
        self.norm0 = nn.BatchNorm1d(units, eps=1e-3)
        for layer in range(1, depth + 2):
            linear = nn.Linear(units, width)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            self.add_module(f"linear{layer}", linear)
            if layer <= depth:
                self.add_module(f"norm{layer}", nn.BatchNorm1d(width, eps=1e-3))
            units = width

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = statistics_in_parts(inputs)
        hidden = self.norm0(hidden)
        for layer in range(1, self.depth + 1):
            linear, normalisation = getattr(self, f"linear{layer}"), getattr(self, f"norm{layer}")
            hidden = F.relu(normalisation(linear(hidden)))
        last: Tensor = getattr(self, f"linear{self.depth + 1}")(hidden)
        return last


def statistics_in_parts(images: Tensor) -> Tensor:
    """Return what ``statistics_of`` does, of a few images at a time."""
    return torch.cat([statistics_of(part) for part in torch.split(images, AT_ONCE)])


def statistics_of(images: Tensor) -> Tensor:
    """Return what describes the texture of images [n, c, s, s] as [n, 2 c + 88]: colour by channel, of the mean of the
    channels its distribution and spectrum, and on three scales patterns, steps and directions."""
    grey = images.mean(1)
    found = [images.mean((2, 3)), _deviation(images).flatten(1), _skewness(grey)]
    for scale in SCALES:
        smaller = F.avg_pool2d(grey[:, None], scale)[:, 0] if scale > 1 else grey
        found += [_patterns(smaller), _steps(smaller)]
    return torch.cat([*found, _spectrum(grey)], 1)


def _skewness(grey: Tensor) -> Tensor:
    standard = _standardised(grey)
    return (standard.square() * standard).mean((1, 2))[:, None]


def _standardised(grey: Tensor) -> Tensor:
    return (grey - grey.mean((1, 2), keepdim=True)) / (_deviation(grey) + FLAT)


def _deviation(values: Tensor) -> Tensor:
    """Return the standard deviation over the last two dimensions, which stay with one element each."""
    centred = values - values.mean((-2, -1), keepdim=True)
    return centred.square().mean((-2, -1), keepdim=True).sqrt()


def _patterns(grey: Tensor) -> Tensor:
    """Return shares [n, 10] of local binary patterns: by how many neighbours are at least as bright as a pixel where
    those lie side by side, and all others (Ojala, Pietikainen, Maenpaa 2002, section 2.3: rotation-invariant uniform
    patterns of 8 neighbours)."""
    height, width = grey.shape[1] - 2, grey.shape[2] - 2
    middle = grey[:, 1:-1, 1:-1]
    brighter = [
        (grey[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width] >= middle).to(torch.uint8)
        for down, right in RING
    ]
    ones = brighter[0].clone()
    changes = brighter[0] ^ brighter[-1]
    for before, after in pairwise(brighter):
        ones = ones + after
        changes = changes + (before ^ after)
    codes = torch.where(changes <= 2, ones, PATTERNS - 1)
    return torch.stack([(codes == code).to(grey.dtype).mean((1, 2)) for code in range(PATTERNS)], 1)


def _steps(grey: Tensor) -> Tensor:
    """Return of the differences between neighbouring pixels their size, spread and peakedness across and along, as
    logarithms, and the share [8] of each direction, weighed by their length: [n, 14]."""
    across, along = grey[:, :, 1:] - grey[:, :, :-1], grey[:, 1:] - grey[:, :-1]
    found = []
    for step in (across, along):
        spread = _deviation(step)
        peaked = (step / (spread + FLAT)).square().square().mean((1, 2))
        found += [(step.abs().mean((1, 2)) + FLAT).log(), (spread[:, 0, 0] + FLAT).log(), (peaked + FLAT).log()]
    # Both at the corner between four pixels.
    across, along = (across[:, 1:] + across[:, :-1]) / 2, (along[:, :, 1:] + along[:, :, :-1]) / 2
    length = (across.square() + along.square()).sqrt()
    direction = torch.atan2(along, across).remainder(torch.pi) * (DIRECTIONS / torch.pi)
    place = direction.to(torch.uint8).clamp(max=DIRECTIONS - 1)
    shares = torch.stack([(length * (place == one)).sum((1, 2)) for one in range(DIRECTIONS)], 1)
    return torch.cat([torch.stack(found, 1), shares / (shares.sum(1, keepdim=True) + FLAT)], 1)


def _spectrum(grey: Tensor) -> Tensor:
    """Return the mean logarithm of the amplitudes in rings of wavelength, by sectors of direction: [n, 15].

    Under Hann's window, since a picture's opposite edges do not continue each other.
    """
    down, right = (torch.hann_window(side, periodic=False).to(grey) for side in grey.shape[1:])
    amplitudes = torch.fft.rfft2(_standardised(grey) * down[:, None] * right).abs().log1p()
    rows, columns = torch.fft.fftfreq(grey.shape[1]).abs()[:, None], torch.fft.rfftfreq(grey.shape[2])[None]
    radius, angle = (rows.square() + columns.square()).sqrt(), torch.atan2(rows, columns.expand_as(rows + columns))
    found = []
    for inner, outer in pairwise(RADII):
        for first, last in pairwise(SECTORS):
            inside = ((radius >= inner) & (radius < outer) & (angle >= first) & (angle < last)).to(amplitudes)
            found.append((amplitudes * inside).sum((1, 2)) / inside.sum().clamp(min=1))
    return torch.stack(found, 1)
