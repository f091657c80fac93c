"""``fedreptile-site check``: why a site does not run, or would not."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.check.findings import Finding, NeedsError, Subject, as_values, has_problem, show, skipped, subject_of
from client.check.machine import check_device, check_disk, check_loopback, check_packages, check_python, check_torch
from client.check.network import check_network
from client.check.papers import (
    check_certificate,
    check_config,
    check_keys,
    check_kit,
    check_parameters,
    check_past,
    check_policy,
)
from client.check.users import check_users
from client.home import SiteHome
from common.errors import SettingsError
from common.settings import Settings, parse_assignments, read_toml

Check = Callable[[Subject], Iterator[Finding]]

console = Console(soft_wrap=True)


Home = Annotated[Path | None, typer.Option(help="The site's folder; otherwise $FEDREPTILE_SITE, otherwise ./site.")]
Own = Annotated[
    Path | None,
    typer.Option(help="Check data alone, without a site's folder: class folders, a .csv table or an .npz file."),
]
Cache = Annotated[
    str, typer.Option(help="With --data: folder that keeps decoded pictures; empty: the data home's; 'off': none.")
]


def check(
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for scripts.")] = False,
    data: Own = None,
    settings: Annotated[
        Path | None, typer.Option(help="With --data: the federation's settings file; only \\[data] counts here.")
    ] = None,
    assignments: Annotated[
        list[str], typer.Option("--set", help="With --data: another setting: key=value, such as data.size=64.")
    ] = [],  # noqa: B006 - typer copies it
    cache: Cache = "",
) -> None:
    """Find out what keeps the site from running: machine, papers, data, the way to the server. Exit code 1: something.

    With --data: read data as a run would, and list classes, counts, and everything that cannot be used.
    """
    if data is not None:
        if home is not None or as_json:
            raise SettingsError("--data checks data alone; leave it out to check the site's folder (--home, --json)")
        _check_data_alone(data, settings, assignments, cache)
        return
    if settings or assignments or cache:
        raise SettingsError("--settings, --set and --cache go with --data; a site's folder has its own")
    found = _watched(SiteHome.of(home), quiet=as_json)
    if as_json:
        print(json.dumps(as_values(found), indent=1))
    else:
        show(found, console)
    if has_problem(found):
        raise typer.Exit(1)


def check_site(subject: Subject, progress: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """Check all of a site and return what was found, in the order of the table.

    Args:
        progress: told in a sentence what is being checked.
    """
    found: list[Finding] = []
    for what, one in CHECKS:
        progress(what)
        try:
            found += one(subject)
        except NeedsError as error:
            found.append(skipped(what, str(error)))
    return found


def _check_data(subject: Subject) -> Iterator[Finding]:
    subject.need_torch()
    from client.check.data import check_data

    yield from check_data(subject)


def _check_memory(subject: Subject) -> Iterator[Finding]:
    subject.need_torch()
    from client.check.memory import check_memory

    yield from check_memory(subject)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("Python", check_python),
    ("packages", check_packages),
    ("torch", check_torch),
    ("site.toml", check_config),
    ("kit", check_kit),
    ("clock", check_past),
    ("policy", check_policy),
    ("keys", check_keys),
    ("certificate", check_certificate),
    ("device", check_device),
    ("disk", check_disk),
    ("ports", check_loopback),
    ("users", check_users),
    ("data", _check_data),
    ("model", check_parameters),
    ("memory", _check_memory),
    ("way to the server", check_network),
)


def _watched(home: SiteHome, *, quiet: bool) -> list[Finding]:
    subject = subject_of(home)
    with contextlib.suppress(NeedsError):
        _ = subject.passphrase  # is asked for before the screen is used for anything else
    if quiet or not console.is_terminal:
        return check_site(subject)
    with console.status("checking") as shown:
        return check_site(subject, lambda what: shown.update(f"checking: {what}"))


def _check_data_alone(data: Path, settings: Path | None, assignments: list[str], cache: str) -> None:
    from client.check.data import show_data

    agreed = read_toml(settings) if settings else {}
    own = {key: value for key, value in agreed.items() if key.startswith("data.") and key != "data.sites"}
    show_data(data, Settings.from_flat({**own, **parse_assignments(assignments)}).data, cache, console)
