"""What travels: requests to sites, and their replies. Torch-free.

Params and updates are one flat array each (Flower's cost is per tensor), laid out by a manifest
that both ends derive from the settings; its digest is compared. Nothing received is unpickled, and
no size stated by the sender is believed: the expected size comes from the manifest.
"""

import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from common.errors import RequestError, UpdateError

Flat = NDArray[Any]

SCALARS = frozenset(
    {"num-examples", "inner-steps", "seconds", "num-query"}
    | {f"{figure}-{when}" for figure in ("accuracy", "nll", "ece") for when in ("before", "after")}
)
"""The only figures that a site may report about a round."""
MOST_EXAMPLES = 10**9
MODELS = ("champion", "challenger")
"""What a gate compares: the model in use, and the one that a campaign has made."""
GATE_SCALARS = frozenset(
    {"num-held-back", "num-unknown"}
    | {f"{figure}-{model}" for figure in ("accuracy", "nll", "ece", "unknown") for model in MODELS}
    | {"accuracy-exact"}
)
"""The only figures that a site may report to a gate."""
MOST_CLASSES = 10_000
"""Classes in one list."""


@dataclass(frozen=True)
class Agreement:
    """What both ends derived beforehand: elements of params, of an update and of slots, and the dtype."""

    params: int
    update: int
    slots: int
    embedding: int
    dtype: str
    digest: str


@dataclass(frozen=True)
class Request:
    """What the server asks of a site."""

    round: int
    params: Flat
    """[params], in the agreed dtype."""
    slots: Flat
    """[slots]; empty unless the inner optimizer carries state."""
    judge: bool
    """Also judge on a query set that adaptation has not seen."""


@dataclass(frozen=True)
class ClassTable:
    """Sums of embeddings and counts by class name, so that others can recognise a class they never saw."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    sums: Flat
    """[len(names), d]."""


@dataclass(frozen=True)
class Update:
    """A site's reply to one round of training."""

    delta: Flat
    """[update]: adapted minus initial, of the params that are not frozen."""
    slots: Flat
    """[slots]: change of the inner optimizer's state."""
    scalars: Mapping[str, float]


@dataclass(frozen=True)
class Judged:
    """A site's reply to a request for judgement."""

    scalars: Mapping[str, float]
    per_class: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Class name -> (correct, total) after adaptation."""


@dataclass(frozen=True)
class Introduction:
    """What a site says about itself. Never a sample."""

    name: str
    classes: Mapping[str, int]
    """Class name -> number of inputs."""
    device: str
    versions: Mapping[str, str]
    release: int = 0
    """Number of the release that the site's model comes from; 0: none."""
    refused: int = 0
    """The last release that the site's own check refused; 0: none."""
    wishes: Mapping[str, int] = field(default_factory=dict)
    """Classes for which the site asks a campaign -> number of labelled inputs."""


@dataclass(frozen=True)
class Candidate:
    """A model as a release holds it."""

    params: Flat
    """[params], in the agreed dtype."""
    slots: Flat
    """[slots]"""
    table: ClassTable
    """Classes that sites recognise without having them."""


@dataclass(frozen=True)
class GateRequest:
    """Two models, which each site adapts as on adoption and judges on what it holds back."""

    round: int
    new_class: str
    champion: Candidate
    challenger: Candidate
    exact: Flat | None = None
    """The challenger's params before they were rounded for a small difference; None: they were not."""


@dataclass(frozen=True)
class GateReport:
    """A site's judgement of two models. What its policy does not let out is not there.

    Scalars: ``num-held-back`` inputs of old classes, accuracy, mean nll and ece of both models on them, and
    ``accuracy-exact`` of the challenger before it was rounded, if it was; with the new
    class hidden, ``unknown-…``: the area under the ROC curve by which distance tells ``num-unknown`` inputs of it from
    those.
    """

    scalars: Mapping[str, float]
    per_class: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """Class name -> held-back inputs, right by the champion, right by the challenger."""
    folds: tuple[int, int] = (0, 0)
    """New class, each of its inputs left out once: tried, recognised by the challenger."""
    by_table: tuple[int, int] = (0, 0)
    """The same by the challenger's class table alone, as at a site that never saw the class."""


