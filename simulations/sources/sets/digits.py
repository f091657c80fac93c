"""Scikit-learn's copy of the UCI handwritten digits (Alpaydin, Kaynak 1998): 1797 drawings of 8x8 pixels.

Real data inside an installed package, for machines with neither network nor mirror. Who wrote which is not recorded.
"""

import numpy as np
from PIL import Image

from common.settings import DataSettings
from simulations.sources.described import CatalogueSet
from simulations.sources.files import Files
from simulations.sources.pool import Pool
from simulations.sources.sets.pictures import from_arrays


def _read(files: Files, data: DataSettings) -> Pool:
    """Read the drawings, enlarged smoothly. Ink is light on dark, with data.invert dark on light."""
    from sklearn.datasets import load_digits  # here: importing it takes longer than most commands

    bunch = load_digits()
    pictures = (_enlarged(image, data.size) for image in bunch.images)
    return Pool(from_arrays(pictures, data), tuple(f"digit {digit}" for digit in bunch.target), {})


def _enlarged(image: np.ndarray, size: int) -> np.ndarray:
    """Turn 8x8 with values 0 to 16 into uint8 [size, size]."""
    picture = Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8))
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


DIGITS = CatalogueSet(
    name="digits",
    title="Handwritten digits inside scikit-learn: 1797 drawings of 8x8, for machines without network",
    kind="image",
    classes=10,
    items=1797,
    natural=(),
    licence="CC BY 4.0 (unchecked)",
    terms="UCI offers its data sets under CC BY 4.0 (not checked on its own page); inside scikit-learn (BSD-3-Clause).",
    cite="Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (1998)",
    origins=(),
    data={"data.kind": "image", "data.channels": 1, "data.size": 28},
    read=_read,
)
