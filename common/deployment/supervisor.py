"""A supervisor: starts processes in order, starts them again when they die, ends them in reverse order.

It keeps what it does in one small file, so that another command can show it, and so that the next supervisor can end
what one that was killed has left behind.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.deployment.lock import hold
from common.deployment.logs import copy_to_log, own_output_in
from common.errors import DeployError, FedreptileError
from common.paths import write_atomically

log = logging.getLogger("fedreptile.supervisor")

STATE, STOP, LOCK = "processes.json", "stop", "lock"
LOCK_SECONDS = 3.0
"""Time for a supervisor that has ended its parts to end itself."""
LOOK_SECONDS = 0.1
READY_SECONDS = 120.0
"""Time that a process has to get ready before it is ended and started again."""
END_SECONDS = 15.0
STOP_SECONDS = 6 * END_SECONDS
"""Time that a supervisor has to end all its parts."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a process that died is started again; doubled each time."""
CALM_SECONDS = 60.0
"""A process that ran this long starts with the first pause again."""
FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Flower shall report nothing, look for nothing and install nothing."""
MEMORY = {"MALLOC_ARENA_MAX": "2"}
"""Processes with many threads keep their memory flat for months: glibc gives each thread a heap of its own else, up to
eight a core, and each keeps what it once had. Other systems take no notice. Who sets it otherwise has it otherwise."""


SUPERVISED = "FEDREPTILE_SUPERVISED"
"""Environment variable of the processes of a supervisor."""
DETACHED = "FEDREPTILE_DETACHED"
"""Environment variable of a supervisor that is to keep its own output in a log: the path of that."""
BARE = frozenset(
    {
        *("PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "LD_LIBRARY_PATH", "PYTHONPATH"),
        *("HOME", "USER", "LOGNAME"),
        *("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "USERPROFILE", "LOCALAPPDATA", "APPDATA"),
    }
)
"""What parts that are ``bare`` get of the supervisor's environment, beside what begins with ``LC_``."""


@dataclass(frozen=True)
class Part:
    """A process that is to run."""

    name: str
    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Beside the supervisor's own environment."""
    bare: bool = False
    """Whether it gets no more of the supervisor's environment than what is in ``BARE``: no proxy, no secret."""
    user: str = ""
    """Whose process it is; empty: the supervisor's own. Another one needs root."""
    ready: Callable[[], bool] = lambda: True
    """Whether it does its work. The parts after it are started when it is ready for the first time."""
    before: Callable[[], None] = lambda: None
    """Called each time before it is started."""
    started: Callable[[], None] = lambda: None
    """Called each time that it has become ready."""


def module(name: str, *words: str) -> list[str]:
    """Return the command that runs a module of this installation, not one of the folder it is started in."""
    return [sys.executable, "-P", "-m", name, *words]


def script(name: str, *words: str) -> list[str]:
    """Return the command that runs a console script of this installation."""
    return [str(Path(sys.executable).with_name(name)), *words]


@dataclass
class _Running:
    part: Part
    process: subprocess.Popen[bytes] | None = None
    since: float = 0.0
    is_ready: bool = False
    starts: int = 0
    pause: float = FIRST_PAUSE
    next_start: float = 0.0
    last_exit: int | None = None


