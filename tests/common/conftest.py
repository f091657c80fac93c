"""What all tests of ``common`` share."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from common.learning.threads import threads

# A machine under load is no reason to fail, and examples found here are better kept as tests than in a folder.
settings.register_profile(
    "common", deadline=None, max_examples=50, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("common")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Compute with one thread, so that no result depends on how many there are."""
    with threads(1):
        yield


@pytest.fixture(autouse=True)
def own_random_state() -> Iterator[None]:
    """Begin each test with the same global random state, and leave none behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
