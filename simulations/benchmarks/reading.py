"""What reading a site's folder of pictures costs beside a plain loop over the files, and what the cache saves.

python -m simulations.benchmarks.reading
"""

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from client.data.folder import open_folder
from common.errors import FedreptileError, SourceError
from common.settings import DataSettings
from simulations.sources.prepare import MIRROR_VARIABLE, find_mirror

FILES = 10_000
SIZES = (64, 200)
TIMES = 3
BROKEN = (b"", b"this is no picture\n" * 100)
"""What every third of the broken files holds; the other third is cut off in the middle."""


def main() -> None:
    console = Console(soft_wrap=True)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {FILES} JPEG files"
    )
    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch) / "site"
        _copy_pictures(site)
        for part in (0.0, 0.05):
            _break(site, round(part * FILES))
            for size in SIZES:
                rates = _measured(site, Path(scratch) / "caches", DataSettings(size=size))
                console.print(_table(f"{size} x {size}, {part:.0%} of the files broken", rates))


def _table(title: str, rates: dict[str, float]) -> Table:
    table = Table("", "pictures/s", "ratio to the loop", title=title)
    bare = next(iter(rates.values()))
    for what, rate in rates.items():
        table.add_row(what, f"{rate:,.0f}", f"{rate / bare:.1f}")
    return table


def _measured(site: Path, caches: Path, data: DataSettings) -> dict[str, float]:
    """Return pictures per second, medians; the kinds take turns, so that a busy moment hits all alike."""
    seconds: dict[str, list[float]] = {}
    for _ in range(TIMES):
        with _empty(caches) as cache:
            for what, work in (
                ("plain loop, one thread", lambda: _plain_loop(site, data)),
                ("without a cache", lambda: open_folder(site, data)),
                ("first start", lambda: open_folder(site, data, cache)),
                ("second start", lambda: open_folder(site, data, cache)),
                ("start after one file was added", lambda: _open_with_one_more(site, data, cache)),
            ):
                seconds.setdefault(what, []).append(_seconds(work))
        _added(site).unlink()
    return {what: FILES / median(each) for what, each in seconds.items()}


def _plain_loop(site: Path, data: DataSettings) -> None:
    """Do what a short script would: decode, convert, resize, stack."""
    found = []
    for path in sorted(site.rglob("*.jpg")):
        try:
            with Image.open(path) as image:
                found.append(np.asarray(image.convert("L").resize((data.size, data.size), Image.Resampling.BOX)))
        except OSError:
            continue
    np.stack(found)


def _open_with_one_more(site: Path, data: DataSettings, cache: Path) -> None:
    shutil.copyfile(next(path for path in site.rglob("*.jpg") if path.stat().st_size > 4000), _added(site))
    open_folder(site, data, cache)


def _added(site: Path) -> Path:
    return site / "scratches" / "added.jpg"


@contextmanager
def _empty(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _copy_pictures(site: Path) -> None:
    """Make a site of FILES real photographs of steel, each of the mirror's several times.

    Raises:
        SourceError: if there is no mirror with them.
    """
    mirror = find_mirror(None)
    pictures = sorted((mirror / "neu_steel" / "images").rglob("*.jpg")) if mirror else []
    if not pictures:
        raise SourceError(
            f"there is no data mirror with neu_steel/images/CLASS/NAME.jpg; name one in {MIRROR_VARIABLE}, or put it "
            "at shared/data beside the checkout"
        )
    for number in range(FILES):
        picture = pictures[number % len(pictures)]
        folder = site / picture.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, folder / f"{number:05d}.jpg")


def _break(site: Path, count: int) -> None:
    """Break files evenly over the site: cut off, empty, and text, by turns."""
    paths = sorted(site.rglob("*.jpg"))
    for number in range(count):
        path = paths[number * len(paths) // count]
        path.write_bytes((path.read_bytes()[: path.stat().st_size // 2], *BROKEN)[number % 3])


if __name__ == "__main__":
    try:
        main()
    except FedreptileError as error:
        sys.exit(str(error))
