"""Sites that ask for releases as real ones do, many in one process; each has a connection and knowledge of its own.

What a real site asks, in which order and with which headers, is recorded beforehand and given to this process, which
verifies no signatures: that would be the processor time of 1,000 machines. It does check each status, each size, and
the digest of each file that has it in its name. Started by ``simulations.benchmarks.rollout``; orders and answers are
lines of JSON on standard input and output.
"""

import asyncio
import hashlib
import json
import math
import random
import ssl
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.adoption.__main__ import SPREAD
from client.relay.way import IDLE_SECONDS
from server.gateway.__main__ import allow_files

TIMESTAMP = "metadata/timestamp.json"
PATIENCE = 60.0
"""Seconds that a site waits for an answer."""
AGAIN_SECONDS = 0.5
"""Pause after a failure, where sites do not wait for their next look anyway."""


@dataclass(frozen=True)
class Asked:
    """A request for a file of a repository."""

    path: str
    """From ``metadata/`` or ``targets/`` on."""
    headers: Sequence[tuple[str, str]]
    """All but ``host``."""
    status: int
    size: int
    """Bytes of the answer's body."""


@dataclass(frozen=True)
class Fleet:
    """What a process of replayed sites is told when it starts."""

    port: int
    authority: str
    """File of the certificate by which the server is known."""
    prefix: str
    """What stands before a path of the repository."""
    pairs: Sequence[str]
    """One file for each site: its certificate and key; empty text: it shows none."""
    look: Sequence[Asked]
    """What a site asks when it looks for a release; the timestamp comes last."""


@dataclass
class Tally:
    """What came of an order."""

    looks: int = 0
    requests: int = 0
    handshakes: int = 0
    sent: int = 0
    received: int = 0
    """Bytes of HTTP; those of TLS are not counted."""
    seconds: list[float] = field(default_factory=list)
    """Of each look, with all that followed from it."""
    had: list[float] = field(default_factory=list)
    """When each site had the new release, by the machine's monotonic clock."""
    errors: Counter[str] = field(default_factory=Counter)
    began: float = 0.0
    ended: float = 0.0
    cpu: float = 0.0
    """Seconds of processor time of this process."""


class AnswerError(Exception):
    """An answer is not the one that was recorded."""