class Supervisor:
    """Parts of one folder.

    Args:
        run: folder of the state file; owner-only.
        logs: folder that gets ``<part>.log``.
        log_bytes: disk that each part's log may take.
        chores: called about every ``chore_seconds``, such as freeing disk.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        run: Path,
        logs: Path,
        log_bytes: int,
        chores: Callable[[], None] = lambda: None,
        chore_seconds: float = 60.0,
    ) -> None:
        self._parts = [_Running(part) for part in parts]
        self._run_folder, self._logs, self._log_bytes = run, logs, log_bytes
        self._chores, self._chore_seconds = chores, chore_seconds
        self._stop = threading.Event()
        self._written = ""
        self._trouble = ""
        """What went wrong at the last look, so that it is logged once."""

    def run(self, when_ready: Callable[[], None] = lambda: None) -> None:
        """Run the parts until ``stop`` is called, SIGTERM or SIGINT arrives, or ``down`` asks for it.

        Args:
            when_ready: called once, when all parts are ready for the first time.
        """
        with own_output_in(os.environ.pop(DETACHED, ""), self._log_bytes):
            self._run(when_ready)

    def _run(self, when_ready: Callable[[], None]) -> None:
        (self._run_folder / STOP).unlink(missing_ok=True)
        told, chores_at = False, 0.0
        try:
            while not self._stop.is_set() and not (self._run_folder / STOP).exists():
                with self._going_on() if told else contextlib.nullcontext():
                    self._look_after_all()
                    self._trouble = ""
                if not told and all(running.is_ready for running in self._parts):
                    told = True
                    when_ready()
                if told and time.monotonic() >= chores_at:
                    chores_at = time.monotonic() + self._chore_seconds
                    with self._going_on():
                        self._chores()
                self._stop.wait(LOOK_SECONDS)
        finally:
            for running in reversed(self._parts):
                self._end(running)
            (self._run_folder / STATE).unlink(missing_ok=True)
            (self._run_folder / STOP).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _going_on(self) -> Iterator[None]:
        """Log what goes wrong, such as that a disk is full; it is tried again, and must not end what runs."""
        try:
            yield
        except (FedreptileError, OSError) as error:
            if str(error) != self._trouble:
                log.error("%s", error)
            self._trouble = str(error)

    def stop(self) -> None:
        self._stop.set()

    def restart(self, name: str) -> None:
        """End a part; it is started again at once."""
        for running in self._parts:
            if running.part.name == name:
                self._end(running)
                running.next_start = 0.0

    def _look_after_all(self) -> None:
        for running in self._parts:
            self._look_after(running)
            if not running.is_ready and running.starts <= 1:
                break  # those after it wait for it; but not when it is only being started again
        self._write_state()

    def _look_after(self, running: _Running) -> None:
        now, process = time.monotonic(), running.process
        if process is None:
            if now >= running.next_start:
                self._start(running)
            return
        code = process.poll()
        if code is not None:
            lived = now - running.since
            running.pause = FIRST_PAUSE if lived >= CALM_SECONDS else min(2 * running.pause, LONGEST_PAUSE)
            running.next_start, running.last_exit = now + running.pause, code
            running.process, running.is_ready = None, False
            _close(process)
            end_group(process.pid)
            log.warning(
                "%s ended with %d after %.0f s; started again in %.1f s", running.part.name, code, lived, running.pause
            )
            return
        if not running.is_ready:
            if running.part.ready():
                running.part.started()
                running.is_ready = True
                log.info("%s is ready (process %d)", running.part.name, process.pid)
            elif now - running.since > READY_SECONDS:
                log.warning("%s was not ready in %.0f s and is started again", running.part.name, READY_SECONDS)
                self._end(running)

    def _start(self, running: _Running) -> None:
        part = running.part
        self._logs.mkdir(parents=True, exist_ok=True)
        part.before()
        try:
            process = subprocess.Popen(
                list(part.words),
                env=environment_of(part),
                cwd=self._run_folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **as_user(part.user),
            )
        except OSError as error:
            running.next_start = time.monotonic() + LONGEST_PAUSE
            log.error("%s cannot be started: %s (%s)", part.name, error, part.words[0])
            return
        assert process.stdout is not None
        copy_to_log(process.stdout, self._logs / f"{part.name}.log", self._log_bytes)
        running.process, running.since = process, time.monotonic()
        running.starts += 1

    def _end(self, running: _Running) -> None:
        process, running.process, running.is_ready = running.process, None, False
        if process is None:
            return
        process.terminate()
        _close(process)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        end_group(process.pid)

    def _write_state(self) -> None:
        parts = {
            running.part.name: {
                "pid": running.process.pid if running.process else None,
                "began": process_began(running.process.pid) if running.process else "",
                "ready": running.is_ready,
                "starts": running.starts,
                "last-exit": running.last_exit,
            }
            for running in self._parts
        }
        state = {"supervisor": {"pid": os.getpid(), "began": process_began(os.getpid())}, "parts": parts}
        text = json.dumps(state, indent=1)
        if text != self._written:
            write_atomically(self._run_folder / STATE, text.encode(), 0o600)
            self._written = text


def _close(process: subprocess.Popen[bytes]) -> None:
    """Close our end of a process's standard input, by which it knows that we are there."""
    with contextlib.suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()


