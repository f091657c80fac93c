"""NEU-DET (Song, Yan 2013): six kinds of surface defect of hot-rolled steel strip, 200 pictures each, 200x200, grey."""

from collections.abc import Iterator
from pathlib import Path

from simulations.sources.described import CatalogueSet
from simulations.sources.files import Entry, Origin
from simulations.sources.manifest import file_entry, files_below
from simulations.sources.sets.pictures import labelled_by_folder

CLASSES = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")


def _listing(folder: Path) -> Iterator[Entry]:
    """At the origin up to 30 pictures were moved to a second folder; which ones is known of 27 of them only."""
    for path in files_below(folder, "images"):
        yield file_entry(folder, path, (0, f"IMAGES/{path.name}"), (0, f"Validation_Images/{path.name}"))


NEU_STEEL = CatalogueSet(
    name="neu_steel",
    title="Surface defects of hot-rolled steel strip (NEU-DET): 1200 of its 1800 pictures, 200x200 grey",
    kind="image",
    classes=6,
    items=1200,
    natural=(),
    licence="not stated",
    terms="No licence file; called an open database. Research use with citation; do not re-publish.",
    cite="Song, Yan, Applied Surface Science 285 (2013) 858-864; He, Song, Meng, Yan, IEEE TIM 69 (2020) 1493-1504",
    origins=(
        Origin("siddhartamukherjee/NEU-DET-Steel-Surface-Defect-Detection", "351bee21b56bbf97a1e1d18262bceb202eb7ef41"),
    ),
    data={"data.kind": "image", "data.channels": 1, "data.size": 64},
    read=labelled_by_folder,
    listing=_listing,
    counts=dict.fromkeys(CLASSES, 200),
)
