"""``fedreptile-server up | status | down | run | ask | stop``: what an operator does every day."""

import datetime
import json
import logging
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from common.cli import read_settings
from common.deployment.detach import start_detached
from common.deployment.supervisor import ask_to_stop
from common.deployment.units import unit
from common.errors import DeployError
from common.paths import write_atomically
from server.home import FederationHome
from server.service.control import superlink_address
from server.service.runs import (
    ACTIVE,
    FINISHED,
    WAITING,
    RunRecord,
    ask_for_run,
    ask_sites,
    ask_to_stop_run,
    read_journal,
    read_run,
)
from server.service.status import federation_status, print_status
from server.service.up import run_server
from server.service.wheelhouse import make_wheelhouse
from server.service.wheels import target_of

console = Console(soft_wrap=True)

Home = Annotated[
    Path | None,
    typer.Option(help="The federation's folder; otherwise $FEDREPTILE_FEDERATION, otherwise ./federation."),
]
LOOK_SECONDS = 0.5


def up(
    home: Home = None,
    detach: Annotated[bool, typer.Option(help="Return when all is ready, and leave it running.")] = False,
) -> None:
    """Run the server: SuperLink, gateway and all; what dies is started again. Ctrl-C or 'down' stops it."""
    federation = FederationHome.of(home)
    if detach:
        start_detached("server", federation.path, federation.run, federation.logs)
        console.print(f"running; sites reach it at {federation.config().address}")
        return
    logging.getLogger("fedreptile").setLevel(logging.INFO)
    run_server(federation, lambda listen: console.print(f"ready: sites are let in at {listen}"))


def down(home: Home = None) -> None:
    """Stop the server. Runs that are under way go on from their checkpoints when it is up again."""
    federation = FederationHome.of(home)
    console.print("stopped" if ask_to_stop(federation.run) else "it was not running")


def status(
    home: Home = None, as_json: Annotated[bool, typer.Option("--json", help="As JSON, for scripts.")] = False
) -> None:
    """Show processes, sites (online, last seen, version, device, classes, certificate) and runs."""
    now = datetime.datetime.now(datetime.UTC)
    found = federation_status(FederationHome.of(home), now)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_status(found, console, now)


