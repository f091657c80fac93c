"""How a campaign stands, as plain values and for a terminal. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from common.errors import CampaignError
from common.trust.names import checked_name
from server.campaigns.campaign import FAILED, HAS_IT, PHASES, REFUSED_IT, Campaign, read_campaign
from server.home import FederationHome
from server.service.runs import ACTIVE, STOP, WAITING, RunRecord, all_runs, read_journal, read_run

STYLES = {HAS_IT: "green", REFUSED_IT: "red"}


def campaign_state(home: FederationHome, name: str) -> dict[str, Any]:
    """Return all that is known of a campaign. Raises CampaignError if the run of that name is none."""
    return _state(home, read_run(home.runs / checked_name(name, "run")))


def all_campaigns(home: FederationHome) -> list[dict[str, Any]]:
    """Return all campaigns, in the order in which they were asked for."""
    return [_state(home, record) for record in all_runs(home) if record.settings.get("campaign.class")]


def _state(home: FederationHome, record: RunRecord) -> dict[str, Any]:
    folder, settings = home.runs / record.name, record.settings
    if not settings.get("campaign.class"):
        raise CampaignError(f"run {record.name!r} is no campaign; see 'fedreptile-server status'")
    campaign = read_campaign(folder) or Campaign()
    try:
        waits = (folder / WAITING).read_text(encoding="utf-8")
    except OSError:
        waits = ""
    return {
        "name": record.name,
        "class": settings["campaign.class"],
        "description": settings["campaign.description"],
        "sites": str(settings["campaign.sites"]).split(","),
        "from-release": settings["campaign.release"],
        "state": record.state,
        "stopping": record.state in ACTIVE and (folder / STOP).exists(),
        "reason": record.reason or campaign.reason,
        "asked": record.asked,
        "rounds-wanted": settings["run.rounds"],
        "rounds": [
            {key: line[key] for key in ("round", "asked", "used", "dropped", "absent", "seconds")}
            for line in read_journal(folder)
        ],
        "waits": waits,
        **asdict(campaign),
    }


def campaigns_table(states: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line a campaign."""
    table = _table("Campaigns", "campaign", "class", "state", "phase", "release", "sites that have it", "reason")
    for state in states:
        having = sum(site["state"] == HAS_IT for site in state["rollout"].values())
        table.add_row(
            Text(state["name"]),
            Text(state["class"]),
            state["state"],
            state["phase"],
            str(state["release"] or ""),
            f"{having} of {len(state['rollout'])}" if state["rollout"] else "",
            Text(state["reason"]),
        )
    return table


def campaign_view(state: Mapping[str, Any]) -> RenderableType:
    """Return a campaign for a terminal."""
    parts: list[RenderableType] = [
        Text(
            f"campaign {state['name']}: class {state['class']!r}"
            + (f", {state['description']}" * bool(state["description"]))
        )
    ]
    parts.append(_phases(state))
    if state["waits"]:
        parts.append(Text(state["waits"], style="yellow"))
    if state["rounds"]:
        parts.append(_rounds(state))
    for site, why in state["left_out"].items():
        parts.append(Text(f"not in the class tables: {site}: {why}", style="yellow"))
    if state["verdict"]:
        parts += _gate(state["verdict"], state["class"])
    if state["rollout"]:
        parts.append(_rollout(state))
    if state["reason"]:
        parts.append(Text(f"{state['state']}: {state['reason']}", style="red"))
    return Group(*parts)


def _phases(state: Mapping[str, Any]) -> Text:
    now = state["phase"]
    text = Text()
    for phase in (*PHASES[:-1], FAILED if now == FAILED else PHASES[-1]):
        style = (
            "red bold" if phase == FAILED else "bold" if phase == now else "green" if phase in state["since"] else "dim"
        )
        text.append(f"{phase}  ", style=style)
    return text


def _rounds(state: Mapping[str, Any]) -> Table:
    table = _table(
        f"Rounds ({len(state['rounds'])} of {state['rounds-wanted']})", "round", "used", "not used", "seconds"
    )
    for line in state["rounds"]:
        missing = {**line["dropped"], **line["absent"]}
        whys = "\n".join(f"{site}: {why}" for site, why in missing.items())
        used = f"{len(line['used'])} of {len(line['asked'])}"
        table.add_row(str(line["round"]), used, Text(whys), f"{line['seconds']:.1f}")
    return table


def _gate(verdict: Mapping[str, Any], new_class: str) -> list[RenderableType]:
    passed = verdict["passed"]
    parts: list[RenderableType] = [
        Text("gate: passed" if passed else "gate: not passed", style="green bold" if passed else "red bold")
    ]
    parts += [Text(f"  {reason}", style="red") for reason in verdict["reasons"]]
    classes = _table("Held-back inputs by class", "class", "sites", "inputs", "before", "after", "worst drop")
    for row in verdict["classes"]:
        name = Text(row["name"] + (" (new)" if row["new"] else ""))
        drop = "" if row["new"] else f"{row['drop']:+.1f} points"
        classes.add_row(
            name, str(row["sites"]), str(row["total"]), _part(row["champion"]), _part(row["challenger"]), drop
        )
    sites = _table("Old classes by site", "site", "inputs", "before", "after", "drop", "new class", "why not used")
    for row in verdict["sites"]:
        drop = "" if row["drop"] is None else f"{row['drop']:+.1f} points"
        tried = f"{row['recognised']} of {row['tried']}" if row["tried"] else ""
        total = str(row["total"] or "")
        sites.add_row(
            Text(row["name"]), total, _part(row["champion"]), _part(row["challenger"]), drop, tried, Text(row["unused"])
        )
    parts += [table for table in (classes, sites) if table.row_count]
    parts.append(Text(f"new class: {verdict['told']}"))
    if verdict["tried_by_table"]:
        tried = f"{verdict['recognised_by_table']} of {verdict['tried_by_table']}"
        parts.append(Text(f"as at a site that never saw it: {tried} recognised"))
    if verdict["worst_site"]:
        parts.append(Text(f"worst site: {verdict['worst_site']}, {verdict['worst_site_drop']:+.1f} points of drop"))
    if verdict["ece_rise"] is not None:
        parts.append(Text(f"calibration error: {verdict['ece_rise']:+.3f}"))
    if verdict.get("rounding_cost") is not None:
        parts.append(
            Text(f"rounding for a small difference: {verdict['rounding_cost']:+.2f} points lost on old classes")
        )
    if verdict["unknown"] is not None:
        parts.append(Text(f"{new_class!r} hidden: told from known ones with {verdict['unknown']:.2f} (1: always)"))
    parts += [Text(f"note: {note}", style="yellow") for note in verdict["notes"]]
    return parts


def _rollout(state: Mapping[str, Any]) -> Table:
    table = _table(f"Release {state['release']}", "site", "step", "state", "runs", "seen")
    for site, one in sorted(state["rollout"].items()):
        style = STYLES.get(one["state"], "")
        table.add_row(Text(site), one["stage"], Text(one["state"], style=style), str(one["release"] or ""), one["when"])
    return table


def _part(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table
