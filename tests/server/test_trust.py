"""Signatures of a run: only an enrolled site's own answer to this very request is used."""

from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Message, RecordDict

from common.errors import SealError, UpdateError
from common.messages import Update, encode_update
from common.trust.seals import Facts, digest_of, opened, sealed, unsealed
from server.collect import collect
from server.enrolment.registry import Enrolled, Registry, write_registry
from server.reptile import Reptile
from server.roster import Roster
from server.rounds import first_state
from server.trust import Keys, NoKeys, base_of, trust_from_environment
from tests.server.scripted import Answer, Clock, ScriptedGrid, introduction, small_plan

SERVER = Ed25519PrivateKey.generate()
SITES = {"a": Ed25519PrivateKey.generate(), "b": Ed25519PrivateKey.generate()}
NODES = {"a": 1, "b": 2}


def enrolled(name: str) -> Enrolled:
    key = SITES[name].public_key().public_bytes_raw().hex()
    return Enrolled(f"node key of {name}", key, (), "2030-01-01T00:00:00+00:00", "", NODES[name])


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    write_registry(tmp_path / "sites.json", Registry({name: enrolled(name) for name in SITES}))
    return Keys(SERVER, tmp_path / "sites.json", "run-1", tmp_path / "issued", now=lambda: 12.5)


def answer_to(message: Message, name: str, content: RecordDict, **changes: str | int) -> RecordDict:
    asked = opened(message.content, SERVER.public_key(), Facts("run-1", 0, message.metadata.message_type))
    facts = Facts(
        **{
            "run": "run-1",
            "round": asked.facts.round,
            "kind": message.metadata.message_type,
            "site": name,
            "base": asked.digest,
            "ledger": f"entry of {name}",
            **changes,  # type: ignore[arg-type]
        }
    )
    return sealed(content, facts, SITES[name])


def site(name: str, **changes: str | int) -> Answer:
    """A site that signs; ``changes`` are what it signs wrongly when it trains."""

    def answer(message: Message) -> RecordDict:
        if message.metadata.message_type == "query":
            return answer_to(message, name, introduction(name))
        return answer_to(message, name, update(), **changes)

    return answer


def update(delta: float = 1.0) -> RecordDict:
    agreed = small_plan().agreed
    values = np.full(agreed.update, delta, agreed.dtype)
    return encode_update(Update(values, np.empty(0, agreed.dtype), {"num-examples": 4.0}))


def one_round(trust: Keys, answers: dict[int, Answer]) -> tuple[Reptile, Roster]:
    plan = small_plan(outer__sites_per_round=0)
    roster = Roster(trust)
    strategy = Reptile(plan, first_state(plan), roster, trust)
    grid, clock = ScriptedGrid(answers), Clock()
    strategy.configure_train(1, strategy.arrays(), ConfigRecord(), grid)
    strategy.aggregate_train(1, collect(grid, strategy.asked, 5.0, 0, clock.now, clock.sleep))
    return strategy, roster


def causes(strategy: Reptile) -> dict[str, int]:
    assert strategy.report
    return dict(strategy.report.causes)


def test_signed_answers_are_used_and_the_journal_witnesses_the_ledgers(keys: Keys) -> None:
    strategy, _ = one_round(keys, {1: site("a"), 2: site("b")})
    assert strategy.report and strategy.report.used == ("a", "b")
    assert strategy.report.ledgers == {"a": "entry of a", "b": "entry of b"}


def test_a_request_says_when_it_was_made_and_is_signed_by_the_server(keys: Keys) -> None:
    facts = opened(keys.request(RecordDict(), 3, "train"), SERVER.public_key(), Facts("run-1", 3, "train")).facts
    assert facts.issued == 12500


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"round": 7}, "replayed"),
        ({"run": "another"}, "replayed"),
        ({"kind": "evaluate"}, "replayed"),
        ({"base": "0" * 64}, "replayed"),
        ({"site": "a"}, "replayed"),
    ],
)
def test_an_answer_signed_for_something_else_is_dropped_and_counted(
    keys: Keys, changes: dict[str, str | int], cause: str
) -> None:
    strategy, _ = one_round(keys, {1: site("a"), 2: site("b", **changes)})
    assert strategy.report and strategy.report.used == ("a",) and causes(strategy) == {cause: 1}


