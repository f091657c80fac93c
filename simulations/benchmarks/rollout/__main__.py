"""What it costs the gateway to give releases to many sites, beside a plain static server of the same files.

python -m simulations.benchmarks.rollout [--sites 1000] [--seconds 15] [--every 20] [--repeats 1] [--out FILE.json]

The gateway is the real process, over TLS, and each site is enrolled and has a certificate of its own. A few sites are
real ones, relay and TUF's client; the others replay what one of those was seen to ask. Processor seconds are those of
the server's own process, so that they say what it takes whatever else runs on the machine.
"""

import argparse
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from common.deployment.ports import free_port
from common.deployment.supervisor import module
from common.errors import DeployError, FedreptileError
from common.paths import write_atomically
from server.releases.publishing import promote
from simulations.benchmarks.rollout import static
from simulations.benchmarks.rollout.replayed import Asked, Fleet
from simulations.benchmarks.rollout.world import (
    WIDTH,
    Recorded,
    World,
    enrol,
    enrol_real,
    make_world,
    publish_releases,
    rehearse,
)

KINDS = ("full", "int8", "bf16")
LIMIT_SECONDS = 90.0
"""For one roll-out."""
START_SECONDS = 60.0
GATEWAY, STATIC = "gateway", "static"
WIDE = 165
"""Columns of text where there is no terminal to say how many."""


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m simulations.benchmarks.rollout", description=__doc__)
    words.add_argument("--sites", type=int, default=1000)
    words.add_argument("--real", type=int, default=10, help="so many of them with relay and TUF's client")
    words.add_argument("--seconds", type=float, default=15.0, help="of looking for nothing new")
    words.add_argument("--every", type=float, default=20.0, help="seconds between two looks, as 'adopt-seconds' says")
    words.add_argument("--repeats", type=int, default=1, help="of each roll-out where all sites look at once")
    words.add_argument("--out", type=Path, help="a file for all figures, JSON")
    given = words.parse_args()
    if not 1 <= given.real < given.sites or given.repeats < 1:
        words.error("at least one site is real and one is not, and nothing is repeated less than once")
    with tempfile.TemporaryDirectory(prefix="fr-") as scratch:
        found = Benchmark(Path(scratch), given.sites, given.real).measure(given.every, given.seconds, given.repeats)
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
    for table in tables(found):
        console.print(table, soft_wrap=False)
    console.print(found["notes"])
    if given.out:
        write_atomically(given.out, json.dumps(found, indent=1).encode())


