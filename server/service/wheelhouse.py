"""A folder from which a site installs without network: all wheels, their sums, and a script of a few lines."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from common.errors import DeployError
from common.paths import write_atomically
from server.service.wheels import Target, Wheel, installed_version, needs_of, own_wheel, wheels_in

SUMS, CONSTRAINTS = "SHA256SUMS", "constraints.txt"
EXTRAS = ("dicom",)
"""Options of the package that sites may need."""
SHELL = """\
#!/bin/sh
# Installs fedreptile {version} from this folder, without network: sh install.sh [FOLDER], by default ./venv.
# PYTHON names another Python {python} than python{python}.
set -eu
target=${{1:-venv}}
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
python=${{PYTHON:-python{python}}}
if command -v sha256sum >/dev/null; then sum="sha256sum"; else sum="shasum -a 256"; fi
fail() {{ echo "error: $1" >&2; exit 1; }}
(cd "$here" && $sum -c {sums} >/dev/null) || fail "files differ from {sums}; copy the folder again"
"$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "{python}")' ||
  fail "Python {python} is needed: PYTHON=/path/to/python{python} sh install.sh"
"$python" -m venv "$target"
"$target/bin/python" -m pip --disable-pip-version-check install --no-index --find-links "$here" \\
  --constraint "$here/{constraints}" "fedreptile{extras}=={version}"
