"""Processes that are started in order, started again when they die, and ended together: real ones."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from common.deployment import supervisor
from common.deployment.supervisor import (
    FLOWER,
    LOCK,
    STATE,
    Part,
    Supervisor,
    alone_in,
    as_user,
    ask_to_stop,
    read_state,
)
from common.errors import CheckpointError, DeployError

PATIENCE = 30.0
STAY = "import time; print('here', flush=True); time.sleep(600)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait_for(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def supervised(folder: Path, *parts: Part) -> Iterator[Supervisor]:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    supervisor, ready = Supervisor(parts, run, folder / "logs", 10_000), threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(ready.set,))
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield supervisor
    finally:
        supervisor.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def pid_of(folder: Path, name: str) -> int | None:
    state = read_state(folder / "run")
    pid = state["parts"][name]["pid"] if state else None
    return pid if isinstance(pid, int) else None


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_parts_start_in_order_each_when_the_one_before_is_ready(tmp_path: Path) -> None:
    mark = tmp_path / "first-is-ready"
    first = python(f"import time, pathlib; time.sleep(0.5); pathlib.Path({str(mark)!r}).touch(); time.sleep(600)")
    second = python(f"import pathlib, time; print(pathlib.Path({str(mark)!r}).exists(), flush=True); time.sleep(600)")
    log = tmp_path / "logs" / "second.log"
    with supervised(tmp_path, Part("first", first, ready=mark.exists), Part("second", second)):
        wait_for(lambda: log.exists() and log.read_text(encoding="utf-8") == "True\n")


def test_a_part_that_is_killed_is_started_again_and_the_others_stay(tmp_path: Path) -> None:
    with supervised(tmp_path, Part("a", python(STAY)), Part("b", python(STAY))):
        first, other = pid_of(tmp_path, "a"), pid_of(tmp_path, "b")
        assert first and other
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: pid_of(tmp_path, "a") not in (None, first))
        assert pid_of(tmp_path, "b") == other
        state = read_state(tmp_path / "run")
        assert state and state["parts"]["a"]["starts"] == 2 and state["parts"]["a"]["last-exit"] == -signal.SIGKILL


def test_stopping_ends_all_parts_and_what_they_started(tmp_path: Path) -> None:
    child = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {STAY!r}]); time.sleep(600)"
    with supervised(tmp_path, Part("parent", python(child))):
        parent = pid_of(tmp_path, "parent")
        log = tmp_path / "logs" / "parent.log"
        wait_for(lambda: log.exists() and "here" in log.read_text(encoding="utf-8"))
        assert parent
        members = [int(p.name) for p in Path("/proc").glob("[0-9]*") if _group(int(p.name)) == parent]
        assert len(members) == 2
    assert not any(alive(pid) for pid in members)
    assert not (tmp_path / "run" / STATE).exists()


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def test_down_stops_a_supervisor_from_another_process(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    supervisor = Supervisor([Part("a", python(STAY))], tmp_path / "run", tmp_path / "logs", 10_000)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    wait_for(lambda: pid_of(tmp_path, "a") is not None)
    assert ask_to_stop(tmp_path / "run")
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert not ask_to_stop(tmp_path / "run")


def test_what_a_killed_supervisor_left_behind_is_ended_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    code = (
        "import sys; from pathlib import Path; from common.deployment.supervisor import Part, Supervisor\n"
        f"run = Path({str(tmp_path / 'run')!r})\n"
        f"Supervisor([Part('a', [sys.executable, '-c', {STAY!r}])], run, run, 10000).run()"
    )
    process = subprocess.Popen(python(code), cwd=Path(__file__).parents[3])
    try:
        wait_for(lambda: pid_of(tmp_path, "a") is not None)
        left = pid_of(tmp_path, "a")
        with pytest.raises(DeployError, match="running already"), alone_in(tmp_path / "run"):
            pass
    finally:
        process.kill()
        process.wait()
    assert left and alive(left)
    with alone_in(tmp_path / "run") as ended:
        assert ended == ["a"]
        wait_for(lambda: not alive(left))
    with alone_in(tmp_path / "run") as ended:
        assert ended == []


def test_a_process_that_took_over_the_number_of_a_dead_one_is_left_alone(tmp_path: Path) -> None:
    state = {"supervisor": {"pid": 1, "began": "0"}, "parts": {"a": {"pid": os.getpid(), "began": "not ours"}}}
    (tmp_path / STATE).write_text(json.dumps(state), encoding="utf-8")
    with alone_in(tmp_path) as ended:
        assert ended == []


def test_of_two_that_start_at_the_same_time_one_is_refused_until_the_other_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has written nothing about itself yet; a part of it lives on."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from common.deployment.supervisor import Part, Supervisor, alone_in\n"
        f"run = Path({str(tmp_path)!r})\n"
        "with alone_in(run):\n"
        f"    Supervisor([Part('a', [sys.executable, '-c', {STAY!r}])], run, run, 10000)._look_after_all()\n"
        f"    (run / {STATE!r}).rename(run / 'aside'); (run / 'begun').touch(); time.sleep(600)"
    )
    monkeypatch.setattr(supervisor, "LOCK_SECONDS", 0.2)
    process = subprocess.Popen(python(code), cwd=Path(__file__).parents[3])
    try:
        wait_for((tmp_path / "begun").exists)
        with pytest.raises(DeployError, match=rf"running already \(.*{LOCK} is held\)"), alone_in(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    (tmp_path / "aside").rename(tmp_path / STATE)
    with alone_in(tmp_path) as ended:
        assert ended == ["a"]


def test_a_part_that_cannot_be_started_does_not_end_the_others(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    parts = [Part("a", python(STAY)), Part("missing", [str(tmp_path / "no-such-program")])]
    supervisor = Supervisor(parts, run, tmp_path / "logs", 10_000)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        wait_for(lambda: pid_of(tmp_path, "a") is not None)
        time.sleep(0.5)
        assert thread.is_alive() and alive(pid_of(tmp_path, "a") or 0)
    finally:
        supervisor.stop()
        thread.join(PATIENCE)


def test_a_disk_that_is_full_ends_neither_supervisor_nor_parts(tmp_path: Path) -> None:
    """A folder in the place of the state file stands for the full disk: nothing can be written there."""
    state, calls = tmp_path / "run" / STATE, list[int]()

    def started() -> None:
        calls.append(1)
        if state.is_dir() and len(calls) < 4:
            raise CheckpointError("the disk is full")

    with supervised(tmp_path, Part("a", python(STAY), started=started)):
        first = pid_of(tmp_path, "a")
        assert first
        state.unlink()
        state.mkdir()
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: len(calls) == 4)
        state.rmdir()
        wait_for(lambda: pid_of(tmp_path, "a") not in (None, first))


def test_a_log_stays_within_its_size(tmp_path: Path) -> None:
    lines = "for i in range(3000): print('line', i, 'x' * 50, flush=True)"
    noisy = python(f"import time\n{lines}\nprint('end', flush=True)\ntime.sleep(600)")
    logs = tmp_path / "logs"
    with supervised(tmp_path, Part("noisy", noisy)):
        wait_for(lambda: (logs / "noisy.log").exists() and "end" in (logs / "noisy.log").read_text(encoding="utf-8"))
    files = sorted(path.name for path in logs.iterdir())
    assert len(files) > 1 and files == ["noisy.log", *(f"noisy.log.{n}" for n in range(1, 5))][: len(files)]
    assert sum(path.stat().st_size for path in logs.iterdir()) <= 10_000
    newest = "".join((logs / name).read_text(encoding="utf-8") for name in ("noisy.log.1", "noisy.log"))
    assert "line 2999" in newest and newest.endswith("end\n")  # a turn may fall between the two


def test_a_user_that_does_not_exist_is_named() -> None:
    with pytest.raises(DeployError, match="no user 'nobody-of-this-name'"):
        as_user("nobody-of-this-name")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can start processes of other users")
def test_a_part_runs_as_its_own_user_with_no_groups_of_ours(tmp_path: Path) -> None:
    who = ["/bin/sh", "-c", "echo $(id -u) $(id -G); exec sleep 600"]
    log = tmp_path / "logs" / "who.log"
    with supervised(tmp_path, Part("who", who, user="nobody")):
        wait_for(lambda: log.exists() and log.read_text(encoding="utf-8").endswith("\n"))
    user, *groups = log.read_text(encoding="utf-8").split()
    assert user == str(as_user("nobody")["user"]) and "0" not in groups


def environment_in(folder: Path, part: Part) -> dict[str, str]:
    """Return what a part's process has in its environment; its command is put in."""
    file = folder / f"{part.name}.json"
    code = (
        "import json, os, pathlib, time\n"
        f"pathlib.Path({str(file)!r}).write_text(json.dumps(dict(os.environ)) + chr(10)); time.sleep(600)"
    )
    with supervised(folder, replace(part, words=python(code))):
        wait_for(lambda: file.exists() and file.read_text(encoding="utf-8").endswith("\n"))
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_a_bare_part_gets_neither_secrets_nor_a_proxy_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = {"HTTPS_PROXY": "http://me:word@proxy:8080", "FEDREPTILE_PASSPHRASE": "a word", "API_TOKEN": "a word"}
    needed = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONPATH": str(tmp_path)}
    for name, value in {**secret, **needed}.items():
        monkeypatch.setenv(name, value)
    found = environment_in(tmp_path, Part("bare", [], {"OWN": "1"}, bare=True))
    assert not secret.keys() & found.keys()
    assert {**needed, **FLOWER, "OWN": "1", "HOME": os.environ["HOME"]}.items() <= found.items()
    assert found["PATH"].startswith(str(Path(sys.executable).parent))
    assert secret.items() <= environment_in(tmp_path, Part("trusted", [])).items()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can start processes of other users")
@pytest.mark.parametrize("bare", [True, False])
def test_a_part_of_another_user_has_that_user_s_home_and_name(tmp_path: Path, bare: bool) -> None:
    import pwd

    shown = ["/bin/sh", "-c", "echo $HOME $USER $LOGNAME; exec sleep 600"]
    log = tmp_path / "logs" / "who.log"
    with supervised(tmp_path, Part("who", shown, bare=bare, user="daemon")):
        wait_for(lambda: log.exists() and log.read_text(encoding="utf-8").endswith("\n"))
    assert log.read_text(encoding="utf-8").split() == [pwd.getpwnam("daemon").pw_dir, "daemon", "daemon"]
