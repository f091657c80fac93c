"""Rates of one site."""

import pytest

from common.deployment.forward import RefusedError
from server.gateway.limits import Limits


def test_bursts_of_ten_seconds_worth_pass_and_then_the_rate() -> None:
    now = [0.0]
    limits = Limits(requests=2.0, size=1e6, clock=lambda: now[0])
    for _ in range(20):
        limits.check("north", 0)
    with pytest.raises(RefusedError) as refused:
        limits.check("north", 0)
    assert (refused.value.status, refused.value.cause, refused.value.wait) == (429, "requests-a-second", 1)
    limits.check("south", 0)
    now[0] = 1.0
    limits.check("north", 0)
    limits.check("north", 0)
    with pytest.raises(RefusedError):
        limits.check("north", 0)


def test_a_body_larger_than_what_is_left_must_be_made_up_for() -> None:
    now = [0.0]
    limits = Limits(requests=1e6, size=10.0, clock=lambda: now[0])
    limits.check("north", 90)
    limits.check("north", 90)
    with pytest.raises(RefusedError) as refused:
        limits.check("north", 1)
    assert refused.value.cause == "megabytes-a-second" and refused.value.wait == 9
    now[0] = refused.value.wait
    limits.check("north", 1)


def test_a_long_rest_earns_no_more_than_one_burst() -> None:
    now = [0.0]
    limits = Limits(requests=1.0, size=1.0, clock=lambda: now[0])
    limits.check("north", 0)
    now[0] = 1e6
    for _ in range(10):
        limits.check("north", 0)
    with pytest.raises(RefusedError):
        limits.check("north", 0)