echo "installed; next: $target/bin/fedreptile-site join --help"
"""
POWERSHELL = """\
# Installs fedreptile {version} from this folder, without network: .\\install.ps1 [FOLDER], by default .\\venv.
param([string]$Target = "venv", [string]$Python = "python")
$ErrorActionPreference = "Stop"
foreach ($line in Get-Content "$PSScriptRoot\\{sums}") {{
  $sum, $name = $line -split "  ", 2
  if ((Get-FileHash "$PSScriptRoot\\$name" -Algorithm SHA256).Hash -ne $sum) {{
    throw "$name differs from {sums}; copy the folder again" }}
}}
& $Python -c 'import sys; sys.exit(''%d.%d'' % sys.version_info[:2] != ''{python}'')'
if ($LASTEXITCODE) {{ throw "Python {python} is needed: .\\install.ps1 -Python C:\\path\\to\\python.exe" }}
& $Python -m venv $Target
if ($LASTEXITCODE) {{ throw "no virtual environment could be made in $Target" }}
& "$Target\\Scripts\\python.exe" -m pip --disable-pip-version-check install --no-index --find-links $PSScriptRoot `
  --constraint "$PSScriptRoot\\{constraints}" "fedreptile{extras}=={version}"
if ($LASTEXITCODE) {{ throw "pip could not install" }}
Write-Output "installed; next: $Target\\Scripts\\fedreptile-site join --help"
"""
README = """\
fedreptile {version} and all that it needs, for {machines} with Python {python}.

Installing needs no network:
  Linux, macOS:  sh install.sh /opt/fedreptile
  Windows:       powershell -ExecutionPolicy Bypass -File install.ps1 C:\\fedreptile
Both compare all files with {sums} first, and make a virtual environment in the folder that is named.

{sums} shows that files were copied whole, not who made them: have the operator read you its own sum.
{constraints} names the version of each package: those of the operator's own installation.
{missing}"""

MISSING = """
Not in here, as the operator chose: {}.
Have wheels of them in a folder and name it in PIP_FIND_LINKS before you install.
"""

Told = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """What a wheelhouse came to."""

    wheels: int
    reused: int
    bytes: int
    missing: tuple[str, ...]
    """Packages that were left out as asked."""


@dataclass
class _Making:
    """A wheelhouse that is being made in a folder of its own."""

    folder: Path
    target: Target
    without: Collection[NormalizedName]
    before: list[Wheel]
    """Of an earlier run, with the right sums."""
    told: Told
    reused: int = 0
    asked: dict[NormalizedName, set[str]] = field(default_factory=dict)
    """Packages with the extras that were asked for."""
    missing: set[str] = field(default_factory=set)


def make_wheelhouse(
    folder: Path, target: Target, without: Collection[str] = (), told: Told = lambda text: None
) -> Made:
    """Make a wheelhouse of this installation, whole or not at all; wheels of an earlier one are used again.

    Args:
        without: packages to leave out, with what only they need: who installs must have them otherwise.
        told: what is being done, for a person who waits.

    Raises:
        DeployError: if the folder holds something else, or pip cannot get a wheel.
    """
    _check_folder(folder)
    left_out = {canonicalize_name(name) for name in without}
    with _in_place_of(folder) as scratch:
        making = _Making(scratch, target, left_out, _sound_wheels(folder, target), told)
        own = own_wheel(scratch)
        level = [(own, set(EXTRAS))]
        while level:
            level = _next_level(making, level)
        _write_rest(scratch, target, own, sorted(making.missing))
        wheels = wheels_in(scratch)
        size = sum(path.stat().st_size for path in scratch.iterdir())
    return Made(len(wheels), making.reused, size, tuple(sorted(making.missing)))


def _next_level(making: _Making, level: list[tuple[Wheel, set[str]]]) -> list[tuple[Wheel, set[str]]]:
    """Get what some wheels need and is not there yet; return those, and those of which more extras are needed."""
    wanted: dict[NormalizedName, Requirement] = {}
    extras: dict[NormalizedName, set[str]] = {}
    for wheel, chosen in level:
        for one in needs_of(wheel.path, sorted(chosen), making.target.environment):
            name = canonicalize_name(one.name)
            if name in making.without:
                making.missing.add(name)
            elif name not in making.asked or not one.extras <= making.asked[name]:
                extras[name] = making.asked.setdefault(name, set()) | one.extras | extras.get(name, set())
                wanted[name] = one
    there = {wheel.name: wheel for wheel in wheels_in(making.folder)}
    _get(making, [one for name, one in wanted.items() if name not in there])
    there = {wheel.name: wheel for wheel in wheels_in(making.folder)}
    for name, more in extras.items():
        making.asked[name] |= more
    return [(there[name], more) for name, more in extras.items()]


def _get(making: _Making, requirements: list[Requirement]) -> None:
    """Bring the wheels of packages into the folder: earlier ones, else by pip, in the versions installed here."""
    to_build: list[str] = []
    to_download: list[str] = []
    for one in requirements:
        name, pin = canonicalize_name(one.name), _pin(one, making.target)
        fitting = [wheel for wheel in making.before if wheel.name == name and _is(wheel, pin)]
        if fitting:
            shutil.copy2(fitting[0].path, making.folder)
            making.reused += 1
        elif making.target.is_here or _is_pure(one.name):
            to_build.append(pin)
        else:
            to_download.append(pin)
    wheel = ("wheel", "--wheel-dir", str(making.folder))
    download = ("download", "--dest", str(making.folder), "--only-binary=:all:", "--implementation", "cp")
    platforms = [word for tag in making.target.platforms for word in ("--platform", tag)]
    _pip(making, to_build, *wheel)
    _pip(making, to_download, *download, "--python-version", making.target.python, *platforms)


def _pip(making: _Making, pins: list[str], command: str, *words: str) -> None:
    if not pins:
        return
    making.told(f"getting {len(pins)} package(s): {', '.join(sorted(pins))}")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", command, "--no-deps", "--quiet", *words, *pins]
    environment = {**os.environ, "PIP_NO_INPUT": "1"}
    done = subprocess.run(pip, capture_output=True, text=True, errors="replace", env=environment, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise DeployError(
            f"pip could not get {', '.join(pins) if len(pins) < 4 else f'{len(pins)} packages'}: "
            f"{' / '.join(said[-2:])[:600] or 'no reason given'}; nothing was changed. It uses pip's own settings "
            "(index, proxy); torch of another build than the index's needs PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL"
        )


def _pin(one: Requirement, target: Target) -> str:
    """Return a package in the version installed here; one that is not installed here, as its dependent asks for it."""
    version = installed_version(one.name)
    if version is None or not one.specifier.contains(version, prereleases=True):
        return f"{one.name}{one.specifier}"
    # Builds of torch such as 2.13.0+cpu are of one platform; others have the plain version.
    return f"{one.name}=={version if target.is_here else version.partition('+')[0]}"


def _is(wheel: Wheel, pin: str) -> bool:
    return Requirement(pin).specifier.contains(wheel.version, prereleases=True)


def _is_pure(name: str) -> bool:
    """Say whether a package is installed here from a wheel for all platforms."""
    from importlib import metadata

    try:
        about = metadata.distribution(name).read_text("WHEEL") or ""
    except metadata.PackageNotFoundError:
        return False
    return re.search(r"^Tag: py[0-9.py]*3[0-9]*-none-any$", about, re.MULTILINE) is not None


# ------------------------------------------------------------------------------------------------ the folder


def _check_folder(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise DeployError(f"{folder} is no folder; choose another one")
    if folder.exists() and any(folder.iterdir()) and not (folder / SUMS).exists():
        raise DeployError(f"{folder} holds something else than a wheelhouse and is left as it is; choose another one")


@contextmanager
def _in_place_of(folder: Path) -> Iterator[Path]:
    """Give a folder to fill, which takes the place of ``folder`` when the block ends well."""
    folder = folder.absolute()
    old = folder.with_name(f".{folder.name}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise DeployError(f"{folder} cannot be made: {error.strerror or error}") from error
    try:
        yield scratch
        scratch.chmod(0o755)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise DeployError(f"{folder} cannot be made: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sound_wheels(folder: Path, target: Target) -> list[Wheel]:
    """Return the wheels of an earlier run that are as they were and fit the target."""
    try:
        lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    fitting = [wheel for wheel in wheels_in(folder) if wheel.tags & target.tags]
    return [wheel for wheel in fitting if sums.get(wheel.path.name) == _sum(wheel.path)]


def _write_rest(folder: Path, target: Target, own: Wheel, missing: list[str]) -> None:
    pins = [f"{wheel.name}=={wheel.version}" for wheel in wheels_in(folder)]
    words = {
        "version": own.version,
        "python": target.python,
        "sums": SUMS,
        "constraints": CONSTRAINTS,
        "extras": f"[{','.join(EXTRAS)}]",
        "machines": target.platforms[0] if target.platforms else "machines like the operator's",
        "missing": MISSING.format(", ".join(missing)) if missing else "",
    }
    texts = {
        CONSTRAINTS: "".join(f"{pin}\n" for pin in pins),
        "install.sh": SHELL.format(**words),
        "install.ps1": POWERSHELL.format(**words).replace("\n", "\r\n"),
        "README.txt": README.format(**words),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode(), 0o755 if name == "install.sh" else 0o644)
    sums = [f"{_sum(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    write_atomically(folder / SUMS, "".join(sums).encode(), 0o644)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
