"""The faults again and again, at random moments, and half an hour of rounds: ``make endurance``.

Environment: FEDREPTILE_ENDURANCE_TIMES (10), _MINUTES (30), _SITES (6), _SEED, _OUT (a folder for the figures).
"""

import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.checkpoint import read_checkpoint
from common.deployment.supervisor import read_state
from tests.deployment.deployed import Deployment
from tests.deployment.digits import SITES
from tests.deployment.faults import IS_ROOT, Misbehaviour, cable, kill_and_wait, misbehaving, small_disk
from tests.deployment.measured import (
    SUPERNODE,
    SUPERNODES,
    Timed,
    disk,
    growth,
    randomness,
    report,
    resident,
    run_folders,
    sampled,
    wanted,
)
from tests.deployment.pair import TWO, check_result, enrol_sites, pair_settings

pytestmark = pytest.mark.endurance

TIMES = int(wanted("TIMES", 10))
FOR_EVER = 1_000_000
LONGEST_PAUSE = 6.0
"""Seconds, at most, between a recovery and the next fault: about two rounds."""
PATIENCE = 240.0
CUT_SECONDS, LONG_CUT_SECONDS = 20.0, 90.0
"""A node is given up by Flower after 60 s without heartbeat."""
CLOCK_OFF = 600.0
FAULT_COLUMNS = ("fault", "times", "median s to the next round", "longest s")
MOST_GROWTH = 2.0
"""Percent by which a process of ours may grow after warm-up."""
MOST_OF_FLOWER = 4.0
"""The same of Flower's SuperNodes together, which keep the task and the log of each message."""
WARM_UP = 0.2
"""Share of the time."""
SAMPLE_SECONDS = 30.0


def test_processes_that_are_killed_at_random_moments(deployment: Deployment) -> None:
    settings = pair_settings(FOR_EVER)
    enrol_sites(deployment, settings)
    server, site = deployment.server, deployment.sites["line-1"]

    def whole_server() -> None:
        deployment.kill(server, "supervisor")
        deployment.operator("up", "--detach")

    def whole_site() -> None:
        deployment.kill(deployment.sites["line-2"], "supervisor")
        deployment.start("line-2")

    faults: dict[str, Callable[[], None]] = {
        f"kill -9 {part}": partial(kill_and_wait, deployment, home, part)
        for home, parts in (
            (server, ("superlink", "gateway", "steward")),
            (site, ("worker", "relay", "supernode", "superexec")),
        )
        for part in parts
    }
    faults["kill -9 server's superexec"] = partial(kill_and_wait, deployment, server, "superexec")
    faults["kill -9 server"], faults["kill -9 site"] = whole_server, whole_site
    faults["kill -9 app"] = lambda: deployment.wait(lambda: deployment.kill_processes("flwr-clientapp") > 0)
    with deployment.up():
        timed, seconds = disturbed(deployment, faults)
        check_stopped(deployment, settings)
    report("kills", FAULT_COLUMNS, timed.rows(), rounds=len(deployment.journal()), seconds=seconds)


@pytest.mark.skipif(not IS_ROOT, reason="only root can cut a network")
def test_cut_networks_and_wrong_clocks_at_random_moments(deployment: Deployment) -> None:
    settings = pair_settings(FOR_EVER)
    misbehaviour = misbehaving(deployment, "line-2")
    with cable(deployment, "line-2") as plug:
        enrol_sites(deployment, settings)

        def cut(seconds: float) -> None:
            plug(False)
            time.sleep(seconds)
            plug(True)

        faults: dict[str, Callable[[], None]] = {
            "network cut for 20 s": lambda: cut(CUT_SECONDS),
            "network cut for 90 s": lambda: cut(LONG_CUT_SECONDS),
            "clock 10 minutes behind": lambda: wrong_clock(deployment, misbehaviour, -CLOCK_OFF, "behind"),
            "clock 10 minutes ahead": lambda: wrong_clock(deployment, misbehaviour, CLOCK_OFF, "ahead of"),
        }
        with deployment.up():
            timed, seconds = disturbed(deployment, faults)
            check_stopped(deployment, settings)
    report("cuts", FAULT_COLUMNS, timed.rows(), rounds=len(deployment.journal()), seconds=seconds)


