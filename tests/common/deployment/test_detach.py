"""A supervisor that stays when the command has returned: its own log is bounded, and why it did not start is shown."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.deployment import detach
from common.deployment.detach import LEFT, start_detached
from common.deployment.logs import KEPT
from common.deployment.supervisor import ask_to_stop
from common.errors import DeployError

MOST = 20_000
SERVER = """
import sys
from pathlib import Path
from common.deployment.supervisor import Part, Supervisor

print("line before", flush=True)
FAIL
run, logs = Path(sys.argv[1]), Path(sys.argv[2])
lines = iter(range(2000))

def chores():
    for number in lines:
        print("line", number, "x" * 50, flush=True)
    (run / "said").touch()

part = Part("a", [sys.executable, "-c", "import time; time.sleep(600)"])
Supervisor([part], run, logs, MOST, chores, 0.1).run()
print("the last word", file=sys.stderr)
"""

Start = Callable[[str], None]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Start a small supervisor, which first does what it is told."""
    run, logs = tmp_path / "run", tmp_path / "logs"
    run.mkdir()

    def started(first: str) -> None:
        code = SERVER.replace("FAIL", first).replace("MOST", str(MOST))
        words = [sys.executable, "-c", code, str(run), str(logs)]
        monkeypatch.setattr(detach, "module", lambda *_: words)
        monkeypatch.chdir(Path(__file__).parents[3])
        start_detached("server", tmp_path, run, logs)

    return started


def test_what_a_supervisor_says_for_months_takes_no_more_disk_than_it_may(tmp_path: Path, start: Start) -> None:
    logs = tmp_path / "logs"
    start("")
    try:
        process = LEFT.pop()
        while not (tmp_path / "run" / "said").exists():
            assert process.poll() is None
    finally:
        assert ask_to_stop(tmp_path / "run")
        process.wait(30)
    files = sorted(path.name for path in logs.glob("up.log*"))
    assert files == ["up.log", *(f"up.log.{number}" for number in range(1, KEPT + 1))]
    assert sum((logs / name).stat().st_size for name in files) <= MOST + 1000
    newest = "".join((logs / name).read_text(encoding="utf-8") for name in ("up.log.1", "up.log"))
    assert "line 1999" in newest and newest.endswith("the last word\n"), "also what it says when it has ended"


@pytest.mark.parametrize(
    ("first", "reason"),
    [("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"), ("sys.exit('why')", "why")],
)
def test_why_a_supervisor_does_not_start_is_shown(start: Start, first: str, reason: str) -> None:
    with pytest.raises(DeployError, match=f"up.log ends with: line before / .*{reason}"):
        start(first)


def test_a_second_one_is_not_started(tmp_path: Path, start: Start) -> None:
    start("")
    process: subprocess.Popen[bytes] = LEFT.pop()
    try:
        with pytest.raises(DeployError, match="is running already; stop it with 'fedreptile-server down'"):
            start("")
    finally:
        assert ask_to_stop(tmp_path / "run")
        process.wait(30)