def _path() -> str:
    """Return PATH with the scripts of this installation first, which Flower starts by name."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def environment_of(part: Part) -> dict[str, str]:
    """Return the environment of a part: the supervisor's or a little of it, Flower's constants, the part's own.

    A user's process has that user's home and name.

    Raises:
        DeployError: if the user does not exist.
    """
    own = {key: value for key, value in os.environ.items() if not part.bare or key in BARE or key.startswith("LC_")}
    if part.user and os.name == "posix":
        entry = _entry(part.user)
        own |= {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
    return {**MEMORY, **own, **FLOWER, SUPERVISED: "1", "PATH": _path(), **part.environment}


def _entry(name: str) -> Any:
    """Return what the system knows of a user. Raises DeployError if there is none of that name."""
    import pwd  # not on Windows

    try:
        return pwd.getpwnam(name)
    except KeyError as error:
        raise DeployError(f"there is no user {name!r} on this machine; make it, or leave it empty") from error


def as_user(name: str) -> dict[str, Any]:
    """Return the arguments with which ``subprocess`` starts a process as another user, with that user's groups only.

    Raises:
        DeployError: if the user does not exist, or only root could do it.
    """
    if not name:
        return {}
    if os.name != "posix":
        raise DeployError(f"processes of another user ({name}) are not possible on this system; leave the user empty")
    entry = _entry(name)
    if os.geteuid() != 0 and entry.pw_uid != os.geteuid():
        raise DeployError(f"only root can start processes as {name!r}; start this as root, or leave the user empty")
    if entry.pw_uid == os.geteuid():
        return {}
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(name, entry.pw_gid)}


def end_group(group: int) -> None:
    """Ask what is left of a process group to end, and kill what has not after a second."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGTERM)
        for _ in range(20):
            time.sleep(0.05)
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)


def process_began(pid: int) -> str:
    """Return what tells a process from a later one with the same id; empty if there is none, or it cannot be told."""
    try:
        found = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return "" if found[0] == "Z" else found[19]
    except (OSError, IndexError, ValueError):
        return ""


def read_state(run: Path) -> dict[str, Any] | None:
    """Return what a supervisor has written about itself, if it is alive."""
    try:
        state: dict[str, Any] = json.loads((run / STATE).read_text(encoding="utf-8"))
        return state if _alive(state["supervisor"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _alive(entry: Mapping[str, Any]) -> bool:
    pid = entry.get("pid")
    if not isinstance(pid, int):
        return False
    if Path("/proc/self/stat").exists():
        return bool(entry["began"]) and process_began(pid) == entry["began"]
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def alone_in(run: Path) -> Iterator[list[str]]:
    """Be a folder's only supervisor; give the names of those processes of a killed one that were ended.

    Raises:
        DeployError: if another one is there, or just starting.
    """
    file = hold(run / LOCK, LOCK_SECONDS) if read_state(run) is None else None
    if file is None:
        raise DeployError(f"it is running already ({run / LOCK} is held); stop it with 'down'")
    with file:
        yield _end_leftovers(run)


def _end_leftovers(run: Path) -> list[str]:
    """End the processes of a supervisor that was killed; return their names."""
    try:
        parts = json.loads((run / STATE).read_text(encoding="utf-8"))["parts"]
    except (OSError, ValueError, KeyError):
        return []
    ended = []
    for name, entry in parts.items():
        if _alive(entry):
            end_group(entry["pid"])
            ended.append(name)
    (run / STATE).unlink(missing_ok=True)
    return ended


def ask_to_stop(run: Path, patience: float = STOP_SECONDS) -> bool:
    """Ask the supervisor of a folder to stop and wait until it has. Returns False if none was running.

    Raises:
        DeployError: if it does not stop.
    """
    if read_state(run) is None:
        return False
    (run / STOP).touch()
    deadline = time.monotonic() + patience
    while read_state(run) is not None:
        if time.monotonic() > deadline:
            raise DeployError(f"the processes listed in {run / STATE} do not stop; end them by hand")
        time.sleep(LOOK_SECONDS)
    return True


def end_with_parent() -> None:
    """Have this process end when its supervisor does, however that ended: its standard input then closes.

    Does nothing in a process that was not started by one.
    """
    if SUPERVISED not in os.environ:
        return

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="supervisor-watch").start()
