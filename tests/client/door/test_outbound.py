"""The one door. Every test is named for what somebody might try to get out, on purpose or by mistake."""

import ast
import hashlib
import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.serde import message_to_proto, recorddict_from_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

import client
from client.app import reply
from client.door.ledger import Ledger, LedgerIndex, entries
from client.door.outbound import POLICY_ERROR, SITE_ERROR, Asked, Content, Door, bytes_of, door_of, refuse
from client.door.policy import ClassesPolicy, HoursPolicy, MetricsPolicy, ParametersPolicy, Policy, TrafficPolicy
from client.settings import SiteSettings
from common.errors import (
    FedreptileError,
    LedgerError,
    OutboundError,
    PolicyRefusal,
    SiteDataError,
    UpdateError,
    VersionError,
)
from common.messages import (
    SCALARS,
    Agreement,
    ClassTable,
    GateReport,
    Introduction,
    Judged,
    Update,
    decode_class_table,
    decode_gate_report,
    decode_introduction,
    decode_judged,
    decode_update,
    encode_update,
)
from common.trust.seals import Facts, digest_of, opened
from tests.client.small import message_of

OPEN = SiteSettings("line-3", "/data/line-3", policy=Policy(classes=ClassesPolicy(tables=True, minimum=5)))
PRIVATE = replace(OPEN, policy=Policy(classes=ClassesPolicy(names=False, tables=True)))
AGREED = Agreement(params=4, update=3, slots=2, embedding=2, dtype="float32", digest="d")

DELTA, SLOTS = np.array([1, 2, 3], np.float32), np.array([4, 5], np.float32)
SUMS = np.array([[1, 2], [3, 4]], np.float32)
UPDATE = Update(DELTA, SLOTS, {"num-examples": 15.0, "seconds": 0.25})
JUDGED = Judged({"accuracy-after": 0.5}, {"dent": (3, 4)})
TABLE = ClassTable(("dent", "scratch"), (5, 6), SUMS)
INTRODUCTION = Introduction("line-3", {"dent": 12}, "cpu", {"torch": "2.13"})
REPORT = GateReport({"num-held-back": 8.0, "ece-champion": 0.1}, {"dent": (4, 3, 4)}, (5, 4))


def asked() -> Message:
    return message_of("train")


def leave(content: Content, site: SiteSettings, message: Message) -> Message:
    """Return the reply that a site without keys gives."""
    with door_of(site) as door:
        return reply(door.leave(content, Asked(message.metadata.message_type, layout=("conv1.weight",))), message)


def leave_error(error: Exception, site: SiteSettings | None, message: Message) -> Message:
    return reply(refuse(error, site, Asked(message.metadata.message_type)), message)


def refused(content: Any, site: SiteSettings = OPEN) -> str:
    with pytest.raises(OutboundError) as raised:
        leave(content, site, asked())
    return str(raised.value)


def clause(content: Any, site: SiteSettings = OPEN) -> str:
    """Return the clause by which the policy refuses content."""
    with pytest.raises(PolicyRefusal) as raised:
        leave(content, site, asked())
    return raised.value.clause


def bytes_on_the_wire(message: Message) -> bytes:
    sent: bytes = message_to_proto(message).SerializeToString()
    return sent


# -------------------------------------------------------------------------------------------- what may leave


def test_each_of_the_four_kinds_arrives_as_it_left() -> None:
    update = decode_update(leave(UPDATE, OPEN, asked()).content, AGREED)
    assert np.array_equal(update.delta, DELTA) and np.array_equal(update.slots, SLOTS)
    assert update.scalars == UPDATE.scalars
    assert decode_judged(leave(JUDGED, OPEN, asked()).content) == JUDGED
    table = decode_class_table(leave(TABLE, OPEN, asked()).content, AGREED)
    assert (table.names, table.counts) == (TABLE.names, TABLE.counts) and np.array_equal(table.sums, SUMS)
    assert decode_introduction(leave(INTRODUCTION, OPEN, asked()).content) == INTRODUCTION


