"""From nothing to a finished run by the commands of docs/deploy.md, with the result that the simulation has."""

import json
import re
from typing import Any

from client.door.ledger import entries
from common.checkpoint import read_checkpoint
from common.settings import Settings
from tests.deployment.deployed import Deployment
from tests.deployment.digits import SETTINGS, SITES, digit_folders
from tests.deployment.simulated import assert_same, simulated
from tests.mirror import mirror_or_skip

ROUNDS = 3


def flat(settings: dict[str, dict[str, Any]]) -> Settings:
    return Settings.from_flat({f"{s}.{k}": v for s, keys in settings.items() for k, v in keys.items()})


def test_four_sites_with_pictures_end_with_the_result_of_the_simulation(deployment: Deployment) -> None:
    data = digit_folders(deployment.folder / "data")
    deployment.make(SETTINGS)
    for site in SITES:
        deployment.enrol(site, data / site)
    with deployment.up():
        shown = deployment.run("first")
        status = deployment.status()

    assert "round 3 of 3: used 4 of 4" in shown and "run first is finished" in shown
    run = deployment.server.runs / "first"
    expected = simulated(flat(SETTINGS), data, deployment.folder / "simulated")
    assert_same(read_checkpoint(run).state.params, expected)

    sites = {site["name"]: site for site in status["sites"]}
    assert sites.keys() == set(SITES)
    for site in SITES:
        assert sites[site]["online"] and sites[site]["classes"] == 5 and sites[site]["device"] == "cpu"
        assert sites[site]["version"] == "0.1.0" and not sites[site]["refused"]
    assert not status["strangers-refused"] and status["runs"][0]["state"] == "finished"

    journal = deployment.journal("first")
    assert [line["used"] for line in journal] == [list(SITES)] * ROUNDS
    assert all(not line["dropped"] and not line["absent"] for line in journal)
    for site in SITES:
        assert "none was changed" in deployment.engineer(site, "ledger verify")
        left = list(entries(deployment.sites[site].ledger))
        assert [entry.content for entry in left] == ["Introduction", "Update", "Update", "Update"]
        stamps = [entry.stamp for entry in left if entry.content == "Update"]
        assert stamps == [line["ledgers"][site] for line in journal]


def test_four_hospitals_with_tables_end_with_the_result_of_the_simulation(deployment: Deployment) -> None:
    tables = mirror_or_skip() / "heart_disease_hospitals"
    numbers = "age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal"
    settings: dict[str, dict[str, Any]] = {
        "run": {"rounds": 2, "seed": 1},
        "data": {"kind": "table", "label": "num", "columns": numbers},
        "episode": {"way": 2, "shot": 5, "query": 3},
        "model": {"network": "mlp", "width": 16, "depth": 2},
        "inner": {"learning-rate": 0.03, "steps": 2},
        "outer": {"sites-per-round": 0, "quorum": 1.0, "join-sites": 4, "class-tables": True},
        "judge": {"every": 2, "held-out": 1},
    }
    hospitals = ("cleveland", "hungarian", "switzerland", "va")
    deployment.make(settings)
    for hospital in hospitals:
        deployment.enrol(hospital, tables / f"{hospital}.csv")
    policy = deployment.sites["va"].policy_file
    policy.write_text(re.sub(r"^tables = false", "tables = true", policy.read_text(encoding="utf-8"), flags=re.M))
    with deployment.up():
        deployment.run("hearts")
    found = read_checkpoint(deployment.server.runs / "hearts")
    sites = deployment.folder / "hospitals"
    sites.mkdir()
    for hospital in hospitals:
        (sites / f"{hospital}.csv").write_bytes((tables / f"{hospital}.csv").read_bytes())
    assert_same(found.state.params, simulated(flat(settings), sites, deployment.folder / "simulated"))
    refused = [entry for entry in entries(deployment.sites["cleveland"].ledger) if entry.event == "refused"]
    assert [list(entry.clauses) for entry in refused] == [["classes.tables"]], "only va lets its class table out"
    assert found.state.prototypes
    log = (deployment.server.runs / "hearts" / "server.log").read_text(encoding="utf-8")
    assert "the site's policy refuses: classes.tables" in log, "the operator is told why"


def test_nothing_that_is_sent_between_people_holds_a_secret(deployment: Deployment) -> None:
    data = digit_folders(deployment.folder / "data")
    deployment.make(SETTINGS)
    home = deployment.enrol("line-1", data / "line-1")
    for file in (home.request_file, home.kit_file):
        assert "PRIVATE" not in file.read_text(encoding="utf-8")
        json.loads(file.read_text(encoding="utf-8"))
