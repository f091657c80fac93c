"""What the operator's page shows, in people's words: of what ``status``, campaigns and the register say."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from server.campaigns.campaign import (
    ALL,
    AWAY,
    CANARY,
    DONE,
    FAILED,
    GATE,
    HAS_IT,
    PHASES,
    REFUSED_IT,
    RELEASE,
    ROUNDS,
    TABLES,
    WAITS,
)
from server.service import runs
from server.service.status import ago

STEPS = {
    ROUNDS: "Learn",
    TABLES: "Collect classes",
    GATE: "Check",
    RELEASE: "Release",
    CANARY: "First sites",
    ALL: "All sites",
    DONE: "Done",
}
RUNS = {
    runs.WANTED: ("waits for its turn", "look"),
    runs.RUNNING: ("under way", "act"),
    runs.FINISHED: ("done", "good"),
    runs.FAILED: ("failed", "bad"),
    runs.STOPPED: ("stopped", "look"),
}
"""State of a run -> in words, and how it is coloured."""
RELEASES = {
    "all": ("all sites", "good"),
    "canary": ("first sites try it", "act"),
    "published": ("no site has it yet", "look"),
    "registered": ("being published", "look"),
    "replaced": ("replaced", "quiet"),
    "withdrawn": ("withdrawn", "bad"),
}
SITES = {
    HAS_IT: ("has it", "good"),
    REFUSED_IT: ("refused it", "bad"),
    WAITS: ("not yet", "look"),
    AWAY: ("not connected", "look"),
}
MARKS = {"done": "✓", "now": "●", "failed": "✕", "stopped": "■", "open": "○"}
TOLD = {"done": "done", "now": "now", "failed": "ended here", "stopped": "stopped here", "open": "to come"}
NEVER = "not reached"
NO_CARD: Mapping[str, Any] = {"class": "", "description": "", "note": "", "again": "", "classes": (), "delta": None}
"""What a release's card may say."""
SOON = 30
"""Days before its end from which a certificate is warned of."""


def sites(
    status: Mapping[str, Any], meant: Mapping[str, int], campaigns: Sequence[Mapping[str, Any]], now: datetime
) -> list[dict[str, Any]]:
    """Return the sites of a federation's status, for cards.

    Args:
        meant: site -> the release that it is to run; 0: none.
        campaigns: all of them, the newest last.
    """
    latest = {campaign["class"]: campaign for campaign in campaigns}
    return [
        {
            **site,
            "seen": ago(site["last-seen"], now),
            "meant": meant.get(site["name"], 0),
            "soon": site["certificate-days"] <= SOON,
            "asks": [
                {"class": name, "count": count, "campaign": latest.get(name)}
                for name, count in sorted(site["wishes"].items())
            ],
            "turned-away": sum(site["refused"].values()),
        }
        for site in status["sites"]
    ]


def steps(state: Mapping[str, Any], now: datetime) -> list[dict[str, str]]:
    """Return the phases of a campaign, each with a mark and what is to be said of it."""
    since: Mapping[str, str] = state["since"]
    come = [phase for phase in PHASES if phase in since] or [ROUNDS]
    at = state["phase"] if state["phase"] != FAILED else come[-1]
    found = []
    for place, phase in enumerate(PHASES):
        mark = _mark(state, PHASES.index(at) - place)
        following = next((since[later] for later in (*PHASES[place + 1 :], FAILED) if later in since), "")
        when = since.get(phase, "") if phase == DONE else following if mark in ("done", "failed") else ""
        told = _progress(state, phase) if mark == "now" else ""
        found.append(
            {
                "word": STEPS[phase],
                "mark": mark,
                "sign": MARKS[mark],
                "told": told or (NEVER if mark == "open" and state["phase"] == FAILED else TOLD[mark]),
                "when": moment(when, now),
            }
        )
    return found


def _mark(state: Mapping[str, Any], behind: int) -> str:
    """Return how a phase stands that lies so many before the present one."""
    if behind:
        return "done" if behind > 0 else "open"
    if state["phase"] == DONE:
        return "done"
    if state["phase"] == FAILED or state["state"] == runs.FAILED:
        return "failed"
    return "stopped" if state["state"] == runs.STOPPED else "open" if state["state"] == runs.WANTED else "now"


def _progress(state: Mapping[str, Any], phase: str) -> str:
    if phase == ROUNDS:
        return f"{len(state['rounds'])} of {state['rounds-wanted']} rounds"
    having = [one for one in state["rollout"].values() if one["stage"] == phase]
    if having:
        return f"{sum(one['state'] == HAS_IT for one in having)} of {len(having)} sites"
    return ""


def campaign(state: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return a campaign with what is shown of it in addition."""
    word, colour = ("is being stopped", "look") if state["stopping"] else RUNS[state["state"]]
    rollout = state["rollout"]
    return {
        **state,
        "word": word,
        "colour": colour,
        "active": state["state"] in runs.ACTIVE,
        "resumable": state["state"] in (runs.STOPPED, runs.FAILED) and state["phase"] not in (FAILED, DONE),
        "steps": steps(state, now),
        "asked-when": moment(state["asked"], now),
        "having": sum(one["state"] == HAS_IT for one in rollout.values()),
        "out": [
            {
                **one,
                "site": site,
                "word": SITES[one["state"]][0],
                "colour": SITES[one["state"]][1],
                "when": moment(one["when"], now),
            }
            for site, one in sorted(rollout.items(), key=lambda item: (item[1]["stage"] != CANARY, item[0]))
        ],
        "learned": [{**line, "missing": {**line["dropped"], **line["absent"]}} for line in state["rounds"]],
    }


def release(told: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return a release, as the register tells of it, with what is shown in addition."""
    word, colour = RELEASES[told["state"]]
    return {
        **told,
        "word": word,
        "colour": colour,
        "made": moment(told["created"], now),
        "weight": weight(told["size"]),
        "card": {**NO_CARD, **told["card"]},
    }


def moment(text: str, now: datetime) -> str:
    """Return a time (ISO 8601) as people of this machine say it; empty for an empty one."""
    if not text:
        return ""
    then = datetime.fromisoformat(text).astimezone()
    today = then.date() == now.astimezone().date()
    return f"{then:%H:%M}" if today else f"{then.day} {then:%b %Y, %H:%M}"


def weight(size: int) -> str:
    """Return a number of bytes for people."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def number_of(count: int, noun: str) -> str:
    """Return '1 site', '2 sites'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def named(names: Iterable[str]) -> str:
    """Return 'a', 'a and b', 'a, b and c'."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
