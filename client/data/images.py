"""Reading one image file of any size and mode."""

import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import SiteDataError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What Pillow may take a file for, whatever its name: other readers start other programs or are little used."""

Pixels = NDArray[np.uint8]

# For the whole process, once: changing filters around each read would be a race between threads.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class UnreadableImageError(SiteDataError):
    """One file could not be read as an image; the rest of the site can."""


def read_image(source: Path | IO[bytes], channels: int, size: int, *, invert: bool = False) -> Pixels:
    """Return an image as uint8 [channels, size, size], averaged over pixel areas when it shrinks.

    A camera's note of how it was held is followed, transparency is laid on white, 16-bit and
    floating images are scaled to 8 bit, a palette is resolved, and other colour models become grey
    or RGB.

    Raises:
        UnreadableImageError: for a file that is not an image, is cut off, or unpacks to more pixels than
            Pillow holds safe (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    if channels not in MODES:
        raise SiteDataError(f"data.channels is {channels}; images have 1 (grey), 3 (colour) or 4 (with transparency)")
    try:
        with Image.open(source, formats=FORMATS) as image:
            image.load()
            eight_bit = _to_eight_bit(ImageOps.exif_transpose(image), MODES[channels])
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
    if invert:
        colours = slice(0, 3)  # of the fourth channel 255 means opaque, whatever the colours are
        pixels = np.concatenate([255 - pixels[colours], pixels[3:]])
    return np.ascontiguousarray(pixels)


def _to_eight_bit(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _scaled(np.asarray(image), 0.0, 65535.0).convert(mode)
    if image.mode in ("I", "F"):
        return _scaled(*_with_range(np.asarray(image))).convert(mode)
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        clear = image.convert("RGBA")
        if mode == "RGBA":
            return clear
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, clear).convert(mode)
    return image.convert("RGB").convert(mode) if image.mode == "P" else image.convert(mode)


def _with_range(values: NDArray[Any]) -> tuple[NDArray[np.float64], float, float]:
    """Return numbers with the range that they were most likely recorded in, else the one they have."""
    numbers = values.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    numbers = np.nan_to_num(numbers, nan=low, posinf=high, neginf=low)
    for top in (1.0, 255.0, 65535.0):
        if low >= 0 and high <= top:
            return numbers, 0.0, top
    return numbers, low, high


def _scaled(values: NDArray[Any], low: float, high: float) -> Image.Image:
    """Turn low to high into 0 to 255."""
    return Image.fromarray(np.rint((values.astype(np.float64) - low) / max(high - low, 1e-12) * 255).astype(np.uint8))
