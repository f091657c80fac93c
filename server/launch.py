"""Running this project as a Flower app: staged, submitted, followed to its end.

Everything goes through Flower's own commands, as an operator would type them. Three of their
habits are made up for here: they exit with 0 when a run failed, they leave a SuperLink behind
that nothing ends, and they install packages at run time unless told not to.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import tomli_w

from common import VERSION
from common.deployment.ports import free_port
from common.errors import LaunchError, SettingsError
from common.paths import default_sites
from common.settings import Settings, Value, flatten

PACKAGES = ("server", "client", "common")
"""What Flower gets; they lie beside each other in a checkout, in an installation and in Flower's own copy."""
APP = "fedreptile"
OWN = "own"
"""Name of the connection to a SuperLink that ``local_superlink`` started."""

COMPLETED = "finished:completed"
LISTENS = "Uvicorn running on"
START_SECONDS = 60.0
END_SECONDS = 15.0
LOOK_SECONDS = 300.0
"""While the log of a run streams, seconds between looks at its status: each costs about 2 s of CPU."""
PAUSE_SECONDS = 10.0
"""The same when the stream is lost."""
LOOKS_IN_VAIN = 6

Environment = Mapping[str, str]


@dataclass(frozen=True)
class RunOutcome:
    """How far a run is, in Flower's words: ``finished:completed``, ``finished:failed``, ``running``, …"""

    run_id: str
    status: str
    details: str

    @property
    def finished(self) -> bool:
        return self.status.startswith("finished")


def stage_app(target: Path) -> Path:
    """Make ``target`` a folder that ``flwr run`` accepts: our packages' source, LICENSE and a pyproject.toml.

    The pyproject.toml is written from the settings' defaults and not copied, so that an
    installation without a checkout gives the same app. It names no dependencies: they come with
    the installation at the server and at every site.

    Args:
        target: must not exist; its name may hold letters, digits and hyphens.
    """
    root = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        shutil.copytree(root / name, target / name, ignore=_all_but_python)
    licence = _licence(root)
    if licence:
        shutil.copyfile(licence, target / "LICENSE")
    (target / "pyproject.toml").write_text(tomli_w.dumps(_pyproject(licence is not None)), encoding="utf-8")
    return target


def _all_but_python(folder: str, names: list[str]) -> list[str]:
    return [n for n in names if n == "__pycache__" or not (n.endswith(".py") or Path(folder, n).is_dir())]


def _licence(root: Path) -> Path | None:
    """Return the licence file of the checkout or of the installation, if there is one."""
    places = [root / "LICENSE"]
    with contextlib.suppress(metadata.PackageNotFoundError):
        files = metadata.files(APP) or []
        places += [Path(str(file.locate())) for file in files if file.name == "LICENSE"]
    return next((place for place in places if place.is_file()), None)


def _pyproject(licensed: bool) -> dict[str, Any]:
    patterns = [f"{name}/**/*.py" for name in PACKAGES]
    return {
        "project": {
            "name": APP,
            "version": VERSION,
            "description": "Federated few-shot adaptation with Reptile",
            "license": "Apache-2.0",
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": APP,
                    "fab-include": [*patterns, "LICENSE"] if licensed else patterns,
                    "components": {"serverapp": "server.app:app", "clientapp": "client.app:app"},
                    "config": nested(flatten(Settings())),
                }
            }
        },
    }