def test_a_reply_goes_to_who_asked_and_says_what_it_answers() -> None:
    question = asked()
    for found in (leave(UPDATE, OPEN, question), leave_error(ValueError(), OPEN, question)):
        assert found.metadata.dst_node_id == question.metadata.src_node_id
        assert found.metadata.src_node_id == question.metadata.dst_node_id
        assert found.metadata.reply_to_message_id == "asked"


@pytest.mark.parametrize("name", sorted(SCALARS))
def test_every_agreed_figure_may_leave(name: str) -> None:
    for content in (replace(UPDATE, scalars={"num-examples": 1.0, name: 1.0}), Judged({name: 1.0})):
        assert leave(content, OPEN, asked()).content.metric_records["scalars"][name] == 1.0


def test_a_private_site_may_still_train_judge_and_introduce_itself_without_names() -> None:
    for content in (UPDATE, Judged({"accuracy-after": 0.5}), Introduction("line-3", {}, "cpu", {})):
        assert not leave(content, PRIVATE, asked()).has_error()


# ---------------------------------------------------------------------------------------------- what may not

PIXELS = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)


class Impostor:
    """Not one of the five kinds, though it has their fields."""

    delta, slots, scalars = PIXELS, np.empty(0), {"num-examples": 1.0}


@dataclass(frozen=True)
class Sample:
    pixels: Any


NOT_KINDS: dict[str, Any] = {
    "nothing": None,
    "an array of pixels": PIXELS,
    "a list of pixels": PIXELS.ravel().tolist(),
    "a sample": Sample(PIXELS),
    "a record of arrays": RecordDict({"update": ArrayRecord({"delta": Array(PIXELS)})}),
    "a dictionary like an update": {"delta": DELTA, "slots": SLOTS, "scalars": {}},
    "an object like an update": Impostor(),
    "the class itself": Update,
    "text": "dent",
    "bytes": b"\x89PNG",
    "a path": Path("/data/line-3/dent/a.png"),
    "several kinds at once": (UPDATE, JUDGED),
    "the site's settings": OPEN,
}


@pytest.mark.parametrize("case", NOT_KINDS)
def test_anything_but_the_four_kinds_is_refused(case: str) -> None:
    assert "is not a kind of content that leaves a site" in refused(NOT_KINDS[case])


@pytest.mark.parametrize(
    "name", ["pixel-0", "accuracy", "num-examples ", "NUM-EXAMPLES", "patient-age", "", "accuracy-after/dent"]
)
def test_a_figure_under_a_name_that_was_not_agreed_is_refused(name: str) -> None:
    for content in (replace(UPDATE, scalars={"num-examples": 1.0, name: 1.0}), replace(JUDGED, scalars={name: 1.0})):
        assert repr(name) in refused(content)


@pytest.mark.parametrize("value", [PIXELS.ravel().tolist(), [1, 2], [0.5], PIXELS, "dent", None, b"dent", True])
def test_pixels_in_place_of_a_figure_under_an_agreed_name_are_refused(value: Any) -> None:
    for content in (replace(UPDATE, scalars={"num-examples": 1.0, "seconds": value}), Judged({"seconds": value})):
        with pytest.raises((OutboundError, TypeError)):  # Flower's record refuses some of them by type
            leave(content, OPEN, asked())


def test_a_class_table_is_refused_unless_the_site_allows_class_tables() -> None:
    assert clause(TABLE, SiteSettings("line-3", "/data")) == "classes.tables"


def test_a_class_table_is_refused_where_class_names_are_private() -> None:
    assert clause(TABLE, PRIVATE) == "classes.names"


@pytest.mark.parametrize(("counts", "too_few"), [((4, 9), "dent"), ((9, 4), "scratch"), ((5, 1), "scratch")])
def test_the_sum_of_a_class_with_fewer_inputs_than_the_minimum_is_refused(
    counts: tuple[int, int], too_few: str
) -> None:
    with pytest.raises(PolicyRefusal, match=f"class '{too_few}' has fewer than 5 inputs") as raised:
        leave(replace(TABLE, counts=counts), OPEN, asked())
    assert raised.value.clause == "classes.minimum"


def test_the_sum_of_a_class_with_just_the_minimum_may_leave() -> None:
    assert not leave(replace(TABLE, counts=(5, 5)), OPEN, asked()).has_error()