def wrong_clock(deployment: Deployment, misbehaviour: Misbehaviour, off: float, word: str) -> None:
    misbehaviour(clock=off)
    said = re.compile(f"(59|60)[0-9] s {word} the server's; set it")
    deployment.wait(lambda: bool(said.search(deployment.relay_state("line-2")["cause"])))
    misbehaviour()


@pytest.mark.skipif(not IS_ROOT, reason="only root can fill a disk without harm to others")
def test_a_disk_that_is_full_at_random_moments(deployment: Deployment) -> None:
    settings = pair_settings(FOR_EVER, **{"failed-rounds": FOR_EVER})
    enrol_sites(deployment, settings)
    with small_disk(deployment.sites["line-2"].path) as fill, deployment.up():

        def full() -> None:
            fill(True)
            deployment.wait(lambda: "ledger is full" in str(deployment.journal()[-1]["dropped"]))
            fill(False)
            deployment.wait(lambda: deployment.journal()[-1]["used"] == list(TWO))

        timed, seconds = disturbed(deployment, {"disk full": full})
        stop(deployment)
        assert "none was changed" in deployment.engineer("line-2", "ledger verify")
    journal = deployment.journal()
    assert [line["round"] for line in journal] == list(range(1, len(journal) + 1))
    spoilt = [line for line in journal if line["used"] != list(TWO)]
    assert len(spoilt) >= TIMES and all(set(line["dropped"]) == {"line-2"} for line in spoilt)
    assert all("ledger is full" in line["dropped"]["line-2"] for line in spoilt)
    more = {"rounds": len(journal), "without line-2": len(spoilt), "seconds": seconds}
    report("disk", FAULT_COLUMNS, timed.rows(), **more)


def test_sites_that_answer_wrongly_late_or_twice_all_the_time(deployment: Deployment) -> None:
    settings = pair_settings(FOR_EVER, **{"join-sites": len(SITES), "quorum": 0.5, "deadline": 30.0})
    enrol_sites(deployment, settings, SITES)
    misbehaving(deployment, "line-2", twice=True)
    misbehaving(deployment, "line-3", update=["nan", "shape", "number"])
    misbehaving(deployment, "line-4", update=["silent"], seconds=35.0)
    began = time.monotonic()
    with deployment.up():
        deployment.begin()

        def enough() -> bool:
            causes = counted(deployment)
            return min(causes.get(cause, 0) for cause in ("not-finite", "wrong-shape", "no-reply")) >= TIMES

        deployment.wait(enough, 60 + 100.0 * TIMES)
        stop(deployment)
        twice = (deployment.sites["line-2"].logs / "supernode.log").read_text(encoding="utf-8").count("answered twice")
    journal, causes = deployment.journal(), counted(deployment)
    assert [line["round"] for line in journal] == list(range(1, len(journal) + 1))
    assert all(line["used"] == list(TWO) for line in journal) and twice >= 2 * TIMES
    data = deployment.folder / "data"
    for site in SITES[2:]:
        (data / site).rename(deployment.folder / site / "data")
    check_result(deployment, with_rounds(deployment, settings), data)
    rows = [*sorted(causes.items()), ("answered twice", twice)]
    report("faulty", ("cause", "times"), rows, rounds=len(journal), seconds=time.monotonic() - began)


def counted(deployment: Deployment) -> dict[str, int]:
    """Return how many answers were dropped, by cause."""
    found: dict[str, int] = {}
    for line in deployment.journal():
        for cause, count in line["causes"].items():
            found[cause] = found.get(cause, 0) + count
    return found


