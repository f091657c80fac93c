"""A file that one process holds at a time."""

import os
import subprocess
import sys
from pathlib import Path

from common.deployment.lock import hold

HOLD = """
import sys
from pathlib import Path
from common.deployment.lock import hold

file = hold(Path(sys.argv[1]))
print("held" if file else "refused", flush=True)
sys.stdin.read()
"""


def other(path: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        cwd=Path(__file__).parents[3],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with other(path) as first:
        assert first.stdout and first.stdout.readline() == "held\n"
        assert hold(path) is None
        first.kill()
        first.wait()
        taken = hold(path, 5.0)
        assert taken is not None
        with taken, other(path) as second:
            assert second.stdout and second.stdout.readline() == "refused\n"
            second.kill()


def test_nobody_else_can_open_it_and_so_hold_it(tmp_path: Path) -> None:
    file = hold(tmp_path / "lock")
    assert file is not None
    with file:
        assert (tmp_path / "lock").stat().st_mode & 0o077 == 0
        assert not os.get_inheritable(file.fileno())
