"""The real browser of this machine, for tests of pages."""

import os
import shutil

import pytest


def chromium_or_skip() -> str:
    """Return the program. Without one the test is skipped; where ``CI_REQUIRES_CHROMIUM=1`` promises one, it fails."""
    found = shutil.which("chromium")
    if found is not None:
        return found
    if os.environ.get("CI_REQUIRES_CHROMIUM") == "1":
        pytest.fail("CI_REQUIRES_CHROMIUM is 1 but there is no chromium on PATH")
    pytest.skip("no chromium on PATH")
