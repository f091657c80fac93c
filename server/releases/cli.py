"""``fedreptile-server release``: the models that sites are given, and the way back."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import ReleaseError
from common.trust.keys import new_passphrase, passphrase_for
from server.home import FederationHome
from server.releases.publishing import (
    Delta,
    content,
    make_releases,
    open_registry,
    promote,
    publish,
    put_out,
    withdraw,
)
from server.releases.registry import About, Registry
from server.releases.repository import ROLES, Repository

if TYPE_CHECKING:
    from common.releases.artefact import Artefact

app = typer.Typer(help="Give sites a model; try it at some first; take it back.", no_args_is_help=True)
console = Console(soft_wrap=True)

Home = Annotated[
    Path | None, typer.Option(help="The federation's folder [default: $FEDREPTILE_FEDERATION, ./federation].")
]
Number = Annotated[int, typer.Argument(metavar="N", help="Number of the release.")]
AsJson = Annotated[bool, typer.Option("--json", help="Show it as JSON.")]
RootKey = Annotated[Path | None, typer.Option(help="Where the root's key lies [default: releases/keys/root.key].")]


@app.command()
def init(
    home: Home = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Encrypt the keys; done too if $FEDREPTILE_PASSPHRASE is set.")
    ] = False,
) -> None:
    """Make keys, register and repository in a federation that was made without."""
    federation = FederationHome.of(home)
    federation.config()
    secret = new_passphrase() if passphrase else passphrase_for(federation.signing_key)
    make_releases(federation, secret, _now())
    console.print(Text(f"releases are at {federation.releases}"))
    console.print(Text(f"move {federation.releases / 'keys' / 'root.key'} to where no network reaches it"))
    console.print("sites need a new kit, with which they trust the root: 'fedreptile-site join --renew'")


@app.command(name="list")
def list_releases(home: Home = None, as_json: AsJson = False) -> None:
    """List all releases, the oldest first, and which of them sites are given."""
    with open_registry(FederationHome.of(home)) as registry:
        rows = registry.all_told()
    if as_json:
        console.print_json(json.dumps(rows))
        return
    table = Table("number", "state", "parent", "campaign", "sites", "gate", "MB", "made")
    for row in rows:
        sites = f"tried at {', '.join(row['canaries'])}" if row["canaries"] else ""
        cells = (row["parent"] or "", row["campaign"], len(row["sites"]), _of_gate(row["gate"]), row["size"] / 1e6)
        parent, campaign, trained, gate, size = cells
        state = Text(f"{row['state']} {sites}".strip(), style="bold" if row["state"] in ("all", "canary") else "")
        made = str(row["created"])[:16].replace("T", " ")
        table.add_row(str(row["number"]), state, str(parent), Text(campaign), str(trained), gate, f"{size:.2f}", made)
    console.print(table)


@app.command()
def show(number: Number, home: Home = None, as_json: AsJson = False) -> None:
    """Show where a release comes from, what its gate found and what became of it."""
    with open_registry(FederationHome.of(home)) as registry:
        row = registry.told(number)
        row["events"] = [vars(one) for one in registry.events(number)]
    if as_json:
        console.print_json(json.dumps(row))
        return
    table = Table("", "", show_header=False, title=f"Release {number}", title_justify="left")
    for key, value in row.items():
        if key not in ("number", "events", "settings"):
            table.add_row(key, Text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    console.print(table)
    became = Table("when", "what", "", title="What became of it", title_justify="left")
    for one in row["events"]:
        became.add_row(one["created"], one["what"], Text(json.dumps(one["detail"], ensure_ascii=False)))
    console.print(became)


@app.command(name="publish")
def publish_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a run, or its checkpoint.")],
    home: Home = None,
    delta: Annotated[str, typer.Option(help="Difference to the parent, published too: int8, bf16 or off.")] = "off",
    parent: Annotated[int, typer.Option(help="The release it follows; 0: none; -1: the newest.")] = -1,
    note: Annotated[str, typer.Option(help="What people read about it.")] = "",
) -> None:
    """Make a release of a run's checkpoint WITHOUT A GATE: nobody has judged it. Meant for the first one."""
    from common.checkpoint import read_checkpoint  # here, because it imports torch
    from common.releases.artefact import encode, of_checkpoint

    federation, artefact = FederationHome.of(home), of_checkpoint(read_checkpoint(checkpoint))
    with open_registry(federation) as registry:
        base = _parent(registry, parent)
    card: dict[str, Any] = {"note": note} if note else {}
    difference = None
    if delta != "off":
        if base is None:
            raise ReleaseError("the first release has no parent to differ from; leave --delta out")
        artefact, difference, lost = _rounded(federation, artefact, base, delta)
        card["delta"] = {"kind": delta, "rounding": lost}
        console.print(f"rounding to {delta} loses {lost:.2%} of the step (root mean square)")
        console.print("what that costs in accuracy nobody has measured here: class tables were made before rounding")
    secret = passphrase_for(federation.releases / "keys" / "targets.key")
    about = _about(artefact, base, card)
    made = publish(federation, encode(artefact), about, secret, _now(), difference)
    console.print(Text(f"release {made.number} is published, {made.size / 1e6:.2f} MB; no site is given it yet"))
    if difference is not None:
        console.print(f"the difference has {len(difference.data) / 1e6:.2f} MB, {len(difference.data) / made.size:.0%}")
    warning = "NO GATE HAS JUDGED IT: nobody knows whether it is better or worse than what sites have"
    console.print(Text(warning, style="bold red"))
    console.print(f"next: 'fedreptile-server release promote {made.number} --canary SITE'")


