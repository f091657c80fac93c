"""The one door. Every test is named for what somebody might try to get out, on purpose or by mistake."""

import ast
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.serde import message_to_proto

import client
from client.outbound import SITE_ERROR, leave, leave_error
from client.settings import SiteSettings
from common.errors import FedreptileError, OutboundError, SiteDataError, UpdateError
from common.messages import (
    SCALARS,
    Agreement,
    ClassTable,
    Introduction,
    Judged,
    Update,
    decode_class_table,
    decode_introduction,
    decode_judged,
    decode_update,
)
from tests.client.small import message_of

OPEN = SiteSettings("line-3", "/data/line-3", class_tables=True, min_count=5)
PRIVATE = replace(OPEN, class_names=False)
AGREED = Agreement(params=4, update=3, slots=2, embedding=2, dtype="float32", digest="d")

DELTA, SLOTS = np.array([1, 2, 3], np.float32), np.array([4, 5], np.float32)
SUMS = np.array([[1, 2], [3, 4]], np.float32)
UPDATE = Update(DELTA, SLOTS, {"num-examples": 15.0, "seconds": 0.25})
JUDGED = Judged({"accuracy-after": 0.5}, {"dent": (3, 4)})
TABLE = ClassTable(("dent", "scratch"), (5, 6), SUMS)
INTRODUCTION = Introduction("line-3", {"dent": 12}, "cpu", {"torch": "2.13"})


def asked() -> Message:
    return message_of("train")


def refused(content: Any, site: SiteSettings = OPEN) -> str:
    with pytest.raises(OutboundError) as raised:
        leave(content, site, asked())
    return str(raised.value)


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
    for reply in (leave(UPDATE, OPEN, question), leave_error(ValueError(), OPEN, question)):
        assert reply.metadata.dst_node_id == question.metadata.src_node_id
        assert reply.metadata.src_node_id == question.metadata.dst_node_id
        assert reply.metadata.reply_to_message_id == "asked"


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
    """Not one of the four kinds, though it has their fields."""

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
    assert "site-class-tables" in refused(TABLE, replace(OPEN, class_tables=False))
    assert "site-class-tables" in refused(TABLE, SiteSettings("line-3", "/data"))


def test_a_class_table_is_refused_where_class_names_are_private() -> None:
    assert "site-class-names" in refused(TABLE, PRIVATE)


@pytest.mark.parametrize(("counts", "too_few"), [((4, 9), "dent"), ((9, 4), "scratch"), ((5, 1), "scratch")])
def test_the_sum_of_a_class_with_fewer_inputs_than_the_minimum_is_refused(
    counts: tuple[int, int], too_few: str
) -> None:
    text = refused(replace(TABLE, counts=counts))
    assert repr(too_few) in text and "site-min-count = 5" in text


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
    assert "site-class-names is off" in refused(JUDGED, PRIVATE)


def test_an_introduction_that_names_classes_is_refused_where_class_names_are_private() -> None:
    assert "site-class-names is off" in refused(INTRODUCTION, PRIVATE)


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
    return kind(SECRET_TEXT, SECRET_TEXT) if issubclass(kind, UpdateError) else kind(SECRET_TEXT)


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
    assert reply.error.code == SITE_ERROR
    sent = bytes_on_the_wire(reply).decode("latin-1")
    for secret in SECRETS:
        assert secret not in (reply.error.reason or "") and secret not in sent


@pytest.mark.parametrize("kind", own_kinds())
def test_the_text_of_our_own_error_stays_here_and_its_kind_and_a_constant_leave(kind: type[FedreptileError]) -> None:
    reply = leave_error(own_error(kind), OPEN, asked())
    assert_says_nothing(reply)
    assert reply.error.reason == f"{kind.__name__}: {kind.public}; the site's own log has the details"


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


# ------------------------------------------------------------------------------------------------- the log


@pytest.fixture
def logged(tmp_path: Path) -> SiteSettings:
    return replace(OPEN, name="Werk 3 – Halle ß", log=str(tmp_path / "outbound.jsonl"))


def lines_of(site: SiteSettings) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(site.log).read_text(encoding="utf-8").splitlines()]