def encode_request(request: Request, digest: str) -> RecordDict:
    arrays = {"params": Array(request.params)}
    if request.slots.size:
        arrays["slots"] = Array(request.slots)
    config = ConfigRecord({"round": request.round, "judge": request.judge, "manifest": digest})
    return RecordDict({"request": ArrayRecord(arrays), "config": config})


def decode_request(content: RecordDict, agreed: Agreement) -> Request:
    """Raises RequestError if the server's message is not of the agreed form."""
    try:
        _exactly(content, {"request", "config"})
        config = _record(content, "config", ConfigRecord)
        _check_manifest(config, agreed)  # first, since another version may also differ in the rest
        _exactly(config, {"round", "judge", "manifest"})
        number, judge = config["round"], config["judge"]
        if type(number) is not int or type(judge) is not bool:
            raise UpdateError("wrong-record", "round is not a whole number, or judge not true or false")
        sizes = {"params": agreed.params, "slots": agreed.slots}
        arrays = _arrays(_record(content, "request", ArrayRecord), sizes, agreed.dtype)
    except UpdateError as error:
        raise RequestError(f"the server's message does not fit: {error}") from error
    return Request(number, arrays["params"], arrays["slots"], judge)


def _check_manifest(config: ConfigRecord, agreed: Agreement) -> None:
    if config.get("manifest") != agreed.digest:
        raise RequestError(
            f"the server's manifest {str(config.get('manifest'))[:12]} differs from this site's "
            f"{agreed.digest[:12]}: network, head, frozen names or code version differ; install the same version "
            "as the server"
        )


def encode_update(update: Update) -> RecordDict:
    arrays = {"delta": _array(update.delta)}
    if update.slots.size:
        arrays["slots"] = _array(update.slots)
    return RecordDict({"update": ArrayRecord(arrays), "scalars": MetricRecord(dict(update.scalars))})


