"""What several tests need: real handwritten digits as sites, and settings that keep tests to themselves."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

import common
from client.data.packed import write_packed

assert Path(common.__file__).is_relative_to(Path(__file__).parent.parent), (
    f"the tests would test {common.__file__}, which is not in this checkout"
)

for name in ("COLUMNS", "LINES"):  # in a process of pytest-xdist's they are set, and tables would never be wider
    os.environ.pop(name, None)

SITES, CLASSES, INPUTS = 8, 10, 20
"""Sites of the packed set, classes and inputs of each class at a site."""


@pytest.fixture(scope="session", autouse=True)
def _private_homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_TELEMETRY_ENABLED", "0")
        patch.setenv("FLWR_HOME", str(tmp_path_factory.mktemp("flower")))
        patch.setenv("FEDREPTILE_HOME", str(tmp_path_factory.mktemp("fedreptile")))
        yield


@pytest.fixture(scope="session")
def digit_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed set of 8 sites, site-0 to site-7, with 20 inputs [1, 8, 8] of each of the digits 0 to 9."""
    images, labels = _digits()
    sites = {
        f"site-{s}": {
            str(digit): [int(row) for row in np.flatnonzero(labels == digit)[s * INPUTS : (s + 1) * INPUTS]]
            for digit in range(CLASSES)
        }
        for s in range(SITES)
    }
    folder = tmp_path_factory.mktemp("digits") / "packed"
    write_packed(folder, images[:, None], sites, {"source": "scikit-learn load_digits"})
    return folder


@pytest.fixture(scope="session")
def digit_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two sites, line-1 and line-2, each with 12 PNG images of 8 x 8 of each of five digits."""
    images, labels = _digits()
    root = tmp_path_factory.mktemp("lines")
    for s, site in enumerate(("line-1", "line-2")):
        for digit in range(5 * s, 5 * s + 5):
            folder = root / site / f"digit-{digit}"
            folder.mkdir(parents=True)
            for row in np.flatnonzero(labels == digit)[:12]:
                Image.fromarray(images[row]).save(folder / f"{row}.png")
    return root


@pytest.fixture
def left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Return a function that lists the commands of all processes which the test started and which still run.

    They are known by a variable in their environment, which their own children inherit, however detached.
    """
    if not Path("/proc/self/environ").exists():
        pytest.skip("finding processes by their environment needs /proc")
    monkeypatch.setenv("FEDREPTILE_TEST", str(tmp_path))
    mark = f"FEDREPTILE_TEST={tmp_path}\0".encode()

    def commands() -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it has just ended, or is another user's
        return found

    return commands


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    data = load_digits()
    return (data.images * 255 / 16).round().astype(np.uint8), data.target
