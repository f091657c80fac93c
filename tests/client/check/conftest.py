"""One federation with its gateway for all tests of ``check``."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from client.home import SiteHome
from tests.client.check.place import Place, place


@pytest.fixture(scope="module")
def fed(digit_folders: Path) -> Iterator[Place]:
    with place(digit_folders / "line-1") as made:
        yield made


@pytest.fixture
def home(fed: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteHome:
    """A healthy site that is this test's own."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("FEDREPTILE_PASSPHRASE", raising=False)
    return fed.site("line-1", tmp_path)
