"""Turning one picture of any size and mode, from a file or an array, into grey levels of the size agreed on."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from client.data.indexed import Pixels
from common.errors import SiteDataError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".dcm"})
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What Pillow may take a file for, whatever its name: other readers start other programs or are little used."""
LUMA = (0.299, 0.587, 0.114)
"""How much red, green and blue count for grey (ITU-R BT.601)."""
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
"""Two tags of TIFF, and a value of the second."""

# For the whole process, once: changing filters around each read would be a race between threads.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


class UnreadableImageError(SiteDataError):
    """One file could not be read as an image; the rest of the site can."""


class UnreadableNowError(UnreadableImageError):
    """The same file may be readable later: it may not be opened now, or what decodes it is not installed."""


@dataclass(frozen=True)
class Levels:
    """Numbers of any type [H, W] or [H, W, 3 or 4], and those of them that mean black and white."""

    values: NDArray[Any]
    black: float
    white: float

    @classmethod
    def measured(cls, values: NDArray[Any], white: float) -> Self:
        """Take numbers for what they most likely are.

        White is what ``white`` says; for 0 it is the largest number that uint16 holds. Numbers of another type have
        the first of the ranges 0 to 1, 0 to 255 and 0 to 65535 that they fit into, else the range that they have.
        """
        if white:
            return cls(values, 0.0, white)
        if values.dtype == np.uint16:
            return cls(values, 0.0, 65535.0)
        low, high = float(values.min()), float(values.max())
        top = next((top for top in (1.0, 255.0, 65535.0) if low >= 0 and high <= top), None)
        return cls(values, low, high) if top is None else cls(values, 0.0, top)

    def pixels(self, channels: int, size: int, *, bits: int, invert: bool) -> Pixels:
        """Return them as [channels, size, size]; numbers beyond black and white become black and white.

        Raises:
            UnreadableImageError: if one of the numbers is not finite, or they are too far apart for arithmetic.
        """
        if not np.isfinite(self.values).all() or not math.isfinite(self.white - self.black):
            raise UnreadableImageError("not a usable picture: not all of its numbers are finite")
        most = 2**bits - 1
        with np.errstate(over="ignore"):  # far beyond white is white
            unit = (self.values.astype(np.float64) - self.black) / max(self.white - self.black, 1e-12)
        planes = _in_channels(np.clip(unit, 0, 1), channels).astype(np.float32)
        resized = np.stack([np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BOX)) for p in planes])
        if channels == 4:  # a colour counted as much as it is opaque
            resized[:3] /= np.maximum(resized[3], 1 / most)
        whole = np.rint(resized * most)
        return _inverted(whole.astype(np.uint8 if bits == 8 else np.uint16), invert)


def read_image(
    source: Path | IO[bytes], channels: int, size: int, *, bits: int = 8, white: float = 0.0, invert: bool = False
) -> Pixels:
    """Return an image as uint8 or, with 16 ``bits``, uint16 [channels, size, size], averaged over areas if it shrinks.

    A camera's note of how it was held is followed, transparency is laid on white, a palette is resolved, and other
    colour models become grey or RGB. Grey of 16 bits and floating numbers keep their levels up to the ``bits`` asked
    for; ``white`` is the number in them that means white, by default as ``Levels.measured`` has it. Of colour of
    16 bits Pillow gives the upper 8.

    Raises:
        UnreadableImageError: for a file that is not an image, is cut off, unpacks to more pixels than
            Pillow holds safe (``PIL.Image.MAX_IMAGE_PIXELS``), or is colour of 16 bits while ``white`` is set.
    """
    _check_channels(channels)
    try:
        with Image.open(source, formats=FORMATS) as image:
            return _pixels_of_file(image, channels, size, bits=bits, white=white, invert=invert)
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        later = isinstance(error, OSError) and error.errno is not None  # the system's, not Pillow's about the content
        kind = UnreadableNowError if later else UnreadableImageError
        raise kind(f"not a readable image: {error}") from error


def pixels_of(
    values: NDArray[Any], channels: int, size: int, *, bits: int = 8, white: float = 0.0, invert: bool = False
) -> Pixels:
    """Return a picture [H, W] or [H, W, 1, 3 or 4] of numbers of any type as ``read_image`` returns a file.

    Raises:
        UnreadableImageError: if it has another shape, no pixels, or holds what is not a finite number.
    """
    _check_channels(channels)
    plane = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if not (plane.ndim == 2 or (plane.ndim == 3 and plane.shape[2] in (3, 4))) or not plane.size:
        raise UnreadableImageError(
            f"a picture of shape {list(values.shape)}; expected [height, width] or [height, width, 1, 3 or 4]"
        )
    if plane.dtype.kind not in "buif":
        raise UnreadableImageError(f"a picture of {plane.dtype}; expected numbers")
    if plane.dtype == np.uint8:
        return _of_eight_bits(Image.fromarray(np.ascontiguousarray(plane)), channels, size, bits=bits, invert=invert)
    levels = Levels.measured(plane, white if plane.dtype.itemsize > 1 else 0.0)
    return levels.pixels(channels, size, bits=bits, invert=invert)


