"""The same federation in one process, to compare with."""

from pathlib import Path

import torch

from client.data.sites import site_names
from common.checkpoint import read_checkpoint
from common.learning.params import Params
from common.settings import Settings, Value
from simulations.engine import in_process


def simulated(settings: Settings, sites: Path, run: Path, **changes: Value) -> Params:
    """Return the params that a simulation of the sites ends with."""
    in_process(settings.with_values({"run.dir": str(run), "data.sites": str(sites), **changes}), len(site_names(sites)))
    return read_checkpoint(run).state.params


def assert_same(found: Params, expected: Params) -> None:
    """Fail unless params agree to rounding."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