def run(
    home: Home = None,
    name: Annotated[str, typer.Option(help="Name of the run; its folder is runs/NAME. Empty: the time.")] = "",
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; otherwise those that the sites agreed to.")
    ] = None,
    assignments: Annotated[
        list[str], typer.Option("--set", help="Change a setting: key=value, such as run.rounds=50.")
    ] = [],  # noqa: B006 - typer copies it
    detach: Annotated[bool, typer.Option(help="Return at once, and leave it running.")] = False,
) -> None:
    """Run rounds with the enrolled sites and show them. Ctrl-C stops watching, not the run.

    A run of the same name that has stopped or failed goes on where it stood.
    """
    federation = FederationHome.of(home)
    settings = read_settings(config or federation.path / federation.config().settings, assignments)
    superlink_address(federation)
    record = ask_for_run(federation, name or datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S"), settings)
    if detach:
        console.print(f"run {record.name} is in the queue; see 'fedreptile-server status'")
        return
    try:
        ended = _watch(federation.runs / record.name)
    except KeyboardInterrupt:
        console.print(f"it goes on; stop it with 'fedreptile-server stop {record.name}'")
        raise
    if ended.state != FINISHED:
        raise DeployError(f"run {ended.name} is {ended.state}: {ended.reason}")
    console.print(Text(f"run {ended.name} is finished: {federation.runs / ended.name}"))


def ask(home: Home = None) -> None:
    """Ask the sites that are connected what they are, have and wish; without a run, the server does so every hour."""
    federation = FederationHome.of(home)
    superlink_address(federation)
    record = ask_sites(federation, read_settings(federation.path / federation.config().settings, []))
    with console.status("asking"):
        while (ended := read_run(federation.runs / record.name)).state in ACTIVE:
            time.sleep(LOOK_SECONDS)
    if ended.state != FINISHED:
        raise DeployError(f"run {ended.name} is {ended.state}: {ended.reason}")
    status(home)


def stop(name: Annotated[str, typer.Argument(help="Name of the run.")], home: Home = None) -> None:
    """Stop a run; 'run --name NAME' takes it up again where it stood."""
    federation = FederationHome.of(home)
    superlink_address(federation)
    ask_to_stop_run(federation, name)
    folder = federation.runs / name
    while read_run(folder).state in ACTIVE:
        time.sleep(LOOK_SECONDS)
    console.print(f"run {name} is {read_run(folder).state}")


def units(
    home: Home = None,
    user: Annotated[str, typer.Option(help="The user whose processes they will be.")] = "fedreptile",
    out: Annotated[Path | None, typer.Option(help="Folder to write to; otherwise it is shown.")] = None,
) -> None:
    """Write the systemd unit that runs this server and starts it with the machine."""
    federation = FederationHome.of(home)
    text = unit("server", federation.config().name, federation.path, user)
    if out is None:
        print(text, end="")
        return
    path = out / "fedreptile-server.service"
    write_atomically(path, text.encode())
    console.print(Text(f"{path}; as root: systemctl daemon-reload && systemctl enable --now {path.stem}"))


def wheelhouse(
    folder: Annotated[Path, typer.Argument(help="Folder to make; one of an earlier run is brought up to date.")],
    platform: Annotated[
        str, typer.Option(help="Tag of other machines: win_amd64, macosx_14_0_arm64, manylinux_2_28_x86_64.")
    ] = "",
    python: Annotated[str, typer.Option(help="Their version of Python, such as 3.11; default: this one.")] = "",
    without: Annotated[
        list[str], typer.Option(help="A package to leave out, with what only it needs; may be repeated.")
    ] = [],  # noqa: B006 - typer copies it
) -> None:
    """Make a folder from which sites without network install this very version and all that it needs."""
    target = target_of(platform, python)
    with console.status("looking") as shown:
        made = make_wheelhouse(folder, target, without, lambda text: shown.update(Text(text)))
    again = f", {made.reused} of them from before" if made.reused else ""
    console.print(Text(f"{folder}: {made.wheels} wheels{again}, {made.bytes / 1e6:.0f} MB"))
    if made.missing:
        console.print(Text(f"left out: {', '.join(made.missing)}; sites need wheels of them, and PIP_FIND_LINKS"))
    console.print("copy the folder to a site and run there: sh install.sh FOLDER (Windows: install.ps1)")


def _watch(folder: Path) -> RunRecord:
    """Show rounds as they are done, until the run has ended."""
    told = len(read_journal(folder))
    with Live(Text("waiting for sites"), console=console, transient=True) as live:
        while True:
            record, journal = read_run(folder), read_journal(folder)
            told = min(told, len(journal))
            for line in journal[told:]:
                console.print(_told(line, record))
            told = len(journal)
            live.update(Text(f"run {record.name}: {told} of {record.settings['run.rounds']} rounds{_waits(folder)}"))
            if record.state not in ACTIVE:
                return record
            time.sleep(LOOK_SECONDS)


def _waits(folder: Path) -> str:
    """Return what a run waits for, for the end of a line."""
    try:
        return f"; {(folder / WAITING).read_text(encoding='utf-8')}"
    except FileNotFoundError:
        return ""


def _told(line: dict[str, object], record: RunRecord) -> Text:
    """Return a round in one line: who was used, who was not and why, how well it went."""
    figures, used, asked = line["figures"], line["used"], line["asked"]
    assert isinstance(figures, dict) and isinstance(used, list) and isinstance(asked, list)
    text = f"round {line['round']} of {record.settings['run.rounds']}: used {len(used)} of {len(asked)}"
    if "accuracy-after" in figures:
        text += f", accuracy {figures['accuracy-before']:.1%} before, {figures['accuracy-after']:.1%} after adaptation"
    missing = {**_reasons(line["dropped"]), **_reasons(line["absent"])}
    text += "".join(f"\n  {site}: {why}" for site, why in missing.items())
    return Text(f"{text} ({line['seconds']:.1f} s)")


def _reasons(found: object) -> dict[str, str]:
    return {str(site): str(why) for site, why in found.items()} if isinstance(found, dict) else {}
