"""The benchmark of roll-outs, small: real servers, real sites and replayed ones."""

import asyncio
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from common.deployment.supervisor import module
from simulations.benchmarks.rollout.replayed import TIMESTAMP, Asked, Fleet, Site, run
from simulations.benchmarks.rollout.world import enrol, make_world, recording

SITES, REAL = 20, 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("rollout") / "out.json"
    words = ("--sites", str(SITES), "--real", str(REAL), "--seconds", "1", "--every", "0.4", "--out", str(out))
    done = subprocess.run(
        module("simulations.benchmarks.rollout", *words), capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "full, all at once" in done.stdout
    read: dict[str, Any] = json.loads(out.read_bytes())
    return read


def test_all_sites_take_every_release_without_an_error(found: dict[str, Any]) -> None:
    assert all(not phase["errors"] for phase in found["phases"]), found["phases"]
    taken = [phase for phase in found["phases"] if phase["server"] == "gateway" and phase["had"]]
    assert [phase["title"].partition(",")[0] for phase in taken] == ["full", "int8", "bf16", "int8", "bf16", "full"]
    for phase in taken:
        assert phase["had"] == SITES
        assert phase["verified"]["ways"] == {"full" if phase["title"].startswith("full") else "delta": REAL}


def test_what_is_replayed_is_what_a_site_asks_over_one_connection(found: dict[str, Any]) -> None:
    assert found["connections of a real site"] == 1
    assert found["requests of a look"] == 2
    requests = {phase["title"]: phase["requests"] for phase in found["phases"] if phase["server"] == "static"}
    assert requests["full, all at once"] == (SITES - REAL) * found["requests of a release"]
    assert sum(phase["handshakes"] for phase in found["phases"]) == 2 * (SITES - REAL)


def test_bytes_follow_the_kind_of_release(found: dict[str, Any]) -> None:
    got = {phase["title"]: phase["received"] for phase in found["phases"] if phase["server"] == "gateway"}
    files = found["files"]
    assert files["int8"] < files["bf16"] < files["full"]
    for kind, size in files.items():
        assert 0 < got[f"{kind}, all at once"] - (SITES - REAL) * size < (SITES - REAL) * 20_000


TARGET = f"targets/{hashlib.sha256(b'one').hexdigest()}.x"


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (Asked("metadata/9.root.json", [], 200, 3), "status 404"),
        (Asked("metadata/1.root.json", [], 200, 3), "another size"),
        (Asked(TARGET, [], 200, 3), "another digest"),
    ],
)
def test_an_answer_that_is_not_as_recorded_is_an_error(tmp_path: Path, asked: Asked, error: str) -> None:
    world = make_world(tmp_path)
    [pair] = enrol(world, 1)
    (world.home.repository / TARGET).write_bytes(b"two")
    fleet = Fleet(world.port, str(world.home.chain), "/releases/", [str(pair)], [Asked(TIMESTAMP, [], 200, 0)])
    with recording(world):
        tally = asyncio.run(_once(fleet, asked))
    assert tally == {error: 1}


async def _once(fleet: Fleet, asked: Asked) -> dict[str, int]:
    site = Site(fleet, fleet.pairs[0])
    tally = await run([site], 0, 0.3, [asked])
    site.hang_up()
    return dict(tally.errors)
