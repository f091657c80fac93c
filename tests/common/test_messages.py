"""What travels, both ways, over Flower's own serialisation, and everything malformed that a decoder may meet."""

import io
import math
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import FedreptileError, RequestError, UpdateError
from common.messages import (
    GATE_SCALARS,
    MOST_CLASSES,
    SCALARS,
    Agreement,
    Candidate,
    ClassTable,
    Flat,
    GateReport,
    GateRequest,
    Introduction,
    Judged,
    Request,
    Update,
    decode_class_table,
    decode_gate_report,
    decode_gate_request,
    decode_introduction,
    decode_judged,
    decode_request,
    decode_scalars,
    decode_update,
    encode_class_table,
    encode_gate_report,
    encode_gate_request,
    encode_introduction,
    encode_judged,
    encode_request,
    encode_update,
    payload_bytes,
    read_array,
)

AGREED = Agreement(params=6, update=4, slots=3, embedding=2, dtype="float32", digest="0123456789abcdef" * 4)
SLOTLESS = replace(AGREED, slots=0)
DOUBLE = replace(AGREED, dtype="float64")


def numbers(count: int, dtype: str = "float32") -> Flat:
    return np.linspace(-1.5, 3.25, count, dtype=dtype)


Record = ArrayRecord | ConfigRecord | MetricRecord


def records(**content: Record) -> RecordDict:
    return RecordDict({name.replace("_", "-"): record for name, record in content.items()})


# --- Both ways -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Codec:
    """One kind of message: a value, and how it is written and read."""

    value: Any
    encode: Callable[[Any], RecordDict]
    decode: Callable[[RecordDict], Any]


def request_codec(agreed: Agreement, **changes: Any) -> Codec:
    request = Request(7, numbers(6, agreed.dtype), numbers(agreed.slots, agreed.dtype), True)
    return Codec(
        replace(request, **changes),
        lambda value: encode_request(value, agreed.digest),
        lambda content: decode_request(content, agreed),
    )


def update_codec(agreed: Agreement, scalars: Mapping[str, float]) -> Codec:
    update = Update(numbers(4, agreed.dtype), numbers(agreed.slots, agreed.dtype), scalars)
    return Codec(update, encode_update, lambda content: decode_update(content, agreed))


def table_codec(names: tuple[str, ...], counts: tuple[int, ...]) -> Codec:
    table = ClassTable(names, counts, numbers(2 * len(names)).reshape(len(names), 2))
    return Codec(table, encode_class_table, lambda content: decode_class_table(content, AGREED))


def judged_codec(judged: Judged) -> Codec:
    return Codec(judged, encode_judged, decode_judged)


def introduction_codec(introduction: Introduction) -> Codec:
    return Codec(introduction, encode_introduction, decode_introduction)


def gate_request_codec(agreed: Agreement) -> Codec:
    """Two models, of which the champion has no class table."""
    size = agreed.embedding
    empty = ClassTable((), (), numbers(0, agreed.dtype).reshape(0, size))
    table = ClassTable(("crack", "dent"), (5, 1), numbers(2 * size, agreed.dtype).reshape(2, size))
    params, slots = numbers(agreed.params, agreed.dtype), numbers(agreed.slots, agreed.dtype)
    champion, challenger = Candidate(params, slots, empty), Candidate(params + 1, slots, table)
    return Codec(
        GateRequest(4, "dent", champion, challenger),
        lambda value: encode_gate_request(value, agreed.digest),
        lambda content: decode_gate_request(content, agreed),
    )


def gate_report_codec(report: GateReport) -> Codec:
    return Codec(report, encode_gate_report, decode_gate_report)


FIGURES = {name: 1.0 + place / 3 for place, name in enumerate(sorted(SCALARS))}
PER_CLASS = {"crack": (3, 5), "a/b": (0, 0), "Kratzer \u00fc": (2, 2)}

