"""A federation as people deploy it: made by the commands, every part a process, real TLS on loopback."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from typer.testing import CliRunner

import client.cli
import server.cli
from client.home import SiteHome
from common.deployment.detach import LEFT
from common.deployment.ports import free_port
from common.deployment.supervisor import read_state
from common.errors import FedreptileError
from server.home import FederationHome
from server.service.runs import RunRecord, read_journal, read_run

PATIENCE = 60.0
APPS = {"fedreptile-server": server.cli.app, "fedreptile-site": client.cli.app}


@dataclass
class Deployment:
    """One server and its sites, each in a folder of its own."""

    folder: Path
    port: int = field(default_factory=free_port)
    sites: dict[str, SiteHome] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    host: str = "localhost"
    listen_host: str = "127.0.0.1"
    real: bool = False
    """Whether each command is a process of its own."""
    prefix: dict[str, list[str]] = field(default_factory=dict)
    """Site -> words before its commands, such as those that enter its network namespace."""

    @property
    def server(self) -> FederationHome:
        return FederationHome(self.folder / "federation")

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def command(self, name: str, *words: object, fails: bool = False, prefix: Sequence[str] = ()) -> str:
        """Run a command as a user would; return what it showed.

        Within this process, for speed, unless ``real`` is set or it needs a prefix.
        """
        environment = {"COLUMNS": "200", "NO_COLOR": "1", **self.environment}
        if not self.real and not prefix:
            return self._invoked(name, [str(word) for word in words], environment, fails)
        done = subprocess.run(
            [*prefix, str(Path(sys.executable).with_name(name)), *map(str, words)],
            cwd=self.folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        said = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, f"{name} {' '.join(map(str, words))}: exit {done.returncode}\n{said}"
        return said

    def _invoked(self, name: str, words: list[str], environment: dict[str, str], fails: bool) -> str:
        result = CliRunner(env=environment).invoke(APPS[name], words)
        if result.exception and not isinstance(result.exception, FedreptileError | SystemExit):
            raise result.exception
        said = result.output + (str(result.exception) if isinstance(result.exception, FedreptileError) else "")
        assert (result.exit_code != 0) == fails, f"{name} {' '.join(words)}: {said}"
        return said

    def operator(self, command: str, *words: object, fails: bool = False) -> str:
        first = command.split()
        return self.command("fedreptile-server", *first, *words, "--home", self.server.path, fails=fails)

    def engineer(self, site: str, command: str, *words: object, fails: bool = False) -> str:
        first = command.split()
        prefix = self.prefix.get(site, ())
        return self.command(
            "fedreptile-site", *first, *words, "--home", self.sites[site].path, fails=fails, prefix=prefix
        )

    def make(self, settings: Mapping[str, Mapping[str, Any]], **config: Any) -> None:
        """Make the federation; ``config`` changes federation.toml."""
        agreed = self.folder / "agreed.toml"
        agreed.write_text(tomli_w.dumps(settings), encoding="utf-8")
        listen = f"{self.listen_host}:{self.port}"
        words = ["--name", "lines", "--address", self.address, "--listen", listen, "--settings", agreed]
        self.command("fedreptile-server", "enrol", "new", self.server.path, *words)
        if config:
            with self.server.config_file.open("a", encoding="utf-8") as file:
                file.write(tomli_w.dumps({name.replace("_", "-"): value for name, value in config.items()}))

    def enrol(self, site: str, data: Path, *words: object, **config: Any) -> SiteHome:
        """Let a site in, by the steps that its engineer and the operator take; ``config`` changes site.toml."""
        home = self.sites[site] = SiteHome(self.folder / site)
        self.engineer(site, "join", "--name", site, "--data", data, *words)
        kit = self.folder / f"{site}-kit.json"
        self.operator("enrol approve", home.request_file, "--out", kit, "--yes")
        self.engineer(site, "join", "--kit", kit, "--fingerprint", self.fingerprint())
        if config:
            with home.config_file.open("a", encoding="utf-8") as file:
                file.write(tomli_w.dumps({name.replace("_", "-"): value for name, value in config.items()}))
        return home

    def fingerprint(self) -> str:
        return self.operator("enrol fingerprint").split()[-1]

    @contextlib.contextmanager
    def up(self, *sites: str) -> Iterator[None]:
        """Have the server and sites (all, if none are named) running."""
        try:
            self.operator("up", "--detach")
            self.start(*(sites or self.sites))
            yield
        finally:
            self.down()

    def start(self, *sites: str) -> None:
        """Start sites, all at once."""
        program = str(Path(sys.executable).with_name("fedreptile-site"))
        starting = []
        for site in sites:
            words = [*self.prefix.get(site, ()), program, "up", "--detach", "--home", str(self.sites[site].path)]
            environment = {**os.environ, **self.environment}
            starting.append(subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL))
        codes = [process.wait(2 * PATIENCE) for process in starting]
        assert not any(codes), self.logs()

    def down(self) -> None:
        for home in self.sites.values():
            if read_state(home.run):
                self.command("fedreptile-site", "down", "--home", home.path)
        if read_state(self.server.run):
            self.operator("down")
        while LEFT:
            LEFT.pop().wait(PATIENCE)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.operator("status", "--json"))
        return found

    def online(self) -> set[str]:
        return {site["name"] for site in self.status()["sites"] if site["online"]}

    def run(self, name: str = "run", *words: object) -> str:
        """Have a run and wait for its end; return what the command showed."""
        program = str(Path(sys.executable).with_name("fedreptile-server"))
        command = [program, "run", "--home", str(self.server.path), "--name", name, *map(str, words)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                said, _ = process.communicate(timeout=2 * PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == 0, said
        return said

    def begin(self, name: str = "run", *words: object) -> None:
        self.operator("run", "--name", name, "--detach", *words)

    def record(self, name: str = "run") -> RunRecord:
        return read_run(self.server.runs / name)

    def journal(self, name: str = "run") -> list[dict[str, Any]]:
        return read_journal(self.server.runs / name)

    def wait(self, there: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait until something is so; say what the logs have when it never is."""
        deadline = time.monotonic() + patience
        while not there():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def wait_for_round(self, number: int, name: str = "run", patience: float = PATIENCE) -> None:
        self.wait(lambda: bool(self.journal(name)) and self.journal(name)[-1]["round"] >= number, patience)

    def wait_for_end(self, name: str = "run", patience: float = 2 * PATIENCE) -> RunRecord:
        self.wait(lambda: self.record(name).state in ("finished", "failed", "stopped"), patience)
        return self.record(name)

    def relay_state(self, site: str) -> dict[str, Any]:
        """Return what a site's relay says of its connection."""
        found: dict[str, Any] = json.loads(self.sites[site].relay_state.read_text(encoding="utf-8"))
        return found

    def pid(self, home: FederationHome | SiteHome, part: str) -> int:
        """Return the process id of a part; 'supervisor' is what starts the others."""
        state = read_state(home.run)
        assert state, f"{home.path} is not running"
        entry = state["supervisor"] if part == "supervisor" else state["parts"][part]
        assert isinstance(entry["pid"], int), f"{part} is not running"
        return entry["pid"]

    def kill(self, home: FederationHome | SiteHome, part: str) -> None:
        """Kill a part; return at once, but for the supervisor when it is dead."""
        os.kill(self.pid(home, part), signal.SIGKILL)
        if part == "supervisor":
            self.wait(lambda: read_state(home.run) is None)

    def kill_processes(self, word: str) -> int:
        """Kill all processes of this deployment whose command holds a word, such as flwr-clientapp; return how many."""
        found = [pid for pid, command in self.processes() if word in command]
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return len(found)

    def processes(self) -> list[tuple[int, str]]:
        """Return process ids and commands of everything that this deployment started and that still runs."""
        # Those that get little of the environment have Flower's folder in it, which is one of ours.
        mark, found = re.compile(rb"=%s[/\0]" % re.escape(os.fsencode(self.folder))), []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark.search((process / "environ").read_bytes()):
                    found.append((int(process.name), (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
        return found

    def logs(self) -> str:
        """Return the end of every log, for a test that fails."""
        places = [self.server.logs, *(home.logs for home in self.sites.values())]
        parts = []
        for path in sorted(path for place in places if place.is_dir() for path in place.glob("*.log")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            parts.append(f"--- {path.relative_to(self.folder)}\n" + "\n".join(lines))
        return "\n".join(parts)
