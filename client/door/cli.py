"""``fedreptile-site ledger`` and ``fedreptile-site explain``: what left this site, and what would."""

import csv
import io
import json
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.door.ledger import Entry, entries, witnessed
from client.door.ledger import verify as verified
from client.home import SiteHome
from common.errors import LedgerError, SettingsError
from common.messages import payload_bytes
from common.paths import write_atomically

ledger_app = typer.Typer(help="The ledger of everything that left this site.", no_args_is_help=True)
console = Console(soft_wrap=True)

Home = Annotated[Path | None, typer.Option(help="The site's folder; otherwise $FEDREPTILE_SITE, otherwise ./site.")]
Folder = Annotated[Path | None, typer.Option(help="Another folder with a ledger, such as a copy.")]


@ledger_app.command()
def show(
    home: Home = None,
    folder: Folder = None,
    day: Annotated[str, typer.Option(help="Only of this day (UTC), such as 2026-11-21.")] = "",
    run: Annotated[str, typer.Option(help="Only of this run.")] = "",
    kind: Annotated[str, typer.Option(help="Only of this kind: train, Update, Error, refused, again, ….")] = "",
    last: Annotated[int, typer.Option(min=0, help="How many of the newest entries to list; 0 all.")] = 50,
) -> None:
    """List what left, newest last, and the sums of each day; 'export' has the names of all figures."""
    found, damage = _read(_folder(home, folder))
    chosen = [entry for entry in found if _is_meant(entry, day, run, kind)]
    table = Table("entry", "time (UTC)", "run", "round", "what", "bytes", "contents")
    for column, width in enumerate((None, 19, 8)):
        table.columns[column].no_wrap, table.columns[column].min_width = True, width
    for entry in chosen[-last:] if last else chosen:
        what = " ".join(word for word in (entry.kind, entry.event, entry.content) if word)
        contents = [f"{name} {list(shape)}" for name, shape in entry.arrays.items()]
        contents += [f"{len(entry.scalars)} figures"] if entry.scalars else []
        contents += [f"{len(entry.classes)} class names"] if entry.classes else []
        cells = (entry.number, entry.time[:19], entry.run[:8], entry.round, what, entry.bytes)
        table.add_row(*(Text(str(cell)) for cell in (*cells, ", ".join(contents) or entry.reason)))
    console.print(table)
    console.print(_by_day(chosen))
    if damage:
        raise damage


@ledger_app.command()
def verify(
    home: Home = None,
    folder: Folder = None,
    journal: Annotated[
        Path | None, typer.Option(help="Compare also with a run's rounds.jsonl, which the operator has.")
    ] = None,
) -> None:
    """Check every entry and that each follows from the one before; say where the ledger was changed, if it was."""
    found = verified(_folder(home, folder))
    if found.broken:
        raise LedgerError(f"the ledger was changed: {found.broken}; the {found.entries} entries before are as written")
    beginning = "" if found.first == 1 else f", from entry {found.first} on (older files were moved away)"
    console.print(Text(f"{found.entries} entries in {found.files} file(s){beginning}: none was changed"))
    console.print(Text(f"hash of the last entry: {found.last}"))
    if journal is not None:
        site = SiteHome.of(home).config().name
        count = witnessed(_folder(home, folder), journal, site)
        console.print(Text(f"{count} entries of site {site!r} have a stamp in {journal}: none is missing here"))


@ledger_app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Where to: a file ending in .json or .csv.")],
    home: Home = None,
    folder: Folder = None,
) -> None:
    """Write all entries into one file."""
    writers = {".json": _as_json, ".csv": _as_csv}
    if out.suffix not in writers:
        raise SettingsError(f"{out} ends in neither .json nor .csv; name it after what it is to be")
    found, damage = _read(_folder(home, folder))
    if damage:
        raise damage
    write_atomically(out, writers[out.suffix](found).encode(), 0o600)
    console.print(Text(f"{len(found)} entries: {out}"))


def explain(home: Home = None) -> None:
    """Print what would leave under the present policy, worked out from the site's data. Nothing is sent."""
    from client.door.explain import KINDS, explain_site  # here, because it imports torch

    for found in explain_site(SiteHome.of(home)):
        console.print(Text(f"{found.kind}: {KINDS[found.kind]}", style="bold"))
        if found.passing is None:
            console.print(Text(f"  nothing; the server is told: {found.refusal}\n  because {found.why}"))
            continue
        table = Table("name", "shape", "bytes", box=None, pad_edge=True)
        shapes = found.passing.shapes
        for name, size in payload_bytes(found.passing.record).items():
            table.add_row(Text(name), str(shapes.get(name, "")), str(size))
        console.print(table)
        if found.passing.classes:
            named = [f"{name} ({found.counts[name]})" for name in found.passing.classes]
            console.print(Text(f"  classes and counts: {', '.join(named)}"))
        clauses = ", ".join(found.passing.clauses) or "every policy: it names nothing"
        console.print(Text(f"  {found.bytes} bytes in all, without the seal; allowed by {clauses}"))


def _folder(home: Path | None, folder: Path | None) -> Path:
    return folder or SiteHome.of(home).ledger


def _read(folder: Path) -> tuple[list[Entry], LedgerError | None]:
    """Return the entries up to the first damaged one, and what is damaged."""
    found: list[Entry] = []
    try:
        for entry in entries(folder):
            found.append(entry)
    except LedgerError as error:
        if not found:
            raise
        return found, error
    return found, None


def _is_meant(entry: Entry, day: str, run: str, kind: str) -> bool:
    kinds = (entry.kind, entry.content, entry.event)
    return day in ("", entry.day) and entry.run.startswith(run) and (not kind or kind in kinds)


def _by_day(chosen: list[Entry]) -> Table:
    table = Table("day (UTC)", "entries", "bytes", "refused", "errors", title="by day")
    sums: dict[str, Counter[str]] = {}
    for entry in chosen:
        count = sums.setdefault(entry.day, Counter())
        count.update(entries=1, bytes=entry.bytes, refused=entry.event == "refused", errors=entry.content == "Error")
    for day, count in sorted(sums.items()):
        table.add_row(day, *(str(count[name]) for name in ("entries", "bytes", "refused", "errors")))
    return table


def _as_json(found: list[Entry]) -> str:
    return json.dumps([asdict(entry) for entry in found], indent=1) + "\n"


def _as_csv(found: list[Entry]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [item.name for item in fields(Entry)]
    writer.writerow(names)
    for entry in found:
        values = (getattr(entry, name) for name in names)
        writer.writerow([value if isinstance(value, str | int) else json.dumps(value) for value in values])
    return text.getvalue()
