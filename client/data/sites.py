"""From a path to sites: a packed set, a folder of site folders, or one site's folder."""

from pathlib import Path

from client.data.folder import entries, open_folder
from client.data.packed import INDEX, open_packed
from client.data.rotated import RotatedClasses
from common.errors import SiteDataError
from common.learning.episode import SiteData
from common.settings import DataSettings


def site_names(path: Path) -> list[str]:
    """Return the names of the sites at a path, sorted.

    A folder with a ``sites.json`` is a packed set. Otherwise it holds site folders, which hold
    class folders; or, if its folders hold files directly, it is itself one site, named like it.

    Raises:
        SiteDataError: if there is no site at the path.
    """
    if is_packed(path):
        return open_packed(path).names
    return [path.name] if is_one_site(path) else [folder.name for folder in _folders(path)]


def open_site_data(path: Path, name: str, data: DataSettings) -> SiteData:
    """Open the data of one site.

    Raises:
        SiteDataError: if there is no such site or its data cannot be used.
    """
    found: SiteData
    if is_packed(path):
        packed = open_packed(path)
        needed = (data.channels, data.size, data.size)
        if packed.shape != needed:
            raise SiteDataError(
                f"packed set {path} holds inputs of shape {packed.shape}; the settings ask for {needed}: "
                "set data.channels and data.size to what is there, or pack the set anew"
            )
        found = packed.site(name)
    elif name == path.name and is_one_site(path):
        found = open_folder(path, data)
    else:
        found = open_folder(path / name, data)
    return RotatedClasses(found) if data.rotated_classes else found


def is_packed(path: Path) -> bool:
    """Raises SiteDataError for a relative path or one that may not be looked at."""
    if not path.is_absolute():
        raise SiteDataError(
            f"the sites' path {path} is relative, but every process starts in another folder; give it from the root"
        )
    try:
        return (path / INDEX).exists()
    except OSError as error:
        raise SiteDataError(
            f"{path} cannot be read: {error.strerror}; give a folder that this user may read"
        ) from error


def is_one_site(path: Path) -> bool:
    """Return whether the folders in ``path`` are class folders rather than site folders."""
    return not any(child.is_dir() for folder in _folders(path) for child in entries(folder))


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise SiteDataError(
            f"there is no folder {path}; make it with 'fedreptile-sim data get', "
            "or set data.sites to a folder of site folders"
        )
    folders = [child for child in entries(path) if child.is_dir()]
    if not folders:
        raise SiteDataError(f"{path} holds no site folder; each site is a folder of class folders with images")
    return folders
