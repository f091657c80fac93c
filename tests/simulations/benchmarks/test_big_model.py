"""The benchmark of a big model, small; and its measures on work whose memory is known."""

import re
import subprocess
import sys
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from common.learning.checkpointing import blocks_of
from simulations.benchmarks.big_model import KINDS, SIZE_VARIABLE, CpuWatch, Transformer, network, report_gradients

SMALL = ("--layers", "2", "--width", "64", "--size", "32", "--pairs", "1")


@cache
def printed() -> str:
    words = [sys.executable, "-m", "simulations.benchmarks.big_model", *SMALL]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=280).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_time_and_memory_of_every_kind_are_printed_with_ratios_to_full_precision(kind: str) -> None:
    row = re.search(rf"^ *{re.escape(kind)} +([\d. ,]+)$", printed(), re.MULTILINE)
    assert row
    seconds, _, cpu, _, kept, part, peak = (float(word.replace(",", "")) for word in row[1].split())
    assert min(seconds, cpu, kept) >= 0
    assert part == 1 if kind == "full" else 0 < part < 1.1
    assert peak > 100


def test_machine_and_model_are_named_and_what_bfloat16_does_to_the_update() -> None:
    params = sum(value.numel() for value in Transformer(3, 32, 2, 64).parameters())
    assert f"{params:,} params: 2 blocks, 64 wide" in " ".join(printed().split())
    distances = dict(re.findall(r"^(.*): relative L2 distance .* to full (\S+)$", printed(), re.MULTILINE))
    assert float(distances["full + checkpointing, SGD"]) == float(distances["full + checkpointing, Adam"]) == 0
    assert 0 < float(distances["bf16, SGD"]) < 0.1
    assert 0 < float(distances["bf16, Adam"]) < 1


def test_the_model_has_about_100_million_params_and_blocks_to_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, "14 768")
    with torch.device("meta"):
        model = network((3, 96, 96))
    assert sum(value.numel() for value in model.parameters()) == pytest.approx(100e6, rel=0.01)
    assert len(blocks_of(model)) == 14


def test_activations_are_counted_to_the_byte_and_gradients_that_are_done_are_not() -> None:
    numbers = 1000
    size, ones = 4 * numbers, torch.ones(numbers)
    for steps, expected in ((1, 2), (3, 4)):
        weight = torch.rand(numbers, requires_grad=True)
        watch = CpuWatch()
        report_gradients([weight], watch)

        def work(weight: Tensor = weight, steps: int = steps) -> None:
            results = [weight.tanh() for _ in range(steps)]  # each keeps its result
            torch.autograd.grad(results[-1], weight, ones)

        # The results, and the gradient until it is done.
        assert watch.peak(work) == expected * size


def test_gradients_of_many_layers_do_not_add_up() -> None:
    layers = nn.Sequential(*(nn.Linear(200, 200, bias=False) for _ in range(8)))
    watch = CpuWatch()
    report_gradients(layers.parameters(), watch)
    size = 200 * 200 * 4

    def work() -> None:
        torch.autograd.grad(layers(torch.rand(2, 200)).sum(), list(layers.parameters()))

    assert size <= watch.peak(work) < 1.3 * size
