"""``fedreptile-server enrol``: the federation's folder, and who is in it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import SettingsError, TrustError
from common.trust.certificates import WARN_DAYS
from common.trust.keys import new_passphrase, passphrase_for
from common.trust.request import Request, read_request
from server.enrolment.federation import (
    OwnAuthority,
    OwnServer,
    Wanted,
    federation_fingerprint,
    make_federation,
    renew_server,
)
from server.enrolment.registry import read_registry
from server.enrolment.sites import SITE_DAYS, Approval, approve, is_renewal, revoke, write_kit
from server.home import FederationConfig, FederationHome

app = typer.Typer(help="Make a federation; let sites in, renew them, put them out.", no_args_is_help=True)
console = Console(soft_wrap=True)

Home = Annotated[
    Path | None,
    typer.Option(help="The federation's folder; otherwise $FEDREPTILE_FEDERATION, otherwise ./federation."),
]
File = Path | None


@app.command()
def new(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    name: Annotated[str, typer.Option(help="The federation's name.")],
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="What sites dial.")],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the server listens.")
    ] = FederationConfig.listen,
    settings: Annotated[File, typer.Option(help="Settings that sites agree to; default: those of the project.")] = None,
    certificate: Annotated[
        File, typer.Option(help="Server certificate of your own, with what is below its root.")
    ] = None,
    key: Annotated[File, typer.Option(help="Its private key.")] = None,
    chain: Annotated[File, typer.Option(help="Its root.")] = None,
    authority_certificate: Annotated[
        File, typer.Option(help="Authority of your own for sites, up to its root.")
    ] = None,
    authority_key: Annotated[File, typer.Option(help="Its private key; leave it out to issue elsewhere.")] = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Encrypt the private keys; done too if $FEDREPTILE_PASSPHRASE is set.")
    ] = False,
) -> None:
    """Make a federation: its authority, the server's certificate, the key that signs, and its settings."""
    server, authority = _own_server(certificate, key, chain), _own_authority(authority_certificate, authority_key)
    home = FederationHome.of(folder)
    secret = new_passphrase() if passphrase else passphrase_for(*filter(None, (key, authority_key)))
    own = Wanted(name, address, listen, settings, server, authority)
    make_federation(home, own, secret, _now())
    console.print(Text(f"federation {name!r} is at {home.path}; keep its keys/ secret and a copy of them safe"))
    console.print(Text(f"move {home.releases / 'keys' / 'root.key'} to where no network reaches it; see 'release'"))
    console.print(Text(f"fingerprint, for sites to compare: {federation_fingerprint(home, secret)}"))
    console.print(
        Text("next: have each site send its request.json, then 'fedreptile-server enrol approve request.json'")
    )


@app.command(name="approve")
def approve_site(
    request: Annotated[Path, typer.Argument(help="The request.json that a site sent.")],
    home: Home = None,
    out: Annotated[File, typer.Option(help="Where to write the kit; otherwise NAME-kit.json.")] = None,
    labels: Annotated[list[str], typer.Option("--label", help="A word to tell sites apart; may be repeated.")] = [],  # noqa: B006 - typer copies it
    days: Annotated[float, typer.Option(min=0.01, max=3652, help="Days that the certificate is good for.")] = SITE_DAYS,
    certificate: Annotated[File, typer.Option(help="Certificate issued elsewhere, from the request's 'csr'.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether the fingerprint is the site's.")] = False,
) -> None:
    """Let a site in, or renew its certificate: issue it, register its node key, and write the kit to send back."""
    federation, asked = FederationHome.of(home), read_request(request)
    federation.config()
    renewal = is_renewal(read_registry(federation.registry_file), asked)
    console.print(_described(asked, renewal))
    if not yes and not typer.confirm("Has the site read out the same fingerprint to you?"):
        raise TrustError(f"the request of {asked.name!r} is not approved; nothing was changed")
    secret = passphrase_for(federation.signing_key, federation.authority_key)
    approval = Approval(asked, tuple(labels), days, certificate)
    approved = approve(federation, approval, secret, _now())
    path = out or Path(f"{asked.name}-kit.json")
    write_kit(federation, approved.kit, path, secret)
    console.print(Text(f"{asked.name} is {'renewed' if renewal else 'approved'} until {approved.kit.expires}"))
    if approved.problem:
        console.print(Text(f"its node is not registered: {approved.problem}; 'fedreptile-server up' will do it"))
    elif not approved.node_id:
        console.print("the server does not run; 'fedreptile-server up' will register its node")
    console.print(Text(f"send {path} to the site; it holds no secret"))


