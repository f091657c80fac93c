"""Sites that answer wrongly, not at all or twice: dropped by cause and counted, while the others' rounds go on."""

from tests.deployment.deployed import Deployment
from tests.deployment.digits import SITES
from tests.deployment.faults import misbehaving
from tests.deployment.pair import check_result, enrol_sites, pair_settings

ROUNDS = 4
GOOD = ["line-1", "line-2"]


def test_what_sites_answer_wrongly_never_or_twice_does_not_touch_what_the_others_learn(deployment: Deployment) -> None:
    """line-1 is honest, line-2 sends all it says twice, line-3 lies in another way each round, line-4 never answers.

    All sign what they say, and their ledgers have it.
    """
    settings = pair_settings(ROUNDS, **{"join-sites": len(SITES), "quorum": 0.5, "deadline": 45.0})
    enrol_sites(deployment, settings, SITES)
    misbehaving(deployment, "line-2", twice=True)
    misbehaving(deployment, "line-3", update=["nan", "shape", "number"])
    misbehaving(deployment, "line-4", update=["silent"])
    with deployment.up():
        deployment.begin()
        ended = deployment.wait_for_end(patience=240)
        run = deployment.status()["runs"][0]
        superlink = (deployment.server.logs / "superlink.log").read_text(encoding="utf-8")

    assert ended.state == "finished", ended
    journal = deployment.journal()
    assert [line["round"] for line in journal] == list(range(1, ROUNDS + 1))
    assert [line["used"] for line in journal] == [GOOD] * ROUNDS
    reasons = [line["dropped"]["line-3"] for line in journal]
    found = ["not-finite: an array has", "wrong-shape: an array has", "not-finite: the scalar 'num-examples' is inf"]
    assert [reason.startswith(start) for reason, start in zip(reasons, [*found, found[0]], strict=True)] == [True] * 4
    assert journal[0]["dropped"]["line-4"] == "no-reply: no reply within the deadline"
    assert [line["asked"] for line in journal] == [list(SITES), *[[*GOOD, "line-3"]] * (ROUNDS - 1)]
    assert all(line["absent"] == {"line-4": "still at work on round 1"} for line in journal[1:]), "it is left alone"
    assert run["dropped"] == {"no-reply": 1, "not-finite": 3, "wrong-shape": 1}, "the operator sees what was dropped"

    said = (deployment.sites["line-2"].logs / "supernode.log").read_text(encoding="utf-8")
    assert said.count("answered twice") >= 2 * ROUNDS and "Failed to store Message reply" in superlink
    honest = deployment.folder / "honest"
    honest.mkdir()
    for site in GOOD:
        (deployment.folder / "data" / site).rename(honest / site)
    check_result(deployment, settings, honest)
