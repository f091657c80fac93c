"""The estimate of memory is held to what a real adaptation takes in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from client.check.memory import FIXED, MEGABYTE, free_memory, memory_needed
from common.settings import Settings, Value

ROOT = Path(__file__).resolve().parents[3]
REAL = """
import json, sys, torch
from common.learning.episode import Episode, Examples
from common.learning.judge import judge
from common.learning.reptile import adapt
from common.plan import plan_for
from common.settings import Settings
torch.set_num_threads(1)
settings = Settings.from_flat(json.loads(sys.argv[1]))
plan, way = plan_for(settings), settings.episode.way

def examples(each):
    return Examples(torch.rand(way * each, *settings.data.shape), torch.arange(way).repeat_interleave(each), way)

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

support, query = examples(settings.episode.shot), examples(settings.episode.query)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
found = adapt(plan.learner, plan.initial, support, settings.inner, torch.Generator(), plan.initial_slots)
judge(plan.learner, plan.initial, found.params, Episode(tuple(map(str, range(way))), support, query))
print(status("VmHWM") - before)
"""

LARGE: dict[str, Value] = {"model.width": 64, "data.size": 112, "data.channels": 3, "inner.steps": 2}
MLP: dict[str, Value] = {"model.network": "mlp", "model.width": 1500, "data.kind": "vector", "data.size": 3000}


@pytest.mark.parametrize(
    "values",
    [LARGE | {"inner.batch-size": 60, "episode.shot": 12}, MLP | {"inner.optimizer": "adam", "inner.steps": 2}],
    ids=["convolutions", "a large fully connected one"],
)
def test_the_estimate_is_from_above_and_at_most_three_times_what_it_really_takes(values: dict[str, Value]) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process can be measured anew on Linux only")
    words = [sys.executable, "-c", REAL, json.dumps(values)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    real, estimate = int(done.stdout), memory_needed(Settings.from_flat(values))
    assert 100 * MEGABYTE < real <= estimate <= 3 * real, (real / MEGABYTE, estimate / MEGABYTE)


def test_the_estimate_grows_with_the_batch_and_with_a_class_table_of_all_inputs() -> None:
    small, large = (memory_needed(Settings.from_flat({"inner.batch-size": size})) for size in (10, 50))
    assert FIXED < small < large
    assert memory_needed(Settings(), inputs_at_once=100_000) > 100 * large


def test_free_memory_of_this_machine_is_told_on_linux_and_of_a_gpu_by_torch() -> None:
    there = free_memory("cpu")
    assert (there is None) == (sys.platform != "linux")
    assert there is None or there > 10 * MEGABYTE
    if torch.cuda.is_available():
        assert (free_memory("cuda") or 0) > 10 * MEGABYTE
    else:
        with pytest.raises((RuntimeError, AssertionError)):
            free_memory("cuda")
