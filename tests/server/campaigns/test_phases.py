"""A campaign from its rounds to the release at all sites, and from wherever it was cut off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict

from common.checkpoint import RunState, write_checkpoint
from common.errors import CampaignError, PolicyRefusal, ReleaseError, RoundError
from common.messages import (
    ClassTable,
    GateReport,
    Introduction,
    Update,
    decode_gate_request,
    decode_request,
    encode_class_table,
    encode_gate_report,
    encode_introduction,
    encode_update,
)
from common.plan import plan_for
from common.releases.artefact import Artefact, decode
from common.settings import Settings, Value
from server.campaigns import phases
from server.campaigns.campaign import (
    ALL,
    AWAY,
    CANARY,
    CHALLENGER,
    DONE,
    FAILED,
    GATE,
    HAS_IT,
    PHASES,
    REFUSED_IT,
    RELEASE,
    WAITS,
    Campaign,
    read_campaign,
)
from server.campaigns.models import Challenger
from server.campaigns.phases import Lineage
from server.rounds import run_federation
from server.service.runs import WAITING, read_journal
from tests.server.scripted import SMALL, ScriptedGrid

NEW = "dent"
NODES = {"a": 1, "b": 2, "c": 3}


class Stop(Exception):  # noqa: N818 - stands in for a process that is killed
    pass


@dataclass
class Register:
    """Releases in memory. Raises ``Stop`` at one of its steps, before or after it is done."""

    federation: "Federation"
    made: list[tuple[Artefact, Lineage]] = field(default_factory=list)
    done: list[tuple[object, ...]] = field(default_factory=list)
    stop_at: str = ""
    no_way_back: bool = False

    def register(self, challenger: Challenger, lineage: Lineage) -> int:
        self._stop("before register")
        same = [n for n, (_, other) in enumerate(self.made, 1) if other.campaign == lineage.campaign]
        if not same:
            self.made.append((challenger.artefact, lineage))
        self._stop("after register")
        return same[-1] if same else len(self.made)

    def promote(self, number: int, sites: Sequence[str] | None) -> None:
        step = "all" if sites is None else "canary"
        self._stop(f"before {step}")
        self.done.append(("promote", number, sites))
        for site in NODES if sites is None else sites:
            self.federation.adopts(site, number)
        self._stop(f"after {step}")

    def withdraw(self, number: int, reason: str) -> None:
        if self.no_way_back:
            raise ReleaseError("there is nothing to go back to")
        self.done.append(("withdraw", number, reason))

    def _stop(self, step: str) -> None:
        if self.stop_at == step:
            self.stop_at = ""
            raise Stop(step)


@dataclass
class Federation:
    """Three sites; the first has the new class. What they say is changed by tests."""

    run: Path
    classes: dict[str, dict[str, int]] = field(
        default_factory=lambda: {"a": {"x": 9, "y": 9, NEW: 10}, "b": {"x": 9, "y": 9}, "c": {"y": 9, "z": 9}}
    )
    release: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    right: dict[str, float] = field(default_factory=dict)
    refuses: set[str] = field(default_factory=set)
    never: set[str] = field(default_factory=set)
    tables: Callable[[str], RecordDict | Error | None] | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    gates: list[RecordDict] = field(default_factory=list)
    tabled: list[np.ndarray] = field(default_factory=list)
    """The params under which class tables were asked for."""
    moves: str = "evenly"

    def adopts(self, site: str, number: int) -> None:
        if site in self.refuses:
            self.refused[site] = number
        elif site not in self.never:
            self.release[site] = number

    def settings(self, **changes: Value) -> Settings:
        keys = {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
        return Settings.from_flat(
            {
                **SMALL,
                "run.dir": str(self.run),
                "run.rounds": 2,
                "outer.sites-per-round": 0,
                "outer.class-tables": True,
                "outer.join-sites": 2,
                "outer.deadline": 0.3,
                "campaign.class": NEW,
                "campaign.sites": "a,b,c",
                **keys,
            }
        )

    def grid(self) -> ScriptedGrid:
        return ScriptedGrid({node: self._site(name) for name, node in NODES.items()})

    def _site(self, name: str) -> Callable[[Message], RecordDict | Error | None]:
        agreed = plan_for(self.settings()).agreed

        def answer(message: Message) -> RecordDict | Error | None:
            kind = message.metadata.message_type
            self.asked.append((name, kind))
            if kind == "query":
                release, refused = self.release.get(name, 0), self.refused.get(name, 0)
                return encode_introduction(Introduction(name, self.classes[name], "cpu", {}, release, refused))
            if kind == "query.class_table":
                self.tabled.append(decode_request(message.content, agreed).params)
                if self.tables:
                    return self.tables(name)
                return table_of(tuple(sorted(self.classes[name])), agreed.embedding)
            if kind == "query.gate":
                self.gates.append(message.content)
                decode_gate_request(message.content, agreed)
                after = self.right.get(name, 0.9)
                scalars = {"num-held-back": 20.0, "accuracy-champion": 0.9, "accuracy-challenger": after}
                if decode_gate_request(message.content, agreed).exact is not None:
                    scalars["accuracy-exact"] = 0.95
                return encode_gate_report(GateReport(scalars, {}, (10, 10) if name == "a" else (0, 0)))
            return encode_update(Update(self._moved(agreed.update), np.empty(0, np.float32), {"num-examples": 4.0}))

        return answer

    def _moved(self, size: int) -> np.ndarray:
        if self.moves == "evenly":
            return np.ones(size, np.float32)
        return np.random.default_rng(0).standard_normal(size).astype(np.float32)

    def campaign(self) -> Campaign:
        found = read_campaign(self.run)
        assert found is not None
        return found


def table_of(names: tuple[str, ...], embedding: int) -> RecordDict:
    return encode_class_table(ClassTable(names, (9,) * len(names), np.ones((len(names), embedding), np.float32)))


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(phases, "GATHER_SECONDS", 0.05)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path / "dents")


@pytest.fixture
def register(federation: Federation) -> Register:
    return Register(federation)


def test_a_campaign_goes_from_rounds_to_a_release_at_all_sites(federation: Federation, register: Register) -> None:
    state = run_federation(federation.grid(), federation.settings(), releases=register)
    found = federation.campaign()
    assert found.phase == DONE and tuple(found.since) == PHASES and found.release == 1
    assert found.tables == {NEW: 9, "x": 18, "y": 27, "z": 9} and not found.left_out
    assert register.done == [("promote", 1, ["b"]), ("promote", 1, None)]
    assert {site: (one.stage, one.state, one.release) for site, one in found.rollout.items()} == {
        "a": (ALL, HAS_IT, 1),
        "b": (CANARY, HAS_IT, 1),
        "c": (ALL, HAS_IT, 1),
    }
    ((artefact, lineage),) = register.made
    assert (lineage.parent, lineage.campaign, lineage.sites) == (0, "dents", ("a", "b", "c"))
    assert lineage.verdict["passed"] and found.verdict["passed"]
    assert all((artefact.params[name] == value).all() for name, value in state.published.items())
    kept = decode((federation.run / CHALLENGER).read_bytes(), "kept")
    assert kept.prototypes.keys() == artefact.prototypes.keys() == found.tables.keys()
    assert not (federation.run / WAITING).exists()


def test_without_a_release_the_champion_is_what_the_rounds_started_from(
    federation: Federation, register: Register
) -> None:
    run_federation(federation.grid(), federation.settings(), releases=register)
    plan = plan_for(federation.settings())
    asked = decode_gate_request(federation.gates[0], plan.agreed)
    assert np.array_equal(asked.champion.params, plan.params.pack(plan.initial).numpy())
    assert not asked.champion.table.names and asked.challenger.table.names == (NEW, "x", "y", "z")
    assert not np.array_equal(asked.champion.params, asked.challenger.params) and asked.exact is None
    assert "no release yet" in federation.campaign().verdict["notes"][0]


@pytest.mark.parametrize("delta", ["int8", "off"])
def test_what_is_released_is_what_tables_and_gate_were_made_with(
    federation: Federation, register: Register, delta: str
) -> None:
    federation.moves = "unevenly"
    start = federation.settings()
    initial = federation.run.parent / "champion.safetensors"
    write_checkpoint(initial, RunState(0, plan_for(start).initial, {}, {}, {}), start)
    settings = federation.settings(
        campaign__release=1, campaign__delta=delta, model__initial=str(initial), outer__average=0.5
    )
    state = run_federation(federation.grid(), settings, releases=register)
    plan, ((artefact, _),) = plan_for(settings), register.made
    released, exact = plan.params.pack(artefact.params).numpy(), plan.params.pack(state.published).numpy()
    asked = decode_gate_request(federation.gates[0], plan.agreed)
    assert np.array_equal(asked.challenger.params, released)
    assert all(np.array_equal(one, released) for one in federation.tabled)
    if delta == "off":
        assert np.array_equal(released, exact) and asked.exact is None
        return
    assert asked.exact is not None and np.array_equal(asked.exact, exact) and not np.array_equal(released, exact)
    assert federation.campaign().verdict["rounding_cost"] == pytest.approx(100 * (0.95 - 0.9))


def test_a_challenger_that_fails_is_kept_with_its_reasons_and_not_released(
    federation: Federation, register: Register
) -> None:
    federation.right["c"] = 0.5
    with pytest.raises(CampaignError, match=r"the gate has not passed: c falls by 40\.0 points"):
        run_federation(federation.grid(), federation.settings(), releases=register)
    assert federation.campaign().phase == FAILED and not register.made and not register.done
    assert (federation.run / CHALLENGER).exists() and not federation.campaign().verdict["passed"]
    before = len(federation.asked)
    with pytest.raises(CampaignError, match="the campaign has failed: the gate has not passed"):
        run_federation(federation.grid(), federation.settings(), releases=register)
    assert len(federation.asked) == before


def test_a_site_that_goes_first_and_refuses_stops_the_campaign(federation: Federation, register: Register) -> None:
    federation.refuses.add("b")
    with pytest.raises(CampaignError, match=r"release 1 is withdrawn.*b: refused it"):
        run_federation(federation.grid(), federation.settings(), releases=register)
    assert [step[0] for step in register.done] == ["promote", "withdraw"]
    assert federation.campaign().rollout["b"].state == REFUSED_IT and federation.release == {}


def test_a_site_that_goes_first_and_does_not_come_stops_the_campaign(
    federation: Federation, register: Register
) -> None:
    federation.never.add("c")
    register.no_way_back = True
    with pytest.raises(CampaignError, match=r"c: waits\); it could not be withdrawn: there is nothing to go back to"):
        run_federation(federation.grid(), federation.settings(campaign__canary="c"), releases=register)
    assert register.done == [("promote", 1, ["c"])] and federation.campaign().rollout["c"].state == WAITS


def test_others_that_refuse_or_do_not_come_are_named_and_keep_what_they_have(
    federation: Federation, register: Register
) -> None:
    federation.refuses.add("c")
    federation.never.add("a")
    run_federation(federation.grid(), federation.settings(), releases=register)
    states = {site: one.state for site, one in federation.campaign().rollout.items()}
    assert states == {"a": WAITS, "b": HAS_IT, "c": REFUSED_IT} and federation.campaign().phase == DONE


STEPS = ("before register", "after register", "before canary", "after canary", "before all", "after all")


@pytest.mark.parametrize("step", STEPS)
def test_a_campaign_that_is_cut_off_goes_on_in_the_phase_it_was_in(
    federation: Federation, register: Register, step: str
) -> None:
    register.stop_at = step
    with pytest.raises(Stop):
        run_federation(federation.grid(), federation.settings(), releases=register)
    phase = {"register": RELEASE, "canary": CANARY, "all": ALL}[step.split()[1]]
    assert federation.campaign().phase == phase
    federation.asked.clear()
    run_federation(federation.grid(), federation.settings(), releases=register)
    assert federation.campaign().phase == DONE and len(register.made) == 1
    assert {kind for _, kind in federation.asked} == {"query"}
    assert {site for site, one in federation.campaign().rollout.items() if one.state == HAS_IT} == set(NODES)


@pytest.mark.parametrize("kind", ["train", "query.class_table", "query.gate"])
def test_a_campaign_that_is_cut_off_while_it_asks_asks_again(
    federation: Federation, register: Register, kind: str
) -> None:
    grid = federation.grid()
    works = grid.answers[2]

    def dies(message: Message) -> RecordDict | Error | None:
        if message.metadata.message_type == kind:
            raise Stop(kind)
        return works(message)

    grid.answers[2] = dies
    with pytest.raises(Stop):
        run_federation(grid, federation.settings(), releases=register)
    federation.asked.clear()
    run_federation(federation.grid(), federation.settings(), releases=register)
    assert federation.campaign().phase == DONE and len(register.made) == 1
    trained = [name for name, asked in federation.asked if asked == "train"]
    assert len(trained) == (6 if kind == "train" else 0)
    assert read_campaign(federation.run) is not None and len(read_journal(federation.run)) == 2


def test_a_finished_campaign_started_again_does_nothing(federation: Federation, register: Register) -> None:
    run_federation(federation.grid(), federation.settings(), releases=register)
    federation.asked.clear()
    run_federation(federation.grid(), federation.settings(), releases=register)
    assert not federation.asked


def test_only_the_sites_of_the_campaign_learn_and_judge_and_all_get_the_release(
    federation: Federation, register: Register
) -> None:
    settings = federation.settings(campaign__sites="a,b", gate__quorum=1.0)
    run_federation(federation.grid(), settings, releases=register)
    assert {site for site, kind in federation.asked if kind != "query"} == {"a", "b"}
    assert federation.release == dict.fromkeys(NODES, 1)
    assert federation.campaign().rollout["c"].state == HAS_IT


def test_a_named_site_that_is_not_there_is_told_as_absent(federation: Federation, register: Register) -> None:
    settings = federation.settings(campaign__sites="a,b,gone", outer__quorum=0.5)
    run_federation(federation.grid(), settings, releases=register)
    assert [line["absent"] for line in read_journal(federation.run)] == [{"gone": "not connected"}] * 2
    rows = {row["name"]: row["unused"] for row in federation.campaign().verdict["sites"]}
    assert rows == {"a": "", "b": "", "gone": "not connected"}
    assert federation.campaign().rollout["gone"].state == AWAY


def test_no_aggregate_is_one_sites_update_alone(federation: Federation, register: Register) -> None:
    grid = federation.grid()
    for node in (2, 3):
        works = grid.answers[node]
        grid.answers[node] = lambda message, works=works: (  # type: ignore[misc]
            None if message.metadata.message_type == "train" else works(message)
        )
    settings = federation.settings(outer__quorum=0.0, outer__failed_rounds=1, outer__deadline=0.05)
    with pytest.raises(RoundError, match="fewer than 2 usable updates"):
        run_federation(grid, settings, releases=register)
    assert read_journal(federation.run)[0]["used"] == []


def test_a_class_that_is_missing_from_the_tables_is_told_by_site_and_reason(
    federation: Federation, register: Register
) -> None:
    embedding = plan_for(federation.settings()).agreed.embedding
    closed = Error(101, PolicyRefusal("classes.tables", "").told())
    federation.tables = lambda name: closed if name == "b" else table_of(("y",), embedding)
    run_federation(federation.grid(), federation.settings(gate__least_by_table=0.0), releases=register)
    found = federation.campaign()
    assert found.left_out["a"] == f"classes.minimum: {NEW}, x" and found.left_out["c"] == "classes.minimum: z"
    assert "classes.tables" in found.left_out["b"] and found.tables == {"y": 18}
    assert any(
        f"'{NEW}' is in no class table" in note and "a: classes.minimum" in note for note in found.verdict["notes"]
    )


def test_a_release_by_which_sites_without_the_class_would_not_know_it_is_not_made(
    federation: Federation, register: Register
) -> None:
    federation.tables = lambda name: table_of(("y",), plan_for(federation.settings()).agreed.embedding)
    with pytest.raises(CampaignError, match=rf"'{NEW}' is in no class table.*minimum.*least-by-table is 0\.8"):
        run_federation(federation.grid(), federation.settings(), releases=register)
    assert federation.campaign().phase == FAILED and not register.made


def test_a_campaign_for_a_class_that_nobody_has_does_not_begin(federation: Federation, register: Register) -> None:
    del federation.classes["a"][NEW]
    with pytest.raises(CampaignError, match=f"no site that is here has a class '{NEW}'"):
        run_federation(federation.grid(), federation.settings(), releases=register)
    assert {kind for _, kind in federation.asked} == {"query"}


def test_without_a_place_for_releases_a_campaign_ends_with_the_gate(federation: Federation) -> None:
    run_federation(federation.grid(), federation.settings())
    assert federation.campaign().phase == DONE and federation.campaign().release == 0
    assert federation.campaign().verdict["passed"] and GATE in federation.campaign().since


def test_a_damaged_campaign_file_is_named(federation: Federation) -> None:
    federation.run.mkdir()
    for text in ("", "[]", '{"phase": "dancing", "rollout": {}}', '{"rollout": {"a": {}}}', '{"rollout": {}, "x": 1}'):
        (federation.run / "campaign.json").write_text(text)
        with pytest.raises(CampaignError, match=r"campaign\.json cannot be read"):
            read_campaign(federation.run)
