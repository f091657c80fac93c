"""What a round costs in a real deployment, beside a stock Flower app on the same SuperLink version that does as much.

python -m simulations.benchmarks.deployment [--rounds 5] [--sites 4]
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import tomli_w
from rich.console import Console
from rich.table import Table

from common.deployment.ports import free_port
from common.deployment.supervisor import FLOWER, script
from common.paths import write_atomically
from common.trust.folders import write_loopback
from common.trust.keys import new_node_key, node_key_pem, openssh_text
from simulations.sources.prepare import find_mirror

WAY, SHOT, WIDTH, STEPS, BATCH = 5, 10, 32, 5, 20
WAIT = 300.0


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m simulations.benchmarks.deployment", description=__doc__)
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--sites", type=int, default=4)
    given = words.parse_args()
    console = Console(soft_wrap=True)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; Omniglot's network "
        f"({WIDTH} wide), {STEPS} inner steps, judged in every round"
    )
    with tempfile.TemporaryDirectory(prefix="fr-") as scratch:
        folder = Path(scratch)
        sites = site_folders(folder / "data", given.sites)
        ours = own_rounds(folder / "own", sites, given.rounds)
        stock = stock_rounds(folder / "stock", sites, given.rounds)
    table = Table("", "fedreptile", "stock Flower", "ratio", title=f"Seconds a round, {given.sites} sites")
    for number, (mine, theirs) in enumerate(zip(ours.seconds, stock, strict=True), 1):
        table.add_row(f"round {number}", f"{mine:.1f}", f"{theirs:.1f}", f"{theirs / mine:.1f}")
    mine, theirs = median(ours.seconds), median(stock)
    table.add_row("median", f"{mine:.1f}", f"{theirs:.1f}", f"{theirs / mine:.1f}")
    console.print(table)
    console.print(
        f"of a round of ours: {ours.work:.2f} s is a site's own work (prepare, adapt, reply, judge), the rest is the "
        f"way: a process of Flower's for each message (about {ours.app:.1f} s of CPU each), polling, transport"
    )


class Ours:
    """Seconds of each round, a site's median seconds of work, and CPU seconds of an app process."""

    def __init__(self, seconds: list[float], work: float, app: float) -> None:
        self.seconds, self.work, self.app = seconds, work, app


def site_folders(root: Path, count: int) -> dict[str, Path]:
    """Unpack the first alphabets of Omniglot as class folders of pictures."""
    mirror = find_mirror(None)
    if mirror is None:
        raise SystemExit("this needs the Omniglot archives: 'fedreptile-sim data get omniglot', or a data mirror")
    archive = mirror / "omniglot" / "origin_format" / "images_background_small1.zip"
    shutil.unpack_archive(archive, root)
    alphabets = sorted(path for path in next(root.iterdir()).iterdir() if path.is_dir())[:count]
    return {f"site-{number}": path for number, path in enumerate(alphabets, 1)}


def command(name: str, *words: object, cwd: Path) -> str:
    done = subprocess.run(
        script(name, *map(str, words)),
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} {' '.join(map(str, words))}: {done.stdout}{done.stderr}")
    return done.stdout


