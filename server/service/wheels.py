"""Wheels: which fit a machine, what they need, and one made of this very installation."""

import base64
import csv
import hashlib
import io
import re
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms, sys_tags
from packaging.utils import InvalidWheelFilename, NormalizedName, canonicalize_name, parse_wheel_filename

import server
from common.errors import DeployError
from server.launch import APP

PACKAGES = ("server", "client", "common", "simulations")
"""What is installed of ours."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of all files in a wheel that is made here, so that the same installation gives the same bytes."""
LINUX = re.compile(r"(?:manylinux_2_(?P<minor>[0-9]{1,2})|manylinux2014|linux)_(?P<machine>[a-z0-9_]+)")
MAC = re.compile(r"macosx_(?P<major>[0-9]{2})_(?P<minor>[0-9]{1,2})_(?P<machine>arm64|x86_64)")
WINDOWS = {"win_amd64": "AMD64", "win_arm64": "ARM64"}
OLDEST_GLIBC, GLIBC_2014 = 5, 17
PYTHON = re.compile(r"3\.([0-9]{1,2})")


@dataclass(frozen=True)
class Target:
    """The machines that wheels are for."""

    python: str
    """Such as '3.11'."""
    platforms: tuple[str, ...]
    """Tags for pip, best first; none: machines like this one."""
    tags: frozenset[Tag]
    environment: Mapping[str, str]
    """What markers of requirements are asked of."""

    @property
    def is_here(self) -> bool:
        return not self.platforms


def target_of(platform: str, python: str) -> Target:
    """Return the machines of a platform tag and a version of Python; empty: as this one.

    Raises:
        DeployError: if the tag is of no platform that torch is built for, or the version is none of CPython 3.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted = python or here
    found = PYTHON.fullmatch(wanted)
    if found is None:
        raise DeployError(f"--python is {wanted!r}; give a version such as 3.11")
    environment = {key: str(value) for key, value in default_environment().items()}
    if not platform and wanted == here:
        return Target(here, (), frozenset(sys_tags()), environment)
    if not platform:
        raise DeployError(f"--python {wanted} is not this one ({here}); give --platform too, such as win_amd64")
    platforms, own = _platforms(platform)
    version = (3, int(found[1]))
    own |= {"python_version": wanted, "python_full_version": f"{wanted}.0"}
    own |= {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    tags = {*cpython_tags(version, platforms=platforms), *compatible_tags(version, f"cp3{found[1]}", platforms)}
    return Target(wanted, platforms, frozenset(tags), {**environment, **own})


def _platforms(platform: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the tags that a machine of a platform takes, and what its markers say."""
    if platform in WINDOWS:
        own = {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"}
        return (platform,), own | {"platform_machine": WINDOWS[platform]}
    if found := MAC.fullmatch(platform):
        version, machine = (int(found["major"]), int(found["minor"])), found["machine"]
        own = {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": machine}
        return tuple(mac_platforms(version, machine)), own
    if found := LINUX.fullmatch(platform):
        newest, machine = int(found["minor"] or GLIBC_2014), found["machine"]
        tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, OLDEST_GLIBC - 1, -1)]
        tags += [f"manylinux2014_{machine}"] if newest >= GLIBC_2014 else []
        own = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": machine}
        return (*tags, f"manylinux2010_{machine}", f"manylinux1_{machine}", f"linux_{machine}"), own
    raise DeployError(
        f"--platform is {platform!r}; give a tag such as win_amd64, macosx_14_0_arm64 or manylinux_2_28_x86_64"
    )


# ------------------------------------------------------------------------------------------------ wheels there


@dataclass(frozen=True)
class Wheel:
    """A wheel file, by its name."""

    path: Path
    name: NormalizedName
    version: str
    tags: frozenset[Tag]


def wheels_in(folder: Path) -> list[Wheel]:
    """Return the wheels of a folder, sorted by file name."""
    found = []
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _, tags = parse_wheel_filename(path.name)
        except InvalidWheelFilename as error:
            raise DeployError(f"{path} has not the name of a wheel; remove it") from error
        found.append(Wheel(path, name, str(version), tags))
    return found


def needs_of(wheel: Path, extras: Iterable[str], environment: Mapping[str, str]) -> list[Requirement]:
    """Return what a wheel needs on the machines of an environment, with some of its extras.

    Raises:
        DeployError: if it is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as opened:
            (name,) = [item for item in opened.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", item)]
            text = opened.read(name).decode()
        lines = HeaderParser().parsestr(text).get_all("Requires-Dist") or []
        found = [Requirement(line) for line in lines]
    except (zipfile.BadZipFile, OSError, ValueError, InvalidRequirement) as error:
        raise DeployError(f"wheel {wheel} cannot be read: {error}; remove it and try again") from error
    places = [{**environment, "extra": extra} for extra in ("", *extras)]
    return [one for one in found if one.marker is None or any(one.marker.evaluate(place) for place in places)]


def installed_version(name: str) -> str | None:
    """Return the version of a package that is installed here; None if it is not."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------- a wheel of what runs here


def own_wheel(folder: Path) -> Wheel:
    """Make the wheel of this installation from its files, be it a checkout or installed; the same bytes each time.

    Raises:
        DeployError: if what pip wrote about the installation is not there.
    """
    try:
        about = metadata.distribution(APP)
    except metadata.PackageNotFoundError as error:
        raise DeployError(f"{APP} was not installed by pip; install it: pip install .") from error
    info = f"{canonicalize_name(APP)}-{about.version}.dist-info"
    files = {path: (root / path).read_bytes() for root, path in _own_files()}
    for name in ("METADATA", "entry_points.txt"):
        files[f"{info}/{name}"] = (about.read_text(name) or "").encode()
    for file in about.files or []:
        if "licenses" in file.parts and file.parts[0].endswith(".dist-info"):
            files[f"{info}/licenses/{file.name}"] = Path(str(file.locate())).read_bytes()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: fedreptile\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD")
    path = folder / f"{canonicalize_name(APP)}-{about.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in files.items():
            item = zipfile.ZipInfo(name, EPOCH)
            item.external_attr, item.compress_type = 0o100644 << 16, zipfile.ZIP_DEFLATED
            opened.writestr(item, data)
    return Wheel(path, canonicalize_name(APP), about.version, parse_wheel_filename(path.name)[3])


def _own_files() -> list[tuple[Path, str]]:
    """Return the files of our packages: the folder that holds them, and the path in it."""
    root = Path(str(server.__file__)).resolve().parent.parent
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            inner = path.relative_to(root)
            if path.is_file() and path.suffix != ".pyc" and not any(part.startswith(".") for part in inner.parts):
                found.append((root, inner.as_posix()))
    return found


def _record(files: Mapping[str, bytes], own: str) -> bytes:
    """Return a wheel's list of files with their sums (PEP 376, PEP 427)."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.writerow((name, f"sha256={digest}", len(data)))
    rows.writerow((own, "", ""))
    return text.getvalue().encode()