def nested(flat: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Turn ``section.key`` values into one table a section, as TOML has them."""
    tables: dict[str, dict[str, Value]] = {}
    for key, value in flat.items():
        section, name = key.split(".", 1)
        tables.setdefault(section, {})[name] = value
    return tables


def flower_environment(home: Path | None = None) -> dict[str, str]:
    """Return this process's environment, changed so that Flower installs nothing and reports nothing.

    Args:
        home: Flower's folder for its configuration and copies of apps; None leaves it as it is.
    """
    changes = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",  # the log of a run is read while it is written
        "FORCE_COLOR": "",  # the commands' answers are read as JSON
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
    }
    return {**os.environ, **changes, **({"FLWR_HOME": str(home)} if home else {})}


def submit(
    app: Path,
    connection: str,
    values: Mapping[str, Value],
    environment: Environment,
    federation: str = "",
    log: int | None = subprocess.DEVNULL,
) -> RunOutcome:
    """Run an app on the SuperLink behind a connection and wait for its end. Ctrl-C stops the run.

    Args:
        values: changes of the app's defaults.
        federation: Flower's ``--federation-config``, for simulations.
        log: where the ServerApp's log goes, as for ``subprocess``; None is this process's own output.

    Raises:
        LaunchError: if the run cannot be submitted, or ends in any other way than completed.
    """
    run_id = _start(app, connection, values, environment, federation)
    try:
        outcome = _follow(run_id, connection, environment, log)
    except KeyboardInterrupt:
        _flwr(["stop", run_id, connection], environment)
        raise
    if outcome.status != COMPLETED:
        raise LaunchError(f"run {run_id} is {outcome.status}: {outcome.details}")
    return outcome


def _start(app: Path, connection: str, values: Mapping[str, Value], environment: Environment, federation: str) -> str:
    with tempfile.TemporaryDirectory(prefix="fedreptile-") as scratch:
        changes = Path(scratch) / "changes.toml"
        changes.write_text(tomli_w.dumps(nested(values)), encoding="utf-8")
        words = ["run", str(app), connection, "--run-config", str(changes)]
        answer = _flwr([*words, "--federation-config", federation] if federation else words, environment)
    return str(answer["run-id"])


def look_up(run_id: str, connection: str, environment: Environment) -> RunOutcome:
    """Ask a SuperLink how far a run is. Raises LaunchError if it does not answer."""
    run = _flwr(["list", connection, "--run-id", run_id], environment)["runs"][0]
    return RunOutcome(run_id, run["status"], run["status-details"])


def _follow(run_id: str, connection: str, environment: Environment, log: int | None) -> RunOutcome:
    """Wait until a run has finished: its log streams until then, so that its status need hardly be asked for."""
    in_vain = 0
    with child(["flwr", "log", run_id, connection], environment, log) as stream:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                stream.wait(LOOK_SECONDS)
            try:
                outcome = look_up(run_id, connection, environment)
                in_vain = 0
            except LaunchError:
                in_vain += 1
                if in_vain == LOOKS_IN_VAIN:
                    raise
            else:
                if outcome.finished:
                    return outcome
            if stream.poll() is not None:
                time.sleep(PAUSE_SECONDS)


def run_simulation(settings: Settings, nodes: int, log: int | None = subprocess.DEVNULL) -> None:
    """Run the federation with Flower's own simulation engine, one simulated node for each of the first sites.

    Nothing of it is left running afterwards, and Flower's files are deleted; the run's folder stays.

    Raises:
        LaunchError: if the run does not complete.
        SettingsError: if ``run.dir`` is relative or there is no folder at ``data.sites``.
    """
    from server.rounds import RunFolder  # here, because it imports torch, which those who only stage an app do not need

    sites = Path(settings.data.sites or default_sites())
    if not (sites.is_absolute() and sites.is_dir()):
        raise SettingsError(f"data.sites is {str(sites)!r}; it must be the absolute path of a folder that is there")
    own: dict[str, Value] = {
        "run.dir": str(RunFolder.of(settings).path),
        "data.sites": str(sites),
        "outer.join-sites": nodes,
    }
    with tempfile.TemporaryDirectory(prefix="fedreptile-", ignore_cleanup_errors=True) as scratch:
        home = Path(scratch)
        environment = flower_environment(home)
        with local_superlink(home, environment):
            submit(
                stage_app(home / APP),
                OWN,
                flatten(settings) | own,
                environment,
                f"num-supernodes={nodes} client-resources-num-cpus=1",
                log,
            )


@contextlib.contextmanager
def local_superlink(home: Path, environment: Environment) -> Iterator[int]:
    """Have a SuperLink for simulations on this machine, reachable as connection ``OWN`` of Flower's ``home``.

    It and the SuperExec that starts its runs are our children, unlike those that ``flwr run``
    starts by itself and leaves behind. They work in ``home``, since Ray's workers import from
    the folder they are in before anything else. Gives the port it listens on.

    Raises:
        LaunchError: if it does not start; with the end of its log.
    """
    port, log = free_port(), home / "superlink.log"
    address = f"127.0.0.1:{port}"
    connection = {"address": address, "insecure": True}
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"default": OWN, OWN: connection}}), encoding="utf-8")
    link = ["flower-superlink", "--simulation", "--insecure", "--isolation", "process"]
    start = ["flower-superexec", "--insecure", "--runtime-api-address", address, "--parent-pid", str(os.getpid())]
    with (
        log.open("wb") as output,
        child([*link, "--host", "127.0.0.1", "--port", str(port)], environment, output.fileno(), home) as superlink,
    ):
        _wait_until_it_listens(superlink, log)
        with child(start, environment, output.fileno(), home):
            yield port


def _wait_until_it_listens(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the line in the SuperLink's own log; on its port another program might answer."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if LISTENS in log.read_text(encoding="utf-8", errors="replace"):
            return
        time.sleep(0.1)
    last = log.read_text(encoding="utf-8", errors="replace").split("\n")[-6:]
    raise LaunchError(f"Flower's SuperLink did not start: {' / '.join(filter(None, last)) or 'it wrote nothing'}")


@contextlib.contextmanager
def child(
    words: list[str], environment: Environment, output: int | None, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Have a process, in a folder, that ends with the block, and with it all that it started in its group.

    Ctrl-C does not reach it: what to do then is ours to decide.
    """
    process = subprocess.Popen(
        words,
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if os.name == "posix":
            _end_group(process.pid)


def _end_group(group: int) -> None:
    """Ask what is left of a process group to end, and kill what has not after ``END_SECONDS``."""
    deadline = time.monotonic() + END_SECONDS
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)


def _flwr(words: list[str], environment: Environment) -> dict[str, Any]:
    """Run a ``flwr`` command and return its JSON answer.

    Raises:
        LaunchError: if it fails, which Flower says in the answer while it exits with 0.
    """
    command = ["flwr", *words, "--format", "json"]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        answer = {}
    if not answer.get("success"):
        said = answer.get("error-message") or done.stdout + done.stderr
        raise LaunchError(f"'flwr {words[0]}' failed: {' '.join(str(said).split())}")
    return answer
