"""The steward: starts the runs that the operator wants, and starts them again when they were lost.

Flower sees only after a minute that a ServerApp died, and starts none again, nor any after its SuperLink was down for a
minute. A run that is started again goes on from its checkpoint.
"""

import argparse
import logging
import time
from datetime import datetime
from pathlib import Path

from common.cli import read_settings
from common.deployment.supervisor import end_with_parent
from common.errors import DeployError, FedreptileError
from common.log import show_log
from server.enrolment.bundle import fab_of_installation
from server.home import FederationHome
from server.service.control import Control, RunStatus, control
from server.service.runs import (
    ACTIVE,
    FAILED,
    FINISHED,
    RUNNING,
    STOP,
    STOPPED,
    WANTED,
    RunRecord,
    all_runs,
    ask_sites,
    has_died,
    is_held,
    last_attempt,
    read_journal,
    read_outcome,
    update_run,
)

log = logging.getLogger("fedreptile.steward")

PAUSE = 0.5
LOOK_SECONDS = 3.0
"""Between looks at a run that is under way; how it ended is noted in its folder and seen at once."""
OUTCOME_SECONDS = 2.0
"""Time that a process has for its last word after it let go of the run."""
MOST_ATTEMPTS = 20
"""Attempts in a row without a single finished round."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m server.service.steward", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    home = FederationHome.of(parser.parse_args().home)
    show_log()
    end_with_parent()
    fab, fab_hash = fab_of_installation()
    log.info("app bundle %s", fab_hash)
    began = time.time()
    while True:
        try:
            with control(home) as superlink:
                while True:
                    ask_when_due(home, began, time.time())
                    look_after(home, superlink, fab, fab_hash)
                    _wait(home)
        except FedreptileError as error:
            log.warning("%s", error)
            time.sleep(PAUSE)


def ask_when_due(home: FederationHome, began: float, now: float) -> None:
    """Have sites say what they are, have and wish, if they have not been asked anything for long.

    Args:
        began: when this steward began; times are in seconds since 1970.
    """
    try:
        seconds = 60 * home.config().ask_minutes
        if not seconds or now - began < seconds:
            return
        runs = all_runs(home)
        last = max([datetime.fromisoformat(run.asked).timestamp() for run in runs], default=0.0)
        if now - last < seconds or any(run.state in ACTIVE for run in runs):
            return
        ask_sites(home, read_settings(home.path / home.config().settings, []))
    except FedreptileError as error:
        log.warning("sites are not asked what they wish: %s", error)


def look_after(home: FederationHome, superlink: Control, fab: bytes, fab_hash: str) -> None:
    """Take the first run that is wanted one step further."""
    record = next((run for run in all_runs(home) if run.state in ACTIVE), None)
    if record is None:
        return
    folder = home.runs / record.name
    if (folder / STOP).exists():
        if record.flower_run and not _is_over(superlink.run_status(record.flower_run)):
            superlink.stop_run(record.flower_run)
        update_run(home, record, state=STOPPED, reason="stopped by the operator")
        (folder / STOP).unlink()
        log.info("run %s is stopped", record.name)
        return
    record = _adopted(home, record, superlink)
    if record.state == WANTED:
        _start(home, record, superlink, fab, fab_hash)
    else:
        _follow(home, record, superlink)


def _adopted(home: FederationHome, record: RunRecord, superlink: Control) -> RunRecord:
    """Have a record name the attempt that works on the run, if it is another one that Flower has not given up.

    An earlier steward may have died when it had started one and not noted it yet.
    """
    folder = home.runs / record.name
    attempt = last_attempt(folder)
    if attempt in (0, record.flower_run) or not is_held(folder) or _is_over(superlink.run_status(attempt)):
        return record
    if record.flower_run and not _is_over(superlink.run_status(record.flower_run)):
        superlink.stop_run(record.flower_run)
    log.warning("run %s is at work as Flower's run %d, which is followed", record.name, attempt)
    return update_run(home, record, state=RUNNING, flower_run=attempt)


def _is_over(status: RunStatus) -> bool:
    return status.status in ("finished", "unknown")


def _wait(home: FederationHome) -> None:
    """Wait until it is time to look again: a run is asked for, is to stop, has left its outcome, or time is up."""
    until = time.monotonic() + LOOK_SECONDS
    while time.monotonic() < until:
        time.sleep(PAUSE)
        active = [run for run in all_runs(home) if run.state in ACTIVE]
        if any(
            run.state == WANTED
            or (home.runs / run.name / STOP).exists()
            or read_outcome(home.runs / run.name, run.flower_run) is not None
            for run in active[:1]
        ):
            return


def _start(home: FederationHome, record: RunRecord, superlink: Control, fab: bytes, fab_hash: str) -> None:
    rounds = _rounds_done(home.runs / record.name)
    attempts = 1 if rounds > record.round else record.attempts + 1
    if attempts > MOST_ATTEMPTS:
        update_run(home, record, state=FAILED, reason=f"it was lost {MOST_ATTEMPTS} times without finishing a round")
        return
    record = update_run(home, record, attempts=attempts, round=rounds)  # first: what cannot be noted is not started
    flower_run = superlink.start_run(fab, fab_hash, record.settings)
    update_run(home, record, state=RUNNING, flower_run=flower_run)
    log.info("run %s begins after round %d as Flower's run %d", record.name, rounds, flower_run)


def _follow(home: FederationHome, record: RunRecord, superlink: Control) -> None:
    status = superlink.run_status(record.flower_run)
    if not _is_over(status) and not _is_lost(home.runs / record.name, record.flower_run):
        return
    error = read_outcome(home.runs / record.name, record.flower_run)
    if error == "":
        update_run(home, record, state=FINISHED, reason="")
        log.info("run %s is finished", record.name)
    elif error is not None:
        update_run(home, record, state=FAILED, reason=error)
        log.error("run %s failed: %s", record.name, error)
    else:
        if not _is_over(status):
            superlink.stop_run(record.flower_run)
        log.warning("run %s was lost (%s %s %s)", record.name, status.status, status.sub_status, status.details)
        update_run(home, record, state=WANTED)


def _is_lost(folder: Path, flower_run: int) -> bool:
    """Return whether the process of an attempt died without a word, which Flower sees only after a minute."""
    if not has_died(folder, flower_run):
        return False
    time.sleep(OUTCOME_SECONDS)
    return read_outcome(folder, flower_run) is None


def _rounds_done(folder: Path) -> int:
    journal = read_journal(folder)
    return int(journal[-1]["round"]) if journal else 0


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, DeployError):
        raise SystemExit(1) from None
