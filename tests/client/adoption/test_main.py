"""When sites look for new releases."""

from itertools import islice

from client.adoption.__main__ import pauses


def test_sites_that_start_together_look_first_at_any_time_of_the_interval() -> None:
    first = [next(pauses(20.0)) for _ in range(2000)]
    assert 0 <= min(first) < 1 and 19 < max(first) <= 20
    for quarter in range(4):
        assert 350 < sum(5 * quarter <= pause < 5 * quarter + 5 for pause in first) < 650


def test_later_looks_are_spread_about_the_interval_so_that_no_two_sites_keep_step() -> None:
    later = list(islice(pauses(20.0), 1, 2001))
    assert min(later) >= 10 and max(later) <= 30 and 19 < sum(later) / len(later) < 21
    assert len(set(later)) == len(later)
