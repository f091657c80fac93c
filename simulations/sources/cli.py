"""``fedreptile-sim data``: what data sets there are, whose, under what terms; and getting them."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from client.data.sites import open_site_data, site_names
from client.data.table import read_table
from common.errors import SourceError
from common.paths import cache_folder, data_home
from common.settings import DataSettings, Settings, Value, parse_assignments
from simulations.federation import READY, Dealt, Federation, deal, read_federation
from simulations.sources.catalogue import CATALOGUE, CatalogueSet, find_set
from simulations.sources.download import Done, Progress
from simulations.sources.files import Files, origin_files
from simulations.sources.pool import Pool, open_pool
from simulations.sources.prepare import find_files, find_mirror, key, pools, prepare
from simulations.sources.unpack import unpack

data_app = typer.Typer(help="Data sets for simulations.", no_args_is_help=True)
console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)

MOST_VALUES = 12
"""Values of an attribute up to which they are listed."""

Mirror = Annotated[Path | None, typer.Option(help="Folder that holds data sets, instead of their origins.")]


@data_app.command("list")
def data_list(data_mirror: Mirror = None) -> None:
    """List the data sets: what they are, under what licence, and whether they are here already."""
    mirror = find_mirror(data_mirror)
    table = Table()
    for heading in ("name", "what", "kind", "classes", "items", "natural sites", "licence", "here"):
        table.add_column(heading, no_wrap=heading == "name", justify="right" if heading in COUNTED else "left")
    for chosen in CATALOGUE.values():
        table.add_row(
            chosen.name,
            chosen.title,
            chosen.kind,
            str(chosen.classes),
            str(chosen.items),
            ", ".join(chosen.natural) or "–",
            chosen.licence,
            _here(chosen, mirror),
        )
    console.print(table, soft_wrap=False)


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help=", ".join(CATALOGUE))],
    data_mirror: Mirror = None,
    yes: Annotated[bool, typer.Option("--yes", help="Agree to the licence without being asked.")] = False,
) -> None:
    """Show a data set's licence, fetch it, check it, and make it ready. What was broken off goes on."""
    chosen = find_set(name)
    _describe(chosen)
    files, data = find_files(chosen, data_mirror), Settings().with_values(chosen.data).data
    if not (files.packed or files.complete() or (pools() / f"{name}-{key(data)}").exists()):
        _agree(files, yes)
    elif chosen.origins:
        console.print(f"read from {files.folder}")
    with fetching(name) as progress:
        folder = prepare(name, data, data_mirror, progress)
    _show(open_pool(folder), folder)
    for ready in (read_federation(each) for each in READY):
        if ready.described.federation.set == name:
            dealt = deal(ready, data_mirror)
            console.print(f"sites of {ready.name}: {dealt.train}")
    console.print(f"look at it with: fedreptile-sim data show {name}")


@data_app.command("show")
def data_show(
    what: Annotated[str, typer.Argument(help="A federation's name or TOML file, a data set, or a folder of sites.")],
    picture: Annotated[Path, typer.Option(help="The picture to write.")] = Path("who-has-what.png"),
    data_mirror: Mirror = None,
    assignments: Annotated[
        list[str], typer.Option("--set", help="Deal it otherwise: key=value, such as sites.alpha=0.1.")
    ] = [],  # noqa: B006 - typer copies it
) -> None:
    """Show who has what: sites and classes, trained on and judged on, and where tables have different columns."""
    from simulations.sources.show import show_columns, show_sites  # here: plots take long to import

    path = Path(what).resolve()
    if what in READY or path.suffix == ".toml":
        described = read_federation(what, assignments)
        dealt = dealt_visibly(described, data_mirror)
    elif what in CATALOGUE:
        described = _natural(find_set(what), assignments)
        dealt = dealt_visibly(described, data_mirror)
    else:
        described, dealt = read_federation("", assignments), Dealt(path, None)
    data = described.settings.data
    if dealt.train == path and (tables := _tables(path)):
        show_columns({file.stem: read_table(file, data.label) for file in tables}, data.label, console, picture)
        return
    judge = _counts(dealt.judge, data) if dealt.judge else {}
    show_sites(_counts(dealt.train, data), judge, console, picture)