class Process:
    """A process that answers orders by lines of JSON."""

    def __init__(self, *words: str) -> None:
        self._process = subprocess.Popen(module(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def order(self, **values: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(values) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Raises DeployError if it has ended; what it died of, it says itself."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise DeployError(f"a process of the benchmark has ended: {self._process.args!r}; see above")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait(START_SECONDS)


@dataclass(frozen=True)
class Served:
    """A server, as a process, and sites that ask it."""

    pid: int
    fleet: Process

    def cpu(self) -> float:
        """Return the processor seconds that the server has taken until now."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        """Return the memory that the server has in use."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Benchmark:
    """All of it, in a folder of its own."""

    def __init__(self, folder: Path, sites: int, real: int) -> None:
        self._folder, self._sites, self._real = folder, sites, real
        self._world: World = make_world(folder)
        self._pairs = enrol(self._world, sites - real)

    def measure(self, every: float, seconds: float, repeats: int) -> dict[str, Any]:
        """Return all figures."""
        kinds = [*KINDS, *(kind for _ in range(repeats) for kind in (*KINDS[1:], KINDS[0]))]
        sizes = publish_releases(self._world, kinds)
        homes = [enrol_real(self._world, f"real-{number}") for number in range(self._real + 1)]
        recorded = rehearse(self._world, homes.pop(), len(kinds))
        phases: list[dict[str, Any]] = []
        with self._servers(recorded) as (gateway, plain), self._verifying([str(one.path) for one in homes]) as real:
            phases.append(_look(gateway, "first look, all at once", do="once"))
            phases.append(_look(gateway, "nothing new", do="run", every=every, seconds=seconds, then=[]))
            phases.append(_look(gateway, "nothing new, no pause", do="run", every=0, seconds=seconds / 3, then=[]))
            for number, kind in enumerate(kinds[: len(KINDS)], 1):
                then = recorded.then[number - 1]
                phases.append(self._roll_out(gateway, real, number, f"{kind}, every {every:g} s", every, then))
            phases.append(_look(plain, "first look, all at once", do="once") | {"server": STATIC})
            found = _look(plain, "nothing new, no pause", do="run", every=0, seconds=seconds / 3, then=[])
            phases.append(found | {"server": STATIC})
            for number, kind in enumerate(kinds[len(KINDS) :], len(KINDS) + 1):
                then, title = recorded.then[number - 1], f"{kind}, all at once"
                phases.append(self._roll_out(gateway, real, number, title, 0, then))
                found = _look(plain, title, do="run", every=0, seconds=LIMIT_SECONDS, then=_plain(then))
                phases.append(found | {"server": STATIC, "sites": self._sites - self._real})
            memory = {GATEWAY: gateway.megabytes(), STATIC: plain.megabytes()}
        return {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "when": datetime.now(UTC).isoformat(timespec="minutes"),
            "load": os.getloadavg(),
            "sites": self._sites,
            "real": self._real,
            "every": every,
            "files": {kind: size[kind] for kind, size in zip(kinds, sizes, strict=True)},
            "requests of a look": len(recorded.look),
            "requests of a release": len(recorded.look) + len(recorded.then[-1]),
            "connections of a real site": recorded.connections,
            "static server": static.name(),
            "memory": memory,
            "phases": [{"server": GATEWAY, **phase} for phase in phases],
            "notes": _notes(self._sites, self._real, recorded, sizes, memory),
        }

    def _roll_out(
        self, gateway: Served, real: Process, number: int, title: str, every: float, then: Sequence[Asked]
    ) -> dict[str, Any]:
        """Promote a release and have all sites take it; with no pause between looks it is there before they look."""
        now, orders = datetime.now(UTC), {"every": every, "seconds": LIMIT_SECONDS}
        if not every:
            promote(self._world.home, number, (), None, now)
        cpu, began = gateway.cpu(), time.monotonic()
        real.order(number=number, **orders)
        gateway.fleet.order(do="run", then=_plain(then), **orders)
        if every:
            time.sleep(0.5)
            began = time.monotonic()
            promote(self._world.home, number, (), None, datetime.now(UTC))
        tally, verified = gateway.fleet.answer(), real.answer()
        found = _figures(title, tally, gateway.cpu() - cpu, began, verified["had"])
        errors = found["errors"] | verified["errors"]
        shown = {"ways": verified["ways"], "seconds": verified["seconds"], "cpu": verified["cpu"]}
        return found | {"sites": self._sites, "errors": errors, "verified": shown}

    @contextlib.contextmanager
    def _servers(self, recorded: Recorded) -> Iterator[tuple[Served, Served]]:
        home, ports = self._world.home, (self._world.port, free_port())
        words = {
            GATEWAY: ("server.gateway", "--home", str(home.path), "--upstream", f"127.0.0.1:{free_port()}"),
            STATIC: (
                "simulations.benchmarks.rollout.static",
                *(str(home.repository), str(ports[1]), str(home.tls_certificate), str(home.tls_key)),
                str(self._folder),
            ),
        }
        pairs = {GATEWAY: [str(pair) for pair in self._pairs], STATIC: [""] * len(self._pairs)}
        with contextlib.ExitStack() as running:
            served = []
            for (name, command), port in zip(words.items(), ports, strict=True):
                server = running.enter_context(_server(command, port))
                prefix = "/releases/" if name == GATEWAY else "/"
                fleet = Fleet(port, str(home.chain), prefix, pairs[name], recorded.look)
                file = self._folder / f"{name}.json"
                file.write_text(json.dumps(asdict(fleet)), encoding="utf-8")
                process = Process("simulations.benchmarks.rollout.replayed", str(file))
                running.callback(process.close)
                process.answer()
                served.append(Served(server.pid, process))
            yield served[0], served[1]

    @contextlib.contextmanager
    def _verifying(self, homes: Sequence[str]) -> Iterator[Process]:
        process = Process("simulations.benchmarks.rollout.real", *homes)
        try:
            process.answer()
            yield process
        finally:
            process.close()


@contextlib.contextmanager
def _server(words: Sequence[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Have a server running until the block ends. Raises DeployError if it does not start."""
    process = subprocess.Popen(module(*words), stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                break
            if process.poll() is not None or time.monotonic() > end:
                raise DeployError(f"{words[0]} does not listen at 127.0.0.1:{port}; see above")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _look(served: Served, title: str, **order: Any) -> dict[str, Any]:
    """Give an order to the sites of a server and return figures."""
    cpu = served.cpu()
    served.fleet.order(**order)
    tally = served.fleet.answer()
    return _figures(title, tally, served.cpu() - cpu, tally["began"], ())


def _plain(asked: Sequence[Asked]) -> list[dict[str, Any]]:
    return [asdict(one) for one in asked]


def _figures(
    title: str, tally: Mapping[str, Any], server_cpu: float, began: float, had: Sequence[float]
) -> dict[str, Any]:
    """Return what is shown of a phase. Seconds are of looks, or where there was a release, until a site had it."""
    waits = [one - began for one in (*tally["had"], *had)]
    times = waits or tally["seconds"] or [float("nan")]
    p50, p95, p99 = (float(value) for value in np.percentile(times, [50, 95, 99]))
    return {
        "title": title,
        "looks": tally["looks"],
        "requests": tally["requests"],
        "handshakes": tally["handshakes"],
        "sent": tally["sent"],
        "received": tally["received"],
        "wall": tally["ended"] - tally["began"],
        "had": len(waits),
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "last": max(times),
        "server cpu": server_cpu,
        "sites cpu": tally["cpu"],
        "errors": dict(tally["errors"]),
    }


def tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """Return what is printed: looks, then roll-outs, the medians of repeated ones."""
    phases = _medians(found["phases"])
    titles = list(dict.fromkeys(phase["title"] for phase in phases))
    looks = [title for title in titles if title.startswith(("first", "nothing"))]
    yield _table(
        "Looks for a release",
        "p50 to last: ms of a look; TLS: handshakes",
        1000,
        [one for one in phases if one["title"] in looks],
    )
    yield _table(
        "Roll-outs", "p50 to last: s until a site has it", 1, [one for one in phases if one["title"] not in looks]
    )


def _table(title: str, what: str, factor: int, phases: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=f"{title} ({what})", box=SIMPLE, padding=(0, 1, 0, 0))
    for column in (
        *("", "server", "sites", "requests", "a second", "kB a look", "TLS", "p50", "p95", "p99", "last"),
        *("server's CPU s", "sites' CPU s", "requests a CPU s", "to static", "errors"),
    ):
        left = column in ("", "server")
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    rates = {(one["title"], one["server"]): one["requests"] / max(one["server cpu"], 0.01) for one in phases}
    for one in phases:
        rate, static = rates[one["title"], one["server"]], rates.get((one["title"], STATIC))
        times = (f"{factor * one[key]:,.{0 if factor > 1 else 1}f}" for key in ("p50", "p95", "p99", "last"))
        table.add_row(
            *(one["title"], one["server"], str(one["had"] or ""), f"{one['requests']:,.0f}"),
            f"{one['requests'] / one['wall']:,.0f}",
            f"{(one['sent'] + one['received']) / max(one['looks'], 1) / 1000:.1f}",
            f"{one['handshakes']:,.0f}",
            *times,
            *(f"{one['server cpu']:.1f}", f"{one['sites cpu']:.1f}", f"{rate:,.0f}"),
            f"{rate / static:.2f}" if static else "",
            str(sum(one["errors"].values())),
        )
    return table


def _medians(phases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join phases of one title at one server: medians of their figures, the sum of their errors."""
    joined: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for phase in phases:
        joined.setdefault((phase["title"], phase["server"]), []).append(phase)
    found = []
    for group in joined.values():
        numbers = {key: median(one[key] for one in group) for key, value in group[0].items() if _is_number(value)}
        errors = {str(number): sum(one["errors"].values()) for number, one in enumerate(group)}
        found.append({**group[0], **numbers, "errors": errors})
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _notes(
    sites: int, real: int, recorded: Recorded, sizes: Sequence[Mapping[str, int]], memory: Mapping[str, float]
) -> str:
    int8, bf16 = sizes[1], sizes[2]
    return (
        f"Omniglot's network, {WIDTH} wide: release of {int8['full']:,} bytes, difference of {int8['int8']:,} (int8) "
        f"or {bf16['bf16']:,} (bf16). {real} of {sites} sites are real (relay, TUF's client, every signature checked); "
        f"one more was recorded beforehand: {len(recorded.look)} requests a look, {len(recorded.then[-1])} more for a "
        f"release, all over {recorded.connections} connection(s). {sites - real} replay that, and check status, size "
        "and digest. The first look's time includes the handshake. Requests, bytes and the sites' CPU are those of the "
        "replayed sites; the server's CPU includes what the real ones ask. Static: "
        f"{static.name()}, TLS without client certificates. Memory in the end: gateway {memory[GATEWAY]:.0f} MB, "
        f"static {memory[STATIC]:.0f} MB."
    )


if __name__ == "__main__":
    try:
        main()
    except FedreptileError as error:
        sys.exit(str(error))
