"""A run to report on, and a real browser."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulations.report.pages import journal, judged, make_run

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow looks when it is imported, as tests do


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two rounds over the sites A and B, judged on C and D. The last round had no quorum."""
    return make_run(tmp_path / "plants-run", journal(), [judged()])


@pytest.fixture
def chromium(tmp_path: Path) -> Callable[..., str]:
    program = shutil.which("chromium")
    if program is None and os.environ.get("CI_REQUIRES_CHROMIUM") == "1":
        pytest.fail("CI_REQUIRES_CHROMIUM is 1 but there is no chromium on PATH")
    if program is None:
        pytest.skip("no chromium on PATH")
    fixed = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    fixed += ["--disable-sync", "--no-first-run", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]

    def browse(page: Path, *options: str) -> str:
        done = subprocess.run([*fixed, *options, page.as_uri()], capture_output=True, check=True, timeout=120)
        return done.stdout.decode()

    return browse
