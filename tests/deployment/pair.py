"""Two sites of which every round needs both, so that nothing may be lost, and the result that there must be."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.data.sites import site_names
from common.checkpoint import read_checkpoint
from common.settings import Settings
from tests.deployment.deployed import Deployment
from tests.deployment.digits import SETTINGS, digit_folders
from tests.deployment.simulated import assert_same, simulated

TWO = ("line-1", "line-2")


def pair_settings(rounds: int, **outer: Any) -> dict[str, dict[str, Any]]:
    """Return settings of a run that judges nothing, which keeps rounds short."""
    changed = {**SETTINGS, "run": {**SETTINGS["run"], "rounds": rounds}, "judge": {"every": 0}}
    return {**changed, "outer": {**SETTINGS["outer"], "join-sites": len(TWO), **outer}}


def flat(settings: dict[str, dict[str, Any]]) -> Settings:
    return Settings.from_flat({f"{s}.{k}": v for s, keys in settings.items() for k, v in keys.items()})


def enrol_sites(deployment: Deployment, settings: dict[str, dict[str, Any]], sites: Sequence[str] = TWO) -> None:
    """Make a federation and let sites in, each with pictures of its own in ``data``. Nothing is up afterwards."""
    digit_folders(deployment.folder / "data", sites)
    deployment.make(settings)
    for site in sites:
        deployment.enrol(site, deployment.folder / "data" / site)


def check_end(
    deployment: Deployment, settings: dict[str, dict[str, Any]], name: str = "run", patience: float = 120.0
) -> None:
    """Fail unless all rounds were done once, with both sites, and the result is that of an undisturbed simulation."""
    ended = deployment.wait_for_end(name, patience)
    assert ended.state == "finished", f"{ended}\n{deployment.logs()}"
    journal, rounds = deployment.journal(name), settings["run"]["rounds"]
    assert [line["round"] for line in journal] == list(range(1, rounds + 1))
    assert all(line["used"] == list(TWO) for line in journal), [line["dropped"] for line in journal]
    for site in TWO:
        assert "none was changed" in deployment.engineer(site, "ledger verify")
    check_result(deployment, settings, deployment.folder / "data", name)


def check_result(deployment: Deployment, settings: dict[str, dict[str, Any]], data: Path, name: str = "run") -> None:
    """Fail unless a run's params are those of a simulation of the sites in a folder."""
    alone = flat(settings).with_values({"outer.join-sites": len(site_names(data))})
    expected = simulated(alone, data, deployment.folder / f"simulated-{name}")
    assert_same(read_checkpoint(deployment.server.runs / name).state.params, expected)