@app.command(name="promote")
def promote_release(
    number: Number,
    home: Home = None,
    canary: Annotated[str, typer.Option(help="Sites that try it, commas between; empty: all sites are given it.")] = "",
) -> None:
    """Give a release to some sites to try, or to all."""
    federation = FederationHome.of(home)
    sites = [site.strip() for site in canary.split(",") if site.strip()]
    secret = passphrase_for(federation.releases / "keys" / "targets.key")
    promote(federation, number, sites, secret, _now())
    console.print(Text(f"{', '.join(sites) or 'all sites'}: release {number}"))


@app.command(name="withdraw")
def withdraw_release(
    number: Number,
    reason: Annotated[str, typer.Option(help="Why; kept in the register.")],
    home: Home = None,
    to: Annotated[int, typer.Option(help="The release whose content sites get instead; 0: its parent's.")] = 0,
) -> None:
    """Take a release back: sites that were given it get an older content, under a new and higher number."""
    federation = FederationHome.of(home)
    secret = passphrase_for(federation.releases / "keys" / "targets.key")
    made = withdraw(federation, number, reason, secret, _now(), to or None)
    if made is None:
        console.print(f"release {number} is withdrawn; no site was given it")
    else:
        older = made.about.parent
        console.print(f"release {number} is withdrawn; its sites are given {made.number}, the content of {older}")


@app.command(name="rotate-key")
def rotate_key(
    role: Annotated[str, typer.Argument(metavar="ROLE", help=", ".join(ROLES))],
    home: Home = None,
    root_key: RootKey = None,
) -> None:
    """Replace a key of the repository by a new one; sites follow by themselves. Needs the root's key."""
    federation = FederationHome.of(home)
    secret = passphrase_for(federation.releases / "keys" / "targets.key")
    Repository(federation, secret, root_key).rotate(role, _now())
    console.print(f"the {role} has a new key; sites take it with their next look")


@app.command()
def renew(home: Home = None, root_key: RootKey = None) -> None:
    """Renew the word of all roles, of the root too if its key is there, and finish what a crash left undone."""
    federation = FederationHome.of(home)
    secret = passphrase_for(federation.releases / "keys" / "targets.key")
    repository = Repository(federation, secret, root_key)
    if repository.has_root_key:
        repository.renew_root(_now())
    repository.publish({}, _now())
    with open_registry(federation) as registry:
        put_out(federation, registry, repository, _now())
    for role in ROLES:
        console.print(f"{role}: good until {repository.ends(role):%Y-%m-%d %H:%M} UTC")
    if not repository.has_root_key:
        console.print("the root was not renewed, since its key is elsewhere: --root-key")


def _of_gate(gate: dict[str, Any]) -> Text:
    return Text("passed", style="green") if gate else Text("none", style="bold red")


def _parent(registry: Registry, wanted: int) -> int | None:
    if wanted > 0:
        return registry.get(wanted).number
    known = registry.all()
    return known[-1].number if known and wanted < 0 else None


def _rounded(home: FederationHome, artefact: "Artefact", base: int, kind: str) -> tuple["Artefact", Delta, float]:
    """Return what a difference from an earlier release leads to, the difference, and how much of the step is lost."""
    from common.releases.artefact import decode
    from common.releases.delta import difference_of, encode_delta, rounding_error

    before = content(home, base)
    previous = decode(before, f"release {base}").params
    difference = difference_of(previous, artefact.params, kind)
    rounded = replace(artefact, params=difference.applied_to(previous))
    lost = rounding_error(previous, artefact.params, rounded.params)
    return rounded, Delta(base, kind, encode_delta(difference, before, rounded)), lost


def _about(artefact: "Artefact", parent: int | None, card: dict[str, Any]) -> About:
    from common.releases.artefact import settings_of

    values, digest = settings_of(artefact)
    return About(parent, settings=values, settings_digest=digest, code=artefact.code_version, card=card)


def _now() -> datetime:
    return datetime.now(UTC)
