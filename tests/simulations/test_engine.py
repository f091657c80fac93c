"""The in-process federation as a whole: what it computes, and that it equals Reptile without a federation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from client.data.packed import write_packed
from client.data.sites import open_site_data, site_names
from client.site import Site
from common.checkpoint import read_checkpoint
from common.learning.params import Params
from common.messages import Request, Update
from common.settings import Settings, Value
from server.service.runs import read_journal
from simulations.engine import in_process
from simulations.federation import deal, read_federation
from simulations.reference import centralised_reptile


@pytest.fixture(scope="module")
def omniglot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDREPTILE_HOME", str(tmp_path_factory.mktemp("home")))
        return deal(read_federation("omniglot")).train


def settings_for(sites: Path, run: Path, **changes: Value) -> Settings:
    base: dict[str, Value] = {
        "run.rounds": 20,
        "run.dir": str(run),
        "data.sites": str(sites),
        "data.rotated-classes": True,
        "episode.way": 5,
        "episode.shot": 4,
        "inner.batch-size": 10,
        "inner.steps": 3,
        "model.width": 8,
        "judge.every": 0,
    }
    return Settings.from_flat({**base, **{key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()}})


def final_params(run: Path) -> Params:
    return read_checkpoint(run).state.params


def assert_same_bits(found: Params, expected: Params) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), f"{name} differs by {(found[name] - value).abs().max():.1e}"


@pytest.mark.parametrize(
    ("nodes", "sampled"),
    [(30, 1), (30, 5), (30, 30), (5, 5)],
    ids=["one of 30 sites: serial Reptile", "five of 30 sites", "all 30 sites", "all five sites"],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_federation_equals_centralised_reptile_to_the_bit(
    omniglot: Path, tmp_path: Path, nodes: int, sampled: int, optimizer: str
) -> None:
    rate = 0.5 if optimizer == "sgd" else 1e-3
    settings = settings_for(
        omniglot,
        tmp_path,
        outer__sites_per_round=sampled,
        inner__optimizer=optimizer,
        inner__learning_rate=rate,
        outer__join_sites=nodes,
    )
    names = site_names(omniglot)[:nodes]
    in_process(settings, nodes)
    data = {name: open_site_data(omniglot, name, settings.data) for name in names}
    assert_same_bits(final_params(tmp_path), centralised_reptile(data, settings))


def test_judging_during_a_run_does_not_change_what_is_learned(omniglot: Path, tmp_path: Path) -> None:
    for folder, every in ((tmp_path / "silent", 0), (tmp_path / "judged", 2)):
        in_process(settings_for(omniglot, folder, run__rounds=4, judge__every=every), 6)
    assert_same_bits(final_params(tmp_path / "judged"), final_params(tmp_path / "silent"))
    lines = read_journal(tmp_path / "judged")
    assert ["accuracy-after" in line["figures"] for line in lines] == [False, True, False, True]
    assert len(lines[1]["sites"]) == 5


def test_held_out_sites_are_judged_and_never_trained_on(omniglot: Path, tmp_path: Path) -> None:
    settings = settings_for(
        omniglot, tmp_path, run__rounds=4, judge__every=2, judge__held_out=2, outer__sites_per_round=0
    )
    in_process(settings, 6)
    lines = read_journal(tmp_path)
    trained = {site for line in lines for site in line["used"]}
    judged = {site for line in lines for site in line["sites"]}
    assert len(trained) == 4 and len(judged) == 2 and not trained & judged


def test_a_site_that_fails_is_named_in_the_journal_and_the_others_go_on(omniglot: Path, tmp_path: Path) -> None:
    settings = settings_for(omniglot, tmp_path, run__rounds=2, episode__shot=4, outer__sites_per_round=0)
    with pytest.MonkeyPatch.context() as patch:
        real = Site.train

        def failing(self: Site, request: Request) -> Update:
            if self.site.name.startswith("B"):
                raise RuntimeError("/secret/path 0.123")
            return real(self, request)

        patch.setattr(Site, "train", failing)
        in_process(settings, 6)
    line = read_journal(tmp_path)[0]
    assert set(line["dropped"]) == {name for name in line["asked"] if name.startswith("B")} != set()
    assert line["causes"] == {"error-reply": len(line["dropped"])}
    assert "secret" not in str(line) and "0.123" not in str(line)
    assert len(line["used"]) == 6 - len(line["dropped"])


def test_class_tables_are_summed_over_sites_under_the_final_params(digit_sites: Path, tmp_path: Path) -> None:
    settings = Settings.from_flat(
        {
            "run.rounds": 1,
            "run.dir": str(tmp_path),
            "data.sites": str(digit_sites),
            "data.size": 8,
            "outer.class-tables": True,
            "outer.sites-per-round": 2,
            "run.seed": 77,
        }
    )
    in_process(settings, 4, {"site-class-tables": True, "site-min-count": 2})
    table = read_checkpoint(tmp_path).state.prototypes
    counts: dict[str, int] = {}
    for name in site_names(digit_sites)[:4]:
        data = open_site_data(digit_sites, name, settings.data)
        for label in data.classes():
            if data.count(label) >= 2:
                counts[label] = counts.get(label, 0) + data.count(label)
    assert {name: count for name, (_, count) in table.items()} == counts


def test_sites_of_every_size_take_part_in_the_same_rounds(digit_sites: Path, tmp_path: Path) -> None:
    """Two classes of three drawings, three of one or two, and ten of twenty: each gives what it has."""
    inputs = np.load(digit_sites / "inputs.npy")
    sites = {
        "small": {"a": [0, 1, 2], "b": [3, 4, 5]},
        "tiny": {"a": [6], "b": [7, 8], "c": [9, 10]},
        "large": {str(c): list(range(20 * c, 20 * c + 20)) for c in range(10)},
    }
    write_packed(tmp_path / "sites", inputs, sites, {})
    changes: dict[str, Value] = {"data.size": 8, "data.rotated-classes": False, "judge.every": 1, "run.rounds": 3}
    settings = settings_for(tmp_path / "sites", tmp_path / "run", outer__sites_per_round=0).with_values(changes)
    in_process(settings, 3)
    for line in read_journal(tmp_path / "run"):
        assert line["used"] == ["large", "small", "tiny"]
        assert set(line["sites"]) == {"large", "small", "tiny"}


def test_class_tables_stay_at_sites_that_do_not_allow_them(digit_sites: Path, tmp_path: Path) -> None:
    changes: dict[str, Value] = {"data.size": 8, "data.rotated-classes": False, "outer.class-tables": True}
    settings = settings_for(digit_sites, tmp_path, run__rounds=1).with_values(changes)
    in_process(settings, 4)
    assert not read_checkpoint(tmp_path).state.prototypes
