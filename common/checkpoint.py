"""A run's state on disk: one safetensors file, tensors and JSON together, replaced atomically."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from common.errors import CheckpointError, SettingsError
from common.learning.params import Params
from common.paths import write_atomically
from common.settings import Settings, flatten

FORMAT = "1"
NAME = "checkpoint.safetensors"


@dataclass(frozen=True)
class RunState:
    """All that passes from one round to the next.

    Random streams need no state: each is named by (run seed, purpose, site, round).
    """

    round: int
    """Rounds done."""
    params: Params
    slots: Params
    """The inner optimizer's carried state; empty for SGD."""
    optimizer: Params
    """The outer optimizer's state; empty for the plain outer step."""
    average: Params
    """Moving average of the params; empty when off."""
    failed: int = 0
    """Rounds without quorum in a row."""
    prototypes: Mapping[str, tuple[Tensor, int]] = field(default_factory=dict)
    """Class name -> sum of embeddings [d] and count, over the sites that let theirs out."""

    @property
    def published(self) -> Params:
        """The params to use: the moving average if there is one."""
        return self.average or self.params


@dataclass(frozen=True)
class Checkpoint:
    state: RunState
    settings: Settings
    code_version: str


def code_version() -> str:
    """Return the installed version of this project."""
    try:
        return version("fedreptile")
    except PackageNotFoundError:
        return "unknown"


def write_checkpoint(path: Path, state: RunState, settings: Settings) -> None:
    """Write the state, whole or not at all: a temporary file beside it, flushed to disk, then renamed."""
    parts = {"params": state.params, "slots": state.slots, "optimizer": state.optimizer, "average": state.average}
    tensors = {f"{part}/{name}": _own(value) for part, values in parts.items() for name, value in values.items()}
    table = state.prototypes
    tensors |= {f"prototypes/{name}": _own(total) for name, (total, _) in table.items()}
    described = {
        "round": state.round,
        "failed": state.failed,
        "counts": {name: count for name, (_, count) in table.items()},
        "settings": flatten(settings),
        "code": code_version(),
    }
    data = save(tensors, metadata={"format": FORMAT, "fedreptile": json.dumps(described)})
    write_atomically(path, data)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file, or the one in a run's folder.

    Raises:
        CheckpointError: if it is missing, damaged or of another format.
    """
    file = path / NAME if path.is_dir() else path
    try:
        tensors, metadata = read_tensors(file)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{file} has format {metadata.get('format')!r}; this version reads {FORMAT!r}")
        described = json.loads(metadata["fedreptile"])
        counts = described["counts"]
        table = {name: (tensors[f"prototypes/{name}"], int(count)) for name, count in counts.items()}
        state = RunState(
            int(described["round"]),
            _part(tensors, "params"),
            _part(tensors, "slots"),
            _part(tensors, "optimizer"),
            _part(tensors, "average"),
            int(described["failed"]),
            table,
        )
        return Checkpoint(state, Settings.from_flat(described["settings"]), str(described["code"]))
    except (
        OSError,
        SafetensorError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        SettingsError,
    ) as error:
        raise CheckpointError(
            f"{file} is not a checkpoint that can be read: {error}; give the folder of a run or its {NAME}"
        ) from error


def _own(value: Tensor) -> Tensor:
    """Return a copy with memory of its own, since safetensors refuses tensors that share it."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def read_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file. Raises OSError or SafetensorError."""
    with safe_open(file, framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118 - no dict


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{part}/"): value for key, value in tensors.items() if key.startswith(f"{part}/")}
