"""Sites of pictures as folders that people can look into: class folders of PNG files, for real sites to work with."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from client.data.indexed import IndexedData
from client.data.sites import open_site_data, site_names
from common.errors import SourceError
from common.paths import cache_folder
from common.settings import DataSettings
from common.trust.folders import new_folder

AT_ONCE = 256
"""Pictures that are held in memory."""


def unpack(sites: Path, folder: Path, data: DataSettings) -> dict[str, int]:
    """Write the pictures of each site to ``folder/SITE/CLASS/NUMBER.png``, all or nothing.

    Args:
        sites: packed sites of pictures.

    Returns:
        pictures by site.

    Raises:
        SourceError: if they are no pictures that a file each can hold.
        TrustError: if the folder is there already, or cannot be made.
    """
    if data.kind != "image" or data.beside:
        raise SourceError("only pictures that have nothing beside them can be unpacked into class folders")
    found = {}
    with new_folder(folder.absolute()) as scratch:
        for name in site_names(sites):
            site = open_site_data(sites, name, replace(data, rotated_classes=False), cache_folder("off"))
            assert isinstance(site, IndexedData)
            for label in site.classes():
                _write(site, label, scratch / name / label)
            found[name] = sum(site.count(label) for label in site.classes())
    return found


def _write(site: IndexedData, label: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    count = site.count(label)
    for start in range(0, count, AT_ONCE):
        rows = range(start, min(start + AT_ONCE, count))
        for row, pixels in zip(rows, site.content(label, rows), strict=True):
            grey = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
            Image.fromarray(grey).save(folder / f"{row + 1:04}.png")
