"""How much one site may ask for in a time."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.deployment.forward import RefusedError

BURST_SECONDS = 10.0
"""So many seconds' worth may come at once."""

Clock = Callable[[], float]


@dataclass
class Bucket:
    """Fills at a rate up to ``BURST_SECONDS`` of it. What is taken may leave it below zero; then it must fill first."""

    rate: float
    level: float
    when: float

    def take(self, amount: float, now: float) -> float:
        """Take an amount, if anything is left; return 0, or the seconds until something is."""
        self.level = min(self.level + (now - self.when) * self.rate, self.rate * BURST_SECONDS)
        self.when = now
        if self.level <= 0:
            return (1 - self.level) / self.rate
        self.level -= amount
        return 0.0


class Limits:
    """The rates of each site."""

    def __init__(self, requests: float, size: float, clock: Clock = time.monotonic) -> None:
        """``requests`` and ``size`` (bytes) are those of one second, on average."""
        self._requests, self._size, self._clock = requests, size, clock
        self._buckets: dict[str, tuple[Bucket, Bucket]] = {}

    def check(self, site: str, size: int) -> None:
        """Count a request of so many bytes.

        Raises:
            RefusedError: if the site has asked for too much lately.
        """
        now = self._clock()
        requests, volume = self._buckets.setdefault(site, (_full(self._requests, now), _full(self._size, now)))
        if wait := requests.take(1, now):
            needed = f"at most {self._requests:g} a second on average"
            raise RefusedError(429, "requests-a-second", "more requests", needed, math.ceil(wait))
        if wait := volume.take(size, now):
            needed = f"at most {self._size / 1e6:g} MB a second on average"
            raise RefusedError(429, "megabytes-a-second", "more bytes", needed, math.ceil(wait))


def _full(rate: float, now: float) -> Bucket:
    return Bucket(rate, rate * BURST_SECONDS, now)
