"""A deployment that leaves nothing behind."""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.deployment.deployed import Deployment


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    """In a folder with a short path, since sockets need one. A failing test shows the ends of all logs."""
    with tempfile.TemporaryDirectory(prefix="fr-") as folder:
        found = Deployment(Path(folder), environment={"FEDREPTILE_TEST": folder, "FEDREPTILE_HOME": f"{folder}/home"})
        try:
            yield found
        finally:
            print(found.logs())
            found.down()
            left = found.processes()
            for pid, _ in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            assert not left, f"left behind: {left}"
