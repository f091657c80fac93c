"""Real sites: for each its own relay, which asks the gateway, and the fetching of client/adoption, verified by TUF.

python -m simulations.benchmarks.rollout.real HOME…

Orders and answers are lines of JSON on standard input and output.
"""

import contextlib
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from client.adoption.__main__ import SPREAD
from client.adoption.fetch import Fetched, Source, fetch, newest_number
from client.home import SiteHome
from client.relay.__main__ import server_of
from common.deployment.forward import Server
from common.deployment.ports import free_port
from common.errors import DeployError, FedreptileError
from simulations.benchmarks.rollout.replayed import AGAIN_SECONDS, first_pause

START_SECONDS = 30.0


@dataclass
class Taken:
    """What came of an order to take a release."""

    had: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of fetching, without the look that found that there is something new."""
    ways: Counter[str] = field(default_factory=Counter)
    """How it came: full or delta."""
    errors: Counter[str] = field(default_factory=Counter)
    cpu: float = 0.0


@contextlib.contextmanager
def serving(server: Server) -> Iterator[None]:
    """Have a gateway or relay running in a thread. Raises DeployError if it does not start."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > end:
            raise DeployError(f"a server does not start at {server.config.host}:{server.config.port}; is it free?")
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def relay(home: SiteHome) -> Iterator[Source]:
    """Have a site's relay running, and return where it hands out releases."""
    port = free_port()
    with serving(server_of(home, port)):
        yield Source(f"https://127.0.0.1:{port}/releases", home.loopback / "ca.crt")


def look_and_take(home: SiteHome, source: Source) -> Fetched | None:
    """Do what a site does when there is a new release: the poller finds it, and ``adopt`` takes it."""
    newest_number(home, source)
    return fetch(home, source)


def take(sites: Sequence[tuple[SiteHome, Source]], number: int, every: float, seconds: float) -> Taken:
    """Have each site look until it finds a release of this number, and take that."""
    taken, end = Taken(cpu=-time.process_time()), time.monotonic() + seconds

    def live(home: SiteHome, source: Source) -> None:
        pause = first_pause(every)
        while time.monotonic() + pause < end:
            time.sleep(pause)
            pause = every * random.uniform(*SPREAD)
            try:
                if newest_number(home, source) < number:
                    pause = pause or AGAIN_SECONDS
                    continue
                began = time.monotonic()
                found = fetch(home, source)
            except FedreptileError as error:
                taken.errors[str(error)[:200]] += 1
                pause = pause or AGAIN_SECONDS
                continue
            assert found is not None
            taken.had.append(time.monotonic())
            taken.seconds.append(taken.had[-1] - began)
            taken.ways[found.way] += 1
            return

    with ThreadPoolExecutor(max(len(sites), 1)) as pool:
        for done in [pool.submit(live, *site) for site in sites]:
            done.result()
    taken.cpu += time.process_time()
    return taken


def main(homes: Sequence[str]) -> None:
    """Start the relays and obey."""
    import_module("common.releases.delta")  # 'adopt' needs torch in any case; here it shall not count for a download
    with contextlib.ExitStack() as running:
        sites = [(home, running.enter_context(relay(home))) for home in map(SiteHome, map(Path, homes))]
        for site in sites:
            newest_number(*site)
        print("{}", flush=True)
        for line in sys.stdin:
            order: dict[str, Any] = json.loads(line)
            print(json.dumps(vars(take(sites, order["number"], order["every"], order["seconds"]))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
