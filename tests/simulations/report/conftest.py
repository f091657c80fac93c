"""A run to report on, and a real browser."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chromium import chromium_or_skip
from tests.simulations.report.pages import journal, judged, make_run

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow looks when it is imported, as tests do


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two rounds over the sites A and B, judged on C and D. The last round had no quorum."""
    return make_run(tmp_path / "plants-run", journal(), [judged()])


@pytest.fixture
def chromium(tmp_path: Path) -> Callable[..., str]:
    fixed = [chromium_or_skip(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    fixed += ["--disable-sync", "--no-first-run", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]

    def browse(page: Path, *options: str) -> str:
        done = subprocess.run([*fixed, *options, page.as_uri()], capture_output=True, check=True, timeout=120)
        return done.stdout.decode()

    return browse
