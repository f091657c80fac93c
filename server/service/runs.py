"""Runs that the operator wants, each in a folder of its own: what was asked for, how far it is, how it ended."""

import contextlib
import datetime
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.deployment.lock import hold
from common.errors import DeployError, RoundError
from common.paths import write_atomically
from common.settings import Settings, Value, flatten
from common.trust.names import checked_name
from server.home import FederationHome

log = logging.getLogger("fedreptile.server")

JOURNAL, SITES = "rounds.jsonl", "sites.json"
"""A line of JSON a round; what the sites say about themselves."""
RECORD, STOP, OUTCOME = "run.json", "stop", "outcome.json"
ASKING = "asking"
"""Name of the run in which sites only say what they are, have and wish."""
WAITING = "waiting"
"""What the run waits for and why, in a sentence; not there if it does not wait."""
LOCK, ATTEMPT = "lock", "attempt.json"
"""Held while a process works on the run; which of Flower's runs held it last."""
WANTED, RUNNING, FINISHED, FAILED, STOPPED = "wanted", "running", "finished", "failed", "stopped"
ACTIVE = frozenset({WANTED, RUNNING})
MAY_CHANGE = frozenset(
    {
        "run.dir",
        "run.resume",
        "run.checkpoint-seconds",
        "data.sites",
        "outer.deadline",
        "outer.join-sites",
        "outer.join-deadline",
    }
)
"""Settings that may differ when a run is resumed: they do not change what is computed."""


class HeldError(RoundError):
    """Another process works on the run. It may be possible later."""


@dataclass(frozen=True)
class RunRecord:
    """How a run stands."""

    name: str
    settings: Mapping[str, Value]
    asked: str
    """When it was asked for: ISO 8601, UTC. Runs are taken in this order, one at a time."""
    state: str = WANTED
    flower_run: int = 0
    """Flower's id of the newest attempt."""
    attempts: int = 0
    """Attempts without a finished round in between."""
    round: int = 0
    """Rounds done when the newest attempt began."""
    reason: str = ""
    """Why it failed."""


def ask_for_run(home: FederationHome, name: str, settings: Settings) -> RunRecord:
    """Put a run in the queue. One of the same name that has ended is taken up again where it stood.

    Root may ask too: what is written is then of the user whose folder it is.

    Raises:
        DeployError: if it is under way, or its folder holds rounds of a run with other settings.
    """
    folder = home.runs / checked_name(name, "run")
    values = {**flatten(settings), "run.dir": str(folder)}
    found = read_run(folder) if (folder / RECORD).exists() else None
    if found and found.state in ACTIVE:
        raise DeployError(f"run {name!r} is {found.state} already; see 'fedreptile-server status'")
    if found and read_journal(folder):
        _check_settings(found, values)
    asked = datetime.datetime.now(datetime.UTC).isoformat()
    record = RunRecord(name, values, asked)
    with as_owner_of(home.runs if home.runs.exists() else home.path):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STOP).unlink(missing_ok=True)
        write_run(home, record)
    return record


def ask_sites(home: FederationHome, agreed: Settings) -> RunRecord:
    """Put into the queue a run without rounds, in which the sites that are connected say what they are, have and wish.

    Args:
        agreed: the settings that sites agreed to.

    Raises:
        DeployError: if such a run is under way.
    """
    return ask_for_run(home, ASKING, agreed.with_values({"run.rounds": 0}))


def _check_settings(found: RunRecord, values: Mapping[str, Value]) -> None:
    then = {**flatten(Settings()), **found.settings}
    changed = [key for key, value in values.items() if then[key] != value and key not in MAY_CHANGE]
    if changed:
        key = changed[0]
        raise DeployError(
            f"run {found.name!r} has rounds with other settings ({key} = {then[key]!r}, now {values[key]!r}"
            f"{', and more' if len(changed) > 1 else ''}); choose another --name, or the same settings to go on"
        )


@contextlib.contextmanager
def as_owner_of(folder: Path) -> Iterator[None]:
    """Be the user whose folder it is, if this process is root's: what root leaves there the owner could not change."""
    owner = folder.stat()
    if os.name != "posix" or os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def ask_to_stop_run(home: FederationHome, name: str) -> None:
    """Ask for the end of a run; its checkpoint stays. Raises DeployError if it is not under way."""
    folder = home.runs / checked_name(name, "run")
    if not (folder / RECORD).exists() or read_run(folder).state not in ACTIVE:
        raise DeployError(f"run {name!r} is not under way; see 'fedreptile-server status'")
    (folder / STOP).touch()


def read_run(folder: Path) -> RunRecord:
    """Raises DeployError if the folder's record is missing or damaged."""
    path = folder / RECORD
    try:
        return RunRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DeployError(f"{path} cannot be read as the record of a run: {error}") from error


def write_run(home: FederationHome, record: RunRecord) -> None:
    write_atomically(home.runs / record.name / RECORD, json.dumps(asdict(record), indent=1).encode())


def all_runs(home: FederationHome) -> list[RunRecord]:
    """Return all runs, in the order in which they were asked for; a damaged record is logged and left out."""
    found = []
    for path in home.runs.glob(f"*/{RECORD}"):
        try:
            found.append(read_run(path.parent))
        except DeployError as error:
            log.error("%s", error)
    return sorted(found, key=lambda record: record.asked)


def update_run(home: FederationHome, record: RunRecord, **changes: Any) -> RunRecord:
    """Write a run's record with changes and return it."""
    changed = replace(record, **changes)
    write_run(home, changed)
    return changed


def write_outcome(folder: Path, flower_run: int, error: str) -> None:
    """Note how an attempt ended: empty for all rounds done. A process that is killed leaves none."""
    write_atomically(folder / OUTCOME, json.dumps({"flower-run": flower_run, "error": error}).encode())


def read_outcome(folder: Path, flower_run: int) -> str | None:
    """Return the error with which an attempt ended, '' if it did all rounds, None if it left no note."""
    try:
        outcome = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
        return str(outcome["error"]) if outcome["flower-run"] == flower_run else None
    except (OSError, ValueError, KeyError):
        return None


def write_attempt(folder: Path, flower_run: int) -> None:
    """Note which attempt works on a run; whoever does it holds the run's lock."""
    write_atomically(folder / ATTEMPT, json.dumps({"flower-run": flower_run}).encode())


def has_died(folder: Path, flower_run: int) -> bool:
    """Return whether an attempt was at work and its process is no more. How it ended is noted a moment later."""
    return last_attempt(folder) == flower_run and not is_held(folder)


def last_attempt(folder: Path) -> int:
    """Return which attempt was the last to work on a run; 0 if none was."""
    try:
        return int(json.loads((folder / ATTEMPT).read_text(encoding="utf-8"))["flower-run"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def is_held(folder: Path) -> bool:
    """Return whether a process works on a run."""
    file = hold(folder / LOCK)
    if file is not None:
        file.close()
    return file is None


def read_journal(run: Path) -> list[dict[str, Any]]:
    """Return the rounds that a run's journal tells of; a half-written last line is left out."""
    try:
        lines = (run / JOURNAL).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found