@data_app.command("unpack")
def data_unpack(
    what: Annotated[str, typer.Argument(help="A federation's name or TOML file, or a data set of pictures.")],
    folder: Annotated[Path, typer.Argument(help="Folder to make: SITE/CLASS/NUMBER.png.")],
    data_mirror: Mirror = None,
    assignments: Annotated[
        list[str], typer.Option("--set", help="Deal it otherwise: key=value, such as sites.number=4.")
    ] = [],  # noqa: B006 - typer copies it
) -> None:
    """Write the pictures that sites train on as class folders, for real sites to work with."""
    ready = what in READY or Path(what).suffix == ".toml"
    described = read_federation(what, assignments) if ready else _natural(find_set(what), assignments)
    dealt = dealt_visibly(described, data_mirror)
    for site, count in unpack(dealt.train, folder, described.settings.data).items():
        console.print(f"{folder / site}: {count} pictures")


def dealt_visibly(described: Federation, mirror: Path | None) -> Dealt:
    """Deal a federation's data set; if that has to be fetched, say first whose it is and under what terms."""
    chosen = find_set(described.described.federation.set)
    files, pool = find_files(chosen, mirror), pools() / f"{chosen.name}-{key(described.settings.data)}"
    if chosen.origins and not (pool.exists() or files.packed or files.complete()):
        _describe(chosen)
    with fetching(described.name) as progress:
        return deal(described, mirror, progress)


def _natural(chosen: CatalogueSet, assignments: list[str]) -> Federation:
    """Return a data set dealt by its first natural attribute; without one, evenly to ten sites."""
    by: dict[str, Value] = {"sites.by": "iid"}
    if chosen.natural:
        by = {"sites.by": "attribute", "sites.attribute": chosen.natural[0]}
    own = read_federation("").with_values({"federation.set": chosen.name, **by, **chosen.data})
    return replace(own, name=chosen.name).with_values(parse_assignments(assignments))


def _tables(path: Path) -> list[Path]:
    return sorted(path.glob("*.csv")) if path.is_dir() else [path] if path.suffix.lower() == ".csv" else []


def _counts(sites: Path, data: DataSettings) -> dict[str, dict[str, int]]:
    """Return the inputs of each class of each site."""
    found = {}
    for name in site_names(sites):
        site = open_site_data(sites, name, replace(data, rotated_classes=False), cache_folder(""))
        found[name] = {label: site.count(label) for label in site.classes()}
    return found


@contextmanager
def fetching(name: str) -> Iterator[Progress]:
    """Show a bar in a terminal while a set is fetched; only then, and only from its first byte on."""
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(name, total=None, visible=False)

        def show(done: Done) -> None:
            described = f"{name}: {done.files} of {done.all_files} files"
            bars.update(task, description=described, completed=done.bytes, total=done.all_bytes or None, visible=True)

        yield show


COUNTED = ("classes", "items")


def _here(chosen: CatalogueSet, mirror: Path | None) -> str:
    """Return in what form a set is on this machine."""
    if not chosen.origins:
        return "installed"
    downloads = origin_files(chosen.name, data_home() / "downloads" / chosen.name, chosen.origins)
    there = {
        "ready": any(pools().glob(f"{chosen.name}-*")),
        "mirror": mirror is not None and chosen.in_mirror(mirror).complete(),
        "downloaded": downloads.complete(),
        "downloaded in part": not downloads.complete() and downloads.any_there(),
    }
    return ", ".join(form for form, found in there.items() if found) or "–"


def _describe(chosen: CatalogueSet) -> None:
    console.print(chosen.title)
    for origin in chosen.origins:
        console.print(f"origin:  https://github.com/{origin.repository} at {origin.commit}")
    console.print(f"licence: {chosen.licence}. {chosen.terms}")
    console.print(f"cite:    {chosen.cite}")
    console.print(f"sums:    {chosen.sums}")


def _agree(files: Files, yes: bool) -> None:
    """Ask before downloading. Raises SourceError if nobody can be asked."""
    count = len(files.entries)
    size = sum(entry.size for entry in files.entries) if all(entry.size for entry in files.entries) else 0
    console.print(f"{count} files{f' of {size / 1e6:.1f} MB' if size else ''} go to {files.folder}")
    if yes:
        return
    if not sys.stdin.isatty():
        raise SourceError("nobody is here to agree to the licence above; read it and give --yes")
    typer.confirm("Do you agree to these terms and want to download it?", abort=True)


def _show(pool: Pool, folder: Path) -> None:
    shape = "x".join(map(str, pool.inputs.shape[1:]))
    console.print(
        f"{len(pool.inputs)} items of {shape} {pool.inputs.dtype}, {len(set(pool.classes))} classes: {folder}"
    )
    for name, values in {"class": pool.classes, **pool.attributes}.items():
        counts = Counter(values)
        listed = ", ".join(f"{value or '(not known)'} {count}" for value, count in sorted(counts.items()))
        console.print(f"{name}: {listed if len(counts) <= MOST_VALUES else f'{len(counts)} values'}")
