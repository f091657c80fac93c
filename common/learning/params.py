"""Params (weights by name) and their manifest, the agreement that lets them travel as one flat array."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import SettingsError

Params = Mapping[str, Tensor]

FLOAT_TYPES = {torch.float32: "float32", torch.float64: "float64"}


@dataclass(frozen=True)
class Manifest:
    """Names and shapes in the order in which they lie in the flat array, and their common dtype.

    Server and site each derive it from the settings of the run; only its digest is sent.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]
    dtype: str

    @classmethod
    def of(cls, params: Params) -> "Manifest":
        """Raises SettingsError unless all params have the same dtype, float32 or float64."""
        kinds = {value.dtype for value in params.values()}
        if len(kinds) > 1 or not kinds <= FLOAT_TYPES.keys():
            raise SettingsError(
                f"the network's parameters have the types {sorted(map(str, kinds))}; "
                "they must all be float32 or all float64"
            )
        dtype = FLOAT_TYPES[kinds.pop()] if kinds else "float32"
        return cls(tuple((name, tuple(value.shape)) for name, value in params.items()), dtype)

    @property
    def size(self) -> int:
        """Number of elements of the flat array."""
        return sum(math.prod(shape) for _, shape in self.entries)

    @property
    def torch_dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    @property
    def digest(self) -> str:
        """SHA-256 of names, shapes and dtype."""
        return hashlib.sha256(json.dumps([self.entries, self.dtype]).encode()).hexdigest()

    def pack(self, params: Params) -> Tensor:
        """Return the params as one new flat tensor of shape [size] on the CPU."""
        parts = [params[name].detach().reshape(-1).cpu() for name, _ in self.entries]
        return torch.cat(parts) if parts else torch.empty(0, dtype=self.torch_dtype)

    def unpack(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the params that lie in a flat tensor of shape [size], as views of it."""
        params, start = {}, 0
        for name, shape in self.entries:
            stop = start + math.prod(shape)
            params[name] = flat[start:stop].view(shape)
            start = stop
        return params


def select(params: Params, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the params of these names, in this order."""
    return {name: params[name] for name in names}


def difference(adapted: Params, initial: Params) -> dict[str, Tensor]:
    """Return the update ``adapted - initial`` for every name of ``adapted``."""
    return {name: value - initial[name] for name, value in adapted.items()}


def on_device(params: Params, device: str) -> dict[str, Tensor]:
    """Return the params on a device; those already there are shared, not copied."""
    return {name: value.to(device) for name, value in params.items()}
