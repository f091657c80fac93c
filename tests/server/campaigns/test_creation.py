"""Campaigns asked for: which sites, which settings, and what is refused before anything begins."""

import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from common.checkpoint import RunState, read_checkpoint
from common.errors import CampaignError, DeployError, FedreptileError, ReleaseError, SettingsError
from common.paths import write_atomically
from common.plan import plan_for
from common.releases.artefact import Artefact
from common.releases.delta import apply_delta
from common.settings import Settings, as_toml
from server.campaigns import cli, creation
from server.campaigns.campaign import ALL, CANARY, DONE, FAILED, HAS_IT, Campaign, write_campaign
from server.campaigns.creation import INITIAL, Choice, Wanted, ask_for_campaign, campaign_settings, chosen_sites
from server.campaigns.models import Challenger, challenger_of
from server.campaigns.phases import Lineage
from server.campaigns.releases import FederationReleases, champion_number
from server.campaigns.view import campaign_state, campaign_view
from server.enrolment.registry import Enrolled, Registry, write_registry
from server.home import FederationHome
from server.releases.publishing import content, make_releases, open_registry
from server.service.runs import FINISHED, read_run, update_run
from tests.server.scripted import SMALL

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def enrolled(*labels: str) -> Enrolled:
    return Enrolled("node", "ab", (), "2027-01-01T00:00:00+00:00", "", labels=labels)


REGISTRY = Registry(
    {"line-1": enrolled("hot"), "line-2": enrolled("hot", "old"), "line-3": enrolled(), "lab": enrolled("old")}
)
SAID: Mapping[str, Any] = {
    "line-1": {"classes": {"crack": 5}, "device": "cuda:1"},
    "line-2": {"classes": {"crack": 5, "rust": 2}, "device": "cpu"},
    "line-3": {"classes": {}, "device": "cuda"},
}

