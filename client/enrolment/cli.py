"""``fedreptile-site join``: become a site of a federation, in two steps, and renew what expires."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.enrolment.joining import (
    check_kit,
    differing_settings,
    is_known,
    make_site,
    new_tls_key_of,
    present_kit,
    renew_request,
    skewed_versions,
    take_kit,
)
from client.home import SiteHome
from common.errors import SettingsError, TrustError
from common.trust.certificates import expiry_warning
from common.trust.documents import read_bytes, same_fingerprint
from common.trust.keys import new_passphrase, passphrase_for, passphrase_from_environment
from common.trust.kit import Kit, fingerprint, parse_kit
from common.trust.request import Request, read_request

console = Console(soft_wrap=True)


def join(
    home: Annotated[
        Path | None, typer.Option(help="The site's folder; otherwise $FEDREPTILE_SITE, otherwise ./site.")
    ] = None,
    name: Annotated[str, typer.Option(help="Step 1: the name under which to take part.")] = "",
    data: Annotated[
        Path | None, typer.Option(help="Step 1: a folder of class folders, a .csv table or an .npz file.")
    ] = None,
    device: Annotated[str, typer.Option(help="Step 1: where to compute: cpu, cuda, cuda:1.")] = "cpu",
    passphrase: Annotated[
        bool,
        typer.Option(
            "--passphrase", help="Step 1: encrypt the private keys; done too if $FEDREPTILE_PASSPHRASE is set."
        ),
    ] = False,
    kit: Annotated[Path | None, typer.Option(help="Step 2: the kit that the operator sent.")] = None,
    compared: Annotated[
        str, typer.Option("--fingerprint", help="Step 2: the federation's, as the operator told it.")
    ] = "",
    renew: Annotated[
        bool, typer.Option("--renew", help="Make a new TLS key and a request for it; the site goes on.")
    ] = False,
) -> None:
    """Join a federation. Step 1: --name and --data make keys and a request. Step 2: --kit takes what came back."""
    site = SiteHome.of(home)
    if sum((kit is not None, renew, data is not None)) > 1:
        raise SettingsError("--kit, --renew and --data are steps of their own; give one of them")
    if kit is not None:
        _take(site, kit, compared)
    elif renew:
        _renew(site)
    elif site.config_file.exists():
        _show(site, name)
    else:
        _begin(site, name, data, device, passphrase)


def _begin(site: SiteHome, name: str, data: Path | None, device: str, passphrase: bool) -> None:
    if not name or data is None:
        raise SettingsError(f"there is no site at {site.path}; to make one give --name and --data")
    secret = new_passphrase() if passphrase else passphrase_from_environment()
    request = make_site(site, name, data, device, secret, _now())
    console.print(Text(f"site {name!r} is at {site.path}; its keys/ never leave this machine"))
    _say_request(site, request)


def _renew(site: SiteHome) -> None:
    site.config()
    secret = passphrase_for(site.node_key, site.signing_key, new_tls_key_of(site))
    request = renew_request(site, secret, _now())
    console.print("the new key waits beside the present one, which stays in use")
    _say_request(site, request)


def _take(site: SiteHome, path: Path, compared: str) -> None:
    site.config()
    data = read_bytes(path, "kit")
    kit = parse_kit(data, f"kit {path}")
    secret = passphrase_for(new_tls_key_of(site), site.tls_key)
    check_kit(site, kit, secret, _now())
    for table in _described(kit):
        console.print(table)
    for line in skewed_versions(kit):
        console.print(Text(f"versions differ: {line}; have both install the same"))
    found = fingerprint(kit)
    console.print(Text(f"fingerprint of the federation: {found}", style="bold"))
    if compared and not same_fingerprint(compared, found):
        raise TrustError(
            f"the kit's fingerprint is {found} and the one given is {compared!r}; the kit is not taken: "
            "ask the operator by a way that you trust what 'fedreptile-server enrol fingerprint' shows"
        )
    if (
        not compared
        and not is_known(site, kit)
        and not typer.confirm("Has the operator told you the same fingerprint?")
    ):
        raise TrustError("the kit is not taken; nothing was changed")
    taken = take_kit(site, data, secret, _now())
    console.print(Text(f"the kit is in use; the certificate is good until {kit.expires}"))
    if taken.new_fabs:
        console.print(Text(f"the server means to run other code: {', '.join(taken.new_fabs)}"))
        console.print(Text(f"if you agree, add it to code.fabs in {site.policy_file}"))
    if not taken.renewed:
        console.print(Text(f"next: read {site.policy_file}, then 'fedreptile-site check', then 'fedreptile-site up'"))


def _show(site: SiteHome, name: str) -> None:
    config, kit = site.config(), present_kit(site)
    if name and name != config.name:
        raise TrustError(
            f"{site.path} is the folder of site {config.name!r} and keeps its keys; for {name!r} give another --home"
        )
    console.print(Text(f"data: {config.data}, device: {config.device} (to change them edit {site.config_file})"))
    if new_tls_key_of(site).exists() or kit is None:
        console.print(Text(f"site {config.name!r} is at {site.path} and waits for a kit; its keys are kept"))
        _say_request(site, read_request(site.request_file))
        return
    console.print(Text(f"site {config.name!r} is at {site.path}, in federation {kit.federation!r} at {kit.address}"))
    console.print(Text(expiry_warning(site.tls_certificate) or f"its certificate is good until {kit.expires}"))
    console.print("to renew it: 'fedreptile-site join --renew'")


def _say_request(site: SiteHome, request: Request) -> None:
    console.print(Text(f"fingerprint of the request: {request.fingerprint}", style="bold"))
    console.print(Text(f"next: send {site.request_file} to the operator (it holds no secret), and read him the"))
    console.print("fingerprint by phone; then 'fedreptile-site join --kit' with the file that he returns")


def _described(kit: Kit) -> list[Table]:
    about = Table("", "", show_header=False)
    about.add_row("federation", Text(kit.federation))
    about.add_row("server", Text(kit.address))
    about.add_row("server's versions", Text(", ".join(f"{key} {value}" for key, value in sorted(kit.versions.items()))))
    about.add_row("this site", Text(kit.site))
    days = (datetime.fromisoformat(kit.expires) - _now()) / timedelta(days=1)
    about.add_row("certificate", f"until {kit.expires}, {days:.0f} day(s)")
    for fab in kit.fabs:
        about.add_row("code that may run", Text(fab))
    settings = Table("setting", "agreed", "default", title="Settings to agree to", title_justify="left")
    for key, (value, default) in differing_settings(kit).items():
        settings.add_row(Text(key), Text(str(value)), Text("unknown here" if default is None else str(default)))
    settings.caption = (
        "a campaign may choose inner.steps, inner.learning-rate and episode.shot, within your policy's limits"
    )
    return [about, settings] if settings.row_count else [about]


def _now() -> datetime:
    return datetime.now(UTC)
