"""How a federation stands: its processes, its sites, its runs."""

import datetime
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.deployment.supervisor import read_state
from common.errors import DeployError
from common.paths import read_table
from common.trust.certificates import days_left, expiry_warning
from server.enrolment.registry import read_registry
from server.gateway.seen import SEEN
from server.home import FederationHome
from server.service.control import Node, control
from server.service.runs import SITES, RunRecord, all_runs, read_journal


def federation_status(home: FederationHome, now: datetime.datetime) -> dict[str, Any]:
    """Return everything that the tables show, as plain values.

    Raises:
        SettingsError, TrustError: if the folder is not a federation's.
    """
    config, state = home.config(), read_state(home.run)
    registry, seen, said = read_registry(home.registry_file), read_table(home.run / SEEN), introductions(home)
    nodes = _nodes(home)
    sites = []
    for name, site in sorted(registry.sites.items()):
        node, met = nodes.get(site.node_id), seen.get(name, {})
        sites.append(
            {
                "name": name,
                "online": bool(node and node.online),
                "last-seen": met.get("last-seen"),
                "version": met.get("version", ""),
                "device": said.get(name, {}).get("device", ""),
                "release": said.get(name, {}).get("release", 0),
                "refused-release": said.get(name, {}).get("refused", 0),
                "wishes": said.get(name, {}).get("wishes", {}),
                "classes": len(said.get(name, {}).get("classes", {})) or None,
                "labels": list(site.labels),
                "certificate-days": _days(site.expires, now),
                "refused": met.get("refused", {}),
            }
        )
    return {
        "federation": config.name,
        "address": config.address,
        "running": state is not None,
        "processes": (state or {}).get("parts", {}),
        "sites": sites,
        "strangers-refused": seen.get("", {}).get("refused", {}),
        "runs": [_run(home, record) for record in all_runs(home)],
        "warnings": _warnings(home),
    }


def print_status(status: Mapping[str, Any], console: Console, now: datetime.datetime) -> None:
    """Show a federation's status as tables."""
    running = "running" if status["running"] else "not running; start it with 'fedreptile-server up'"
    console.print(Text(f"federation {status['federation']} at {status['address']}: {running}"))
    if status["processes"]:
        table = _table("Processes", "process", "state", "pid", "starts")
        for name, part in status["processes"].items():
            state = "ready" if part["ready"] else "starting" if part["pid"] else "waiting to start again"
            table.add_row(name, state, str(part["pid"] or ""), str(part["starts"]))
        console.print(table)
    table = _table(
        "Sites",
        "site",
        "online",
        "last seen",
        "version",
        "device",
        "classes",
        "release",
        "wishes",
        "certificate",
        "refused",
    )
    for site in status["sites"]:
        days = site["certificate-days"]
        table.add_row(
            Text(site["name"]),
            Text("yes", style="green") if site["online"] else Text("no", style="red"),
            ago(site["last-seen"], now),
            Text(site["version"]),
            Text(site["device"]),
            str(site["classes"] or ""),
            str(site["release"] or ""),
            Text(_counts(site["wishes"])),
            Text(f"{days:.0f} days", style="red" if days <= 30 else ""),
            _counts(site["refused"]),
        )
    console.print(table)
    if status["strangers-refused"]:
        console.print(f"refused without a known name: {_counts(status['strangers-refused'])}")
    if status["runs"]:
        table = _table("Runs", "run", "state", "rounds", "used of asked", "accuracy", "not used", "absent", "reason")
        for run in status["runs"]:
            accuracy = f"{run['accuracy']:.1%}" if run["accuracy"] is not None else ""
            rounds, used = f"{run['round']} of {run['rounds']}", f"{run['used']} of {run['asked']}"
            absent = ", ".join(f"{site}: {why}" for site, why in run["absent"].items())
            why = Text(run["reason"])
            table.add_row(
                Text(run["name"]), run["state"], rounds, used, accuracy, _counts(run["dropped"]), Text(absent), why
            )
        console.print(table)
    for warning in status["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"))


def _run(home: FederationHome, record: RunRecord) -> dict[str, Any]:
    journal = read_journal(home.runs / record.name)
    last = journal[-1] if journal else {}
    dropped: dict[str, int] = {}
    for line in journal:
        for cause, count in line["causes"].items():
            dropped[cause] = dropped.get(cause, 0) + count
    accuracies = [line["figures"]["accuracy-after"] for line in journal if "accuracy-after" in line["figures"]]
    return {
        "name": record.name,
        "state": record.state,
        "round": last.get("round", 0),
        "rounds": record.settings["run.rounds"],
        "asked": sum(len(line["asked"]) for line in journal),
        "used": sum(len(line["used"]) for line in journal),
        "accuracy": accuracies[-1] if accuracies else None,
        "dropped": dropped,
        "absent": last.get("absent", {}),
        "reason": record.reason,
    }


def _nodes(home: FederationHome) -> dict[int, Node]:
    try:
        with control(home) as superlink:
            return superlink.nodes()
    except DeployError:
        return {}


def introductions(home: FederationHome) -> dict[str, Any]:
    """Return what sites said about themselves, the newest run's word last."""
    found: dict[str, Any] = {}
    for record in all_runs(home):
        found |= read_table(home.runs / record.name / SITES)
    return found


def _warnings(home: FederationHome) -> list[str]:
    files = [path for path in (home.tls_certificate, home.authority) if path.exists()]
    return [warning for path in files if days_left(path) <= 30 and (warning := expiry_warning(path))]


def _days(expires: str, now: datetime.datetime) -> float:
    return (datetime.datetime.fromisoformat(expires) - now).total_seconds() / 86400


def ago(seen: float | None, now: datetime.datetime) -> str:
    """Return in words when something was seen, given in seconds since 1970."""
    if seen is None:
        return "never"
    seconds = max(now.timestamp() - seen, 0)
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _counts(causes: Mapping[str, int]) -> str:
    return ", ".join(f"{cause} {count}" for cause, count in sorted(causes.items()))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table
