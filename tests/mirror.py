"""The data mirror of this machine, for tests that need real data that no package holds."""

import os
from pathlib import Path

import pytest

from simulations.sources.prepare import find_mirror


def mirror_or_skip() -> Path:
    """Return the mirror that the project itself would use.

    Without one the test is skipped; where ``CI_REQUIRES_DATA=1`` promises one, it fails.
    """
    found = find_mirror(None)
    if found is not None:
        return found
    reason = "no data mirror: set FEDREPTILE_DATA_MIRROR, or put one at shared/data beside the checkout"
    if os.environ.get("CI_REQUIRES_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def small_archives() -> list[Path]:
    """Return Omniglot's two small archives as published, five alphabets each."""
    folder = mirror_or_skip() / "omniglot" / "origin_format"
    return [folder / f"images_background_small{number}.zip" for number in (1, 2)]