def test_sums_that_belong_to_no_named_class_are_refused() -> None:
    for content in (replace(TABLE, names=("dent",), counts=(9,)), ClassTable((), (), SUMS)):
        refused(content)


def test_names_without_counts_and_counts_without_names_are_refused() -> None:
    for content in (replace(TABLE, counts=(5,)), replace(TABLE, names=("dent",))):
        with pytest.raises((OutboundError, ValueError)):
            leave(content, OPEN, asked())


def test_per_class_results_are_refused_where_class_names_are_private() -> None:
    assert clause(JUDGED, PRIVATE) == "classes.names"


def test_an_introduction_that_names_classes_is_refused_where_class_names_are_private() -> None:
    assert clause(INTRODUCTION, PRIVATE) == "classes.names"


# -------------------------------------------------------------------------------------- texts of exceptions

SECRET_PATH, SECRET_VALUE, SECRET_NAME = "/data/ward-7/patient-4711.png", 0.123456789, "Jane Doe"
SECRETS = ("ward-7", "4711", "0.1234", "Jane", "Doe", "[[0.")
SECRET_TEXT = f"{SECRET_PATH}: {SECRET_NAME} has {SECRET_VALUE} {np.full((2, 2), SECRET_VALUE)}"


def own_kinds(base: type[FedreptileError] = FedreptileError) -> list[type[FedreptileError]]:
    return [
        base,
        *(kind for below in base.__subclasses__() if below.__module__ == "common.errors" for kind in own_kinds(below)),
    ]


def own_error(kind: type[FedreptileError]) -> FedreptileError:
    if issubclass(kind, PolicyRefusal):
        return kind("hours.work", SECRET_TEXT)
    two = issubclass(kind, UpdateError | VersionError)
    return kind(SECRET_TEXT, SECRET_TEXT) if two else kind(SECRET_TEXT)


class PatientJaneDoeError(Exception):
    """Names of foreign kinds are not ours to give away either."""


def noted() -> Exception:
    error = ValueError("x")
    error.add_note(SECRET_TEXT)
    return error


FOREIGN: dict[str, Exception] = {
    "ValueError": ValueError(SECRET_TEXT),
    "FileNotFoundError": FileNotFoundError(2, SECRET_TEXT, SECRET_PATH),
    "KeyError": KeyError(SECRET_NAME),
    "an array as argument": RuntimeError(np.full((2, 2), SECRET_VALUE)),
    "an array and a path": AssertionError(np.full(2, SECRET_VALUE), Path(SECRET_PATH)),
    "UnicodeDecodeError": UnicodeDecodeError("utf-8", SECRET_TEXT.encode(), 0, 1, SECRET_TEXT),
    "its kind is the secret": PatientJaneDoeError(),
    "a note": noted(),
    "a group": ExceptionGroup(SECRET_TEXT, [ValueError(SECRET_TEXT)]),
    "no text": ValueError(),
}


def chained(outer: Exception, inner: Exception) -> Exception:
    """Return an exception as it is caught after ``raise outer from inner``, with the lines that raised it."""
    with pytest.raises(type(outer)) as raised:
        try:
            raise inner
        except type(inner) as error:
            raise outer from error
    return raised.value


def assert_says_nothing(reply: Message) -> None:
    assert reply.has_error() and not reply.has_content()
    assert reply.error.code in (SITE_ERROR, POLICY_ERROR)
    sent = bytes_on_the_wire(reply).decode("latin-1")
    for secret in SECRETS:
        assert secret not in (reply.error.reason or "") and secret not in sent


@pytest.mark.parametrize("kind", [kind for kind in own_kinds() if kind not in (PolicyRefusal, VersionError)])
def test_the_text_of_our_own_error_stays_here_and_its_kind_and_a_constant_leave(kind: type[FedreptileError]) -> None:
    reply = leave_error(own_error(kind), OPEN, asked())
    assert_says_nothing(reply)
    assert reply.error.reason == f"{kind.__name__}: {kind.public}; the site's own log has the details"


