"""Launching as a Flower app: what is staged, what Flower is told, and that a failure is seen."""

import contextlib
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from common.errors import LaunchError, SettingsError
from common.settings import Settings, Value, flatten
from server import launch
from server.launch import (
    APP,
    OWN,
    RunOutcome,
    child,
    flower_environment,
    local_superlink,
    run_simulation,
    stage_app,
    submit,
)

CHECKOUT = Path(__file__).parents[2]


def flower_app(pyproject: Path) -> dict[str, Any]:
    app: dict[str, Any] = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
    return app


def flat(config: Mapping[str, Mapping[str, Value]]) -> dict[str, Value]:
    return {f"{section}.{key}": value for section, keys in config.items() for key, value in keys.items()}


def exactly(values: Mapping[str, Value]) -> set[tuple[str, str]]:
    """Values with their types: to Flower, 1, 1.0 and true are three different things."""
    return {(key, repr(value)) for key, value in values.items()}


# What is staged


def test_the_flower_config_of_the_checkout_is_the_settings_with_their_defaults() -> None:
    expected = flatten(Settings())
    tables = tomli_w.dumps({"tool": {"flwr": {"app": {"config": launch.nested(expected)}}}})
    found = flat(flower_app(CHECKOUT / "pyproject.toml")["config"])
    assert exactly(found) == exactly(expected), f"pyproject.toml needs these tables:\n{tables}"


def test_a_staged_app_is_the_app_of_the_checkout(tmp_path: Path) -> None:
    staged, own = flower_app(stage_app(tmp_path / APP) / "pyproject.toml"), flower_app(CHECKOUT / "pyproject.toml")
    assert exactly(flat(staged.pop("config"))) == exactly(flat(own.pop("config")))
    assert staged == own


def test_flower_builds_a_bundle_of_our_sources_and_nothing_else(tmp_path: Path) -> None:
    app = stage_app(tmp_path / APP)
    subprocess.run(["flwr", "build"], cwd=app, env=flower_environment(), check=True, capture_output=True)
    (bundle,) = app.glob("*.fab")
    with zipfile.ZipFile(bundle) as opened:
        inside = {name for name in opened.namelist() if not name.startswith(".info")}
    sources = {
        str(p.relative_to(CHECKOUT)) for name in ("server", "client", "common") for p in (CHECKOUT / name).rglob("*.py")
    }
    assert inside == sources | {"pyproject.toml", "LICENSE"}


def test_an_installation_without_a_licence_file_can_be_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_licence", lambda root: None)
    app = stage_app(tmp_path / APP)
    assert not (app / "LICENSE").exists()
    assert "LICENSE" not in flower_app(app / "pyproject.toml")["fab-include"]


# What Flower is told


def test_flower_installs_nothing_and_reports_nothing(tmp_path: Path) -> None:
    environment = flower_environment(tmp_path)
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_TELEMETRY_ENABLED"] == environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_flowers_commands_are_those_of_this_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    impostor = tmp_path / "flwr"
    impostor.write_text("#!/bin/sh\n")
    impostor.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = shutil.which("flwr", path=flower_environment()["PATH"])
    assert found is not None
    assert Path(found).parent == Path(sys.executable).parent


def test_a_submission_that_flower_refuses_raises_with_flowers_reason(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"'flwr run' failed: .*'nowhere' not found"):
        submit(stage_app(tmp_path / APP), "nowhere", {}, flower_environment(tmp_path))


# Following a run


class Flower:
    """Stands in for Flower's commands: a run that was started, with answers to ``list`` given in advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: RunOutcome | LaunchError | KeyboardInterrupt) -> None:
        self.answers = list(answers)
        self.commands: list[list[str]] = []
        monkeypatch.setattr(launch, "_flwr", self.answer)
        monkeypatch.setattr(launch, "look_up", self.look_up)
        monkeypatch.setattr(launch, "child", self.child)
        monkeypatch.setattr(launch, "PAUSE_SECONDS", 0.0)

    def answer(self, words: list[str], environment: Mapping[str, str]) -> dict[str, Any]:
        self.commands.append(words)
        return {"run-id": "7"}

    def look_up(self, *_: object) -> RunOutcome:
        answer = self.answers.pop(0)
        if isinstance(answer, RunOutcome):
            return answer
        raise answer

    @contextlib.contextmanager
    def child(self, *_: object) -> Iterator[subprocess.Popen[bytes]]:
        with subprocess.Popen([sys.executable, "-c", ""]) as ended:
            yield ended


RUNNING, COMPLETED = RunOutcome("7", "running", ""), RunOutcome("7", "finished:completed", "")


def test_a_run_is_followed_beyond_the_loss_of_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flower = Flower(monkeypatch, RUNNING, RUNNING, COMPLETED)
    assert submit(tmp_path, "hospital", {}, {}) == COMPLETED
    assert not flower.answers


def test_a_superlink_may_be_away_for_a_while(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    away = [LaunchError("no answer")] * (launch.LOOKS_IN_VAIN - 1)
    Flower(monkeypatch, *away, RUNNING, *away, COMPLETED)
    assert submit(tmp_path, "hospital", {}, {}) == COMPLETED


def test_a_superlink_that_stays_away_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Flower(monkeypatch, *[LaunchError("no answer")] * launch.LOOKS_IN_VAIN)
    with pytest.raises(LaunchError, match="no answer"):
        submit(tmp_path, "hospital", {}, {})


@pytest.mark.parametrize("status", ["finished:failed", "finished:stopped"])
def test_any_other_end_than_completed_is_an_error(status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Flower(monkeypatch, RunOutcome("7", status, "the reason"))
    with pytest.raises(LaunchError, match=f"run 7 is {status}: the reason"):
        submit(tmp_path, "hospital", {}, {})


def test_ctrl_c_stops_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flower = Flower(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        submit(tmp_path, "hospital", {}, {})
    assert flower.commands[-1] == ["stop", "7", "hospital"]


# A SuperLink of our own


def test_sites_that_are_not_there_are_named_before_anything_is_started(tmp_path: Path) -> None:
    settings = Settings().with_values({"run.dir": str(tmp_path), "data.sites": str(tmp_path / "gone")})
    with pytest.raises(SettingsError, match=r"data\.sites.*gone"):
        run_simulation(settings, 2)


def test_a_superlink_that_cannot_start_is_an_error_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(launch, "free_port", lambda: taken.getsockname()[1])
        with (
            pytest.raises(LaunchError, match="address already in use"),
            local_superlink(tmp_path, flower_environment()),
        ):
            pass


def test_what_a_child_has_started_ends_with_it(left_behind: Callable[[], list[str]]) -> None:
    with child(["sh", "-c", "sleep 60 & echo; wait"], flower_environment(), subprocess.PIPE) as shell:
        assert shell.stdout is not None
        with shell.stdout as output:
            output.readline()
        assert len(left_behind()) == 2
    assert not left_behind()


def test_a_failed_run_raises_its_reason_and_leaves_nothing_running(
    tmp_path: Path, left_behind: Callable[[], list[str]]
) -> None:
    values: dict[str, Value] = {
        "run.dir": str(tmp_path / "run"),
        "data.sites": str(tmp_path / "gone"),
        "outer.join-sites": 2,
        "outer.join-deadline": 2.0,
    }
    environment = flower_environment(tmp_path)
    with local_superlink(tmp_path, environment) as port:
        assert left_behind()
        with pytest.raises(LaunchError, match=r"is finished:failed: .*0 of 2 sites joined"):
            submit(stage_app(tmp_path / APP), OWN, values, environment, "num-supernodes=2 client-resources-num-cpus=1")
    assert not left_behind()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