@app.command(name="revoke")
def revoke_site(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    reason: Annotated[str, typer.Option(help="Why; kept in the list.")],
    home: Home = None,
) -> None:
    """Put a site out at once. Its keys are never let in again: it must enrol with fresh ones."""
    told = revoke(FederationHome.of(home), site, reason, _now())
    console.print(Text(f"{site} is revoked; the gateway refuses it from now on"))
    if not told:
        console.print("the SuperLink does not know yet; 'fedreptile-server up' will tell it")


@app.command(name="list")
def list_sites(home: Home = None) -> None:
    """List the sites, when their certificates end, and what is revoked."""
    federation = FederationHome.of(home)
    federation.config()
    registry = read_registry(federation.registry_file)
    table = Table("site", "labels", "node id", "certificate ends", "days left")
    for name, site in sorted(registry.sites.items()):
        end = datetime.fromisoformat(site.expires)
        left = (end - _now()) / timedelta(days=1)
        days = Text(f"{left:.0f}" if left > 0 else "expired", style="red" if left <= WARN_DAYS else "")
        number = str(site.node_id) if site.node_id else "not registered"
        table.add_row(Text(name), Text(", ".join(site.labels)), number, f"{end:%Y-%m-%d}", days)
    console.print(table)
    if registry.revoked:
        revoked = Table("serial number", "revoked", title="Revoked certificates", title_justify="left")
        for serial, why in registry.revoked.items():
            revoked.add_row(serial, Text(why))
        console.print(revoked)


@app.command(name="renew-server")
def renew_server_certificate(home: Home = None) -> None:
    """Replace the server's certificate by a new one of the federation's own authority; sites notice nothing."""
    federation = FederationHome.of(home)
    end = renew_server(federation, passphrase_for(federation.authority_key), _now())
    console.print(f"the server's certificate is good until {end:%Y-%m-%d}; a running gateway takes it up by itself")


@app.command()
def fingerprint(home: Home = None) -> None:
    """Show what tells this federation from all others. Sites compare it when they take their kit."""
    federation = FederationHome.of(home)
    federation.config()
    console.print(federation_fingerprint(federation, passphrase_for(federation.signing_key)))


def _own_server(certificate: File, key: File, chain: File) -> OwnServer | None:
    if certificate and key and chain:
        return OwnServer(certificate, key, chain)
    if certificate or key or chain:
        raise SettingsError("--certificate, --key and --chain belong together; give all three, or none")
    return None


def _own_authority(certificate: File, key: File) -> OwnAuthority | None:
    if key and not certificate:
        raise SettingsError("--authority-key is given without --authority-certificate; give both")
    return OwnAuthority(certificate, key) if certificate else None


def _described(request: Request, renewal: bool) -> Table:
    table = Table("", "", show_header=False)
    table.add_row("site", Text(request.name))
    table.add_row("what", "renewal of its certificate" if renewal else "a new site")
    table.add_row("made", Text(request.created))
    table.add_row("versions", Text(", ".join(f"{name} {value}" for name, value in sorted(request.versions.items()))))
    table.add_row("fingerprint", Text(request.fingerprint, style="bold"))
    return table


def _now() -> datetime:
    return datetime.now(UTC)
