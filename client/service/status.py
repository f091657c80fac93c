"""How a site stands: its processes, its connection, what left it."""

import datetime
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.home import SiteHome
from client.worker.wire import call
from common.deployment.supervisor import read_state
from common.errors import DeployError
from common.paths import read_table
from common.trust.certificates import days_left, expiry_warning
from common.trust.kit import read_kit


def site_status(home: SiteHome) -> dict[str, Any]:
    """Return everything that the table shows, as plain values.

    Raises:
        SettingsError, TrustError: if the folder is not that of a site with its kit.
    """
    config, kit, state = home.config(), read_kit(home.kit_file), read_state(home.run)
    return {
        "site": config.name,
        "federation": kit.federation,
        "server": kit.address,
        "running": state is not None,
        "processes": (state or {}).get("parts", {}),
        "connection": read_table(home.relay_state) if state else {},
        "work": _work(home) if state else {},
        "certificate-days": days_left(home.tls_certificate),
        "warnings": [warning] if (warning := expiry_warning(home.tls_certificate)) else [],
    }


def print_status(status: Mapping[str, Any], console: Console) -> None:
    """Show a site's status as tables."""
    running = "running" if status["running"] else "not running; start it with 'fedreptile-site up'"
    console.print(Text(f"site {status['site']} of {status['federation']} at {status['server']}: {running}"))
    if status["processes"]:
        table = Table("process", "state", "pid", "starts", title="Processes", title_justify="left")
        for name, part in status["processes"].items():
            state = "ready" if part["ready"] else "starting" if part["pid"] else "waiting to start again"
            table.add_row(name, state, str(part["pid"] or ""), str(part["starts"]))
        console.print(table)
    table = Table("", "", title="Site", title_justify="left", show_header=False)
    for name, value in {**_connection(status["connection"]), **_flat(status["work"])}.items():
        table.add_row(name, Text(value))
    table.add_row("certificate", f"good for {status['certificate-days']:.0f} days")
    console.print(table)
    for warning in status["warnings"]:
        console.print(Text(f"warning: {warning}", style="yellow"))


def _connection(found: Mapping[str, Any]) -> dict[str, str]:
    if not found:
        return {}
    last = found.get("last-answer")
    when = datetime.datetime.fromtimestamp(last).astimezone().isoformat(timespec="seconds") if last else "never"
    cause = f" ({found['cause']})" if found.get("cause") else ""
    refused = ", ".join(f"{name} {count}" for name, count in found.get("refused", {}).items())
    return {
        "connected": ("yes" if found.get("connected") else "no") + cause,
        "last answer of the server": when,
        "bytes sent": str(found.get("bytes-out", 0)),
        "stopped at the relay": refused or "nothing",
    }


def _flat(work: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        for name, value in work.items()
    }


def _work(home: SiteHome) -> dict[str, Any]:
    try:
        answer = call(home.socket, home.socket_key, {"op": "status"})
        return dict(answer["status"])
    except (DeployError, OSError, EOFError) as error:
        return {"worker": str(error)}
