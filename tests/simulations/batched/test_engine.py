"""The batched engine as a whole: the federation that it computes, and what it does when processes and sites fail."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import Error, RecordDict

from client.data.sites import open_site_data, site_names
from client.site import Site, Work
from common.checkpoint import RunState, read_checkpoint
from common.learning.params import Params
from common.messages import Request, encode_request
from common.plan import plan_for
from common.settings import Settings, Value
from server.service.runs import read_journal
from simulations.batched import workers as workers_module
from simulations.batched.choice import Resources
from simulations.batched.sites import Sites
from simulations.engine import batched, in_process

NODES = 8


def settings_for(sites: Path, run: Path, **changes: Value) -> Settings:
    base: dict[str, Value] = {
        "run.rounds": 4,
        "run.dir": str(run),
        "data.sites": str(sites),
        "data.size": 8,
        "episode.shot": 4,
        "inner.batch-size": 10,
        "inner.steps": 3,
        "model.width": 8,
        "model.depth": 2,
        "outer.sites-per-round": 7,
        "outer.join-sites": NODES,
        "judge.every": 2,
    }
    return Settings.from_flat({**base, **{key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}})


def state(run: Path) -> RunState:
    return read_checkpoint(run).state


def assert_same_bits(found: Params, expected: Params) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_workers_and_sites_at_a_time_do_not_change_a_bit(digit_sites: Path, tmp_path: Path, optimizer: str) -> None:
    changes: dict[str, Value] = {
        "inner__optimizer": optimizer,
        "inner__learning_rate": 0.2 if optimizer == "sgd" else 1e-3,
    }
    runs = []
    for workers, together in ((1, 1), (1, 3), (2, 2), (3, 100)):
        folder = tmp_path / f"{workers}-{together}"
        batched(settings_for(digit_sites, folder, **changes), NODES, {}, Resources(workers, together))
        runs.append(folder)
    first = state(runs[0])
    for run in runs[1:]:
        assert_same_bits(state(run).params, first.params)
        assert_same_bits(state(run).slots, first.slots)
        lines = zip(read_journal(run), read_journal(runs[0]), strict=True)
        for line, expected in lines:
            figures = {name: value for name, value in line["figures"].items() if name != "seconds"}
            assert figures == {name: value for name, value in expected["figures"].items() if name != "seconds"}


@pytest.mark.parametrize("head", ["linear", "prototype"])
def test_the_run_is_that_of_one_site_after_another(digit_sites: Path, tmp_path: Path, head: str) -> None:
    changes: dict[str, Value] = {"model__head": head, "outer__class_tables": head == "prototype"}
    own = {"site-class-tables": True, "site-min-count": 2}
    batched(settings_for(digit_sites, tmp_path / "batched", **changes), NODES, own)
    in_process(settings_for(digit_sites, tmp_path / "one", **changes), NODES, own)
    found, expected = state(tmp_path / "batched"), state(tmp_path / "one")
    start = plan_for(settings_for(digit_sites, tmp_path, **changes)).initial
    wrong = sum(float((found.params[name] - value).square().sum()) for name, value in expected.params.items())
    whole = sum(float((start[name] - value).square().sum()) for name, value in expected.params.items())
    assert wrong <= 1e-6 * whole
    assert {name: count for name, (_, count) in found.prototypes.items()} == {
        name: count for name, (_, count) in expected.prototypes.items()
    }
    for line, other in zip(read_journal(tmp_path / "batched"), read_journal(tmp_path / "one"), strict=True):
        assert line["used"] == other["used"] and line["sites"].keys() == other["sites"].keys()


def test_held_out_sites_are_judged(digit_sites: Path, tmp_path: Path) -> None:
    changes: dict[str, Value] = {"judge__held_out": 2, "outer__sites_per_round": 0}
    batched(settings_for(digit_sites, tmp_path, **changes), NODES)
    lines = read_journal(tmp_path)
    trained = {site for line in lines for site in line["used"]}
    judged = {site for line in lines for site in line["sites"]}
    assert len(trained) == NODES - 2 and len(judged) == 2 and not trained & judged


def test_forked_and_new_processes_give_the_same(
    digit_sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New ones are how workers start on Windows and macOS."""
    runs = []
    for start in ("fork", "spawn"):
        monkeypatch.setattr(workers_module, "START", start)
        runs.append(tmp_path / start)
        batched(settings_for(digit_sites, runs[-1], run__rounds=1), NODES, {}, Resources(workers=2))
    assert_same_bits(state(runs[0]).params, state(runs[1]).params)


# ------------------------------------------------------------------------------------------------ what fails


@pytest.fixture
def at_site(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], None]], None]:
    """Return what has something happen when the site of a name prepares for training, in forked workers too."""

    def set_up(name: str, happen: Callable[[], None]) -> None:
        real = Site.prepare

        def prepare(self: Site, request: Request) -> Work:
            if self.site.name == name:
                happen()
            return real(self, request)

        monkeypatch.setattr(Site, "prepare", prepare)

    return set_up


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_replaced_and_its_sites_are_done_again(
    digit_sites: Path, tmp_path: Path, at_site: Callable[[str, Callable[[], None]], None]
) -> None:
    batched(settings_for(digit_sites, tmp_path / "calm"), NODES, {}, Resources(workers=2))
    mark = tmp_path / "died"

    def die_twice() -> None:
        if not mark.exists() or len(mark.read_text()) < 1:
            with mark.open("a") as file:
                file.write("x")
            die()

    at_site("site-3", die_twice)
    batched(settings_for(digit_sites, tmp_path / "killed"), NODES, {}, Resources(workers=2, together=2))
    assert mark.exists()
    assert_same_bits(state(tmp_path / "killed").params, state(tmp_path / "calm").params)
    assert all(not line["dropped"] for line in read_journal(tmp_path / "killed"))


