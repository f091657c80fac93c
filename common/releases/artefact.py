"""The file of a release: the params that everyone starts from, the class table and the settings. The same bytes always.

safetensors orders its metadata at random when there are several entries, hence the one.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from common.checkpoint import Checkpoint, RunState, code_version
from common.errors import CheckpointError, SettingsError
from common.learning.params import FLOAT_TYPES, Manifest, Params
from common.plan import plan_for
from common.settings import Settings, Value, flatten

FORMAT = "fedreptile-release-1"
KEY = "fedreptile"
"""The metadata's one entry."""
MOST_BYTES = 1 << 30
"""No release is larger."""
OWN_TO_THE_SERVER = ("run.dir", "data.sites", "model.initial")
"""Settings that name folders of the server's machine; a release says nothing about them."""


@dataclass(frozen=True)
class Artefact:
    settings: Settings
    params: Params
    prototypes: Mapping[str, tuple[Tensor, int]] = field(default_factory=dict)
    """Class name -> sum of embeddings [d] under these params, and count."""
    code_version: str = field(default_factory=code_version)
    slots: Params = field(default_factory=dict)
    """The inner optimizer's carried state, from which adaptation starts; empty for SGD."""

    def checkpoint(self) -> Checkpoint:
        """Return it as what adaptation starts from."""
        state = RunState(0, self.params, self.slots, {}, {}, prototypes=self.prototypes)
        return Checkpoint(state, self.settings, self.code_version)


def of_checkpoint(checkpoint: Checkpoint) -> Artefact:
    """Return what a run has come to as the content of a release."""
    state = checkpoint.state
    return Artefact(checkpoint.settings, state.published, state.prototypes, checkpoint.code_version, state.slots)


def encode(artefact: Artefact) -> bytes:
    """Return the file of a release.

    Raises:
        CheckpointError: if a value is not finite, or params or class table do not fit the settings.
    """
    _check(artefact, "the release")
    return assemble(description_of(artefact), artefact)


def decode(data: bytes, where: str) -> Artefact:
    """Read a release.

    Args:
        where: what errors call it.

    Raises:
        CheckpointError: if it is too large, damaged, of another format, holds something else than a release, or values
            that do not fit its settings or are not finite.
    """
    described, tensors = take_apart(data, where)
    try:
        if described.keys() != {"format", "settings", "counts", "code"} or described["format"] != FORMAT:
            raise ValueError(f"its format is {str(described.get('format'))[:80]!r}; this version reads {FORMAT!r}")
        counts: Mapping[str, int] = described["counts"]
        if any(type(count) is not int for count in counts.values()):
            raise ValueError("a count of its class table is no whole number")
        table = {name: (tensors[f"prototypes/{name}"], count) for name, count in counts.items()}
        params, slots = part_of(tensors, "params"), part_of(tensors, "slots")
        if len(tensors) != len(table) + len(params) + len(slots):
            raise ValueError("it holds tensors that are no part of a release")
        settings = Settings.from_flat(described["settings"])
        code = described["code"]
        if type(code) is not str or not code.isprintable() or len(code) > 100:
            raise ValueError("its code version is no text")
    except (ValueError, KeyError, TypeError, AttributeError, SettingsError) as error:
        raise _unusable(where, error) from error
    artefact = Artefact(settings, params, table, code, slots)
    _check(artefact, where)
    return artefact


def settings_of(artefact: Artefact) -> tuple[dict[str, Value], str]:
    """Return the settings that a release is for, and the SHA-256 of them."""
    values = {key: value for key, value in flatten(artefact.settings).items() if key not in OWN_TO_THE_SERVER}
    return values, hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def description_of(artefact: Artefact) -> str:
    """Return all of a release but its tensors, as the text that its file holds."""
    described = {
        "format": FORMAT,
        "settings": settings_of(artefact)[0],
        "counts": {name: count for name, (_, count) in artefact.prototypes.items()},
        "code": artefact.code_version,
    }
    return json.dumps(described, sort_keys=True, allow_nan=False)


def assemble(description: str, artefact: Artefact) -> bytes:
    """Return the file of a release with this description and the tensors of an artefact."""
    tensors = {f"params/{name}": own(value) for name, value in artefact.params.items()} | whole_tensors(artefact)
    return save(dict(sorted(tensors.items())), metadata={KEY: description})


def whole_tensors(artefact: Artefact) -> dict[str, Tensor]:
    """Return the tensors that are never sent as a difference, by their names in a file."""
    table = {f"prototypes/{name}": own(total) for name, (total, _) in artefact.prototypes.items()}
    return table | {f"slots/{name}": own(value) for name, value in artefact.slots.items()}


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the tensors of one part of a file, without its prefix."""
    return {key.removeprefix(f"{part}/"): value for key, value in tensors.items() if key.startswith(f"{part}/")}


def take_apart(data: bytes, where: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return description and tensors of a release or of a difference, unchecked. Raises CheckpointError."""
    try:
        if len(data) > MOST_BYTES:
            raise ValueError(f"it has {len(data)} bytes; it may have {MOST_BYTES}")
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        if metadata.keys() != {KEY}:
            raise ValueError("it is no release")
        described = json.loads(metadata[KEY], parse_constant=_no_constant)
        if not isinstance(described, dict):
            raise ValueError("it is no release")
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise _unusable(where, error) from error
    return described, tensors


def own(value: Tensor) -> Tensor:
    """Return a copy with memory of its own, since safetensors refuses tensors that share it."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _check(artefact: Artefact, where: str) -> None:
    """Raises CheckpointError unless all tensors fit the settings and are finite."""
    try:
        plan = plan_for(artefact.settings)
    except (SettingsError, RuntimeError) as error:
        raise _unusable(where, error) from error
    _check_layout(artefact.params, plan.params, "param", where)
    _check_layout(artefact.slots, plan.slots, "slot", where)
    for name, (total, count) in artefact.prototypes.items():
        if not name or not name.isprintable() or len(name) > 200 or count < 1:
            raise _unusable(where, f"class {name[:80]!r} of its class table has no usable name, or no inputs")
        if total.dtype not in FLOAT_TYPES:
            raise _unusable(where, f"its sum of class {name!r} is of type {total.dtype}")
        _check_tensor(total, (plan.learner.embedding,), total.dtype, f"sum of class {name!r}", where)


def _check_layout(values: Params, layout: Manifest, what: str, where: str) -> None:
    wanted = dict(layout.entries)
    if differing := sorted(wanted.keys() ^ values.keys()):
        raise _unusable(where, f"its {what} {differing[0][:80]!r} is missing or not one of the network's")
    for name, value in values.items():
        _check_tensor(value, wanted[name], layout.torch_dtype, f"{what} {name!r}", where)


def _check_tensor(value: Tensor, shape: tuple[int, ...], kind: torch.dtype, what: str, where: str) -> None:
    if tuple(value.shape) != shape or value.dtype != kind:
        found = f"{tuple(value.shape)} of {value.dtype}"
        raise _unusable(where, f"its {what} is {found}; {shape} of {kind} is needed")
    if math.prod(shape) and not bool(torch.isfinite(value).all()):
        raise _unusable(where, f"its {what} holds a value that is not finite")


def _unusable(where: str, why: object) -> CheckpointError:
    return CheckpointError(f"{where} is not a release that can be used: {why}; take or publish it again")


def _no_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number")