def test_the_log_has_one_line_for_each_message_with_names_and_bytes_only(logged: SiteSettings) -> None:
    introduction = replace(INTRODUCTION, name=logged.name)
    for content in (UPDATE, JUDGED, TABLE, introduction):
        leave(content, logged, asked())
    leave_error(ValueError(SECRET_TEXT), logged, asked())
    lines = lines_of(logged)
    assert [line["kind"] for line in lines] == ["Update", "Judged", "ClassTable", "Introduction", "Error"]
    for line in lines:
        assert set(line) == {"time", "site", "kind", "bytes"} and line["site"] == logged.name
        assert isinstance(line["time"], float)
        assert line["bytes"] and all(type(size) is int and size >= 0 for size in line["bytes"].values())
    assert [set(line["bytes"]) for line in lines] == [
        {"update/delta", "update/slots", "scalars/num-examples", "scalars/seconds"},
        {"scalars/accuracy-after", "per-class/names", "per-class/correct", "per-class/total"},
        {"class-table/sums", "classes/names", "classes/counts"},
        {f"introduction/{part}" for part in ("name", "classes", "counts", "device", "packages", "versions")},
        {"reason"},
    ]
    text = Path(logged.log).read_text(encoding="utf-8")
    assert not [secret for secret in ("dent", "scratch", *SECRETS) if secret in text]


def test_the_bytes_in_the_log_are_those_of_the_arrays(logged: SiteSettings) -> None:
    reply = leave(UPDATE, logged, asked())
    found = lines_of(logged)[0]["bytes"]
    record = reply.content.array_records["update"]
    assert found["update/delta"] == len(record["delta"].data) > DELTA.nbytes
    assert found["update/slots"] == len(record["slots"].data) > SLOTS.nbytes


def test_what_is_refused_is_not_logged_as_having_left(logged: SiteSettings) -> None:
    refused(Judged({"pixel-0": 1.0}), logged)
    assert not Path(logged.log).exists()


def test_what_cannot_be_logged_does_not_leave(logged: SiteSettings, tmp_path: Path) -> None:
    for log in (tmp_path, tmp_path / "no folder" / "log.jsonl"):
        with pytest.raises((OSError, FedreptileError)):
            leave(UPDATE, replace(logged, log=str(log)), asked())


def test_an_error_whose_log_line_cannot_be_written_still_says_nothing(logged: SiteSettings, tmp_path: Path) -> None:
    """Otherwise the exception reaches Flower, which sends its text, with the path, to the server."""
    nowhere = replace(logged, log=str(tmp_path / "ward-7" / "4711.jsonl"))
    assert_says_nothing(leave_error(ValueError(SECRET_TEXT), nowhere, asked()))


def test_pythons_log_has_names_and_bytes_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for content in (UPDATE, JUDGED, TABLE, INTRODUCTION):
            leave(content, OPEN, asked())
        leave_error(ValueError(SECRET_TEXT), OPEN, asked())
    lines = [record.getMessage() for record in caplog.records if record.name == "fedreptile.outbound"]
    assert [line.split(" leaves ")[0] for line in lines] == ["Update", "Judged", "ClassTable", "Introduction", "Error"]
    total = sum(len(record.data) for record in leave(UPDATE, OPEN, asked()).content.array_records["update"].values())
    sizes = len(str(15.0)) + len(str(0.25))
    assert lines[0].startswith(f"Update leaves line-3: {total + sizes} bytes in update/delta, update/slots")
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


def callees_returned(function: ast.FunctionDef) -> set[str]:
    """Return the names of the functions whose results a function returns; '?' for anything else."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Return):
            called = node.value.func if isinstance(node.value, ast.Call) else None
            found.add(called.id if isinstance(called, ast.Name) else "?")
    return found


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
    making = {name for name, tree in modules_of_client().items() if messages_made_in(tree)}
    assert making == {"outbound.py"}


def test_the_client_app_returns_nothing_but_what_the_door_returned() -> None:
    functions = functions_of(modules_of_client()["app.py"])
    assert callees_returned(functions["answer"]) == {"leave", "leave_error"}
    handlers = [
        function for function in functions.values() if function.decorator_list and "Message" in ast.dump(function)
    ]
    assert {function.name for function in handlers} == {"train", "evaluate", "introduce", "class_table"}
    for function in handlers:
        assert callees_returned(function) == {"answer"}


def test_no_module_of_the_client_opens_a_connection_of_its_own() -> None:
    assert not {name: found for name, tree in modules_of_client().items() if (found := network_modules_in(tree))}


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