class Site:
    """One simulated site."""

    def __init__(self, fleet: Fleet, pair: str) -> None:
        self._fleet = fleet
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.load_verify_locations(fleet.authority)
        if pair:
            self._context.load_cert_chain(pair)
        self._ways: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._last = 0.0
        self._timestamp = b""

    async def look(self, then: Sequence[Asked], tally: Tally) -> bool:
        """Look for something new, and take it.

        Args:
            then: what is asked if there is something new.

        Returns:
            whether there was.
        """
        for asked in self._fleet.look:
            body = await self._ask(asked, tally)
        if body == self._timestamp:
            return False
        for asked in then:
            await self._ask(asked, tally)
        self._timestamp = body
        return True

    def hang_up(self) -> None:
        if self._ways is not None:
            self._ways[1].transport.abort()
            self._ways = None

    async def _ask(self, asked: Asked, tally: Tally) -> bytes:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await self._connected(tally)
            headers = "".join(f"{name}: {value}\r\n" for name, value in asked.headers)
            text = (
                f"GET {self._fleet.prefix}{asked.path} HTTP/1.1\r\nhost: localhost:{self._fleet.port}\r\n{headers}\r\n"
            )
            writer.write(text.encode())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            size = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(size)
        self._last = time.monotonic()
        tally.requests, tally.sent, tally.received = (
            tally.requests + 1,
            tally.sent + len(text),
            tally.received + len(head) + size,
        )
        _check(asked, int(head[9:12]), body)
        return body

    async def _connected(self, tally: Tally) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the connection, a new one after as long a rest as after which a relay takes one."""
        if self._ways is not None and time.monotonic() - self._last >= IDLE_SECONDS:
            self.hang_up()
        if self._ways is None:
            self._ways = await asyncio.open_connection(
                "127.0.0.1", self._fleet.port, ssl=self._context, server_hostname="localhost"
            )
            tally.handshakes += 1
        return self._ways


def _check(asked: Asked, status: int, body: bytes) -> None:
    """Raises AnswerError. The timestamp is signed anew each time, and what a server says beside a 404 is its own."""
    if status != asked.status:
        raise AnswerError(f"status {status}")
    if asked.path != TIMESTAMP and status == 200 and len(body) != asked.size:
        raise AnswerError("another size")
    folder, _, name = asked.path.partition("/")
    if folder == "targets" and hashlib.sha256(body).hexdigest() != name.partition(".")[0]:
        raise AnswerError("another digest")


def first_pause(every: float) -> float:
    """Return how long a site that has looked for long waits from any moment on, until it looks again."""
    least, most = SPREAD
    pause = math.sqrt(least**2 + random.random() * (most**2 - least**2))  # the longer, the likelier is one to be met
    return every * pause * random.random()


async def run(sites: Sequence[Site], every: float, seconds: float, then: Sequence[Asked]) -> Tally:
    """Have all sites look again and again.

    Args:
        every: seconds between two looks of a site, on average, spread as real sites do; 0: no pause.
        seconds: for which they look; with ``then``: at most, since a site that has the release looks no more.
        then: what is asked when there is something new; empty: only the timestamp is noted.
    """
    tally = Tally(began=time.monotonic(), cpu=-time.process_time())
    end = tally.began + seconds

    async def live(site: Site) -> None:
        pause = first_pause(every)
        while time.monotonic() + pause < end:
            await asyncio.sleep(pause)
            pause, began = every * random.uniform(*SPREAD), time.monotonic()
            try:
                is_new = await site.look(then, tally)
            except (OSError, EOFError, ValueError, AnswerError, asyncio.LimitOverrunError) as error:
                tally.errors[str(error) if isinstance(error, AnswerError) else type(error).__name__] += 1
                site.hang_up()
                pause = pause or AGAIN_SECONDS
                continue
            now = time.monotonic()
            tally.looks += 1
            tally.seconds.append(now - began)
            if is_new and then:
                tally.had.append(now)
                return

    await asyncio.gather(*map(live, sites))
    tally.ended, tally.cpu = time.monotonic(), tally.cpu + time.process_time()
    return tally


async def look_once(sites: Sequence[Site]) -> Tally:
    """Have all sites connect and look at the same time; what they find is what they know from then on."""
    tally = Tally(began=time.monotonic(), cpu=-time.process_time())

    async def live(site: Site) -> None:
        try:
            await site.look((), tally)
        except (OSError, EOFError, ValueError, AnswerError) as error:
            tally.errors[str(error) if isinstance(error, AnswerError) else type(error).__name__] += 1
            site.hang_up()
        tally.looks += 1
        tally.seconds.append(time.monotonic() - tally.began)

    await asyncio.gather(*map(live, sites))
    tally.ended, tally.cpu = time.monotonic(), tally.cpu + time.process_time()
    return tally


async def obey(fleet: Fleet) -> None:
    """Answer orders until there are no more."""
    sites = [Site(fleet, pair) for pair in fleet.pairs]
    print("{}", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        order: dict[str, Any] = json.loads(line)
        if order["do"] == "once":
            tally = await look_once(sites)
        else:
            tally = await run(sites, order["every"], order["seconds"], [asked_of(one) for one in order["then"]])
        print(json.dumps(vars(tally)), flush=True)
    for site in sites:
        site.hang_up()


def asked_of(found: Mapping[str, Any]) -> Asked:
    return Asked(**{**found, "headers": [(name, value) for name, value in found["headers"]]})


def main(path: Path) -> None:
    """Read what the fleet is from a file, and obey."""
    found = json.loads(path.read_bytes())
    allow_files()
    asyncio.run(obey(Fleet(**{**found, "look": [asked_of(one) for one in found["look"]]})))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
