"""Random streams by address."""

import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.seeds import drawing_from, seed_of

purposes = st.sampled_from(["episode", "judge", "sites", "held-out"])
streams = st.tuples(st.integers(0, 2**63), purposes, st.text(max_size=8), st.integers(0, 10**6))


@given(streams, streams)
def test_no_two_streams_of_a_run_share_a_seed_whatever_the_sites_are_called(
    one: tuple[int, str, str, int], other: tuple[int, str, str, int]
) -> None:
    assert (seed_of(*one) == seed_of(*other)) == (one == other)


@pytest.mark.parametrize("place", range(4))
def test_every_part_of_an_address_counts(place: int) -> None:
    addresses = [(0, "episode", "site", 1), (1, "judge", "other", 2)]
    mixed = tuple(addresses[part == place][part] for part in range(4))
    assert seed_of(*mixed) != seed_of(*addresses[0])


@pytest.mark.parametrize("site", ["a/1", "a", "1", "1/1", "", "/", "a/"])
def test_a_site_whose_name_looks_like_an_address_keeps_its_own_stream(site: str) -> None:
    others = [name for name in ("a/1", "a", "1", "1/1", "", "/", "a/") if name != site]
    seeds = {seed_of(0, "episode", name, round_number) for name in others for round_number in range(12)}
    assert not seeds & {seed_of(0, "episode", site, round_number) for round_number in range(12)}


@given(streams)
def test_a_seed_fits_a_generator(address: tuple[int, str, str, int]) -> None:
    seed = seed_of(*address)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)


def test_streams_of_neighbouring_rounds_are_unlike_each_other() -> None:
    draws = [torch.rand(200, generator=torch.Generator().manual_seed(seed_of(0, "episode", "a", i))) for i in range(8)]
    for one, other in combinations(draws, 2):
        correlation = torch.corrcoef(torch.stack([one, other]))[0, 1]
        assert abs(float(correlation)) < 5 / 200**0.5


def test_inside_a_block_the_global_random_state_follows_the_generator_and_is_put_back_after() -> None:
    draws = []
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(2):
            torch.rand(3)  # what was drawn before plays no part
            state = torch.random.get_rng_state()
            with drawing_from(generator):
                draws.append(tuple(torch.rand(3).tolist()))
            assert torch.equal(torch.random.get_rng_state(), state)
    assert draws[:2] == draws[2:4]
    assert len({*draws}) == 4  # two blocks of one generator differ, and so do two generators


def test_an_error_inside_a_block_puts_the_global_random_state_back_too() -> None:
    state = torch.random.get_rng_state()
    with pytest.raises(ZeroDivisionError), drawing_from(torch.Generator()):
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_seed_is_the_same_in_another_process() -> None:
    code = "from common.seeds import seed_of; print(seed_of(3, 'episode', 'site \\u00fc', 7))"
    command = [sys.executable, "-X", "utf8", "-c", code]
    found = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=True, text=True).stdout
    assert int(found) == seed_of(3, "episode", "site \u00fc", 7)