def test_of_a_refusal_and_of_version_skew_no_text_leaves_that_is_not_a_constant_or_a_version() -> None:
    refusal = leave_error(own_error(PolicyRefusal), OPEN, asked())
    assert_says_nothing(refusal)
    assert refusal.error.code == POLICY_ERROR
    assert refusal.error.reason == "the site's policy refuses: hours.work (outside the site's hours of work)"
    skew = leave_error(own_error(VersionError), OPEN, asked())
    assert_says_nothing(skew)
    assert skew.error.reason == "VersionError: the run's code is unknown and the site has unknown"


@pytest.mark.parametrize("case", FOREIGN)
def test_of_a_foreign_exception_neither_text_nor_kind_leaves(case: str) -> None:
    reply = leave_error(FOREIGN[case], OPEN, asked())
    assert_says_nothing(reply)
    assert reply.error.reason == f"unexpected error: {FedreptileError.public}; the site's own log has the details"


@pytest.mark.parametrize("case", FOREIGN)
def test_of_a_chain_of_exceptions_nothing_but_the_last_kind_leaves(case: str) -> None:
    own, foreign = SiteDataError(SECRET_TEXT), PatientJaneDoeError(SECRET_TEXT)
    expected = {own: f"SiteDataError: {SiteDataError.public}", foreign: f"unexpected error: {FedreptileError.public}"}
    for outer, inner in ((own, FOREIGN[case]), (foreign, SiteDataError(SECRET_TEXT))):
        reply = leave_error(chained(outer, inner), OPEN, asked())
        assert_says_nothing(reply)
        assert reply.error.reason == f"{expected[outer]}; the site's own log has the details"


def test_a_refusal_at_the_door_does_not_repeat_what_it_refused() -> None:
    with pytest.raises(OutboundError) as raised:
        leave(Judged({SECRET_TEXT: 1.0}), OPEN, asked())
    assert_says_nothing(leave_error(raised.value, OPEN, asked()))


def test_every_kind_of_our_errors_has_a_constant_that_holds_no_path_and_no_number() -> None:
    for kind in own_kinds():
        assert not set(kind.public) & set("/\\0123456789{}%")


def test_an_error_leaves_even_before_the_sites_settings_are_known() -> None:
    assert_says_nothing(leave_error(ValueError(SECRET_TEXT), None, asked()))


# ------------------------------------------------------------------------------- parameters, figures, traffic, hours


def under(**sections: Any) -> SiteSettings:
    return replace(OPEN, policy=replace(OPEN.policy, **sections))


@pytest.mark.parametrize(("patterns", "leaves"), [(["conv*"], True), (["*"], True), (["head.*"], False), ([], False)])
def test_an_update_leaves_only_if_all_of_its_parameters_may(patterns: list[str], leaves: bool) -> None:
    site = under(parameters=ParametersPolicy(tuple(patterns)))
    if leaves:
        assert leave(UPDATE, site, asked()).has_content()
    else:
        assert clause(UPDATE, site) == "parameters.may-leave"


def test_one_parameter_that_may_not_leave_keeps_the_whole_update() -> None:
    door = Door(under(parameters=ParametersPolicy(("conv1.*",))))
    with pytest.raises(PolicyRefusal, match=r"'head\.weight'"):
        door.leave(UPDATE, Asked("train", layout=("conv1.weight", "head.weight")))


def test_figures_that_may_not_leave_are_left_out_and_num_examples_travels() -> None:
    site = under(metrics=MetricsPolicy(("accuracy-*",)))
    assert decode_update(leave(UPDATE, site, asked()).content, AGREED).scalars == {"num-examples": 15.0}
    judged = Judged({"accuracy-after": 0.5, "nll-after": 1.0})
    assert decode_judged(leave(judged, site, asked()).content).scalars == {"accuracy-after": 0.5}


def test_outside_its_hours_nothing_leaves_but_what_was_begun_within(tmp_path: Path) -> None:
    site = under(hours=HoursPolicy(("mon-fri 18:00-06:00",)))
    wednesday_noon = datetime(2026, 11, 18, 12).astimezone()
    door = Door(site, clock=lambda: wednesday_noon)
    for step in (lambda: door.admit(Asked("train")), lambda: door.leave(UPDATE, Asked("train"))):
        with pytest.raises(PolicyRefusal, match=r"Wed 12:00, outside \['mon-fri 18:00-06:00'\]"):
            step()
    assert door.leave(UPDATE, Asked("train", begun=wednesday_noon - timedelta(hours=7)))


