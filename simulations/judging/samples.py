"""Inputs as people look at them: pictures, curves of vectors, rows of tables in their own units."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from client.data.indexed import IndexedData, Numbers, Standardisation
from client.data.table import decoded, numeric_places
from common.columns import parse_columns
from common.learning.episode import SiteData
from common.settings import DataSettings

CURVE = (168, 56)
"""Width and height in pixels of the picture of a vector."""


@dataclass(frozen=True)
class Sample:
    """One input, to be looked at: a picture, or a row of a table as text."""

    png: str = ""
    """Base64."""
    values: Sequence[str] = ()
    """One for each column of the table."""


def column_names(data: DataSettings) -> tuple[str, ...]:
    """Return the names of the values of samples; none but for tables."""
    return tuple(column.name for column in parse_columns(data.columns)) if data.kind == "table" else ()


def samples_of(site: SiteData, data: DataSettings) -> Callable[[Tensor], list[Sample]]:
    """Return the function that turns a site's inputs [n, *shape] into samples."""
    if data.kind == "image":
        return lambda inputs: [Sample(png=_picture(image, data.channels)) for image in inputs]
    if data.kind == "vector":
        return lambda inputs: [Sample(png=_curve(row)) for row in inputs.numpy()]
    columns = parse_columns(data.columns)
    if not (isinstance(site, IndexedData) and site.standardisation):
        return lambda inputs: [Sample(values=decoded(columns, row)) for row in inputs.numpy()]
    own = site.standardisation
    return lambda inputs: [
        Sample(values=decoded(columns, row)) for row in _as_read(inputs, own, numeric_places(columns))
    ]


def _as_read(inputs: Tensor, own: Standardisation, numeric: NDArray[np.bool_]) -> Numbers:
    """Return standardised rows [n, F] as they were read; a number that is exactly the site's mean was missing.

    But for numbers that never vary at the site, which all are its mean.
    """
    values = own.undo(inputs)
    values[(inputs.numpy() == 0) & numeric & (own.deviation != 1)] = np.nan
    return values


def _picture(image: Tensor, channels: int) -> str:
    """Show a picture [C, H, W], and what lies beside it to its right."""
    pixels = (image.clamp(0, 1) * 255).round().byte().numpy()
    own = pixels[:channels].transpose(1, 2, 0) if channels >= 3 else pixels[0]
    if len(pixels) > channels:
        beside = np.concatenate(list(pixels[channels:]), axis=1)
        beside = np.repeat(beside[..., None], channels, axis=2) if channels >= 3 else beside
        if channels == 4:
            beside[..., 3] = 255
        own = np.concatenate([own, beside], axis=1)
    return _png(Image.fromarray(np.ascontiguousarray(own)))


def _curve(row: Numbers) -> str:
    """Draw a standardised vector [F] as a curve from -3 to 3 standard deviations."""
    width, height = CURVE
    picture = Image.new("L", CURVE, 255)
    heights = (0.5 - np.clip(row.astype(np.float64), -3, 3) / 6) * (height - 1)
    places = np.linspace(0, width - 1, len(row))
    draw = ImageDraw.Draw(picture)
    draw.line([(0, height // 2), (width, height // 2)], fill=200)
    draw.line([(float(x), float(y)) for x, y in zip(places, heights, strict=True)], fill=0)
    return _png(picture)


def _png(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
