"""Reading what a run left in its folder: its checkpoint, its journal, what it was judged to be, its federation."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from common.checkpoint import Checkpoint, read_checkpoint
from common.errors import CheckpointError
from common.settings import Settings, Value, flatten
from server.reptile import RoundReport
from server.service.runs import JOURNAL, read_journal
from simulations.judging.evaluate import Evaluation, SiteRow

FEDERATION = "federation.toml"
"""In a run's folder: the federation that it ran, if it was one of a data set."""
PATHS = ("run.dir", "data.sites", "model.initial")
"""Settings that hold paths of the machine that ran; of these reports show the last part."""


@dataclass(frozen=True)
class RecordedRun:
    """What a run left in its folder."""

    name: str
    checkpoint: Checkpoint
    journal: Sequence[RoundReport]
    judged: Sequence[Evaluation]
    federation: str = ""
    """The text of its federation's file; empty if it left none."""

    @property
    def trained_sites(self) -> list[str]:
        """Sites of which an update was used at least once, sorted."""
        return sorted({site for line in self.journal for site in line.used})

    @property
    def bytes_up(self) -> int:
        return sum(line.bytes_up for line in self.journal)

    @property
    def bytes_down(self) -> int:
        return sum(line.bytes_down for line in self.journal)

    @property
    def causes(self) -> Mapping[str, int]:
        """Cause -> replies dropped for it, most frequent first."""
        total = sum((Counter(line.causes) for line in self.journal), Counter[str]())
        return dict(total.most_common())

    def without_samples(self) -> "RecordedRun":
        """Return it without the inputs of sites that the results of judging show."""
        return replace(self, judged=[replace(evaluation, shown=()) for evaluation in self.judged])


def read_run(run: Path) -> RecordedRun:
    """Read a run's folder. Raises CheckpointError naming the file that cannot be read."""
    checkpoint = read_checkpoint(run)
    judged = sorted((_read_judged(path, run) for path in sorted(run.glob("judged-*.json"))), key=_order)
    return RecordedRun(run.resolve().name, checkpoint, read_rounds(run), judged, _read_federation(run))


def read_rounds(run: Path) -> list[RoundReport]:
    """Read a run's journal; of a run that has none, no rounds. Raises CheckpointError if it cannot be read."""
    try:
        return [_built(RoundReport, line, f"line {number}") for number, line in enumerate(read_journal(run), 1)]
    except (OSError, ValueError) as error:
        path = run / JOURNAL
        raise CheckpointError(
            f"{path} is not a journal that can be read: {error}; move it away for a report without it"
        ) from error


def shown_settings(settings: Settings) -> dict[str, Value]:
    """Return every setting under its key; of paths the last part only."""
    values = {**flatten(settings), "data.sites": data_name(settings)}
    return {key: folder_name(str(value)) if key in PATHS else value for key, value in values.items()}


def data_name(settings: Settings) -> str:
    """Return what the training data are called: their folder's name, or of '.../omniglot/train' 'omniglot'."""
    path = settings.data.sites.replace("\\", "/").rstrip("/")
    return folder_name(path.removesuffix("/train"))


def folder_name(path: str) -> str:
    """Return the last part of a path of any machine."""
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def by_training(sites: Mapping[str, SiteRow]) -> dict[bool, list[str]]:
    """Return the judged sites that took part in training (True) and those that never did (False), if there are any."""
    groups = {trained: [name for name, row in sites.items() if row.trained == trained] for trained in (True, False)}
    return {trained: names for trained, names in groups.items() if names}


def _order(evaluation: Evaluation) -> tuple[str, bool, int, int]:
    return evaluation.data, evaluation.protocol.pooled, evaluation.protocol.way, evaluation.protocol.shot


def _read_federation(run: Path) -> str:
    path = run / FEDERATION
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; move it away for a report without it") from error


def _read_judged(path: Path, run: Path) -> Evaluation:
    try:
        found: Evaluation = _built(Evaluation, json.loads(path.read_bytes()), "it")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a result of judging that can be read: {error}; remove it, "
            f"or make it anew with 'fedreptile-sim evaluate {run} --data FOLDER'"
        ) from error
    return found


def _built(kind: Any, value: Any, where: str) -> Any:
    """Build a value of a type from what JSON made of it: the inverse of ``asdict`` and ``json``.

    Keys that a dataclass does not have are left out. Raises ValueError that says where what is wrong.
    """
    inner = get_args(kind)
    if get_origin(kind) is UnionType and NoneType in inner:
        return None if value is None else _built(inner[0], value, where)
    if dataclasses.is_dataclass(kind):
        return _built_dataclass(kind, _of(dict, value, where), where)
    if get_origin(kind) is Mapping:
        return {key: _built(inner[1], item, f"{where}: {key}") for key, item in _of(dict, value, where).items()}
    if get_origin(kind) in (Sequence, tuple):
        items = _of(list, value, where)
        kinds = inner if get_origin(kind) is tuple and ... not in inner else inner[:1] * len(items)
        if len(kinds) != len(items):
            raise ValueError(f"{where} has {len(items)} parts; expected {len(kinds)}")
        return tuple(
            _built(part, item, f"{where}[{i}]") for i, (part, item) in enumerate(zip(kinds, items, strict=True))
        )
    return float(value) if kind is float and type(value) is int else _of(kind, value, where)


def _built_dataclass(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        needed = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if needed and item.name not in values:
            raise ValueError(f"{where} has no {item.name!r}")
    return kind(**{key: _built(hints[key], value, f"{where}: {key}") for key, value in values.items() if key in hints})


def _of(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{where} is {str(value)[:40]!r}; expected {kind.__name__}")
    return value