def test_when_the_bytes_of_a_day_are_used_up_nothing_leaves_until_the_next(tmp_path: Path) -> None:
    moment = datetime(2026, 11, 18, 23, 59, tzinfo=UTC)
    size = bytes_of(encode_update(UPDATE))
    with Ledger(tmp_path, clock=lambda: moment) as ledger:
        door = Door(under(traffic=TrafficPolicy(2 * size)), ledger, clock=lambda: moment)
        for _ in range(2):
            door.leave(UPDATE, Asked("train"))
        for refusing in (lambda: door.admit(Asked("train")), lambda: door.leave(UPDATE, Asked("train"))):
            with pytest.raises(PolicyRefusal, match=r"traffic\.bytes-a-day"):
                refusing()
        moment += timedelta(minutes=1)
        door.leave(UPDATE, Asked("train"))


# ---------------------------------------------------------------------------------------------- ledger and seal


def test_each_thing_that_leaves_has_an_entry_with_names_shapes_bytes_and_digest(tmp_path: Path) -> None:
    site = replace(OPEN, ledger=str(tmp_path))
    replies = [leave(content, site, asked()) for content in (UPDATE, JUDGED, TABLE, INTRODUCTION)]
    leave_error(ValueError(SECRET_TEXT), site, asked())
    found = list(entries(tmp_path))
    assert [entry.content for entry in found] == ["Update", "Judged", "ClassTable", "Introduction", "Error"]
    assert [entry.arrays for entry in found] == [
        {"update/delta": [3], "update/slots": [2]},
        {},
        {"class-table/sums": [4]},
        {},
        {},
    ]
    assert [entry.classes for entry in found] == [[], ["dent"], ["dent", "scratch"], ["dent"], []]
    assert found[0].scalars == ["scalars/num-examples", "scalars/seconds"]
    for entry, reply_ in zip(found, replies, strict=False):
        assert entry.sha256 == digest_of(reply_.content) and entry.bytes == bytes_of(reply_.content)
        assert entry.clauses[-2:] == ["hours.work", "traffic.bytes-a-day"]
        assert entry.policy == OPEN.policy.digest
    text = (tmp_path / "ledger-000001.jsonl").read_text(encoding="utf-8")
    assert not [secret for secret in SECRETS if secret in text]
    assert found[4].reason == f"unexpected error: {FedreptileError.public}; the site's own log has the details"


