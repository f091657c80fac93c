"""The benchmark of engines, small: its counts, its tables and what it says where there is no figure."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from common.learning.threads import threads
from simulations.benchmarks.engines import maml, peers, runs, stacked, work
from simulations.benchmarks.engines.__main__ import main
from simulations.benchmarks.engines.tree import started


@pytest.fixture
def console() -> Console:
    return Console(record=True, width=160, force_terminal=False)


@pytest.mark.parametrize("net", work.NETS.values(), ids=work.NETS)
def test_the_counted_operations_are_those_that_torch_counts(net: work.Net) -> None:
    module, size = net.module(), net.settings.inner.batch_size
    inputs, labels = torch.rand(size, *net.settings.data.shape), torch.randint(0, 5, (size,))
    with FlopCounterMode(display=False) as counter:
        cross_entropy(module(inputs), labels).backward()  # type: ignore[no-untyped-call]
    assert counter.get_total_flops() * net.settings.inner.steps == net.flops()


@pytest.mark.parametrize("net", work.NETS.values(), ids=work.NETS)
def test_one_adaptation_of_this_project_takes_as_many_operations(net: work.Net) -> None:
    prepared = work.works(net.settings, 1)
    with FlopCounterMode(display=False) as counter:
        work.one_by_one(prepared)
    assert counter.get_total_flops() == net.flops()


def test_the_plain_loop_and_adapt_change_every_param() -> None:
    with threads(1):
        prepared = work.works(work.MLP.settings, 2)
        [plain, other] = work.plain_loop(work.MLP, prepared)
        [ours, _] = work.one_by_one(prepared)
    assert all(change.abs().max() > 0 for change in plain.values())
    assert not torch.equal(plain["0.weight"], other["0.weight"])
    assert all((ours.params[name] != prepared[0].params[name]).any() for name in ours.params)


def test_work_prints_ratios_and_writes_figures_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--parts", "work,maml,gpu", "--pairs", "1", "--adaptations", "2", "--peers", "", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "1.00x" in said
    assert "786 MFLOP" in said
    assert "second-order MAML" in said
    assert ("GPU: no figure" in said) != torch.cuda.is_available()
    figures = json.loads((tmp_path / "figures.json").read_bytes())
    assert set(figures["work"]) == {"omniglot", "mlp"}
    assert figures["work"]["omniglot"][work.PLAIN]["times-plain"] == 1
    assert (tmp_path / "work.png").read_bytes().startswith(b"\x89PNG")


def test_engines_run_as_commands_and_are_put_beside_the_first(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "find_mirror", lambda given: None)
    with runs.dealt([4]) as sites:
        found = runs.measure("small", ["in-process"], sites, 1, 100, {"inner.steps": 0}, console)
    figures = found["4"]["in-process"]
    assert 0 < figures["first"] <= figures["third"]
    assert figures["per_round"] > 0
    assert "in-process" in console.export_text()
    if sys.platform == "linux":
        assert figures["memory"] > 50e6
        assert figures["cpu_per_round"] >= 0


def test_ratios_are_those_of_flowers_own_engine_to_the_other() -> None:
    ray, ours = runs.Run(20.0, 30.0, 5.0, 8.0, 1e9), runs.Run(2.0, 3.0, 1.0, 2.0, 1e9)
    assert runs._ratios([ray], [ours]) == ["10.0", "10.0", "5.0", "4.0"]
    assert runs._ratios([], [ours]) == ["–"] * 4


def test_a_command_that_fails_gives_its_last_words_and_no_figure(console: Console, tmp_path: Path) -> None:
    found = runs.measure("none", ["in-process"], {3: tmp_path / "missing"}, 1, 100, {}, console)
    assert found == {"3": {}}
    assert "no figure: engine in-process has done 0 of 3 rounds" in console.export_text()


def test_engines_that_are_not_there_are_named(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "find_spec", lambda name: None)
    assert runs.chosen(["in-process", "flower", "strange"], console) == ["in-process"]
    said = console.export_text()
    assert "strange: no figure" in said
    assert "Ray is not installed" in said


def test_a_framework_that_cannot_be_installed_gives_a_line_and_no_figure(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none.txt").write_text("a-package==0\n")
    monkeypatch.setattr(peers, "HERE", tmp_path)
    monkeypatch.setenv("FEDREPTILE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with peers.opened(peers.Framework("Strange 0", "none.txt", "none.py"), "mlp", 1, console) as peer:
        assert peer is None
    assert "Strange 0: no figure: it cannot be installed here: ERROR: " in console.export_text()


SCRIPT = 'import json, sys\nprint("warning")\nprint(json.dumps({"first": 2.0}), flush=True)\n'
ROUND = 'for _ in sys.stdin:\n    print(json.dumps({"cpu": 1.0, "wall": 3.0}), flush=True)\n'


@pytest.mark.parametrize(("script", "ready"), [(SCRIPT + ROUND, True), ("raise SystemExit(3)", False)])
def test_a_frameworks_rounds_are_asked_for_one_by_one(
    script: str, ready: bool, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "it.py").write_text(script)
    monkeypatch.setattr(peers, "HERE", tmp_path)
    monkeypatch.setattr(peers, "environment", lambda framework, console: Path(sys.executable))
    with peers.opened(peers.Framework("It 1", "it.txt", "it.py"), "mlp", 4, console) as peer:
        assert (peer is not None) == ready
        if peer:
            assert (peer.first, peer.round(), peer.round()) == (2.0, (1.0, 3.0), (1.0, 3.0))
    assert ready or "It 1: no figure: its process ended with status 3" in console.export_text()


def test_tensors_in_use_at_once_are_counted_and_those_dropped_are_not() -> None:
    alive = maml.Alive()
    with alive:
        for _ in range(3):
            kept = torch.zeros(1000) + 1
        view = kept[:10]
    assert alive.now == kept.untyped_storage().nbytes() == view.untyped_storage().nbytes() == 4000
    assert 8000 <= alive.peak <= 12000


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_processes_of_a_command_are_known_whoever_started_them(tmp_path: Path) -> None:
    busy = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\ntime.sleep(60)"
    parent = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {busy!r}], start_new_session=True).wait()"
    )
    with started([sys.executable, "-c", parent], tmp_path / "log", tmp_path) as (process, tree):
        while tree.cpu() < 0.3:
            assert process.poll() is None
        while len(tree._processes()) < 2 or tree.peak < 5e6:
            assert process.poll() is None
            tree.look()
    while tree._processes():
        time.sleep(0.01)


def test_stacked_sites_are_put_beside_one_by_one(console: Console) -> None:
    found = stacked.measure(1, console, "cpu", (1, 2), work.MLP)
    assert set(found) == {"one by one"} | {f"{kind}, {count}" for kind in stacked.KINDS for count in (1, 2)}
    assert all(rate > 0 for rate in found.values())
    assert "1.0x" in console.export_text()


def test_stacked_sites_without_their_device_are_one_line(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert stacked.measure(1, console) == {}
    assert "GPU: no figure" in console.export_text()
