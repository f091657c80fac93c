"""A deployment that leaves nothing behind."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.deployment.deployed import Deployment

SECONDS_TO_END = 15.0
"""An app process looks now and then whether the one that started it is still there."""


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
            end = time.monotonic() + SECONDS_TO_END
            while (left := found.processes()) and time.monotonic() < end:
                time.sleep(0.1)
            for pid, _ in left:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            assert not left, f"left behind: {left}"
