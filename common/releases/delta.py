"""The difference of two releases, small enough for a slow line: params in int8 or bf16, all else whole.

Rounding loses something, so what is released is what applying the difference gives: whoever takes the difference and
whoever takes the whole file has the same bytes. First ``difference_of`` rounds; class tables and the gate then use
its ``applied_to``; ``encode_delta`` writes it down in the end.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor

from common.errors import CheckpointError
from common.learning.params import Params
from common.releases.artefact import (
    KEY,
    Artefact,
    assemble,
    decode,
    description_of,
    encode,
    own,
    part_of,
    take_apart,
    whole_tensors,
)

FORMAT = "fedreptile-delta-1"
KINDS: Mapping[str, torch.dtype] = {"int8": torch.int8, "bf16": torch.bfloat16}
LARGEST = 127
"""Of int8, used on both sides of 0."""


@dataclass(frozen=True)
class Difference:
    """What is added to the params of one release to come to the next."""

    kind: str
    steps: Params
    """Differences as int8 or bf16, by name."""
    scales: Mapping[str, float]
    """int8: what one step means, by name, in the dtype of the params; bf16: empty."""

    def applied_to(self, params: Params) -> dict[str, Tensor]:
        """Return the params of the next release.

        Multiplication and sum are separate operations, so that every machine comes to the same bits.
        """
        found: dict[str, Tensor] = {}
        for name, value in params.items():
            before = value.detach().cpu()
            step = self.steps[name].to(before.dtype)
            if self.kind == "int8":
                step = step * torch.tensor(self.scales[name], dtype=before.dtype)
            found[name] = before + step
        return found


@dataclass(frozen=True)
class Cost:
    """What rounding costs."""

    exact: float
    """Figure, such as accuracy, of the params before rounding."""
    rounded: float
    """Of those that are released."""

    @property
    def lost(self) -> float:
        return self.exact - self.rounded


def difference_of(previous: Params, params: Params, kind: str = "int8") -> Difference:
    """Return the rounded difference from the params of a release to new ones.

    Raises:
        CheckpointError: if names, shapes or dtypes differ, or a difference is not finite.
    """
    if kind not in KINDS:
        raise CheckpointError(f"a difference cannot be of kind {kind!r}; choose {' or '.join(KINDS)}")
    if previous.keys() != params.keys():
        raise CheckpointError("two releases of different networks have no difference; release the whole model")
    steps: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    for name, value in params.items():
        before, after = previous[name].detach().cpu(), value.detach().cpu()
        if before.shape != after.shape or before.dtype != after.dtype:
            raise CheckpointError(f"param {name!r} has another shape or type than before; release the whole model")
        exact = after - before
        if not bool(torch.isfinite(exact).all()):
            raise CheckpointError(f"the difference of param {name!r} is not finite; such a model cannot be released")
        if kind == "int8":
            scale = exact.abs().max() / LARGEST if exact.numel() else torch.zeros((), dtype=exact.dtype)
            scales[name] = float(scale)
            steps[name] = (exact / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8) if scale > 0 else _none(exact)
        else:
            steps[name] = exact.to(torch.bfloat16)
    return Difference(kind, steps, scales)


def rounding_error(previous: Params, params: Params, rounded: Params) -> float:
    """Return how large the rounding is beside the difference: root of the ratio of the sums of squares."""
    lost = sum(float((params[name].double() - rounded[name].double()).square().sum()) for name in params)
    moved = sum(float((params[name].double() - previous[name].double()).square().sum()) for name in params)
    return (lost / moved) ** 0.5 if moved else 0.0


def cost_of(judge: Callable[[Params], float], params: Params, rounded: Params) -> Cost:
    """Return what rounding costs, as a figure judges it, such as accuracy on held-back samples after adaptation."""
    return Cost(judge(params), judge(rounded))


def encode_delta(difference: Difference, previous: bytes, artefact: Artefact) -> bytes:
    """Return the file of a difference.

    Args:
        previous: the file of the release that it starts from.
        artefact: what is released; its params are those that the difference gives.

    Raises:
        CheckpointError: if they are not.
    """
    described = {
        "format": FORMAT,
        "kind": difference.kind,
        "scales": dict(difference.scales),
        "from": digest_of(previous),
        "to": digest_of(encode(artefact)),
        "description": description_of(artefact),
    }
    tensors = {f"steps/{name}": own(value) for name, value in difference.steps.items()} | whole_tensors(artefact)
    text = json.dumps(described, sort_keys=True, allow_nan=False)
    data = save(dict(sorted(tensors.items())), metadata={KEY: text})
    apply_delta(previous, data, "the difference")
    return data


def apply_delta(previous: bytes, data: bytes, where: str) -> bytes:
    """Return the file of the release that a difference leads to; ``decode`` it next.

    Args:
        previous: the file of the release that it starts from.
        where: what errors call the difference.

    Raises:
        CheckpointError: if it is damaged, starts from another release, or does not lead where it says.
    """
    before = decode(previous, "the release that the difference starts from")
    described, tensors = take_apart(data, where)
    try:
        if described["format"] != FORMAT or described["kind"] not in KINDS:
            raise ValueError("it is of another format")
        if described["from"] != digest_of(previous):
            raise ValueError("it starts from another release")
        difference = Difference(described["kind"], part_of(tensors, "steps"), _scales(described["scales"]))
        _check_steps(difference, before.params)
        rest = Artefact(
            before.settings,
            difference.applied_to(before.params),
            {name: (total, 1) for name, total in part_of(tensors, "prototypes").items()},
            slots=part_of(tensors, "slots"),
        )
        made = assemble(described["description"], rest)
        if digest_of(made) != described["to"]:
            raise ValueError("it does not lead to the release that it names")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{where} is not a difference that can be used: {error}; take the whole release instead"
        ) from error
    return made


def digest_of(data: bytes) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _scales(found: Mapping[str, float]) -> dict[str, float]:
    if any(type(scale) is not float for scale in found.values()):
        raise ValueError("its scales are no numbers")
    return dict(found)


def _check_steps(difference: Difference, previous: Params) -> None:
    wanted = previous.keys()
    if difference.steps.keys() != wanted or difference.scales.keys() != (
        wanted if difference.kind == "int8" else set()
    ):
        raise ValueError("it is for another network")
    for name, step in difference.steps.items():
        if step.dtype != KINDS[difference.kind] or step.shape != previous[name].shape:
            raise ValueError(f"its param {name!r} is of another shape or type")


def _none(exact: Tensor) -> Tensor:
    return torch.zeros(exact.shape, dtype=torch.int8)