CHOICES: dict[str, tuple[Choice, tuple[str, ...] | str]] = {
    "all": (Choice(), ("lab", "line-1", "line-2", "line-3")),
    "by name": (Choice(("line-3", "line-1")), ("line-1", "line-3")),
    "by label": (Choice(label="hot"), ("line-1", "line-2")),
    "by class": (Choice(has_class="crack"), ("line-1", "line-2")),
    "by device": (Choice(device="cuda"), ("line-1", "line-3")),
    "by several": (Choice(label="hot", device="cuda"), r"1 is chosen \(line-1\)"),
    "one": (Choice(("lab",)), "at least 2 sites"),
    "none": (Choice(label="cold"), r"0 is chosen \(none\)"),
    "a stranger": (Choice(("line-1", "line-9")), "'line-9' is not enrolled; enrolled are: lab, line-1"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_sites_are_chosen_by_name_label_class_or_device(case: str) -> None:
    choice, expected = CHOICES[case]
    if isinstance(expected, str):
        with pytest.raises(SettingsError, match=expected):
            chosen_sites(choice, REGISTRY, SAID)
    else:
        assert chosen_sites(choice, REGISTRY, SAID) == expected


AGREED = Settings.from_flat({**SMALL, "data.hold-back": 0.2, "judge.held-out": 2, "outer.sites-per-round": 1})


def wanted(*assignments: str, new_class: str = "dent", steps: int = 3) -> Wanted:
    sites = ("lab", "line-1", "line-2")
    return Wanted("dents", new_class, "after the press", sites, ("lab",), {"inner.steps": steps}, assignments)


def test_a_campaign_asks_all_its_sites_and_judges_by_the_gate_alone() -> None:
    found = campaign_settings(AGREED, wanted("gate.least-recall=0.9", steps=7), 3, "/champion")
    assert (found.campaign.class_, found.campaign.site_names, found.campaign.canary_names) == (
        "dent",
        ("lab", "line-1", "line-2"),
        ("lab",),
    )
    assert (found.campaign.release, found.model.initial, found.inner.steps) == (3, "/champion", 7)
    assert found.outer.sites_per_round == 0 and found.outer.class_tables and found.gate.least_recall == 0.9
    assert found.judge.every == found.judge.held_out == 0 and found.outer.join_sites == 2
    assert found.outer.failed_rounds == 3 and found.model.width == AGREED.model.width
    assert campaign_settings(AGREED, wanted("outer.quorum=1.0"), 0, "").outer.join_sites == 3


REFUSED: dict[str, tuple[Settings, Wanted, str]] = {
    "nothing held back": (AGREED.with_values({"data.hold-back": 0.0}), wanted(), r"data\.hold-back is 0"),
    "a linear head": (AGREED.with_values({"model.head": "linear"}), wanted(), r"model\.head is 'linear'"),
    "no name": (AGREED, wanted(new_class=" "), "--class is empty"),
    "a name that steers terminals": (AGREED, wanted(new_class="a\x1b[2J"), "--class is empty or holds control"),
    "one site by --set": (AGREED, wanted("campaign.sites=lab"), r"1 is chosen \(lab\)"),
    "an unknown setting": (AGREED, wanted("gate.recall=1"), "the nearest valid one is 'gate"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_campaign_of_which_nothing_can_come_is_refused(case: str) -> None:
    agreed, asked, why = REFUSED[case]
    with pytest.raises(SettingsError, match=why):
        campaign_settings(agreed, asked, 0, "")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FederationHome:
    found = FederationHome(tmp_path / "federation")
    found.path.mkdir()
    found.config_file.write_text("name = 'wards'\naddress = 'localhost:1'\n", encoding="utf-8")
    (found.path / "settings.toml").write_text(as_toml(AGREED), encoding="utf-8")
    write_registry(found.registry_file, REGISTRY)
    monkeypatch.setattr(creation, "superlink_address", lambda home: "")
    monkeypatch.setattr("server.campaigns.releases.fab_of_installation", lambda: (b"", "ab" * 32))
    return found


@pytest.fixture
def released(home: FederationHome) -> FederationHome:
    make_releases(home, None, NOW)
    return home


def artefact(value: float, agreed: Settings = AGREED) -> Artefact:
    plan = plan_for(agreed)
    params = {name: torch.full_like(old, value) for name, old in plan.initial.items()}
    return Artefact(agreed, params, {"crack": (torch.ones(plan.agreed.embedding), 4)})


def made(value: float, agreed: Settings = AGREED) -> Challenger:
    found = artefact(value, agreed)
    return Challenger(found, found.params, None)


LINEAGE = Lineage(0, "dents", ("line-1", "line-2"), {"passed": True, "told": "10 of 10", "reasons": ["line-1: secret"]})


def test_a_campaign_starts_from_the_release_that_all_sites_run(released: FederationHome) -> None:
    releases = FederationReleases(released)
    first = releases.register(made(0.5), LINEAGE)
    assert champion_number(released) == 0
    releases.promote(first, None)
    assert champion_number(released) == first
    record = ask_for_campaign(released, AGREED, wanted())
    found = read_checkpoint(released.runs / "dents" / INITIAL)
    assert record.settings["campaign.release"] == first
    assert record.settings["model.initial"] == str(released.runs / "dents" / INITIAL)
    assert float(next(iter(found.state.params.values())).mean()) == 0.5 and found.state.prototypes["crack"][1] == 4
    with pytest.raises(DeployError, match="campaign resume dents"):
        ask_for_campaign(released, AGREED, wanted())


def test_the_first_campaign_starts_from_no_release(released: FederationHome) -> None:
    record = ask_for_campaign(released, AGREED, wanted())
    assert record.settings["campaign.release"] == 0 and record.settings["model.initial"] == ""


def test_without_a_place_for_releases_a_campaign_is_refused_and_the_way_is_named(home: FederationHome) -> None:
    with pytest.raises(ReleaseError, match="release init"):
        ask_for_campaign(home, AGREED, wanted())
    assert not home.runs.exists()


def test_a_release_is_registered_once_with_its_lineage_and_a_card_that_names_no_site(released: FederationHome) -> None:
    releases = FederationReleases(released)
    number = releases.register(made(0.5), LINEAGE)
    assert releases.register(made(0.5), LINEAGE) == number
    with open_registry(released) as registry:
        (found,) = registry.all()
    assert (found.about.campaign, found.about.sites, found.about.parent) == ("dents", ("line-1", "line-2"), None)
    assert found.about.gate["passed"] and found.about.fab == "ab" * 32
    assert "line-1" not in json.dumps(dict(found.about.card)) and found.about.card["gate"] == {"told": "10 of 10"}


def test_a_campaign_releases_a_small_difference_that_leads_to_the_same_file(released: FederationHome) -> None:
    releases = FederationReleases(released)
    agreed = AGREED.with_values({"model.width": 32})
    first = releases.register(made(0.5, agreed), LINEAGE)
    releases.promote(first, None)
    record = ask_for_campaign(released, agreed, wanted())
    plan = plan_for(Settings.from_flat(dict(record.settings)))
    torch.manual_seed(0)
    moved = {name: old + torch.randn_like(old) for name, old in artefact(0.5, agreed).params.items()}
    table = {"dent": (torch.ones(plan.agreed.embedding), 10)}
    found = challenger_of(plan, RunState(3, moved, plan.initial_slots, {}, {}, prototypes=table))
    second = releases.register(found, Lineage(first, "dents", (), {}))
    files = released.repository / "targets"
    (delta,) = (path for path in files.rglob("*") if f"release-{second}-from-{first}" in path.name)
    whole = content(released, second)
    assert apply_delta(content(released, first), delta.read_bytes(), "it") == whole
    assert delta.stat().st_size < 0.5 * len(whole)
    with open_registry(released) as registry:
        told = registry.get(second).about.card["delta"]
    assert told["kind"] == "int8" and 0 < told["rounding"] < 0.02


def test_withdrawing_gives_the_sites_the_older_content_under_a_higher_number(released: FederationHome) -> None:
    releases = FederationReleases(released)
    first = releases.register(made(0.5), LINEAGE)
    releases.promote(first, None)
    second = releases.register(made(0.7), Lineage(first, "burrs", (), {}))
    releases.promote(second, ["line-2"])
    releases.withdraw(second, "line-2: refused it")
    releases.withdraw(second, "line-2: refused it")
    with open_registry(released) as registry:
        assert registry.pointer().canaries == {3: ("line-2",)} and registry.pointer().all == first
        assert len(registry.all()) == 3 and registry.get(3).digest == registry.get(first).digest


def typed(home: FederationHome, *words: str) -> tuple[int, str, FedreptileError | None]:
    done = CliRunner().invoke(cli.app, [*words, "--home", str(home.path)])
    error = done.exception if isinstance(done.exception, FedreptileError) else None
    assert error or done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, " ".join(done.output.split()), error


def test_a_campaign_is_begun_from_the_command_line(released: FederationHome) -> None:
    words = ("new", "dents", "--class", "dent", "--description", "after the press", "--sites", "line-1, line-2")
    code, told, _ = typed(
        released,
        *words,
        "--rounds",
        "2",
        "--steps",
        "4",
        "--deadline",
        "60",
        "--canary",
        "lab",
        "--set",
        "gate.slack=2",
        "--detach",
    )
    assert code == 0 and "dents is in the queue" in told
    values = read_run(released.runs / "dents").settings
    assert {key: values[key] for key in ("run.rounds", "inner.steps", "outer.deadline", "gate.slack")} == {
        "run.rounds": 2,
        "inner.steps": 4,
        "outer.deadline": 60.0,
        "gate.slack": 2,
    }
    assert (values["campaign.sites"], values["campaign.canary"]) == ("line-1,line-2", "lab")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--sites", "line-1"), "at least 2 sites"),
        (("--label", "cold"), "at least 2 sites"),
        (("--canary", "line-9"), "'line-9' is not enrolled"),
        (("--set", "nonsense"), "not of the form key=value"),
    ],
)
def test_a_campaign_that_cannot_be_is_refused_on_the_command_line(
    released: FederationHome, words: tuple[str, ...], why: str
) -> None:
    _, _, error = typed(released, "new", "dents", "--class", "dent", "--detach", *words)
    assert error is not None and why in str(error) and not (released.runs / "dents" / "run.json").exists()


VERDICT = {
    "passed": True,
    "reasons": [],
    "notes": ["line-1 alone tells"],
    "classes": [
        {
            "name": "crack",
            "new": False,
            "sites": 2,
            "total": 9,
            "champion": 1.0,
            "challenger": 0.9,
            "drop": 10.0,
            "lost": 1,
        }
    ],
    "sites": [
        {
            "name": "line-1",
            "unused": "",
            "total": 9,
            "champion": 1.0,
            "challenger": 0.9,
            "drop": 10.0,
            "tried": 10,
            "recognised": 9,
        },
        {
            "name": "line-2",
            "unused": "no reply",
            "total": 0,
            "champion": None,
            "challenger": None,
            "drop": None,
            "tried": 0,
            "recognised": 0,
        },
    ],
    "worst_site": "line-1",
    "worst_site_drop": 10.0,
    "ece_rise": 0.01,
    "unknown": 0.9,
    "told": "9 of 10 inputs of 'dent' recognised",
    "tried_by_table": 10,
    "recognised_by_table": 8,
}


def begun(home: FederationHome) -> Campaign:
    ask_for_campaign(home, AGREED, wanted())
    campaign = Campaign(verdict=VERDICT, release=4, left_out={"line-3": "classes.minimum: rust"})
    campaign = campaign.come_to(CANARY, NOW).with_site("line-1", CANARY, HAS_IT, 4, NOW)
    return campaign.come_to(ALL, NOW).with_site("line-2", ALL, "waits", 3, NOW)


def test_the_status_shows_phases_gate_and_roll_out(released: FederationHome) -> None:
    write_campaign(released.runs / "dents", begun(released))
    write_atomically(released.runs / "dents" / "waiting", b"waiting for line-2 to adopt release 4")
    shown = Console(width=200, record=True, file=io.StringIO())
    shown.print(campaign_view(campaign_state(released, "dents")))
    text = shown.export_text()
    for part in (
        "class 'dent', after the press",
        "gate: passed",
        "line-3: classes.minimum: rust",
        "worst site: line-1, +10.0 points",
        "9 of 10 inputs of 'dent'",
        "as at a site that never saw it: 8 of 10",
        "note: line-1 alone tells",
        "waiting for line-2 to adopt release 4",
        "has it",
        "waits",
        "no reply",
    ):
        assert part in text, part
    code, told, _ = typed(released, "status", "dents", "--json")
    found = json.loads(told)
    assert code == 0 and found["phase"] == ALL and found["rollout"]["line-1"]["state"] == HAS_IT
    _, told, _ = typed(released, "status")
    assert "dents" in told and "1 of 2" in told
    assert json.loads(typed(released, "status", "--json")[1])[0]["name"] == "dents"


def test_a_campaign_is_followed_to_its_end(released: FederationHome, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(home: FederationHome, agreed: Settings, asked: Wanted) -> object:
        record = ask_for_campaign(home, agreed, asked)
        write_campaign(home.runs / "dents", Campaign(release=4).come_to(DONE, NOW))
        return update_run(home, record, state=FINISHED)

    monkeypatch.setattr(creation, "ask_for_campaign", ends)
    code, told, _ = typed(released, "new", "dents", "--class", "dent")
    assert code == 0 and "campaign dents is done: release 4" in told


def test_a_campaign_that_has_failed_is_not_resumed_and_a_stopped_one_is(released: FederationHome) -> None:
    record = ask_for_campaign(released, AGREED, wanted())
    update_run(released, record, state="stopped")
    assert typed(released, "resume", "dents", "--detach")[0] == 0
    assert read_run(released.runs / "dents").state == "wanted"
    write_campaign(released.runs / "dents", Campaign(reason="the gate").come_to(FAILED, NOW))
    update_run(released, read_run(released.runs / "dents"), state="failed")
    _, _, error = typed(released, "resume", "dents", "--detach")
    assert isinstance(error, CampaignError) and "has failed: the gate" in str(error)


def test_a_run_that_is_no_campaign_is_none(released: FederationHome) -> None:
    record = ask_for_campaign(released, AGREED, wanted())
    update_run(released, record, settings={**record.settings, "campaign.class": ""})
    assert isinstance(typed(released, "status", "dents")[2], CampaignError)
    assert "dents" not in typed(released, "status")[1]
