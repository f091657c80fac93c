"""Four sites with folders of real handwritten digits, and settings for quick rounds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SITES = ("line-1", "line-2", "line-3", "line-4")
SETTINGS: dict[str, dict[str, Any]] = {
    "run": {"rounds": 3, "seed": 5},
    "data": {"size": 8},
    "episode": {"way": 5, "shot": 5, "query": 3},
    "model": {"width": 8},
    "inner": {"steps": 3},
    "outer": {"sites-per-round": 0, "quorum": 1.0, "join-sites": 4, "anneal": False, "deadline": 300.0},
    "judge": {"every": 1, "shot": 5},
}
INPUTS = 20


def digit_folders(root: Path, sites: Sequence[str] = SITES) -> Path:
    """Write the folders of up to six sites, each with 20 PNG pictures of each of five digits; return their root."""
    data = load_digits()
    pictures = (data.images * 255 / 16).round().astype(np.uint8)
    for number, site in enumerate(sites):
        for digit in range(number, number + 5):
            folder = root / site / f"digit-{digit}"
            folder.mkdir(parents=True)
            rows = np.flatnonzero(data.target == digit)
            for row in rows[number * INPUTS : (number + 1) * INPUTS]:
                Image.fromarray(pictures[row]).save(folder / f"{row}.png")
    return root