def test_the_objects_in_the_ledger_are_those_that_flower_sends_also_after_serialisation(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        door = Door(OPEN, ledger, Ed25519PrivateKey.generate())
        for content in (UPDATE, JUDGED, TABLE, INTRODUCTION, replace(UPDATE, delta=np.zeros(2_000_000, np.float32))):
            answer = door.leave(content, Asked("train", "run", 3, "base"))
            sent = reply(recorddict_from_proto(recorddict_to_proto(answer)), asked())
            [*_, entry] = entries(tmp_path)
            assert set(entry.objects) == get_all_nested_objects(sent).keys() - {sent.object_id}
            assert entry.bytes == sum(len(get_all_nested_objects(answer)[item].deflate()) for item in entry.objects)


def test_an_answer_is_sealed_over_what_it_answers_the_policy_and_its_entry(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    with Ledger(tmp_path) as ledger:
        answer = Door(OPEN, ledger, key).leave(UPDATE, Asked("train", "run", 3, "base"))
    [entry] = entries(tmp_path)
    expected = Facts("run", 3, "train", 0, "line-3", "base", OPEN.policy.digest, entry.stamp)
    seal = opened(answer, key.public_key(), expected)
    assert seal.digest == entry.sha256
    assert np.array_equal(decode_update(seal.content, AGREED).delta, DELTA)


def test_a_refusal_has_an_entry_with_its_clause_and_nothing_else(tmp_path: Path) -> None:
    site = replace(PRIVATE, ledger=str(tmp_path))
    with pytest.raises(PolicyRefusal) as raised:
        leave(JUDGED, site, asked())
    assert not (tmp_path / "ledger-000001.jsonl").exists()
    leave_error(raised.value, site, asked())
    [entry] = entries(tmp_path)
    assert (entry.event, entry.clauses, entry.classes, entry.objects) == ("refused", ["classes.names"], [], [])
    assert entry.reason == "the site's policy refuses: classes.names (class names may not leave)"
    assert LedgerIndex(tmp_path).has_error(hashlib.sha256(entry.reason.encode()).hexdigest())


def test_what_cannot_be_entered_does_not_leave_and_the_server_is_told_a_constant(tmp_path: Path) -> None:
    (tmp_path / "4711").write_bytes(b"")
    site = replace(OPEN, ledger=str(tmp_path / "4711" / "ward-7"))
    with pytest.raises(LedgerError):
        leave(UPDATE, site, asked())
    found = leave_error(ValueError(SECRET_TEXT), site, asked())
    assert_says_nothing(found)
    assert found.error.reason == LedgerError("").told()
    assert LedgerIndex(tmp_path).has_error(hashlib.sha256(LedgerError("").told().encode()).hexdigest())


# ------------------------------------------------------------------------------------------------- Python's log


def test_pythons_log_has_names_and_bytes_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for content in (UPDATE, JUDGED, TABLE, INTRODUCTION):
            leave(content, OPEN, asked())
        leave_error(ValueError(SECRET_TEXT), OPEN, asked())
    lines = [record.getMessage() for record in caplog.records if record.name == "fedreptile.outbound"]
    assert [line.split(" leaves ")[0] for line in lines] == ["Update", "Judged", "ClassTable", "Introduction", "Error"]
    size = bytes_of(encode_update(UPDATE))
    assert lines[0].startswith(f"Update leaves line-3: {size} bytes in update/delta, update/slots")
    assert not [secret for secret in ("dent", "scratch", *SECRETS) if secret in caplog.text]


# ------------------------------------------------------------------------------- the door is the only one

CLIENT = Path(str(client.__file__)).parent
NETWORK_MODULES = frozenset(
    {"socket", "ssl", "http", "urllib", "httpx", "requests", "grpc", "ftplib", "smtplib", "asyncio", "multiprocessing"}
)


def messages_made_in(tree: ast.AST) -> list[int]:
    """Return the lines where a Flower message is made, under whatever name it was imported."""
    names = {"Message"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname for alias in node.names if alias.name == "Message" and alias.asname}
    made = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in names | {"create_reply", "create_error_reply", "create_message", "push_messages"}:
                made.append(node.lineno)
    return made


def functions_of(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def _method_of_the_door(called: ast.expr | None) -> str:
    of_the_door = isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "door"
    return called.attr if of_the_door and isinstance(called, ast.Attribute) else "?"


def callees_returned(function: ast.FunctionDef) -> set[str]:
    """Return the names of the functions whose results a function returns; '?' for anything else."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Return):
            called = node.value.func if isinstance(node.value, ast.Call) else None
            found.add(called.id if isinstance(called, ast.Name) else _method_of_the_door(called))
    return found


def first_arguments(function: ast.FunctionDef, called: str) -> set[str]:
    """Return the names of the functions whose results a function hands to another as its first argument."""
    calls = [n for n in ast.walk(function) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == called]
    return {getattr(getattr(call.args[0], "func", None), "id", "?") for call in calls}


def network_modules_in(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found & NETWORK_MODULES


def modules_of_client() -> dict[str, ast.Module]:
    return {str(path.relative_to(CLIENT)): ast.parse(path.read_text(encoding="utf-8")) for path in CLIENT.rglob("*.py")}


def test_no_other_module_of_the_client_makes_a_message() -> None:
    """But for the relay, whose messages are refusals of constant text, held to that by its own tests."""
    making = {name for name, tree in modules_of_client().items() if messages_made_in(tree)}
    assert making == {"app.py", "relay/app.py", "relay/door.py"}


def test_a_report_to_a_gate_leaves_with_the_figures_that_may() -> None:
    assert decode_gate_report(leave(REPORT, OPEN, message_of("query.gate")).content) == REPORT
    few = replace(OPEN, policy=Policy(metrics=MetricsPolicy(("num-*",))))
    assert decode_gate_report(leave(REPORT, few, asked()).content).scalars == {"num-held-back": 8.0}


@pytest.mark.parametrize(
    "telling",
    [
        REPORT,
        GateReport({}, {}, (1, 0)),
        GateReport({}, {}, (0, 0), (1, 1)),
        GateReport({"unknown-champion": 0.5}),
        GateReport({"num-unknown": 3.0}),
    ],
)
def test_a_report_that_tells_which_classes_a_site_has_does_not_leave_where_names_may_not(telling: GateReport) -> None:
    with pytest.raises(PolicyRefusal, match=r"classes\.names"):
        leave(telling, PRIVATE, asked())
    assert decode_gate_report(leave(GateReport({"num-held-back": 8.0}), PRIVATE, asked()).content).scalars


def test_a_report_to_a_gate_holds_no_other_figures() -> None:
    assert "'accuracy-after' is not one that may leave" in refused(GateReport({"accuracy-after": 0.5}))


def test_wishes_name_classes_too() -> None:
    wishing = Introduction("line-3", {}, "cpu", {}, release=3, refused=2, wishes={"dent": 9})
    with pytest.raises(PolicyRefusal, match=r"classes\.names"):
        leave(wishing, PRIVATE, asked())
    assert decode_introduction(leave(wishing, OPEN, asked()).content) == wishing
    assert decode_introduction(leave(replace(wishing, wishes={}), PRIVATE, asked()).content).release == 3


def test_the_client_app_returns_nothing_but_what_a_door_let_out() -> None:
    functions = functions_of(modules_of_client()["app.py"])
    assert callees_returned(functions["reply"]) == {"Message"} and callees_returned(functions["answer"]) == {"reply"}
    assert first_arguments(functions["answer"], "reply") == {"forward", "work_inside"}
    handlers = [function for function in functions.values() if function.decorator_list]
    assert {function.name for function in handlers} == {"train", "evaluate", "introduce", "class_table", "gate"}
    for function in handlers:
        assert callees_returned(function) == {"answer"}


def test_the_work_in_this_process_ends_at_the_door() -> None:
    functions = functions_of(modules_of_client()["worker/inside.py"])
    assert callees_returned(functions["work_inside"]) == {"answered"}
    assert callees_returned(functions["answered"]) == {"leave", "refuse"}


def test_of_what_handles_data_or_content_only_the_local_socket_opens_connections() -> None:
    modules = modules_of_client()
    inner = {
        name: tree
        for name, tree in modules.items()
        if name.split("/")[0]
        in ("data", "door", "worker", "app.py", "site.py", "model.py", "settings.py", "columns.py")
    }
    assert len(inner) > 15
    found = {name: used for name, tree in inner.items() if (used := network_modules_in(tree))}
    assert found == {"worker/wire.py": {"multiprocessing"}, "worker/serve.py": {"multiprocessing", "socket"}}


@pytest.mark.parametrize(
    "source",
    [
        "from flwr.app import Message\nMessage(content, reply_to=m)",
        "from flwr.app import Message as M\nM(content, reply_to=m)",
        "import flwr.app\nflwr.app.Message(content, reply_to=m)",
        "def f(message): return message.create_reply(content)",
    ],
)
def test_the_check_above_would_see_a_second_door(source: str) -> None:
    assert messages_made_in(ast.parse(source))


@pytest.mark.parametrize("source", ["return message", "return x.leave(c)", "return", "return leave(a) or b"])
def test_the_check_above_would_see_a_return_past_the_door(source: str) -> None:
    function = functions_of(ast.parse(f"def answer(message):\n    {source}"))["answer"]
    assert callees_returned(function) == {"?"}


def test_the_check_above_would_see_a_connection() -> None:
    assert network_modules_in(ast.parse("from urllib.request import urlopen\nimport socket")) == {"urllib", "socket"}
