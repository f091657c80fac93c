"""The statistics of texture against what they mean, and the network over them on real surfaces."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import SettingsError
from common.learning.networks import build_network
from common.learning.texture import DIRECTIONS, LEAST_SIZE, PATTERNS, RING, TextureNetwork, statistics_of
from common.settings import Settings

FIRST = 3
"""Colour, its spread and its skewness come before the scales, of one channel."""


def waves(angle: float, wavelength: float = 8.0, size: int = 64) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    phase = (columns * math.cos(angle) + rows * math.sin(angle)) * 2 * math.pi / wavelength
    return (0.5 + 0.4 * torch.sin(phase + 0.3))[None, None]


def patterns(image: Tensor) -> Tensor:
    return statistics_of(image)[0, FIRST : FIRST + PATTERNS]


def directions(image: Tensor) -> Tensor:
    start = FIRST + PATTERNS + 6
    return statistics_of(image)[0, start : start + DIRECTIONS]


def spectrum(image: Tensor) -> Tensor:
    return statistics_of(image)[0, -15:].reshape(5, 3)


def test_patterns_are_those_of_every_pixel_counted_one_by_one() -> None:
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    grey, counts = image[0, 0].numpy(), np.zeros(PATTERNS)
    for row in range(1, 15):
        for column in range(1, 15):
            bits = [grey[row + down, column + right] >= grey[row, column] for down, right in RING]
            changes = sum(bits[place] != bits[place - 1] for place in range(len(bits)))
            counts[sum(bits) if changes <= 2 else PATTERNS - 1] += 1
    np.testing.assert_allclose(patterns(image).numpy(), counts / counts.sum(), atol=1e-6)


def test_patterns_stay_when_a_picture_is_turned_or_lit_otherwise() -> None:
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(patterns(image.rot90(1, (2, 3))), patterns(image))
    torch.testing.assert_close(patterns(0.5 * image + 0.2), patterns(image))


@pytest.mark.parametrize(("angle", "place"), [(0.0, 0), (math.pi / 4, 2), (math.pi / 2, 4), (3 * math.pi / 4, 6)])
def test_steps_lie_across_the_waves(angle: float, place: int) -> None:
    found = directions(waves(angle))
    around = found[place] + found[(place - 1) % DIRECTIONS]  # the bound between two directions
    assert around > 0.95 and found.sum() == pytest.approx(1, abs=1e-3)


def test_each_part_of_the_spectrum_is_largest_for_waves_of_its_own_length_and_direction() -> None:
    kinds = [(wavelength, angle) for wavelength in (50.0, 20.0, 9.0, 4.5, 2.5) for angle in (0.0, 0.25, 0.5)]
    found = torch.stack([spectrum(waves(angle * math.pi, wavelength, 128)).flatten() for wavelength, angle in kinds])
    assert found.argmax(0).tolist() == list(range(15))


@pytest.mark.parametrize("shade", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_even_surface_has_finite_statistics(shade: float, channels: int) -> None:
    found = statistics_of(torch.full((2, channels, LEAST_SIZE, LEAST_SIZE), shade))
    assert found.shape == (2, 2 * channels + 88) and found.isfinite().all()


def test_a_pictures_statistics_depend_on_no_other_picture() -> None:
    images = torch.rand(5, 3, 20, 20, generator=torch.Generator().manual_seed(2))
    whole = statistics_of(images)
    for row in range(5):
        torch.testing.assert_close(statistics_of(images[row : row + 1])[0], whole[row])


def test_the_network_learns_layers_and_never_the_statistics() -> None:
    settings = Settings.from_flat(
        {"model.network": "texture", "model.width": 12, "model.depth": 2, "data.size": 20, "data.channels": 3}
    )
    network = build_network(settings.model, settings.data)
    assert isinstance(network, TextureNetwork)
    embeddings = network(torch.rand(4, 3, 20, 20))
    assert embeddings.shape == (4, 12)
    embeddings.square().sum().backward()
    units = [94, 12, 12]
    parts = sum(12 * one + 12 for one in units) + 2 * 94 + 2 * 2 * 12
    assert sum(value.numel() for value in network.parameters()) == parts
    assert all(value.grad is not None for value in network.parameters())


def test_pictures_that_are_too_small_are_refused() -> None:
    settings = Settings.from_flat({"model.network": "texture", "data.size": LEAST_SIZE - 1})
    with pytest.raises(SettingsError, match=r"data\.size is 15; the network 'texture' needs 16"):
        build_network(settings.model, settings.data)
