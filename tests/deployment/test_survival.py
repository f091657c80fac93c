"""What dies or breaks comes back, and nothing is lost: the run ends with the params that it would have had anyway."""

import os
import time
from pathlib import Path

import pytest

from client.home import SiteHome
from common.errors import FedreptileError
from server.home import FederationHome
from tests.deployment.deployed import Deployment
from tests.deployment.faults import IS_ROOT, cable, misbehaving, pid_of, small_disk
from tests.deployment.pair import check_end, enrol_sites, pair_settings

OFF = 600.0
"""Seconds by which a clock is wrong."""


def test_whatever_is_killed_in_mid_run_is_back_by_itself_and_nothing_is_lost(deployment: Deployment) -> None:
    settings = pair_settings(rounds=20)
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
    ]
    with deployment.up():
        deployment.begin()
        deployment.wait_for_round(1)
        for home, part in victims:
            t=time.monotonic()
            before, rounds = deployment.pid(home, part), len(deployment.journal())
            deployment.kill(home, part)
            deployment.wait(lambda h=home, p=part, b=before: pid_of(h, p) not in (None, b))  # type: ignore[misc]
            t1=time.monotonic()-t
            deployment.wait_for_round(rounds + 1, patience=120)
            print(part, t1, time.monotonic()-t, len(deployment.journal()), flush=True)
        check_end(deployment, settings)


def test_a_server_and_a_site_that_are_killed_whole_go_on_when_they_are_started_again(deployment: Deployment) -> None:
    settings = pair_settings(rounds=8)
    enrol_sites(deployment, settings)
    t=time.monotonic()
    with deployment.up():
        print("up", time.monotonic()-t)
        deployment.begin()
        deployment.wait_for_round(1)
        print("round1", time.monotonic()-t)
        deployment.kill(deployment.sites["line-2"], "supervisor")
        deployment.start("line-2")
        print("site up", time.monotonic()-t)
        deployment.wait_for_round(len(deployment.journal()) + 1)
        print("site back", time.monotonic()-t)
        deployment.kill(deployment.server, "supervisor")
        deployment.operator("up", "--detach")
        print("server up", time.monotonic()-t)
        deployment.wait_for_round(len(deployment.journal()) + 1)
        print("server back", time.monotonic()-t)
        deployment.wait(lambda: deployment.kill_processes("flwr-clientapp") > 0)
        print("app killed", time.monotonic()-t)
        deployment.wait_for_round(len(deployment.journal()) + 1, patience=150)
        print("app back", time.monotonic()-t)
        check_end(deployment, settings)
        print("end", time.monotonic()-t)


@pytest.mark.skipif(not IS_ROOT, reason="only root can cut a network and fill a disk without harm to others")
def test_a_site_without_network_then_room_then_the_right_time_delivers_what_it_finished(deployment: Deployment) -> None:
    settings = pair_settings(rounds=8)
    clock = misbehaving(deployment, "line-2")
    with cable(deployment, "line-2") as plug:
        enrol_sites(deployment, settings)
        with small_disk(deployment.sites["line-2"].path) as fill, deployment.up():
            deployment.begin()
            deployment.wait_for_round(2)
            t=time.monotonic()
            plug(False)
            time.sleep(20)
            done = len(deployment.journal())
            plug(True)
            assert done <= 3, "rounds went on without a site that they need"
            deployment.wait_for_round(done + 1)
            print("cut", time.monotonic() - t, done)

            t=time.monotonic()
            fill(True)
            time.sleep(10)
            done = len(deployment.journal())
            print("full", done, deployment.status()["sites"], deployment.engineer("line-2", "status"))
            fill(False)
            deployment.wait_for_round(done + 1)
            print("full", time.monotonic() - t, done)

            t=time.monotonic()
            clock(clock=-OFF)
            deployment.wait(lambda: "this machine's clock is 600 s behind" in deployment.engineer("line-2", "status"))
            done = len(deployment.journal())
            print("clock", time.monotonic() - t, done)
            clock()
            deployment.wait_for_round(done + 1)
            print("clock", time.monotonic() - t, done)
            check_end(deployment, settings)