def test_rounds_without_end_take_no_more_memory_and_a_known_amount_of_disk(deployment: Deployment) -> None:
    sites = [f"line-{number}" for number in range(1, int(wanted("SITES", 6)) + 1)]
    seconds = 60 * wanted("MINUTES", 30)
    settings = pair_settings(FOR_EVER, **{"join-sites": len(sites)})
    settings["judge"] = {"every": 10, "shot": 5}
    enrol_sites(deployment, settings, sites)
    with deployment.up():
        deployment.begin()
        deployment.wait_for_round(1, patience=PATIENCE)
        sampled(WARM_UP * seconds, SAMPLE_SECONDS, dict)
        before, done = disk(deployment), len(deployment.journal())
        samples = [
            sample for _, sample in sampled((1 - WARM_UP) * seconds, SAMPLE_SECONDS, lambda: resident(deployment))
        ]
        after, rounds = disk(deployment), len(deployment.journal()) - done
        starts = {path.parent.name: starts_of(path) for path in run_folders(deployment).values()}
        stop(deployment)
    journal = deployment.journal()
    assert all(line["used"] == sites for line in journal), "an answer was lost"
    assert all(count == 1 for parts in starts.values() for count in parts.values()), f"something died: {starts}"
    grown = growth(samples)
    mean = sum(line["seconds"] for line in journal[done:]) / max(len(journal) - done, 1)
    more = {"sites": len(sites), "minutes": seconds / 60, "rounds": len(journal), "seconds a round": round(mean, 2)}
    columns = ("process", "MB after warm-up", "MB at the end", "growth %")
    table = [(name, one.first, one.last, one.percent) for name, one in grown.items()]
    report("memory", columns, table, **more)
    rows = [(name, before[name], after[name], round((after[name] - before[name]) / rounds)) for name in before]
    report("disk-growth", ("files", "bytes before", "bytes after", "bytes a round"), rows, rounds=rounds)
    most = {name: MOST_GROWTH for name in grown if not name.endswith(f" {SUPERNODE}")} | {SUPERNODES: MOST_OF_FLOWER}
    too_much = {name: round(grown[name].percent, 2) for name, percent in most.items() if grown[name].percent >= percent}
    assert not too_much, f"resident memory grew, percent: {too_much}"


def starts_of(run: Path) -> dict[str, int]:
    """Return how often each part of a machine was started."""
    state = read_state(run)
    return {name: entry["starts"] for name, entry in state["parts"].items()} if state else {}


def disturbed(deployment: Deployment, faults: dict[str, Callable[[], None]]) -> tuple[Timed, float]:
    """Have a run, and each fault so many times, in random order and at random moments; return how long each took."""
    chance, timed, began = randomness(), Timed(), time.monotonic()
    order = [name for name in faults for _ in range(TIMES)]
    chance.shuffle(order)
    deployment.begin()
    deployment.wait_for_round(1)
    for number, name in enumerate(order, 1):
        time.sleep(chance.uniform(0, LONGEST_PAUSE))
        struck = time.monotonic()
        faults[name]()
        deployment.wait_for_round(len(deployment.journal()) + 1, patience=PATIENCE)
        timed.note(name, time.monotonic() - struck)
        print(f"{number} of {len(order)}: {name}, {timed.seconds[name][-1]:.1f} s, {len(deployment.journal())} rounds")
    return timed, time.monotonic() - began


def stop(deployment: Deployment) -> None:
    deployment.operator("stop", "run")
    assert deployment.wait_for_end().state == "stopped"


def with_rounds(deployment: Deployment, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return settings with as many rounds as the stopped run has behind it."""
    done = read_checkpoint(deployment.server.runs / "run").state.round
    return {**settings, "run": {**settings["run"], "rounds": done}}


def check_stopped(deployment: Deployment, settings: dict[str, dict[str, Any]]) -> None:
    """Stop the run; fail unless each round was done once, with both sites, and the params are those of a simulation."""
    stop(deployment)
    journal, changed = deployment.journal(), with_rounds(deployment, settings)
    assert [line["round"] for line in journal] == list(range(1, len(journal) + 1))
    assert len(journal) - changed["run"]["rounds"] in (0, 1), "a round is in the journal before it is in the checkpoint"
    assert all(line["used"] == list(TWO) for line in journal), [line["dropped"] for line in journal if line["dropped"]]
    for site in TWO:
        assert "none was changed" in deployment.engineer(site, "ledger verify")
    check_result(deployment, changed, deployment.folder / "data")
