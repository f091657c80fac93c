"""Reading one image file of any size and mode."""

import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from common.errors import SiteDataError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})

Pixels = NDArray[np.uint8]


class UnreadableImageError(SiteDataError):
    """One file could not be read as an image; the rest of the site can."""


def read_image(source: Path | IO[bytes], channels: int, size: int, *, invert: bool = False) -> Pixels:
    """Return an image as uint8 [channels, size, size], averaged over pixel areas when it shrinks.

    Transparency is laid on white, 16-bit and floating images are scaled to 8 bit, a palette is
    resolved, and other colour models become grey or RGB.

    Raises:
        UnreadableImageError: for a file that is not an image, is cut off, or unpacks to more pixels than
            Pillow holds safe (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    if channels not in MODES or channels == 2:
        raise SiteDataError(f"data.channels is {channels}; images have 1 (grey), 3 (colour) or 4 (with transparency)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                image.load()
                eight_bit = _to_eight_bit(image, MODES[channels])
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise UnreadableImageError(f"not a readable image: {error}") from error
    resized = eight_bit.resize((size, size), Image.Resampling.BOX)
    pixels = np.asarray(resized, dtype=np.uint8).reshape(size, size, channels).transpose(2, 0, 1)
    return np.ascontiguousarray(255 - pixels if invert else pixels)


def _to_eight_bit(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _scaled(np.asarray(image)).convert(mode)
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        clear = image.convert("RGBA")
        if mode == "RGBA":
            return clear
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, clear).convert(mode)
    return image.convert("RGB").convert(mode) if image.mode == "P" else image.convert(mode)


def _scaled(values: NDArray[Any]) -> Image.Image:
    """Scale to 0..255: 16-bit data by its full range, anything else by the range it has."""
    numbers = np.nan_to_num(values.astype(np.float64))
    low, high = (
        (0.0, 65535.0) if numbers.min() >= 0 and 255 < numbers.max() <= 65535 else (numbers.min(), numbers.max())
    )
    if numbers.min() >= 0 and numbers.max() <= 1:
        low, high = 0.0, 1.0
    elif numbers.min() >= 0 and numbers.max() <= 255:
        low, high = 0.0, 255.0
    return Image.fromarray(np.rint((numbers - low) / max(high - low, 1e-12) * 255).astype(np.uint8))
