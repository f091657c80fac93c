"""``fedreptile-site up | status | down | units``: what a site engineer does."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from client.home import SiteHome
from client.service.status import print_status, site_status
from client.service.up import run_site
from common.deployment.detach import start_detached
from common.deployment.supervisor import ask_to_stop
from common.deployment.units import unit
from common.paths import cache_folder, write_atomically

console = Console(soft_wrap=True)

Home = Annotated[Path | None, typer.Option(help="The site's folder; otherwise $FEDREPTILE_SITE, otherwise ./site.")]


def up(
    home: Home = None,
    detach: Annotated[bool, typer.Option(help="Return when all is ready, and leave it running.")] = False,
) -> None:
    """Run the site: it connects out, answers what its policy allows, and what dies is started again."""
    site = SiteHome.of(home)
    if detach:
        start_detached("site", site.path, site.run, site.logs)
        console.print("running")
        return
    logging.getLogger("fedreptile").setLevel(logging.INFO)
    run_site(site, lambda: console.print("ready"))


def down(home: Home = None) -> None:
    """Stop the site. A finished answer that has not been delivered is kept for the next start."""
    console.print("stopped" if ask_to_stop(SiteHome.of(home).run) else "it was not running")


def status(
    home: Home = None, as_json: Annotated[bool, typer.Option("--json", help="As JSON, for scripts.")] = False
) -> None:
    """Show processes, connection, work and certificate."""
    found = site_status(SiteHome.of(home))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_status(found, console)


def units(
    home: Home = None,
    user: Annotated[
        str, typer.Option(help="Whose processes they will be; root if site.toml names users.")
    ] = "fedreptile",
    out: Annotated[Path | None, typer.Option(help="Folder to write to; otherwise it is shown.")] = None,
) -> None:
    """Write the systemd unit that runs this site and starts it with the machine."""
    site = SiteHome.of(home)
    config = site.config()
    cache = cache_folder(config.cache)
    outside = (cache,) if cache and not cache.is_relative_to(site.path) else ()
    text = unit("site", config.name, site.path, user, writable=outside, gpu=config.device != "cpu")
    if out is None:
        print(text, end="")
        return
    path = out / f"fedreptile-site-{config.name}.service"
    write_atomically(path, text.encode())
    console.print(Text(f"{path}; as root: systemctl daemon-reload && systemctl enable --now {path.stem}"))
