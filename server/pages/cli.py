"""``fedreptile-server ui``: the operator's page, on this machine alone."""

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from common.pages.guard import Guard
from common.pages.serve import TOKEN, serve
from common.trust.keys import passphrase_for
from server.home import FederationHome
from server.pages.page import operator_app
from server.service.cli import Home

console = Console(soft_wrap=True)


def ui(
    home: Home = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of 127.0.0.1; 0 takes any that is free.")] = 8766,
) -> None:
    """Show sites, campaigns and releases in a browser, on this machine alone. Ctrl-C ends it, and nothing else."""
    federation = FederationHome.of(home)
    federation.config()
    secret = passphrase_for(federation.releases / "keys" / "targets.key")
    serve(port, federation.run / TOKEN, lambda token: operator_app(federation, token, secret), _tell)


def _tell(port: int, token: str) -> None:
    console.print(Text(f"open in a browser: {Guard(token).link(port)}"))