CODECS = {
    "request": request_codec(AGREED),
    "request without slots": request_codec(SLOTLESS),
    "request without judgement": request_codec(AGREED, judge=False, round=0),
    "request in float64": request_codec(DOUBLE),
    "update": update_codec(AGREED, {"num-examples": 50.0}),
    "update of one example": update_codec(AGREED, {"num-examples": 1.0}),
    "update without slots": update_codec(SLOTLESS, FIGURES),
    "update in float64": update_codec(DOUBLE, FIGURES),
    "judged": judged_codec(Judged({"accuracy-after": 0.5}, PER_CLASS)),
    "judged, classes kept back": judged_codec(Judged(FIGURES)),
    "judged, nothing at all": judged_codec(Judged({})),
    "class table": table_codec(("crack", "a/b", "\u00fc"), (5, 1, 2**40)),
    "empty class table": table_codec((), ()),
    "introduction": introduction_codec(
        Introduction("line 1", {"b": 3, "a": 0}, "cuda:0", {"torch": "2.13", "flwr": "1"})
    ),
    "introduction with a release": introduction_codec(
        Introduction("line 1", {"a": 1}, "cpu", {}, release=7, refused=6, wishes={"dent": 10, "burr": 2})
    ),
    "gate request": gate_request_codec(AGREED),
    "gate request without slots": gate_request_codec(SLOTLESS),
    "gate report": gate_report_codec(
        GateReport(dict.fromkeys(sorted(GATE_SCALARS), 0.5), {"crack": (5, 3, 4), "\u00fc": (0, 0, 0)}, (10, 9), (8, 0))
    ),
    "gate report, classes kept back": gate_report_codec(GateReport({"num-held-back": 3.0})),
    "introduction, classes kept back": introduction_codec(Introduction("s" * 200, {}, "", {})),
}


def as_it_is(content: RecordDict) -> RecordDict:
    return content


def through_protobuf(content: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(content))


def through_flowers_objects(content: RecordDict) -> RecordDict:
    """As the network sends a record: in pieces, each named by its hash."""
    pieces = {name: piece.deflate() for name, piece in get_all_nested_objects(content).items()}
    back = inflate_object_from_contents(content.object_id, pieces)
    assert isinstance(back, RecordDict)
    return back


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    for item in fields(expected):
        mine, theirs = getattr(found, item.name), getattr(expected, item.name)
        if isinstance(theirs, np.ndarray):
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), item.name
            assert mine.tobytes() == theirs.tobytes(), item.name
        elif isinstance(theirs, Candidate | ClassTable):
            assert_equal(mine, theirs)
        else:
            assert mine == theirs, item.name
            assert type(mine) is type(theirs) or isinstance(theirs, Mapping), item.name


@pytest.mark.parametrize("wire", [as_it_is, through_protobuf, through_flowers_objects])
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
def test_what_was_sent_is_what_is_received(codec: Codec, wire: Callable[[RecordDict], RecordDict]) -> None:
    assert_equal(codec.decode(wire(codec.encode(codec.value))), codec.value)


names = st.text(min_size=1, max_size=12)
counts = st.integers(0, 2**62)
figures = st.dictionaries(st.sampled_from(sorted(SCALARS)), st.floats(allow_nan=False, allow_infinity=False))


@given(figures, st.dictionaries(names, st.tuples(counts, counts).map(lambda pair: (min(pair), max(pair)))))
def test_any_judgement_comes_back(scalars: dict[str, float], per_class: dict[str, tuple[int, int]]) -> None:
    judged = Judged(scalars, per_class)
    assert_equal(decode_judged(through_protobuf(encode_judged(judged))), judged)


@given(names, st.dictionaries(names, counts), st.text(), st.dictionaries(names, st.text()))
def test_any_introduction_comes_back(name: str, classes: dict[str, int], device: str, versions: dict[str, str]) -> None:
    introduction = Introduction(name, classes, device, versions)
    assert_equal(decode_introduction(through_protobuf(encode_introduction(introduction))), introduction)


def test_names_are_sent_in_order_so_that_equal_messages_are_equal_bytes() -> None:
    for order in ("abc", "cab"):
        judged = encode_judged(Judged({}, dict.fromkeys(order, (0, 1))))
        introduction = encode_introduction(Introduction("s", dict.fromkeys(order, 1), "cpu", dict.fromkeys(order, "1")))
        assert judged.config_records["per-class"]["names"] == ["a", "b", "c"]
        assert introduction.config_records["introduction"]["classes"] == ["a", "b", "c"]
        assert introduction.config_records["introduction"]["packages"] == ["a", "b", "c"]


def test_encoding_changes_nothing_in_what_is_sent() -> None:
    update = Update(numbers(4), numbers(3), dict(FIGURES))
    content = encode_update(update)
    scalars = content["scalars"]
    assert isinstance(scalars, MetricRecord)
    scalars["seconds"] = 0.0
    assert update.scalars == FIGURES
    assert update.delta.tobytes() == numbers(4).tobytes()


def test_a_received_array_is_read_where_it_lies() -> None:
    array = Array(numbers(4))
    assert np.shares_memory(read_array(array, 4, "float32"), np.frombuffer(array.data, np.uint8))


# --- Malformed arrays ----------------------------------------------------------------------------


def npy(header: str, data: bytes, version: bytes = b"\x01\x00") -> bytes:
    """A .npy file with this text as its header."""
    width = 2 if version == b"\x01\x00" else 4
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(width, "little") + text + data