def _array(values: Flat) -> Array:
    """Return what ``Array(values)`` returns of a flat array, copying it once instead of three times."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
    data = b"".join((header.getvalue(), values.data.cast("B")))
    return Array(str(values.dtype), values.shape, "numpy.ndarray", data)


def decode_update(content: RecordDict, agreed: Agreement) -> Update:
    """Check a reply in full. Raises UpdateError, whose cause the server counts."""
    _exactly(content, {"update", "scalars"})
    record = _record(content, "update", ArrayRecord)
    arrays = _arrays(record, {"delta": agreed.update, "slots": agreed.slots}, agreed.dtype)
    scalars = decode_scalars(_record(content, "scalars", MetricRecord))
    if not 1 <= scalars.get("num-examples", 0) <= MOST_EXAMPLES:
        raise UpdateError("scalars", f"num-examples is missing, below 1 or above {MOST_EXAMPLES}")
    return Update(arrays["delta"], arrays["slots"], scalars)


def encode_judged(judged: Judged) -> RecordDict:
    names = sorted(judged.per_class)
    per_class = ConfigRecord(
        {
            "names": names,
            "correct": [judged.per_class[name][0] for name in names],
            "total": [judged.per_class[name][1] for name in names],
        }
    )
    return RecordDict({"scalars": MetricRecord(dict(judged.scalars)), "per-class": per_class})


def decode_judged(content: RecordDict) -> Judged:
    """Raises UpdateError if the reply is not of the agreed form."""
    _exactly(content, {"scalars", "per-class"})
    table = _record(content, "per-class", ConfigRecord)
    _exactly(table, {"names", "correct", "total"})
    names, correct, total = _names(table["names"]), _counts(table["correct"]), _counts(table["total"])
    _together("per-class", names, correct, total)
    if any(c > t for c, t in zip(correct, total, strict=True)):
        raise UpdateError("per-class", "a class has more correct inputs than inputs")
    pairs = zip(correct, total, strict=True)
    scalars = decode_scalars(_record(content, "scalars", MetricRecord))
    return Judged(scalars, dict(zip(names, pairs, strict=True)))


def encode_class_table(table: ClassTable) -> RecordDict:
    config = ConfigRecord({"names": list(table.names), "counts": list(table.counts)})
    arrays = {"sums": Array(table.sums.reshape(-1))} if table.names else {}
    return RecordDict({"class-table": ArrayRecord(arrays), "classes": config})


def decode_class_table(content: RecordDict, agreed: Agreement) -> ClassTable:
    """Raises UpdateError if the reply is not of the agreed form."""
    _exactly(content, {"class-table", "classes"})
    config = _record(content, "classes", ConfigRecord)
    _exactly(config, {"names", "counts"})
    names, counts = _listed(config["names"], config["counts"])
    size = len(names) * agreed.embedding
    arrays = _arrays(_record(content, "class-table", ArrayRecord), {"sums": size}, agreed.dtype)
    return ClassTable(names, counts, arrays["sums"].reshape(len(names), agreed.embedding))


def encode_introduction(introduction: Introduction) -> RecordDict:
    names = sorted(introduction.classes)
    parts = sorted(introduction.versions)
    config = ConfigRecord(
        {
            "name": introduction.name,
            "classes": names,
            "counts": [introduction.classes[name] for name in names],
            "device": introduction.device,
            "packages": parts,
            "versions": [introduction.versions[part] for part in parts],
            "release": introduction.release,
            "refused": introduction.refused,
            "wishes": sorted(introduction.wishes),
            "wished": [introduction.wishes[wish] for wish in sorted(introduction.wishes)],
        }
    )
    return RecordDict({"introduction": config})


def decode_introduction(content: RecordDict) -> Introduction:
    """Raises UpdateError if the reply is not of the agreed form."""
    _exactly(content, {"introduction"})
    config = _record(content, "introduction", ConfigRecord)
    own = {"name", "classes", "counts", "device", "packages", "versions"}
    _exactly(config, own | {"release", "refused", "wishes", "wished"})
    names, counts = _names(config["classes"]), _counts(config["counts"])
    packages, versions = _names(config["packages"]), _names(config["versions"])
    name, device = _names([config["name"], config["device"]])
    _together("introduction", names, counts)
    _together("introduction", packages, versions)
    wishes, wished = _names(config["wishes"]), _counts(config["wished"])
    _together("introduction", wishes, wished)
    release, refused = _counts([config["release"], config["refused"]])
    if not name or len(name) > 200:
        raise UpdateError("introduction", "the site's name is empty or longer than 200 characters")
    return Introduction(
        name,
        dict(zip(names, counts, strict=True)),
        device,
        dict(zip(packages, versions, strict=True)),
        release,
        refused,
        dict(zip(wishes, wished, strict=True)),
    )


def encode_gate_request(request: GateRequest, digest: str) -> RecordDict:
    arrays = {}
    config = ConfigRecord({"round": request.round, "class": request.new_class, "manifest": digest})
    for model in MODELS:
        candidate: Candidate = getattr(request, model)
        arrays[model] = Array(candidate.params)
        if candidate.slots.size:
            arrays[f"{model}-slots"] = Array(candidate.slots)
        if candidate.table.names:
            arrays[f"{model}-sums"] = Array(candidate.table.sums.reshape(-1))
        config[f"{model}-names"], config[f"{model}-counts"] = list(candidate.table.names), list(candidate.table.counts)
    if request.exact is not None:
        arrays["exact"] = Array(request.exact)
    return RecordDict({"request": ArrayRecord(arrays), "config": config})


def decode_gate_request(content: RecordDict, agreed: Agreement) -> GateRequest:
    """Raises RequestError if the server's message is not of the agreed form."""
    try:
        _exactly(content, {"request", "config"})
        config = _record(content, "config", ConfigRecord)
        _check_manifest(config, agreed)
        tables = {f"{model}-{part}" for model in MODELS for part in ("names", "counts")}
        _exactly(config, {"round", "class", "manifest"} | tables)
        (number,), (new_class,) = _counts([config["round"]]), _names([config["class"]])
        if not new_class:
            raise UpdateError("wrong-record", "the new class has no name")
        listed = {model: _listed(config[f"{model}-names"], config[f"{model}-counts"]) for model in MODELS}
        sizes = dict.fromkeys(MODELS, agreed.params) | {f"{model}-slots": agreed.slots for model in MODELS}
        sizes |= {f"{model}-sums": len(names) * agreed.embedding for model, (names, _) in listed.items()}
        record = _record(content, "request", ArrayRecord)
        sizes |= {"exact": agreed.params} if "exact" in record else {}
        arrays = _arrays(record, sizes, agreed.dtype)
    except UpdateError as error:
        raise RequestError(f"the server's message does not fit: {error}") from error
    found = {
        model: Candidate(
            arrays[model],
            arrays[f"{model}-slots"],
            ClassTable(names, counts, arrays[f"{model}-sums"].reshape(len(names), agreed.embedding)),
        )
        for model, (names, counts) in listed.items()
    }
    return GateRequest(number, new_class, **found, exact=arrays.get("exact"))


