"""Check of the site's data, as a run would open them; and the same without a site's folder."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from client.check.findings import Finding, Subject, broken, ok, problem, warning
from client.data.indexed import IndexedData
from client.data.sites import open_own
from common.errors import SettingsError, SiteDataError
from common.paths import cache_folder
from common.settings import DataSettings

LISTED = 20
"""Classes that the table names."""


def check_data(subject: Subject) -> Iterator[Finding]:
    """The data can be opened, and have classes and inputs enough for an episode."""
    if not Path(subject.config.data).exists():
        yield problem(
            "data",
            f"there is no {subject.config.data}",
            f"correct data in {subject.home.config_file}, or bring the data there (is the drive mounted?)",
        )
        return
    _ = subject.settings
    try:
        data = subject.open_data()
    except (SiteDataError, SettingsError) as error:
        yield broken("data", error, f"correct data in {subject.home.config_file}")
        return
    subject.__dict__["data"] = data
    counts = {name: data.count(name) for name in data.classes()}
    if skipped := getattr(data, "skipped", ()):
        first = skipped[0]
        yield warning(
            "data",
            f"{len(skipped)} thing(s) cannot be used and are skipped, such as {first.where}: {first.reason}",
            "replace or remove them (listed below)",
            [f"{item.where}: {item.reason}" for item in skipped],
        )
    yield _enough(counts, subject)


def _enough(counts: dict[str, int], subject: Subject) -> Finding:
    """Say whether an episode can be drawn from classes with so many inputs."""
    episode = subject.settings.episode
    few = [name for name, count in counts.items() if count < episode.shot + 1]
    if len(counts) < 2:
        cause = f"there is only one class ({', '.join(counts)}); nothing can be told apart"
        return problem("data", cause, f"add inputs of another class to {subject.config.data}")
    if len(counts) < episode.way:
        return warning(
            "data",
            f"{len(counts)} classes; an episode of the run has {episode.way}, so all will be used each time",
            "add classes if there are more",
        )
    if few:
        return warning(
            "data",
            f"{len(few)} of {len(counts)} classes have fewer than {episode.shot + 1} inputs ({episode.shot} to learn "
            f"from and one to judge on), such as {few[0]!r} with {counts[few[0]]}",
            "add inputs to them",
        )
    named = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:LISTED])
    more = f", and {len(counts) - LISTED} more" if len(counts) > LISTED else ""
    return ok("data", f"{len(counts)} classes, {sum(counts.values())} inputs: {named}{more}")


def show_data(path: Path, data: DataSettings, cache: str, console: Console) -> None:
    """Read data as a run would, and show classes, counts, and everything that cannot be used.

    Raises:
        SettingsError, SiteDataError: if they cannot be used.
    """
    found = open_shown(path, data, cache, console)
    table = Table("class", "inputs")
    for name in found.classes():
        table.add_row(Text(name), str(found.count(name)))
    console.print(table)
    list_skipped(found, console)


def open_shown(path: Path, data: DataSettings, cache: str, console: Console) -> IndexedData:
    """Open a site's own data, with a bar of progress. Raises SettingsError or SiteDataError."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        reading = bar.add_task("reading", total=None)
        return open_own(
            path.resolve(),
            data,
            cache_folder(cache),
            lambda done, total: bar.update(reading, completed=done, total=total),
        )


def list_skipped(data: IndexedData, console: Console) -> None:
    if data.skipped:
        console.print(f"{len(data.skipped)} thing(s) cannot be used and are skipped:")
    for item in data.skipped:
        console.print(Text(f"  {item.where}: {item.reason}"))
