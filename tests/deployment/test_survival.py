"""What dies or breaks comes back, and nothing is lost: the run ends with the params that it would have had anyway."""

import re
import time
from collections.abc import Callable

import pytest

from client.home import SiteHome
from server.home import FederationHome
from tests.deployment.deployed import Deployment
from tests.deployment.faults import IS_ROOT, cable, kill_and_wait, misbehaving, pid_of, small_disk
from tests.deployment.pair import TWO, check_end, enrol_sites, pair_settings

CUT_SECONDS = 20.0
CLOCK_OFF = 600.0


def test_whatever_is_killed_in_mid_run_is_back_by_itself_and_nothing_is_lost(deployment: Deployment) -> None:
    settings = pair_settings(rounds=14)
    enrol_sites(deployment, settings)
    server, site = deployment.server, deployment.sites["line-1"]
    victims: list[tuple[FederationHome | SiteHome, str]] = [
        (site, "supernode"),
        (server, "superlink"),
        (site, "worker"),
        (server, "gateway"),
        (site, "relay"),
        (server, "steward"),
        (site, "superexec"),
        (server, "superexec"),
    ]
    with deployment.up():
        deployment.begin()
        deployment.wait_for_round(1)
        for home, part in victims:
            kill_and_wait(deployment, home, part)
            another_round(deployment, part)

        deployment.wait(lambda: deployment.kill_processes("flwr-clientapp") > 0)
        another_round(deployment, "the app over its message")

        deployment.kill(deployment.sites["line-2"], "supervisor")
        deployment.start("line-2")
        another_round(deployment, "a whole site")

        deployment.kill(server, "supervisor")
        deployment.operator("up", "--detach")
        another_round(deployment, "the whole server")
        check_end(deployment, settings)


def another_round(deployment: Deployment, killed: str) -> None:
    """Wait for a round after something was killed; fail if the run was over before that."""
    assert deployment.record().state in ("running", "wanted"), f"the run was over before {killed} was killed"
    began = time.monotonic()
    deployment.wait_for_round(len(deployment.journal()) + 1, patience=150)
    print(f"{killed}: {time.monotonic() - began:.1f} s, round {len(deployment.journal())}")


@pytest.mark.skipif(not IS_ROOT, reason="only root can cut a network and fill a disk without harm to others")
def test_a_site_without_network_then_the_right_time_then_room_goes_on_by_itself(deployment: Deployment) -> None:
    settings = pair_settings(rounds=7)
    misbehaviour = misbehaving(deployment, "line-2")
    with cable(deployment, "line-2") as plug:
        enrol_sites(deployment, settings)
        with small_disk(deployment.sites["line-2"].path) as fill, deployment.up():
            deployment.begin()
            deployment.wait_for_round(1)
            plug(False)
            time.sleep(CUT_SECONDS)
            done = len(deployment.journal())
            assert done <= 3, "rounds went on without a site that they need"
            plug(True)
            deployment.wait_for_round(done + 1)

            for off, word in ((-CLOCK_OFF, "behind"), (CLOCK_OFF, "ahead of")):
                misbehaviour(clock=off)
                said = re.compile(f"clock: this machine's clock is (59|60)[0-9] s {word} the server's; set it")
                deployment.wait(lambda s=said: s.search(deployment.relay_state("line-2")["cause"]))  # type: ignore[misc]
                shown = " ".join(deployment.engineer("line-2", "status").split())
                assert said.search(shown), "the engineer sees it too"
                misbehaviour()
                deployment.wait_for_round(len(deployment.journal()) + 1)
            check_end(deployment, settings)

            a_full_disk_stops_what_leaves_and_nothing_else(deployment, fill)


def a_full_disk_stops_what_leaves_and_nothing_else(deployment: Deployment, fill: Callable[[bool], None]) -> None:
    """What cannot be entered in the ledger does not leave; the operator is told; with room again the run goes on."""
    deployment.begin("full", "--set", "run.rounds=1000", "--set", "outer.failed-rounds=1000")
    deployment.wait_for_round(1, "full")
    fill(True)
    deployment.wait(lambda: "the site's ledger is full" in str(deployment.journal("full")[-1]["dropped"]))
    assert set(deployment.journal("full")[-1]["dropped"]) == {"line-2"}
    site = deployment.sites["line-2"]
    supervisor, relay = deployment.pid(site, "supervisor"), deployment.pid(site, "relay")
    deployment.kill(site, "relay")
    time.sleep(2.0)  # the supervisor cannot write what it does
    fill(False)
    # An answer that was half sent as the disk filled up is waited for by Flower for three minutes.
    deployment.wait(lambda: deployment.journal("full")[-1]["used"] == list(TWO), patience=240.0)
    deployment.wait(lambda: pid_of(site, "relay") not in (None, relay))
    assert deployment.pid(site, "supervisor") == supervisor
    assert "none was changed" in deployment.engineer("line-2", "ledger verify")
    deployment.operator("stop", "full")
    assert deployment.wait_for_end("full").state == "stopped"
