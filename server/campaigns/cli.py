"""``fedreptile-server campaign``: teach all sites a new class, through a gate, in steps."""

import json
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from common.errors import CampaignError
from common.settings import Value
from server.campaigns.campaign import read_campaign
from server.campaigns.creation import Choice, Wanted, begin_campaign, resume_campaign
from server.campaigns.view import all_campaigns, campaign_state, campaign_view, campaigns_table
from server.home import FederationHome
from server.service.cli import LOOK_SECONDS, Home, stop
from server.service.runs import ACTIVE, FINISHED, RunRecord, read_run

app = typer.Typer(help="Teach all sites a new class: rounds, gate, release, first sites, all.", no_args_is_help=True)
console = Console(soft_wrap=True)

Name = Annotated[str, typer.Argument(help="Name of the campaign; its folder is runs/NAME.")]


@app.command()
def new(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    name: Name,
    new_class: Annotated[str, typer.Option("--class", help="The class, by the name under which sites label it.")],
    description: Annotated[str, typer.Option(help="What it is, for people at the sites.")] = "",
    home: Home = None,
    sites: Annotated[str, typer.Option(help="Sites that take part, commas between; default: all.")] = "",
    label: Annotated[str, typer.Option(help="Only sites with this label ('enrol approve --label').")] = "",
    has_class: Annotated[str, typer.Option(help="Only sites that have this class.")] = "",
    device: Annotated[str, typer.Option(help="Only sites that compute there, such as cuda.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of learning.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Inner steps at a site, up to what its policy allows.")] = 3,
    quorum: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least part of the sites that a round needs; never fewer than 2.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(min=1, help="Seconds that a round, the gate and each step out wait for sites.")
    ] = None,
    canary: Annotated[
        str, typer.Option(help="Sites that get the release first, commas between; default: one without the class.")
    ] = "",
    assignments: Annotated[
        list[str], typer.Option("--set", help="Change a setting: key=value, such as gate.least-recall=0.9.")
    ] = [],  # noqa: B006 - typer copies it
    detach: Annotated[bool, typer.Option(help="Return at once, and leave it running.")] = False,
) -> None:
    """Begin a campaign and show it. Ctrl-C stops watching, not the campaign."""
    federation = FederationHome.of(home)
    values: dict[str, Value] = {"run.rounds": rounds, "inner.steps": steps}
    values |= {} if quorum is None else {"outer.quorum": quorum}
    values |= {} if deadline is None else {"outer.deadline": deadline}
    choice = Choice(_words(sites), label, has_class, device)
    wanted = Wanted(name, new_class, description, (), _words(canary), values, assignments)
    _follow(federation, begin_campaign(federation, choice, wanted), detach)


@app.command()
def resume(
    name: Name,
    home: Home = None,
    detach: Annotated[bool, typer.Option(help="Return at once, and leave it running.")] = False,
) -> None:
    """Have a campaign that was stopped, or could not go on, go on where it was."""
    federation = FederationHome.of(home)
    _follow(federation, resume_campaign(federation, name), detach)


@app.command()
def status(
    name: Annotated[str, typer.Argument(help="Name of a campaign; default: all.")] = "",
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for scripts.")] = False,
) -> None:
    """Show phases, rounds, what the gate said, and which sites have the release."""
    federation = FederationHome.of(home)
    federation.config()
    states = [campaign_state(federation, name)] if name else all_campaigns(federation)
    if as_json:
        print(json.dumps(states[0] if name else states, indent=1))
    elif name:
        console.print(campaign_view(states[0]))
    else:
        console.print(campaigns_table(states))


@app.command(name="stop")
def stop_campaign(name: Name, home: Home = None) -> None:
    """Stop a campaign; 'campaign resume' has it go on. A release that it has made stays as it is."""
    stop(name, home)


def _follow(home: FederationHome, record: RunRecord, detach: bool) -> None:
    if detach:
        console.print(f"campaign {record.name} is in the queue; see 'fedreptile-server campaign status {record.name}'")
        return
    try:
        ended = _watch(home, record.name)
    except KeyboardInterrupt:
        console.print(f"it goes on; stop it with 'fedreptile-server campaign stop {record.name}'")
        raise
    if ended.state != FINISHED:
        raise CampaignError(f"campaign {ended.name} is {ended.state}: {ended.reason}")
    campaign = read_campaign(home.runs / ended.name)
    console.print(Text(f"campaign {ended.name} is done: release {campaign.release if campaign else 0}"))


def _watch(home: FederationHome, name: str) -> RunRecord:
    """Show a campaign until its run has ended."""
    with Live(Text("waiting"), console=console, refresh_per_second=4) as live:
        while True:
            record = read_run(home.runs / name)
            live.update(campaign_view(campaign_state(home, name)), refresh=True)
            if record.state not in ACTIVE:
                return record
            time.sleep(LOOK_SECONDS)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
