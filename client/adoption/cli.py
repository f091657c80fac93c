"""``fedreptile-site adopt``: take the newest release now, instead of waiting for the site's own look."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from client.adoption.fetch import fetch
from client.home import SiteHome
from client.line.store import is_new, store_of
from common.errors import DeployError

console = Console(soft_wrap=True)


def adopt(
    home: Annotated[
        Path | None, typer.Option(help="The site's folder; otherwise $FEDREPTILE_SITE, otherwise ./site.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also take up a release that was refused, or gone back from.")
    ] = False,
) -> None:
    """Take the newest release: verify it, adapt it to the site's classes, judge it on held-back samples, and use it.

    If it is worse there than the model in use, that one stays in use and the exit code is 1.
    """
    site = SiteHome.of(home)
    fetched = fetch(site)
    if fetched is None:
        console.print("there is no release for this site yet")
        return
    store = store_of(site)
    if not again and not is_new(store, fetched.number):
        what = "was refused here" if store.standing().refused == fetched.number else "has been taken up"
        console.print(f"release {fetched.number} {what}; --again takes it up once more")
        return
    from client.adoption.adopt import take_up
    from client.line.cli import show_learned

    found = take_up(site, fetched)
    if found.learned is not None:
        show_learned(found.learned)
    if found.refused:
        stays = f"model {found.before.number} stays in use" if found.before else "no model is in use"
        raise DeployError(f"release {found.release} is not used: {found.refused}; {stays}")
    assert found.learned is not None
    console.print(Text(f"release {found.release} is in use as model {found.learned.entry.number}"))