def _check_channels(channels: int) -> None:
    if channels not in MODES:
        raise SiteDataError(f"data.channels is {channels}; images have 1 (grey), 3 (colour) or 4 (with transparency)")


def _pixels_of_file(image: Image.Image, channels: int, size: int, *, bits: int, white: float, invert: bool) -> Pixels:
    if white and not _is_deep(image) and _upper_bits_only(image):
        raise UnreadableImageError(
            "colour of 16 bits, of which only the upper 8 can be read, so that data.white does not fit it; "
            "save it as 16-bit grey or 8-bit colour"
        )
    stated_white = _white_in(image, white)
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if not _is_deep(image):
        return _of_eight_bits(image, channels, size, bits=bits, invert=invert)
    levels = Levels.measured(_finite(np.asarray(image)), stated_white)
    return levels.pixels(channels, size, bits=bits, invert=invert != _white_is_zero(image))


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _upper_bits_only(image: Image.Image) -> bool:
    return any(";16" in str(tile.args) for tile in getattr(image, "tile", []))


def _white_in(image: Image.Image, white: float) -> float:
    """Return which number means white in an image that is not loaded yet, where the setting or the file says it."""
    if image.format == "PPM" and image.mode == "I":
        arguments = image.tile[0].args  # type: ignore[attr-defined]
        largest = arguments[1] if isinstance(arguments, tuple) else 65535  # Pillow stretches it to 65535
        return white / largest * 65535 if white else 65535.0
    if image.mode.startswith("I;16") and _tag(image, BITS_PER_SAMPLE) == (12,):
        return white or 4095.0
    return white


def _white_is_zero(image: Image.Image) -> bool:
    """Pillow follows this tag of TIFF for 8 bits only."""
    return bool(_tag(image, PHOTOMETRIC) == WHITE_IS_ZERO)


def _tag(image: Image.Image, number: int) -> Any:
    return image.tag_v2.get(number) if isinstance(image, TiffImageFile) else None


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers with infinite ones as the largest and smallest of the others, and missing ones as the smallest."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return values
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    replaced: NDArray[Any] = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return replaced


def _of_eight_bits(image: Image.Image, channels: int, size: int, *, bits: int, invert: bool) -> Pixels:
    resized = _in_mode(image, MODES[channels]).resize((size, size), Image.Resampling.BOX)
    pixels: Pixels = np.asarray(resized, dtype=np.uint8).reshape(size, size, channels).transpose(2, 0, 1)
    if bits == 16:
        pixels = pixels.astype(np.uint16) * np.uint16(257)  # 255 becomes 65535
    return _inverted(pixels, invert)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        clear = image.convert("RGBA")
        if mode == "RGBA":
            return clear
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, clear).convert(mode)
    if image.mode == mode:
        return image
    return image.convert("RGB").convert(mode) if image.mode == "P" else image.convert(mode)


def _in_channels(levels: NDArray[np.float64], channels: int) -> NDArray[np.float64]:
    """Turn levels [H, W] or [H, W, 3 or 4] from 0 to 1 into [channels, H, W].

    What is transparent is laid on white; with four channels, the colours are multiplied with how opaque they are.
    """
    planes = levels[np.newaxis] if levels.ndim == 2 else levels.transpose(2, 0, 1)
    opaque = planes[3:] if len(planes) == 4 else np.ones_like(planes[:1])
    colours = planes[:3] * opaque
    if channels == 4:
        return np.concatenate([np.broadcast_to(colours, (3, *opaque.shape[1:])), opaque])
    colours = colours + (1 - opaque)
    if channels == 3:
        return np.broadcast_to(colours, (3, *opaque.shape[1:]))
    return colours if len(colours) == 1 else np.tensordot(LUMA, colours, 1)[np.newaxis]


def _inverted(pixels: Pixels, invert: bool) -> Pixels:
    if not invert:
        return pixels if pixels.flags.c_contiguous else pixels.copy()
    turned = pixels.copy()
    turned[:3] = np.iinfo(pixels.dtype).max - pixels[:3]  # the fourth channel says how opaque, whatever the colours are
    return turned
