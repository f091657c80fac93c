"""What dies comes back, and nothing is lost: the run ends with the bits that it would have had anyway."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from client.home import SiteHome
from common.checkpoint import read_checkpoint
from common.deployment.supervisor import read_state
from server.home import FederationHome
from tests.deployment.deployed import Deployment
from tests.deployment.digits import SETTINGS, digit_folders
from tests.deployment.simulated import assert_same, simulated
from tests.deployment.test_end_to_end import flat

TWO = ("line-1", "line-2")
ROUNDS = 16


def settings(rounds: int) -> dict[str, dict[str, Any]]:
    changed = {**SETTINGS, "run": {**SETTINGS["run"], "rounds": rounds}}
    return {**changed, "outer": {**SETTINGS["outer"], "join-sites": len(TWO)}, "judge": {"every": 0}}


@pytest.fixture
def two(deployment: Deployment) -> Deployment:
    """Two sites, enrolled and not yet up; a round needs both, so that nothing may be lost."""
    data = digit_folders(deployment.folder / "all")
    (deployment.folder / "data").mkdir()
    for site in TWO:
        (data / site).rename(deployment.folder / "data" / site)
    deployment.make(settings(ROUNDS))
    for site in TWO:
        deployment.enrol(site, deployment.folder / "data" / site)
    return deployment


def check_end(two: Deployment, rounds: int, name: str = "run") -> None:
    """Fail unless all rounds were done once, with both sites, and the result is that of an undisturbed simulation."""
    assert two.wait_for_end(name).state == "finished", two.record(name)
    journal = two.journal(name)
    assert [line["round"] for line in journal] == list(range(1, rounds + 1))
    assert all(line["used"] == list(TWO) for line in journal), [line["dropped"] for line in journal]
    expected = simulated(flat(settings(rounds)), two.folder / "data", two.folder / f"simulated-{name}")
    assert_same(read_checkpoint(two.server.runs / name).state.params, expected)
    for site in TWO:
        assert "none was changed" in two.engineer(site, "ledger verify")


def test_parts_that_are_killed_in_mid_run_are_back_by_themselves_and_nothing_is_lost(two: Deployment) -> None:
    site = two.sites["line-1"]
    victims: list[tuple[FederationHome | SiteHome, str]] = [
        (two.server, "superlink"),
        (two.server, "gateway"),
        (two.server, "steward"),
        (site, "worker"),
        (site, "relay"),
        (site, "supernode"),
        (site, "superexec"),
    ]
    with two.up():
        two.begin()
        two.wait_for_round(1)
        for home, part in victims:
            before, rounds = two.pid(home, part), two.journal()[-1]["round"]
            two.kill(home, part)
            two.wait(lambda h=home, p=part, b=before: running(h, p) not in (None, b))  # type: ignore[misc]
            two.wait_for_round(min(rounds + 2, ROUNDS))
        check_end(two, ROUNDS)


def running(home: FederationHome | SiteHome, part: str) -> int | None:
    state = read_state(home.run)
    pid = state["parts"][part]["pid"] if state else None
    return pid if isinstance(pid, int) else None


def test_a_server_that_is_killed_whole_resumes_from_its_checkpoint_and_sites_reconnect(two: Deployment) -> None:
    with two.up():
        two.begin("run", "--set", "run.rounds=6")
        two.wait_for_round(2)
        two.kill(two.server, "supervisor")
        two.operator("up", "--detach")
        check_end(two, 6)


def test_a_site_that_is_killed_whole_goes_on_when_it_is_started_again(two: Deployment) -> None:
    with two.up():
        two.begin("run", "--set", "run.rounds=6")
        two.wait_for_round(2)
        two.kill(two.sites["line-2"], "supervisor")
        two.start("line-2")
        check_end(two, 6)


def test_an_app_process_that_is_killed_over_a_message_is_replaced(two: Deployment) -> None:
    with two.up():
        two.begin("run", "--set", "run.rounds=4")
        two.wait_for_round(1)
        two.wait(lambda: two.kill_processes("flwr-clientapp") > 0)
        check_end(two, 4)


@contextlib.contextmanager
def network(two: Deployment, site: str) -> Iterator[Callable[[bool], None]]:
    """Have a site behind a cable of its own; give what pulls it out (False) and puts it in (True).

    The server's machine is one end of the cable, the site is in a network namespace at the other.
    """
    space, here, there = f"fr{os.getpid()}", f"fa{os.getpid() % 100000}", f"fb{os.getpid() % 100000}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", space)
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there)
        ip("link", "set", there, "netns", space)
        ip("addr", "add", "10.213.7.1/30", "dev", here)
        ip("link", "set", here, "up")
        for words in (
            ["addr", "add", "10.213.7.2/30", "dev", there],
            ["link", "set", there, "up"],
            ["link", "set", "lo", "up"],
        ):
            ip("-n", space, *words)
        two.prefix[site] = ["ip", "netns", "exec", space]
        yield lambda plugged: ip("link", "set", here, "up" if plugged else "down")
    finally:
        two.down()
        two.prefix.pop(site, None)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("link", "del", here)
        ip("netns", "del", space)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can cut a network")
@pytest.mark.parametrize("seconds", [20, pytest.param(90, marks=pytest.mark.endurance)])
def test_a_site_whose_network_is_cut_delivers_its_finished_update_afterwards(
    deployment: Deployment, seconds: int
) -> None:
    data = digit_folders(deployment.folder / "all")
    (deployment.folder / "data").mkdir()
    for site in TWO:
        (data / site).rename(deployment.folder / "data" / site)
    deployment.host, deployment.listen_host = "10.213.7.1", "0.0.0.0"
    deployment.make(settings(6))
    for site in TWO:
        deployment.enrol(site, deployment.folder / "data" / site)
    with network(deployment, "line-2") as plug, deployment.up():
        deployment.begin()
        deployment.wait_for_round(2)
        plug(False)
        time.sleep(seconds)
        done = deployment.journal()[-1]["round"]
        assert done <= 3, "rounds went on without a site that they need"
        plug(True)
        check_end(deployment, 6)


def test_a_full_disk_stops_what_leaves_and_not_the_site(two: Deployment) -> None:
    """The ledger cannot be written, so nothing leaves; the operator hears it; with room again the run goes on."""
    with two.up():
        two.begin("run", "--set", "run.rounds=4", "--set", "outer.failed-rounds=1000", "--set", "outer.deadline=20")
        two.wait_for_round(1)
        ledger = two.sites["line-2"].ledger
        with full(two, ledger):
            two.wait(lambda: any("ledger" in why for line in two.journal() for why in line["dropped"].values()))
        assert two.wait_for_end().state == "finished"
    assert two.journal()[-1]["used"] == list(TWO)
    assert "none was changed" in two.engineer("line-2", "ledger verify")


@contextlib.contextmanager
def full(two: Deployment, folder: object) -> Iterator[None]:
    """Have no room in a folder: the files of a site's worker may not grow (as ``ulimit -f`` has it)."""
    import resource

    pid = two.pid(two.sites["line-2"], "worker")
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def test_a_stopped_site_does_not_hold_up_the_operator(two: Deployment) -> None:
    """A worker that never answers: the round ends at its deadline, names the site, and does not ask it again."""
    with two.up():
        words = ("--set", "run.rounds=5", "--set", "outer.quorum=0.5", "--set", "outer.deadline=15")
        two.begin("run", *words)
        two.wait_for_round(1)
        os.kill(two.pid(two.sites["line-2"], "worker"), signal.SIGSTOP)
        ended = two.wait_for_end()
        os.kill(two.pid(two.sites["line-2"], "worker"), signal.SIGCONT)
    assert ended.state == "finished"
    late = [line["round"] for line in two.journal() if "no-reply" in line["dropped"].get("line-2", "")]
    assert len(late) == 1, "it was asked once and then left alone"
    later = [line for line in two.journal() if line["round"] > late[0]]
    assert later and all(line["asked"] == ["line-1"] for line in later)
    assert all(line["absent"] == {"line-2": f"still at work on round {late[0]}"} for line in later)
