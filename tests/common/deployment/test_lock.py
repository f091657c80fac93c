"""A file that one process holds at a time."""

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