def test_an_update_with_another_body_under_the_old_signature_is_dropped_and_counted(keys: Keys) -> None:
    def swapped(message: Message) -> RecordDict:
        if message.metadata.message_type == "query":
            return site("b")(message)  # type: ignore[return-value]
        good = answer_to(message, "b", update())
        return RecordDict({**update(delta=-50.0), "seal": good["seal"]})

    strategy, _ = one_round(keys, {1: site("a"), 2: swapped})
    assert strategy.report and strategy.report.used == ("a",) and causes(strategy) == {"altered": 1}


def test_an_unsigned_update_is_dropped_and_counted(keys: Keys) -> None:
    def unsigned(message: Message) -> RecordDict:
        full = site("b")(message)
        assert isinstance(full, RecordDict)
        return full if message.metadata.message_type == "query" else unsealed(full)

    strategy, _ = one_round(keys, {1: site("a"), 2: unsigned})
    assert strategy.report and strategy.report.used == ("a",) and causes(strategy) == {"unsigned": 1}


def test_a_site_cannot_answer_under_the_name_of_another(keys: Keys) -> None:
    """Its node is enrolled as b, whatever it says and signs."""
    _, roster = one_round(keys, {2: site("a")})
    assert not roster.nodes and "wrong-name" in roster.refused[2].reason


def test_an_introduction_must_be_signed_too(keys: Keys) -> None:
    _, roster = one_round(keys, {1: lambda message: introduction("a")})
    assert not roster.nodes and "unsigned" in roster.refused[1].reason


def test_a_site_that_is_revoked_in_the_middle_of_a_round_is_not_used(keys: Keys, tmp_path: Path) -> None:
    def revoked_meanwhile(message: Message) -> RecordDict:
        if message.metadata.message_type != "query":
            write_registry(tmp_path / "sites.json", Registry({"a": enrolled("a")}))
        full = site("b")(message)
        assert isinstance(full, RecordDict)
        return full

    strategy, _ = one_round(keys, {1: site("a"), 2: revoked_meanwhile})
    assert strategy.report and strategy.report.used == ("a",) and causes(strategy) == {"not-enrolled": 1}


def test_without_a_federation_nothing_is_signed_and_nothing_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FEDREPTILE_FEDERATION", raising=False)
    trust = trust_from_environment("run", tmp_path / "issued")
    assert isinstance(trust, NoKeys)
    content = update()
    assert trust.request(content, 1, "train") is content
    assert digest_of(trust.answer(content, "a", 1, "train", "").content) == digest_of(content)


def test_the_base_of_an_answer_does_not_depend_on_the_seal(keys: Keys) -> None:
    content = update()
    assert base_of(keys.request(content, 1, "train")) == digest_of(content)


def test_causes_are_those_of_updates() -> None:
    assert issubclass(SealError, UpdateError)


def test_times_of_requests_only_grow_even_when_the_clock_is_set_back_and_the_run_resumed(tmp_path: Path) -> None:
    def issued(now: float) -> int:
        trust = Keys(SERVER, tmp_path / "sites.json", "run-1", tmp_path / "issued", now=lambda: now)
        return opened(trust.request(RecordDict(), 1, "train"), SERVER.public_key(), Facts("", 0, "train")).facts.issued

    assert [issued(now) for now in (12.5, 12.5, 3.0, 20.0)] == [12500, 12501, 12502, 20000]
    (tmp_path / "issued").write_text("spoilt by a crash")
    assert issued(30.0) == 30000
