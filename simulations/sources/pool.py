"""A pool: a whole data set as it is before it is dealt to sites.

inputs.npy   uint8 or uint16 [N, C, H, W], or float32 [N, F] with NaN for what is missing
items.csv    for each row of inputs.npy its class and attributes, such as the hospital
about.json   what it was made from
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client.data.indexed import Numbers, Pixels
from client.data.packed import whole_folder
from common.errors import SourceError

INPUTS, ITEMS, ABOUT = "inputs.npy", "items.csv", "about.json"
CLASS = "class"


@dataclass(frozen=True)
class Pool:
    """All inputs of a data set, with what is known of each. Raises SourceError unless there is one entry a row."""

    inputs: Pixels | Numbers
    classes: tuple[str, ...]
    """Class of each row [N]."""
    attributes: Mapping[str, tuple[str, ...]]
    """Attribute, such as "hospital" -> its value for each row [N]."""

    def __post_init__(self) -> None:
        for name, values in {CLASS: self.classes, **self.attributes}.items():
            if len(values) != len(self.inputs):
                raise SourceError(f"the pool has {len(self.inputs)} inputs and {len(values)} entries of {name!r}")


def write_pool(folder: Path, pool: Pool, about: Mapping[str, Any]) -> None:
    """Write a pool, whole or not at all; one that is there already is left as it is."""
    with whole_folder(folder) as scratch:
        np.save(scratch / INPUTS, pool.inputs, allow_pickle=False)
        with (scratch / ITEMS).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([CLASS, *pool.attributes])
            writer.writerows(zip(pool.classes, *pool.attributes.values(), strict=True))
        (scratch / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")


def open_pool(folder: Path) -> Pool:
    """Open a pool, its inputs memory-mapped. Raises SourceError if a file is missing or damaged."""
    try:
        inputs = np.load(folder / INPUTS, mmap_mode="r", allow_pickle=False)
        with (folder / ITEMS).open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        return Pool(inputs, columns.pop(CLASS), columns)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise SourceError(f"{folder} cannot be read: {error}; delete the folder and make it anew") from error