def header_of(descr: str, shape: str, order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def saved(values: Any, *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=allow_pickle)
    return stream.getvalue()


def with_data(data: bytes) -> Callable[[Array], Array]:
    return lambda array: Array(array.dtype, array.shape, array.stype, data)


def with_header(header: Callable[[Array], str], version: bytes = b"\x01\x00") -> Callable[[Array], Array]:
    def changed(array: Array) -> Array:
        return with_data(npy(header(array), array.numpy().tobytes(), version))(array)

    return changed


def with_value(value: float) -> Callable[[Array], Array]:
    def changed(array: Array) -> Array:
        values = array.numpy().copy()
        values[-1] = value
        return Array(values)

    return changed


def shape_of(array: Array) -> str:
    return str(array.shape)


MALFORMED_ARRAYS: dict[str, tuple[Callable[[Array], Array], str]] = {
    "trailing bytes": (lambda a: with_data(a.data + b"\0")(a), "truncated"),
    "a whole array behind it": (lambda a: with_data(a.data + a.data)(a), "truncated"),
    "no bytes": (with_data(b""), "truncated"),
    "text": (with_data(b"not an array at all, but long enough to hold a header" * 10), "truncated"),
    "not a number": (with_value(math.nan), "not-finite"),
    "infinity": (with_value(math.inf), "not-finite"),
    "minus infinity": (with_value(-math.inf), "not-finite"),
    "one element more": (lambda a: Array(np.append(a.numpy(), np.float32(0))), "wrong-shape"),
    "one element less": (lambda a: Array(a.numpy()[:-1]), "wrong-shape"),
    "no element": (lambda a: Array(a.numpy()[:0]), "wrong-shape"),
    "two dimensions": (lambda a: Array(a.numpy()[:, None]), "wrong-shape"),
    "no dimension": (lambda a: Array(np.array(0, a.dtype)), "wrong-shape"),
    "float64": (lambda a: Array(a.numpy().astype("float64")), "wrong-dtype"),
    "float16": (lambda a: Array(a.numpy().astype("float16")), "wrong-dtype"),
    "whole numbers": (lambda a: Array(a.numpy().astype("int32")), "wrong-dtype"),
    "truth values": (lambda a: Array(a.numpy().astype("bool")), "wrong-dtype"),
    "big-endian": (lambda a: Array(a.numpy().astype(">f4")), "wrong-dtype"),
    "another serialisation": (lambda a: Array(a.dtype, a.shape, "torch.pickle", a.data), "wrong-dtype"),
    "big-endian said to be float32": (with_header(lambda a: header_of("'>f4'", shape_of(a))), "wrong-shape"),
    "int32 said to be float32": (with_header(lambda a: header_of("'<i4'", shape_of(a))), "wrong-shape"),
    "float64 said to be float32": (lambda a: with_data(saved(a.numpy().astype("float64")))(a), "wrong-shape"),
    "another shape than said": (lambda a: with_data(saved(np.append(a.numpy(), np.float32(0))))(a), "wrong-shape"),
    "a shape that is not its header's": (lambda a: Array(a.dtype, (99,), a.stype, a.data), "wrong-shape"),
    "a header that says more than there is": (
        with_header(lambda a: header_of("'<f4'", f"({10**15},)")),
        "wrong-shape",
    ),
    "a header of negative size": (with_header(lambda a: header_of("'<f4'", "(-1,)")), "wrong-shape"),
    "an array that says it is huge": (
        lambda a: Array(a.dtype, (10**15,), a.stype, npy(header_of("'<f4'", f"({10**15},)"), b"\0" * 16)),
        "wrong-shape",
    ),
    "a header as long as its length can say": (
        with_data(b"\x93NUMPY\x01\x00\xff\xff" + b" " * 65535),
        "truncated",
    ),
    "version 2 of the format": (with_header(lambda a: header_of("'<f4'", shape_of(a)), b"\x02\x00"), "truncated"),
    "version 3 of the format": (with_header(lambda a: header_of("'<f4'", shape_of(a)), b"\x03\x00"), "truncated"),
    "a header without shape": (with_header(lambda a: "{'descr': '<f4', 'fortran_order': False}"), "truncated"),
    "a header that is a list": (with_header(lambda a: "[1, 2]"), "truncated"),
    "a header that is an expression": (with_header(lambda a: "__import__('os').getpid()"), "truncated"),
    "a header that never ends": (
        with_header(lambda a: f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape_of(a)[:-1]}"),
        "truncated",
    ),
    "a header of brackets": (with_header(lambda a: "(" * 400), "truncated"),
    "a header of minus signs": (with_header(lambda a: "-" * 400 + "1"), "truncated"),
    "a header with text that never ends": (with_header(lambda a: '"""'), "truncated"),
    "a header with an empty dtype": (with_header(lambda a: header_of("()", shape_of(a))), "truncated"),
    "a header of digits": (with_header(lambda a: header_of("'<f4'", "(" + "1" * 400 + "!)")), "truncated"),
    "a header with null bytes": (with_header(lambda a: "\0" * 50), "truncated"),
}

CARRIERS = {
    "params of a request": ("request", "request", "params"),
    "slots of a request": ("request", "request", "slots"),
    "delta of an update": ("update", "update", "delta"),
    "slots of an update": ("update", "update", "slots"),
    "sums of a class table": ("class table", "class-table", "sums"),
}


def with_array(carrier: tuple[str, str, str], change: Callable[[Array], Array]) -> tuple[Codec, RecordDict]:
    kind, key, name = carrier
    codec = CODECS[kind]
    content = codec.encode(codec.value)
    record = content.array_records[key]
    record[name] = change(record[name])
    return codec, content


def cause_of(codec: Codec, content: RecordDict) -> str:
    """Return the cause of the error that decoding ends with, whoever is to blame."""
    with pytest.raises((UpdateError, RequestError)) as caught:
        codec.decode(content)
    error = caught.value if isinstance(caught.value, UpdateError) else caught.value.__cause__
    assert isinstance(error, UpdateError)
    assert isinstance(caught.value, RequestError) == isinstance(codec.value, Request)
    return error.cause


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS.keys())
@pytest.mark.parametrize(("change", "cause"), MALFORMED_ARRAYS.values(), ids=MALFORMED_ARRAYS.keys())
def test_a_malformed_array_is_refused_with_its_cause(
    carrier: tuple[str, str, str], change: Callable[[Array], Array], cause: str
) -> None:
    codec, content = with_array(carrier, change)
    assert cause_of(codec, content) == cause


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS.keys())
def test_an_array_cut_off_after_any_byte_is_refused_as_truncated(carrier: tuple[str, str, str]) -> None:
    _, whole = with_array(carrier, lambda array: array)
    length = len(whole.array_records[carrier[1]][carrier[2]].data)
    for stop in range(length):
        codec, content = with_array(carrier, lambda array, stop=stop: with_data(array.data[:stop])(array))  # type: ignore[misc]
        assert cause_of(codec, content) == "truncated", stop


