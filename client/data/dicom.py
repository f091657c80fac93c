"""Reading pictures from DICOM files, with pydicom: the extra ``dicom``.

Nothing of a header but what describes the grid of pixels is used, and no reason quotes a header or what pydicom says
about it: both may hold a patient's data.
"""

import logging
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from client.data.images import Levels, UnreadableImageError, UnreadableNowError
from client.data.indexed import Pixels
from common.errors import SiteDataError

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

SUFFIX = ".dcm"
PREAMBLE, MAGIC = 128, b"DICM"
"""A DICOM file begins with 128 bytes of anything and these four (PS3.10, section 7.1)."""
DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What pydicom and its decoders raise on damaged files, beside an error of its own."""

# For the whole process, as in images.py. What pydicom says of a file quotes its header.
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


def is_dicom(path: Path) -> bool:
    """Return whether a file is one by its ending, or has no ending and begins like one.

    An ending of digits only is none: scanners name files by number ("1.2.840.1", "IM.0001").
    """
    if path.suffix.lower() == SUFFIX:
        return True
    return has_no_ending(path.name) and _begins_like_one(path)


def has_no_ending(name: str) -> bool:
    """Return whether a file's name has no ending, or one of digits."""
    ending = os.path.splitext(name)[1]  # noqa: PTH122 - for thousands, pathlib is slow
    return not ending or ending[1:].isdigit()


def read_dicom(
    path: Path, channels: int, size: int, *, bits: int = 8, white: float = 0.0, invert: bool = False
) -> Pixels:
    """Return a DICOM picture as ``read_image`` returns a file.

    Numbers go through the modality LUT (rescale), then the VOI LUT or the first window. Without either, the whole
    range of the bits stored counts, up to ``white`` if that is set. Larger is brighter, also for MONOCHROME1.

    Raises:
        UnreadableImageError: if the file is no DICOM picture, is damaged, holds several frames, or is compressed in a
            way that needs another package.
        SiteDataError: if pydicom is not installed.
    """
    _need_pydicom(path)
    import pydicom
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        header = pydicom.dcmread(path)
        _check_is_picture(header)
        levels = _levels(header, _decoded(header), white)
        return levels.pixels(channels, size, bits=bits, invert=invert)
    except UnreadableImageError:
        raise
    except InvalidDicomError:
        raise UnreadableImageError("not a readable picture: not a DICOM file with its preamble") from None
    except (*DAMAGED, BytesLengthException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UnreadableNowError(f"not a readable picture: {error.strerror}") from None
        raise UnreadableImageError(f"not a readable picture: damaged DICOM ({type(error).__name__})") from None


def _begins_like_one(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC
    except OSError:
        return False


def _need_pydicom(path: Path) -> None:
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise SiteDataError(
            f"{path} is a DICOM file, which needs pydicom; install it with: pip install 'fedreptile[dicom]'"
        ) from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # not earlier: the first import sets a level of its own


def _check_is_picture(header: "FileDataset") -> None:
    if "PixelData" not in header:
        raise UnreadableImageError("holds no picture: the DICOM file has no pixels of whole numbers")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise UnreadableImageError(f"holds {frames} frames; save each that counts as a picture of its own")
    pixels, most = int(header.Rows) * int(header.Columns), Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        raise UnreadableImageError(f"not a readable picture: {pixels} pixels exceed the limit of {most}")


def _decoded(header: "FileDataset") -> NDArray[Any]:
    """Return the numbers as stored [H, W] or [H, W, 3]; what is coded as brightness and colour is made RGB."""
    from pydicom.pixels.decoders.base import get_decoder

    decoder = get_decoder(header.file_meta.TransferSyntaxUID)
    try:
        return header.pixel_array
    except RuntimeError:
        if not decoder.missing_dependencies:
            raise
        # None of the decoders that are installed can read it; another may, if the file is whole.
        raise UnreadableNowError(
            f"not a readable picture: compressed as {decoder.UID.name}, which may need another package: "
            + "; ".join(decoder.missing_dependencies)
        ) from None


def _levels(header: "FileDataset", stored: NDArray[Any], white: float) -> Levels:
    """Return the numbers of a picture [H, W] or [H, W, 3] with their black and white."""
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

    kind = header.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(stored, header)
        return Levels(colours, 0.0, float(np.iinfo(colours.dtype).max))
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        return Levels(stored, 0.0, 2.0**header.BitsStored - 1)  # pydicom has made it RGB
    values = apply_modality_lut(stored, header)
    black, brightest = _range_of_modality(header)
    if header.get("VOILUTSequence"):
        values = apply_voi_lut(values, header)
        black, brightest = 0.0, 2.0 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif _has_window(header):
        values = apply_voi_lut(values, header)  # fills the same range
    elif white and header.BitsStored > 8:
        brightest = white
    if kind == "MONOCHROME1":
        values = black + brightest - values.astype(np.float64)
    return Levels(values, black, brightest)


def _has_window(header: "FileDataset") -> bool:
    """An empty element is as good as none."""
    return all(header.get(name) is not None for name in ("WindowCenter", "WindowWidth"))


def _range_of_modality(header: "FileDataset") -> tuple[float, float]:
    """Return the least and the largest number that a picture can hold after the modality LUT (PS3.3, C.11.1)."""
    if header.get("ModalityLUTSequence"):
        return 0.0, 2.0 ** header.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    most = 2.0**header.BitsStored
    least, largest = (-most / 2, most / 2 - 1) if header.PixelRepresentation else (0.0, most - 1)
    slope, intercept = (header.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope is None or intercept is None:
        return least, largest
    ends = float(slope) * least + float(intercept), float(slope) * largest + float(intercept)
    return min(ends), max(ends)