def test_a_site_over_which_workers_die_fails_alone(
    digit_sites: Path, tmp_path: Path, at_site: Callable[[str, Callable[[], None]], None]
) -> None:
    at_site("site-3", die)
    settings = settings_for(digit_sites, tmp_path, outer__sites_per_round=0, run__rounds=2)
    batched(settings, NODES, {}, Resources(workers=2, together=3))
    for line in read_journal(tmp_path):
        assert set(line["dropped"]) == {"site-3"} and len(line["used"]) == NODES - 1
        assert "died over it" in line["dropped"]["site-3"]


def test_workers_that_die_while_idle_are_replaced(digit_sites: Path, tmp_path: Path) -> None:
    settings = settings_for(digit_sites, tmp_path)
    request = Request(
        1, plan_for(settings).params.pack(plan_for(settings).initial).numpy(), torch.zeros(0).numpy(), False
    )
    content = encode_request(request, plan_for(settings).agreed.digest)
    staff = workers_module.Workers(1, settings, {}, 1_000_000, 2)
    try:
        for _ in range(2):
            staff.add([workers_module.Task("train", content, [0, 1])])
            answers = staff.next()
            assert [type(answer) for answer in answers] == [RecordDict, RecordDict]
            for process in staff.processes():
                process.kill()
            time.sleep(0.2)
    finally:
        staff.close()


def test_a_site_that_cannot_work_fails_alone(
    digit_sites: Path, tmp_path: Path, at_site: Callable[[str, Callable[[], None]], None]
) -> None:
    def fail() -> None:
        raise RuntimeError("/secret/path 0.123")

    at_site("site-3", fail)
    settings = settings_for(digit_sites, tmp_path, outer__sites_per_round=0, run__rounds=1)
    batched(settings, NODES, {}, Resources(workers=1))
    line = read_journal(tmp_path)[0]
    assert set(line["dropped"]) == {"site-3"} and len(line["used"]) == NODES - 1
    assert "secret" not in str(line) and "0.123" not in str(line)


def test_a_site_whose_adaptation_fails_leaves_the_others_as_they_are(
    digit_sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(digit_sites, tmp_path / "calm", outer__sites_per_round=0, run__rounds=1, outer__quorum=0.1)
    batched(settings, NODES, {}, Resources(workers=1))
    real = Site.prepare

    def unadaptable(self: Site, request: Request) -> Work:
        work = real(self, request)
        if self.site.name == "site-3":
            work.params["conv1.weight"] = torch.zeros(3)
        return work

    calm = read_journal(tmp_path / "calm")[0]["used"]
    monkeypatch.setattr(Site, "prepare", unadaptable)
    monkeypatch.setattr("simulations.batched.sites.FastSite._unpacked", Site._unpacked)
    settings = settings_for(digit_sites, tmp_path / "one", outer__sites_per_round=0, run__rounds=1)
    batched(settings, NODES, {}, Resources(workers=1))
    line = read_journal(tmp_path / "one")[0]
    assert set(line["dropped"]) == {"site-3"} and line["used"] == [site for site in calm if site != "site-3"]


PROGRAM = """
import sys
from pathlib import Path
from common.settings import Settings
from simulations.batched.choice import Resources
from simulations.engine import batched
batched(Settings.from_flat({flat!r}), {nodes}, {{}}, Resources(workers=2))
"""


def test_no_worker_outlives_a_killed_simulation(
    digit_sites: Path, tmp_path: Path, left_behind: Callable[[], list[str]]
) -> None:
    flat = {"run.rounds": 10**6, "run.dir": str(tmp_path / "run"), "data.sites": str(digit_sites), "data.size": 8}
    program = PROGRAM.format(flat={**flat, "outer.join-sites": NODES}, nodes=NODES)
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while len(left_behind()) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(left_behind()) >= 3
        process.kill()
    while left_behind() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left_behind()


# ---------------------------------------------------------------------------------------------- memory of data


def test_data_that_sites_have_read_are_kept_within_a_budget(digit_folders: Path, tmp_path: Path) -> None:
    flat: dict[str, Value] = {"data.sites": str(digit_folders), "data.size": 8, "model.width": 8, "model.depth": 2}
    settings = Settings.from_flat({**flat, "inner.steps": 1})
    plan = plan_for(settings)
    request = Request(1, plan.params.pack(plan.initial).numpy(), plan.slots.pack(plan.initial_slots).numpy(), False)
    content = encode_request(request, plan.agreed.digest)
    size = 5 * 12 * 8 * 8
    for budget, kept in ((0, 0), (size, 1), (2 * size, 2)):
        sites = Sites(settings, {"site-cache": "off"}, budget)
        answers = [sites.answer("train", content, [position])[0] for position in (0, 1)]
        assert not [answer for answer in answers if isinstance(answer, Error)]
        assert sites.open == kept


def test_packed_sites_take_no_memory_for_data(digit_sites: Path) -> None:
    settings = Settings.from_flat({"data.sites": str(digit_sites), "data.size": 8})
    data = open_site_data(digit_sites, site_names(digit_sites)[0], settings.data)
    assert data.nbytes == 0  # type: ignore[attr-defined]