@given(
    st.lists(
        st.tuples(st.integers(0, 127), st.sampled_from([*b"()[]{}'\",:#\\0123 LOabf<>|-+\n\0", 0x80, 0xFF])),
        min_size=1,
        max_size=4,
    )
)
@example([(21, 44)])  # makes the type a text that numpy parses as Python
def test_no_change_of_an_arrays_header_ends_in_another_error(changes: list[tuple[int, int]]) -> None:
    array = Array(numbers(4))
    data = bytearray(array.data)
    for place, byte in changes:
        data[place] = byte
    try:
        found = read_array(with_data(bytes(data))(array), 4, "float32")
    except UpdateError:
        return
    assert found.tobytes() == numbers(4).tobytes()


@pytest.mark.parametrize("size", [1, 10**12])
def test_a_size_that_the_sender_claims_is_not_allocated(size: int) -> None:
    claims = Array("float32", (size,), "numpy.ndarray", npy(header_of("'<f4'", f"({10**12},)"), b"\0" * 16))
    tracemalloc.start()
    try:
        for expected in (4, 10**12):
            with pytest.raises(UpdateError):
                read_array(claims, expected, "float32")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1_000_000


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "unpickled"))


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS.keys())
@pytest.mark.parametrize("bare", [True, False], ids=["pickle as data", "array of objects"])
def test_an_attack_by_pickle_is_refused_and_not_run(carrier: tuple[str, str, str], bare: bool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def change(array: Array) -> Array:
        objects = np.array([Attack(mark)] * array.shape[0], dtype=object)
        return with_data(pickle.dumps(Attack(mark)) if bare else saved(objects, allow_pickle=True))(array)

    codec, content = with_array(carrier, change)
    assert cause_of(codec, content) == ("truncated" if bare else "wrong-shape")
    assert not mark.exists()


def test_the_attack_by_pickle_would_work_on_a_decoder_that_unpickles(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Attack(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


# --- Malformed records ---------------------------------------------------------------------------


def config(content: RecordDict, key: str) -> ConfigRecord:
    return content.config_records[key]


def put(key: str, name: str, value: Any) -> Callable[[RecordDict], None]:
    """Return a change of one value of one record."""

    def change(content: RecordDict) -> None:
        record: Any = content[key]
        record[name] = value

    return change


def drop(key: str, name: str | None = None) -> Callable[[RecordDict], None]:
    """Return a change that takes a record, or one value of it, away."""

    def change(content: RecordDict) -> None:
        if name is None:
            del content[key]
        else:
            record: Any = content[key]
            del record[name]

    return change


def swap(key: str, record: Record) -> Callable[[RecordDict], None]:
    """Return a change that puts a record in the place of another."""

    def change(content: RecordDict) -> None:
        content[key] = record

    return change


def several(*changes: Callable[[RecordDict], None]) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        for one in changes:
            one(content)

    return change


Table = dict[str, tuple[str, Callable[[RecordDict], None], str]]

EXTRA = swap("extra", MetricRecord({"seconds": 1.0}))

MALFORMED_RECORDS: Table = {
    "update: no arrays": ("update", drop("update"), "missing-key"),
    "update: no scalars": ("update", drop("scalars"), "missing-key"),
    "update: nothing": ("update", several(drop("scalars"), drop("update")), "missing-key"),
    "update: no delta": ("update", drop("update", "delta"), "missing-key"),
    "update: no slots": ("update", drop("update", "slots"), "missing-key"),
    "update: slots that were not agreed": (
        "update without slots",
        put("update", "slots", Array(numbers(3))),
        "extra-key",
    ),
    "update: an extra array": ("update", put("update", "inputs", Array(numbers(3))), "extra-key"),
    "update: an extra record": ("update", EXTRA, "extra-key"),
    "update: arrays are scalars": ("update", swap("update", MetricRecord({"delta": 1.0})), "wrong-record"),
    "update: arrays are a config": ("update", swap("update", ConfigRecord({"delta": b"\0"})), "wrong-record"),
    "update: scalars are a config": ("update", swap("scalars", ConfigRecord({"num-examples": 1.0})), "wrong-record"),
    "update: scalars are arrays": (
        "update",
        swap("scalars", ArrayRecord({"num-examples": Array(numbers(1))})),
        "wrong-record",
    ),
    "update: a scalar of its own": ("update", put("scalars", "patient-age", 63.0), "extra-key"),
    "update: a list of scalars": ("update", put("scalars", "seconds", [1.0, 2.0]), "not-finite"),
    "update: an empty list": ("update", put("scalars", "seconds", []), "not-finite"),
    "update: not a number": ("update", put("scalars", "seconds", math.nan), "not-finite"),
    "update: infinity": ("update", put("scalars", "nll-after", math.inf), "not-finite"),
    "update: minus infinity": ("update", put("scalars", "nll-after", -math.inf), "not-finite"),
    "update: no examples": ("update", put("scalars", "num-examples", 0), "scalars"),
    "update: half an example": ("update", put("scalars", "num-examples", 0.5), "scalars"),
    "update: fewer than no examples": ("update", put("scalars", "num-examples", -10), "scalars"),
    "update: examples not counted": ("update", drop("scalars", "num-examples"), "scalars"),
    "update: examples not a number": ("update", put("scalars", "num-examples", math.nan), "not-finite"),
    "judged: no scalars": ("judged", drop("scalars"), "missing-key"),
    "judged: no classes": ("judged", drop("per-class"), "missing-key"),
    "judged: an extra record": ("judged", EXTRA, "extra-key"),
    "judged: scalars are a config": ("judged", swap("scalars", ConfigRecord({})), "wrong-record"),
    "judged: classes are scalars": ("judged", swap("per-class", MetricRecord({})), "wrong-record"),
    "judged: a scalar of its own": ("judged", put("scalars", "name", 1.0), "extra-key"),
    "judged: a scalar not finite": ("judged", put("scalars", "accuracy-after", math.nan), "not-finite"),
    "judged: no names": ("judged", drop("per-class", "names"), "missing-key"),
    "judged: no totals": ("judged", drop("per-class", "total"), "missing-key"),
    "judged: an extra column": ("judged", put("per-class", "wrong", [1, 2, 3]), "extra-key"),
    "judged: names are numbers": ("judged", put("per-class", "names", [1, 2, 3]), "wrong-record"),
    "judged: names are bytes": ("judged", put("per-class", "names", [b"a", b"b", b"c"]), "wrong-record"),
    "judged: names are one text": ("judged", put("per-class", "names", "abc"), "wrong-record"),
    "judged: counts are fractions": ("judged", put("per-class", "correct", [0.0, 0.0, 0.0]), "wrong-record"),
    "judged: counts are truth values": ("judged", put("per-class", "correct", [False, True, False]), "wrong-record"),
    "judged: counts are one number": ("judged", put("per-class", "correct", 3), "wrong-record"),
    "judged: a negative count": ("judged", put("per-class", "correct", [0, -1, 0]), "wrong-record"),
    "judged: more names than counts": ("judged", put("per-class", "names", ["a", "b", "c", "d"]), "per-class"),
    "judged: fewer totals than names": ("judged", put("per-class", "total", [9, 9]), "per-class"),
    "judged: fewer correct than names": ("judged", put("per-class", "correct", [0, 0]), "per-class"),
    "judged: more correct than judged": ("judged", put("per-class", "correct", [0, 3, 6]), "per-class"),
    "judged: a class named twice": ("judged", put("per-class", "names", ["a", "b", "a"]), "per-class"),
    "class table: no sums": ("class table", drop("class-table"), "missing-key"),
    "class table: no classes": ("class table", drop("classes"), "missing-key"),
    "class table: an extra record": ("class table", EXTRA, "extra-key"),
    "class table: an extra array": ("class table", put("class-table", "inputs", Array(numbers(2))), "extra-key"),
    "class table: no array": ("class table", drop("class-table", "sums"), "missing-key"),
    "class table: sums are scalars": ("class table", swap("class-table", MetricRecord({"sums": 1.0})), "wrong-record"),
    "class table: classes are scalars": ("class table", swap("classes", MetricRecord({})), "wrong-record"),
    "class table: no counts": ("class table", drop("classes", "counts"), "missing-key"),
    "class table: an extra column": ("class table", put("classes", "patients", [1, 2, 3]), "extra-key"),
    "class table: names are numbers": ("class table", put("classes", "names", [1, 2, 3]), "wrong-record"),
    "class table: counts are fractions": ("class table", put("classes", "counts", [1.0, 2.0, 3.0]), "wrong-record"),
    "class table: counts are truth values": ("class table", put("classes", "counts", [True] * 3), "wrong-record"),
    "class table: a negative count": ("class table", put("classes", "counts", [1, -1, 1]), "wrong-record"),
    "class table: a class of none": ("class table", put("classes", "counts", [1, 0, 1]), "class-table"),
    "class table: more counts than names": ("class table", put("classes", "counts", [1, 1, 1, 1]), "class-table"),
    "class table: a class named twice": ("class table", put("classes", "names", ["a", "b", "a"]), "class-table"),
    "class table: fewer classes than sums": (
        "class table",
        several(put("classes", "names", ["a", "b"]), put("classes", "counts", [1, 1])),
        "wrong-shape",
    ),
    "class table: sums of no class": (
        "class table",
        several(put("classes", "names", []), put("classes", "counts", [])),
        "extra-key",
    ),
    "introduction: nothing": ("introduction", drop("introduction"), "missing-key"),
    "introduction: an extra record": ("introduction", EXTRA, "extra-key"),
    "introduction: scalars": ("introduction", swap("introduction", MetricRecord({})), "wrong-record"),
    "introduction: no name": ("introduction", drop("introduction", "name"), "missing-key"),
    "introduction: no device": ("introduction", drop("introduction", "device"), "missing-key"),
    "introduction: an extra field": ("introduction", put("introduction", "path", "/data"), "extra-key"),
    "introduction: an empty name": ("introduction", put("introduction", "name", ""), "introduction"),
    "introduction: a name too long": ("introduction", put("introduction", "name", "s" * 201), "introduction"),
    "introduction: a number as name": ("introduction", put("introduction", "name", 5), "wrong-record"),
    "introduction: a list as name": ("introduction", put("introduction", "name", ["a"]), "wrong-record"),
    "introduction: a number as device": ("introduction", put("introduction", "device", 0), "wrong-record"),
    "introduction: classes are one text": ("introduction", put("introduction", "classes", "ab"), "wrong-record"),
    "introduction: a negative count": ("introduction", put("introduction", "counts", [1, -3]), "wrong-record"),
    "introduction: counts are truth values": (
        "introduction",
        put("introduction", "counts", [True, True]),
        "wrong-record",
    ),
    "introduction: a count too few": ("introduction", put("introduction", "counts", [1]), "introduction"),
    "introduction: a version too many": ("introduction", put("introduction", "versions", ["1"] * 3), "introduction"),
    "introduction: versions are numbers": ("introduction", put("introduction", "versions", [1, 2]), "wrong-record"),
    "introduction: a class named twice": ("introduction", put("introduction", "classes", ["a", "a"]), "introduction"),
    "introduction: a package named twice": (
        "introduction",
        put("introduction", "packages", ["a", "a"]),
        "introduction",
    ),
    "introduction: no release": ("introduction", drop("introduction", "release"), "missing-key"),
    "introduction: a release of text": ("introduction", put("introduction", "release", "3"), "wrong-record"),
    "introduction: a release that is true": ("introduction", put("introduction", "release", True), "wrong-record"),
    "introduction: a release below none": ("introduction", put("introduction", "refused", -1), "wrong-record"),
    "introduction: wishes without numbers": ("introduction", put("introduction", "wishes", ["dent"]), "introduction"),
    "introduction: a wish of less than none": (
        "introduction",
        several(put("introduction", "wishes", ["dent"]), put("introduction", "wished", [-1])),
        "wrong-record",
    ),
    "gate report: no folds": ("gate report", drop("per-class", "folds"), "missing-key"),
    "gate report: an extra column": ("gate report", put("per-class", "samples", [1, 2]), "extra-key"),
    "gate report: an extra record": ("gate report", EXTRA, "extra-key"),
    "gate report: three folds": ("gate report", put("per-class", "folds", [9, 9, 9]), "per-class"),
    "gate report: more recognised than tried": ("gate report", put("per-class", "folds", [9, 10]), "per-class"),
    "gate report: more by the table than tried": ("gate report", put("per-class", "by-table", [0, 1]), "per-class"),
    "gate report: more right than there are": ("gate report", put("per-class", "challenger", [6, 0]), "per-class"),
    "gate report: more right before": ("gate report", put("per-class", "champion", [6, 0]), "per-class"),
    "gate report: more than can be": ("gate report", put("per-class", "total", [10**9 + 1, 0]), "per-class"),
    "gate report: a class named twice": ("gate report", put("per-class", "names", ["a", "a"]), "per-class"),
    "gate report: half a fold": ("gate report", put("per-class", "folds", [9.5, 1.0]), "wrong-record"),
    "gate report: a figure of rounds": ("gate report", put("scalars", "accuracy-after", 0.5), "extra-key"),
    "gate report: more than everything": ("gate report", put("scalars", "accuracy-champion", 1.5), "scalars"),
    "gate report: less than nothing": ("gate report", put("scalars", "num-held-back", -1.0), "scalars"),
    "gate report: more inputs than can be": ("gate report", put("scalars", "num-held-back", 2e9), "scalars"),
    "gate report: no number": ("gate report", put("scalars", "nll-champion", math.nan), "not-finite"),
    "request: an extra array": ("request", put("request", "labels", Array(numbers(3))), "extra-key"),
    "request: no params": ("request", drop("request", "params"), "missing-key"),
    "request: no slots": ("request", drop("request", "slots"), "missing-key"),
    "request: slots that were not agreed": (
        "request without slots",
        put("request", "slots", Array(numbers(3))),
        "extra-key",
    ),
}


@pytest.mark.parametrize(("kind", "change", "cause"), MALFORMED_RECORDS.values(), ids=MALFORMED_RECORDS.keys())
def test_a_malformed_record_is_refused_with_its_cause(
    kind: str, change: Callable[[RecordDict], None], cause: str
) -> None:
    codec = CODECS[kind]
    content = codec.encode(codec.value)
    change(content)
    assert cause_of(codec, content) == cause


MALFORMED_REQUESTS: dict[str, Callable[[RecordDict], None]] = {
    "no arrays": drop("request"),
    "no config": drop("config"),
    "nothing": several(drop("config"), drop("request")),
    "arrays are scalars": swap("request", MetricRecord({"params": 1.0})),
    "the config is scalars": swap("config", MetricRecord({"round": 1})),
    "no round": drop("config", "round"),
    "no judge": drop("config", "judge"),
    "no manifest": drop("config", "manifest"),
    "another manifest": put("config", "manifest", "f" * 64),
    "a manifest that is a number": put("config", "manifest", 5),
    "a manifest that is a list": put("config", "manifest", [AGREED.digest]),
    "a round of text": put("config", "round", "seven"),
    "a round of digits": put("config", "round", "7"),
    "a list of rounds": put("config", "round", [7]),
    "half a round": put("config", "round", 7.5),
    "a round not a number": put("config", "round", math.nan),
    "an infinite round": put("config", "round", math.inf),
    "a round that is true": put("config", "round", True),
    "judge in words": put("config", "judge", "False"),
    "judge as a number": put("config", "judge", 1),
    "an extra record": EXTRA,
    "an extra setting": put("config", "command", "rm"),
}


@pytest.mark.parametrize("change", MALFORMED_REQUESTS.values(), ids=MALFORMED_REQUESTS.keys())
def test_a_malformed_request_is_refused(change: Callable[[RecordDict], None]) -> None:
    codec = CODECS["request"]
    content = codec.encode(codec.value)
    change(content)
    with pytest.raises(RequestError):
        codec.decode(content)


MALFORMED_GATES: dict[str, Callable[[RecordDict], None]] = {
    "no arrays": drop("request"),
    "no challenger": drop("request", "challenger"),
    "no champion": drop("request", "champion"),
    "no slots": drop("request", "champion-slots"),
    "an extra array": put("request", "inputs", Array(numbers(2))),
    "a challenger too short": put("request", "challenger", Array(numbers(3))),
    "a champion in float64": put("request", "champion", Array(numbers(4, "float64"))),
    "a value that is no number": put("request", "challenger", Array(np.full(4, np.nan, np.float32))),
    "sums of other classes": put("request", "challenger-sums", Array(numbers(6))),
    "sums of no class": put("request", "champion-sums", Array(numbers(2))),
    "no sums": drop("request", "challenger-sums"),
    "names without counts": put("config", "champion-names", ["crack"]),
    "a class of none": put("config", "challenger-counts", [5, 0]),
    "a class named twice": put("config", "challenger-names", ["crack", "crack"]),
    "a class without a name": put("config", "class", ""),
    "a class that is a number": put("config", "class", 5),
    "a round of text": put("config", "round", "4"),
    "a round below none": put("config", "round", -1),
    "another manifest": put("config", "manifest", "f" * 64),
    "an extra setting": put("config", "command", "rm"),
    "classes without end": several(
        put("config", "champion-names", [str(n) for n in range(MOST_CLASSES + 1)]),
        put("config", "champion-counts", [1] * (MOST_CLASSES + 1)),
    ),
}


@pytest.mark.parametrize("change", MALFORMED_GATES.values(), ids=MALFORMED_GATES.keys())
def test_a_malformed_request_to_judge_two_models_is_refused(change: Callable[[RecordDict], None]) -> None:
    codec = CODECS["gate request"]
    content = codec.encode(codec.value)
    change(content)
    with pytest.raises(RequestError):
        codec.decode(content)


def test_a_manifest_of_another_network_is_refused_and_both_digests_named() -> None:
    content = encode_request(CODECS["request"].value, "f" * 64)
    with pytest.raises(RequestError) as caught:
        decode_request(content, AGREED)
    message = str(caught.value)
    assert all(part in message for part in ("manifest", "f" * 12, AGREED.digest[:12], "install"))


def test_the_manifest_is_compared_before_any_array_is_looked_at() -> None:
    content = records(request=ArrayRecord({}), config=ConfigRecord({"manifest": "f" * 64}))
    with pytest.raises(RequestError, match="manifest"):
        decode_request(content, AGREED)


def test_whole_numbers_are_scalars_and_come_back_as_floats() -> None:
    found = decode_scalars(MetricRecord({"num-examples": 5, "seconds": 0.5}))
    assert found == {"num-examples": 5.0, "seconds": 0.5}
    assert {type(value) for value in found.values()} == {float}


def test_every_error_names_what_it_found() -> None:
    with pytest.raises(UpdateError, match="patient-age"):
        decode_scalars(MetricRecord({"patient-age": 63.0}))
    with pytest.raises(UpdateError, match="1 of 4 values"):
        read_array(with_value(math.nan)(Array(numbers(4))), 4, "float32")
    with pytest.raises(UpdateError, match=r"\(5,\).*\(4,\)"):
        read_array(Array(numbers(5)), 4, "float32")


def test_the_text_of_an_error_begins_with_its_cause() -> None:
    error = UpdateError("a-cause", "what was found")
    assert (error.cause, str(error)) == ("a-cause", "a-cause: what was found")
    assert isinstance(error, FedreptileError)


# --- What is counted, and what is not needed ----------------------------------------------------


def test_the_bytes_of_a_message_are_those_of_its_arrays_and_of_the_text_of_its_values() -> None:
    content = encode_update(Update(numbers(4), numbers(3), {"num-examples": 50.0}))
    assert payload_bytes(content) == {
        "update/delta": len(Array(numbers(4)).data),
        "update/slots": len(Array(numbers(3)).data),
        "scalars/num-examples": len("50.0"),
    }
    assert payload_bytes(encode_judged(Judged({}, {"crack": (3, 5)}))) == {
        "per-class/names": len("['crack']"),
        "per-class/correct": len("[3]"),
        "per-class/total": len("[5]"),
    }
    assert payload_bytes(RecordDict()) == {}


def test_reading_messages_needs_no_torch() -> None:
    # Flower starts a process for every message at a site, and importing torch takes seconds.
    code = "import sys, common.messages; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