def own_rounds(folder: Path, sites: dict[str, Path], rounds: int) -> Ours:
    """Deploy by the project's own commands and return what its rounds took."""
    folder.mkdir()
    settings = {
        "run": {"rounds": rounds},
        "episode": {"way": WAY, "shot": SHOT},
        "model": {"width": WIDTH},
        "inner": {"steps": STEPS, "batch-size": BATCH},
        "outer": {"sites-per-round": 0, "quorum": 1.0, "join-sites": len(sites)},
        "judge": {"every": 1},
    }
    write_atomically(folder / "settings.toml", tomli_w.dumps(settings).encode())
    address = f"localhost:{free_port()}"
    words = ("--name", "bench", "--address", address, "--listen", address.replace("localhost", "127.0.0.1"))
    command("fedreptile-server", "enrol", "new", "fed", *words, "--settings", "settings.toml", cwd=folder)
    fingerprint = command("fedreptile-server", "enrol", "fingerprint", "--home", "fed", cwd=folder).split()[-1]
    for name, data in sites.items():
        command("fedreptile-site", "join", "--home", name, "--name", name, "--data", data, cwd=folder)
        kit = f"{name}.json"
        command(
            "fedreptile-server",
            "enrol",
            "approve",
            f"{name}/request.json",
            "--out",
            kit,
            "--yes",
            "--home",
            "fed",
            cwd=folder,
        )
        command("fedreptile-site", "join", "--home", name, "--kit", kit, "--fingerprint", fingerprint, cwd=folder)
    started = []
    try:
        command("fedreptile-server", "up", "--detach", "--home", "fed", cwd=folder)
        started.append(("fedreptile-server", "fed"))
        for name in sites:
            command("fedreptile-site", "up", "--detach", "--home", name, cwd=folder)
            started.append(("fedreptile-site", name))
        command("fedreptile-server", "run", "--name", "bench", "--home", "fed", cwd=folder)
    finally:
        for program, home in reversed(started):
            command(program, "down", "--home", home, cwd=folder)
    lines = [
        json.loads(line) for line in (folder / "fed/runs/bench/rounds.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return Ours(
        [line["seconds"] for line in lines], median(line["figures"]["seconds"] for line in lines), app_cpu(folder)
    )


def app_cpu(folder: Path) -> float:
    """Return the CPU seconds that Flower's process for a message takes before it has done anything."""
    code = (
        "import time, flwr.supernode.runtime.run_clientapp, client.app, client.worker.wire; print(time.process_time())"
    )
    found = [
        float(
            subprocess.run(
                [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=folder
            ).stdout
        )
        for _ in range(3)
    ]
    return median(found)


def stock_rounds(folder: Path, sites: dict[str, Path], rounds: int) -> list[float]:
    """Deploy the stock app as Flower's documentation says (TLS, node keys, SQLite) and return what its rounds took."""
    folder.mkdir()
    write_loopback(folder / "tls", datetime.now(UTC))
    environment = {**os.environ, **FLOWER, "FLWR_HOME": str(folder), "NO_PROXY": "*", "PATH": path_with_scripts()}
    address = f"127.0.0.1:{free_port()}"
    tls = folder / "tls"
    superlink = script(
        "flower-superlink",
        *("--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--database", str(folder / "state.db")),
        *("--ssl-ca-certfile", f"{tls}/ca.crt", "--ssl-certfile", f"{tls}/tls.crt", "--ssl-keyfile", f"{tls}/tls.key"),
        "--enable-supernode-auth",
    )
    connection = {"address": address, "root-certificates": f"{tls}/ca.crt"}
    write_atomically(folder / "config.toml", tomli_w.dumps({"superlink": {"bench": connection}}).encode())
    app = stage_stock(folder / "stock-app", len(sites), rounds)
    with contextlib.ExitStack() as running:
        running.enter_context(process(superlink, environment, folder / "superlink.log"))
        log, times = folder / "superlink.log", folder / "times"
        wait_until(lambda: "Uvicorn running" in log.read_text(encoding="utf-8", errors="replace"), log)
        for name, data in sites.items():
            key = new_node_key()
            write_atomically(folder / name, node_key_pem(key), 0o600)
            write_atomically(folder / f"{name}.pub", openssh_text(key.public_key()).encode())
            flwr("supernode", "register", f"{folder / name}.pub", "bench", environment=environment)
            node = script(
                "flower-supernode",
                *("--superlink", address, "--root-certificates", f"{tls}/ca.crt", "--port", str(free_port())),
                *("--auth-supernode-private-key", str(folder / name), "--node-config", f"data='{data}'"),
            )
            running.enter_context(process(node, environment, folder / f"{name}.log"))
        flwr("run", str(app), "bench", environment=environment)
        wait_until(
            lambda: times.exists() and times.read_text(encoding="ascii").count("\n") > rounds, folder / "site-1.log"
        )
    noted = [float(line) for line in times.read_text(encoding="ascii").split()]
    return [later - before for before, later in pairwise(noted)]


def stage_stock(folder: Path, nodes: int, rounds: int) -> Path:
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("stock_flower.py"), folder / "stock_flower.py")
    work: dict[str, Any] = {"way": WAY, "width": WIDTH, "steps": STEPS, "batch": BATCH}
    config = {**work, "nodes": nodes, "rounds": rounds, "notes": str(folder.parent / "times")}
    components = {"serverapp": "stock_flower:server_app", "clientapp": "stock_flower:client_app"}
    flower = {"app": {"publisher": "bench", "components": components, "config": config}}
    project = {"name": "stock-app", "version": "1.0.0", "description": "a benchmark", "license": "Apache-2.0"}
    write_atomically(folder / "pyproject.toml", tomli_w.dumps({"project": project, "tool": {"flwr": flower}}).encode())
    return folder


def flwr(*words: str, environment: dict[str, str]) -> None:
    done = subprocess.run(script("flwr", *words), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"flwr {' '.join(words)}: {done.stdout}{done.stderr}")


@contextlib.contextmanager
def process(words: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """Have a process, and all that it starts, until the block ends."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)
        try:
            started.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def wait_until(there: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + WAIT
    while not there():
        if time.monotonic() > deadline:
            raise SystemExit(f"it took longer than {WAIT:.0f} s; {log} ends with: {log.read_text()[-2000:]}")
        time.sleep(0.2)


def path_with_scripts() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


if __name__ == "__main__":
    main()
