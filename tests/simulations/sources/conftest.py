"""What tests of data sets need: an origin on this machine, a home of their own, the real mirror."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulations.sources import download
from tests.mirror import mirror_or_skip
from tests.simulations.sources.origin import CONTENT, Origin, serving


@pytest.fixture
def origin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    """An origin that serves CONTENT at /right, and a client that does not pause between tries."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "PAUSES", (0.01, 0.01))
    with serving() as running:
        running.files["/right"] = CONTENT
        yield running


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address where nobody listens."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "PAUSES", (0.01, 0.01))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data home; the machine's own mirror is hidden."""
    folder = tmp_path / "home"
    monkeypatch.setenv("FEDREPTILE_HOME", str(folder))
    monkeypatch.delenv("FEDREPTILE_DATA_MIRROR", raising=False)
    monkeypatch.setattr("simulations.sources.prepare.__file__", str(tmp_path / "a" / "b" / "c" / "d" / "prepare.py"))
    return folder


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The real mirror, looked for before a test hides it."""
    return mirror_or_skip()