def encode_gate_report(report: GateReport) -> RecordDict:
    names = sorted(report.per_class)
    columns = {
        column: [report.per_class[name][place] for name in names] for place, column in enumerate(("total", *MODELS))
    }
    table = ConfigRecord({"names": names, **columns, "folds": [*report.folds], "by-table": [*report.by_table]})
    return RecordDict({"scalars": MetricRecord(dict(report.scalars)), "per-class": table})


def decode_gate_report(content: RecordDict) -> GateReport:
    """Raises UpdateError if the reply is not of the agreed form or says what cannot be."""
    _exactly(content, {"scalars", "per-class"})
    table = _record(content, "per-class", ConfigRecord)
    _exactly(table, {"names", "total", *MODELS, "folds", "by-table"})
    names = _names(table["names"])
    total, champion, challenger = (_counts(table[column]) for column in ("total", *MODELS))
    folds, by_table = _counts(table["folds"]), _counts(table["by-table"])
    if len(folds) != 2 or len(by_table) != 2:
        raise UpdateError("per-class", "what was tried and what was recognised are not two numbers")
    _together("per-class", names, total, champion, challenger)
    rows = list(zip(total, champion, challenger, strict=True))
    if any(max(right) > most for most, *right in [*rows, folds, by_table]):
        raise UpdateError("per-class", "a class has more correct inputs than inputs")
    if max(*total, folds[0], by_table[0]) > MOST_EXAMPLES:
        raise UpdateError("per-class", f"a class has more than {MOST_EXAMPLES} inputs")
    scalars = decode_scalars(_record(content, "scalars", MetricRecord), GATE_SCALARS)
    for name, value in scalars.items():
        most = MOST_EXAMPLES if name.startswith("num-") else math.inf if name.startswith("nll-") else 1.0
        if not 0 <= value <= most:
            raise UpdateError("scalars", f"the scalar {name!r} is {value}, which it cannot be")
    return GateReport(scalars, dict(zip(names, rows, strict=True)), (folds[0], folds[1]), (by_table[0], by_table[1]))


def decode_scalars(record: MetricRecord, known: frozenset[str] = SCALARS) -> dict[str, float]:
    """Raises UpdateError for a name that is not known or a value that is not a finite number."""
    found = {}
    for name, value in record.items():
        if name not in known:
            raise UpdateError("extra-key", f"the scalar {name!r} is not one that sites may report")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UpdateError("not-finite", f"the scalar {name!r} is {value!r}")
        found[name] = float(value)
    return found


def payload_bytes(content: RecordDict) -> dict[str, int]:
    """Return the bytes of each array and, for other records, of the text of their values, by name."""
    sizes = {}
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            sizes.update({f"{key}/{name}": len(array.data) for name, array in record.items()})
        else:
            sizes.update({f"{key}/{name}": len(str(value)) for name, value in record.items()})
    return sizes


