"""Sign language digits (Mavi 2020): hands that show the digits 0 to 9, 100 photographs each, 100x100, colour.

The packed form holds JPEG files written anew without camera data, so its pixels differ a little from the origin's.
"""

from collections.abc import Iterator
from pathlib import Path

from simulations.sources.described import CatalogueSet
from simulations.sources.files import Entry, Origin
from simulations.sources.manifest import file_entry, files_below
from simulations.sources.sets.pictures import labelled_by_folder


def _listing(folder: Path) -> Iterator[Entry]:
    for digit in range(10):
        for path in files_below(folder, str(digit)):
            yield file_entry(folder, path)
            yield Entry(origin=((0, f"Dataset/{digit}/{path.stem}.JPG"),))


SIGN_DIGITS = CatalogueSet(
    name="sign_digits",
    title="Hand signs of the digits 0 to 9: 1000 of 2062 photographs of 218 students, 100x100 colour",
    kind="image",
    classes=10,
    items=1000,
    natural=(),
    licence="Apache-2.0",
    terms="File LICENSE of the repository.",
    cite="Mavi, A New Dataset and Proposed Convolutional Neural Network Architecture for Classification of American "
    "Sign Language Digits, arXiv:2011.08927 (2020)",
    origins=(Origin("ardamavi/Sign-Language-Digits-Dataset", "4b09433ef9d5c60602e8805bb54b8aa2428527f8"),),
    data={"data.kind": "image", "data.channels": 3, "data.size": 64},
    read=labelled_by_folder,
    listing=_listing,
    counts={str(digit): 100 for digit in range(10)},
)
