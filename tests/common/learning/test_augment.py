"""Flips are flips, and warps stay within the limits promised, measured on pictures of their own coordinates."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from common.learning.augment import augment
from common.settings import AUGMENTS, Settings

KINDS = ["affine", "flip", "affine+flip"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 8, channels: int = 2, side: int = 12) -> Tensor:
    return torch.rand(count, channels, side, side, generator=generator(7))


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_every_kind_can_be_set(kind: str) -> None:
    assert Settings.from_flat({"inner.augment": kind}).inner.augment == kind
    assert set(AUGMENTS) == {"none", *KINDS}


def test_no_augmentation_returns_the_images_and_draws_nothing() -> None:
    draws = generator()
    before = draws.get_state()
    images = pictures()
    assert augment(images, "none", draws) is images
    assert torch.equal(draws.get_state(), before)


def test_a_flip_mirrors_each_image_left_right_and_top_bottom_with_probability_one_half() -> None:
    images = pictures(count=400)
    flipped = augment(images, "flip", generator())
    ways = [images, images.flip(-1), images.flip(-2), images.flip(-1, -2)]
    matches = torch.stack([(way == flipped).flatten(1).all(1) for way in ways])
    assert matches.sum(0).tolist() == [1] * 400
    assert all(abs(count - 100) < 5 * math.sqrt(400 * 0.25 * 0.75) for count in matches.sum(1).tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (1, 3, 9, 9), (5, 2, 8, 6)], ids=str)
def test_shape_type_and_range_are_kept(kind: str, shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.float64):
        images = torch.rand(shape, generator=generator(1)).to(dtype)
        found = augment(images, kind, generator())
        assert (found.shape, found.dtype) == (images.shape, dtype)
        assert found.isfinite().all()
        lowest, highest = images.amin((1, 2, 3)), images.amax((1, 2, 3))
        assert (found.amin((1, 2, 3)) >= lowest - 1e-6).all()
        assert (found.amax((1, 2, 3)) <= highest + 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_generator_gives_the_same_images_and_another_one_others(kind: str) -> None:
    first, again, other = (augment(pictures(), kind, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_given_are_not_changed(kind: str) -> None:
    images = pictures()
    augment(images, kind, generator())
    assert torch.equal(images, pictures())


def test_each_image_is_warped_in_its_own_way_and_its_channels_alike() -> None:
    images = pictures(count=1, channels=1).expand(6, 3, -1, -1)
    found = augment(images, "affine", generator())
    assert len({tuple(image[0].flatten().tolist()) for image in found}) == 6
    for channel in (1, 2):
        assert torch.equal(found[:, channel], found[:, 0])


def test_both_is_a_flip_and_then_a_warp() -> None:
    draws = generator()
    in_turn = augment(augment(pictures(), "flip", draws), "affine", draws)
    assert torch.equal(augment(pictures(), "affine+flip", generator()), in_turn)


def test_the_border_is_repeated_and_not_filled_with_black() -> None:
    images = torch.full((20, 1, 8, 8), 0.6)
    assert_close(augment(images, "affine", generator()), images)


def test_warps_turn_move_and_scale_within_their_limits() -> None:
    # A picture of its own coordinates (the side is 2 long, its middle 0) shows where each pixel comes from.
    side, count = 41, 300
    axis = (torch.arange(side, dtype=torch.float64) * 2 + 1) / side - 1
    down, across = torch.meshgrid(axis, axis, indexing="ij")
    images = torch.stack([across, down]).expand(count, 2, side, side)
    found = augment(images, "affine", generator())
    middle = slice(side // 4, -(side // 4))  # far from the border, where coordinates stop
    places = torch.stack([across, down, torch.ones_like(down)], -1)[middle, middle].reshape(-1, 3)
    angles, scales, shifts = [], [], []
    for image in found[:, :, middle, middle]:
        matrix = torch.linalg.lstsq(places, image.flatten(1).T).solution.T  # [2, 3]
        assert_close(places @ matrix.T, image.flatten(1).T, atol=1e-6, rtol=0)  # it is affine
        (a, b, right), (c, d, below) = matrix.tolist()
        assert (a, b) == pytest.approx((d, -c), abs=1e-6)  # it turns and scales, and does not shear
        angles.append(math.degrees(math.atan2(c, a)))
        scales.append(math.hypot(a, c))
        shifts += [right / 2, below / 2]  # in parts of the side
    for values, limit in ((angles, 10), ([scale - 1 for scale in scales], 0.1), (shifts, 0.05)):
        assert -limit - 1e-6 <= min(values) < -0.9 * limit
        assert 0.9 * limit < max(values) <= limit + 1e-6
        assert abs(sum(values) / len(values)) < 5 * limit / math.sqrt(3 * len(values))
    drawn = torch.tensor([angles, scales, shifts[::2], shifts[1::2]])
    correlations = torch.corrcoef(drawn) - torch.eye(4)
    assert correlations.abs().max() < 5 / math.sqrt(count)  # each is drawn on its own