def read_array(array: Array, size: int, dtype: str) -> Flat:
    """Return the flat array without copying, checked against the expected size and dtype.

    The .npy header is parsed by numpy as a Python literal and never trusted for an allocation.

    Raises:
        UpdateError: cause ``wrong-dtype``, ``wrong-shape``, ``truncated`` or ``not-finite``.
    """
    if array.stype != "numpy.ndarray" or array.dtype != dtype:
        raise UpdateError(
            "wrong-dtype", f"an array is {array.dtype} as {array.stype}; expected {dtype} as numpy.ndarray"
        )
    if tuple(array.shape) != (size,):
        raise UpdateError("wrong-shape", f"an array has shape {tuple(array.shape)}; expected ({size},)")
    shape, kind, start = _npy_header(array.data)
    expected = np.dtype(dtype).newbyteorder("<")
    if shape != (size,) or kind != expected:
        raise UpdateError(
            "wrong-shape", f"an array's own header says {shape} of {kind}; expected ({size},) of {expected}"
        )
    if len(array.data) != start + size * expected.itemsize:
        raise UpdateError(
            "truncated", f"an array has {len(array.data) - start} bytes of data; expected {size * expected.itemsize}"
        )
    values = np.frombuffer(array.data, expected, size, start)
    if not np.isfinite(values).all():
        raise UpdateError("not-finite", f"an array has {int((~np.isfinite(values)).sum())} of {size} values not finite")
    return values


NPY_START = b"\x93NUMPY\x01\x00"
"""Version 1.0 of the .npy format (NumPy enhancement proposal 1), all that a one-dimensional array needs."""
NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|=][a-zA-Z][0-9]{0,3})', 'fortran_order': False, 'shape': \(([-0-9, ]{1,40})\), \} *\n"
)
"""As numpy writes it. Anything else is refused, so that nothing that a stranger wrote is parsed as Python."""


def _npy_header(data: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, dtype and the offset of the data."""
    start = 10 + int.from_bytes(data[8:10], "little")
    match = NPY_HEADER.fullmatch(data[10:start]) if data[:8] == NPY_START and start <= 512 else None
    try:
        if match is None:
            raise ValueError("it is not as numpy writes it")
        shape = tuple(int(number) for number in match[2].split(b",") if number.strip())
        kind = np.dtype(match[1].decode("ascii"))
    except (ValueError, TypeError) as error:
        raise UpdateError("truncated", f"an array's header is damaged: {error}") from error
    return shape, kind, start


def _arrays(record: ArrayRecord, sizes: Mapping[str, int], dtype: str) -> dict[str, Flat]:
    """Read exactly the named arrays; those of size 0 must be absent and come back empty."""
    _exactly(record, {name for name, size in sizes.items() if size})
    empty = np.empty(0, dtype)
    return {name: read_array(record[name], size, dtype) if size else empty for name, size in sizes.items()}


def _exactly(content: Mapping[str, Any], names: set[str]) -> None:
    if missing := sorted(names - content.keys()):
        raise UpdateError("missing-key", f"{missing[0]!r} is missing")
    if extra := sorted(content.keys() - names):
        raise UpdateError("extra-key", f"{extra[0]!r} was not agreed")


def _record(content: RecordDict, name: str, kind: type[Any]) -> Any:
    record = content[name]
    if not isinstance(record, kind):
        raise UpdateError("wrong-record", f"{name!r} is a {type(record).__name__}; expected {kind.__name__}")
    return record


def _together(cause: str, names: tuple[str, ...], *columns: tuple[Any, ...]) -> None:
    """Raise UpdateError unless the names are distinct and every column has one value for each."""
    if len(set(names)) != len(names) or any(len(column) != len(names) for column in columns):
        raise UpdateError(cause, "a name stands there twice, or names and values differ in number")


def _listed(found: Any, numbers: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Read the names and counts of a class table."""
    names, counts = _names(found), _counts(numbers)
    _together("class-table", names, counts)
    if any(count < 1 for count in counts):
        raise UpdateError("class-table", "a class has no inputs")
    if len(names) > MOST_CLASSES:
        raise UpdateError("class-table", f"it has more than {MOST_CLASSES} classes")
    return names, counts


def _names(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UpdateError("wrong-record", "a list of names holds something else than text")
    return tuple(values)


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise UpdateError("wrong-record", "a list of counts holds something else than whole numbers of 0 or more")
    return tuple(values)
