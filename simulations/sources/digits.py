"""Scikit-learn's copy of the UCI handwritten digits (Alpaydin, Kaynak 1998): 1797 drawings of 8x8 pixels.

Real data inside an installed package, for machines with neither network nor mirror. The writers are
not recorded, so drawings are dealt to sites in turn; digits 0 to 4 are trained on, 5 to 9 judged on.
"""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from client.data.packed import SiteRows
from simulations.sources.omniglot import SIZE, Drawings

TRAIN_SITES, JUDGE_SITES = 10, 5
KNOWN = 5
"""Digits below this are trained on."""


def from_scikit_learn() -> tuple[Drawings, Drawings]:
    """Return the sites to train on and those to judge on, enlarged to 28x28."""
    bunch = load_digits()
    images = np.stack([_enlarged(image) for image in bunch.images])[:, None]
    labels = bunch.target
    return (
        Drawings(images, _dealt(labels, range(KNOWN), TRAIN_SITES, "train")),
        Drawings(images, _dealt(labels, range(KNOWN, 10), JUDGE_SITES, "judge")),
    )


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Turn 8x8 with values 0 to 16 into uint8 28x28."""
    picture = Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8))
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def _dealt(labels: np.ndarray, digits: range, sites: int, prefix: str) -> SiteRows:
    rows = {digit: np.flatnonzero(labels == digit) for digit in digits}
    return {
        f"{prefix}-{site + 1:02d}": {f"digit {digit}": rows[digit][site::sites].tolist() for digit in digits}
        for site in range(sites)
    }
