"""What server and sites derive alike, and when they notice that they do not."""

from pathlib import Path

import pytest
import torch

from common.errors import SettingsError
from common.plan import Plan, plan_for
from common.settings import Settings, Value

BASE: dict[str, Value] = {"model.width": 4}


def plan_of(**changes: Value) -> Plan:
    return plan_for(Settings.from_flat({**BASE, **{key.replace("__", "."): value for key, value in changes.items()}}))


def test_a_plan_agrees_on_the_sizes_of_what_travels() -> None:
    plan = plan_of(inner__optimizer="adam", inner__frozen="conv1.*")
    whole = sum(value.numel() for value in plan.initial.values())
    frozen = plan.initial["conv1.weight"].numel() + plan.initial["conv1.bias"].numel()
    agreed = plan.agreed
    assert (agreed.params, agreed.update, agreed.dtype) == (whole, whole - frozen, "float32")
    assert agreed.slots == (whole - frozen) + 1  # a second moment for each, and the step count
    assert agreed.embedding == plan.learner.embedding == 4 * 2 * 2
    assert (plan.params.size, plan.update.size, plan.slots.size) == (agreed.params, agreed.update, agreed.slots)
    assert [name for name, _ in plan.update.entries] == [name for name in plan.initial if not name.startswith("conv1.")]


def test_sgd_has_no_slots() -> None:
    plan = plan_of()
    assert (plan.agreed.slots, dict(plan.initial_slots)) == (0, {})


def test_the_params_of_a_plan_fit_its_layouts() -> None:
    plan = plan_of(inner__optimizer="adam")
    back = plan.params.unpack(plan.params.pack(plan.initial))
    assert all(torch.equal(back[name], value) for name, value in plan.initial.items())
    assert plan.slots.pack(plan.initial_slots).shape == (plan.agreed.slots,)


@pytest.mark.parametrize(
    "change",
    [
        {"model__width": 5},
        {"model__head": "linear"},
        {"data__channels": 3},
        {"data__size": 40},
        {"inner__frozen": "conv1.*"},
        {"inner__optimizer": "adam"},
    ],
    ids=str,
)
def test_the_digest_tells_apart_plans_between_which_messages_would_not_fit(change: dict[str, Value]) -> None:
    assert plan_of(**change).agreed.digest != plan_of().agreed.digest


@pytest.mark.parametrize("change", [{"run__seed": 5}, {"inner__steps": 9}, {"run__dir": "/elsewhere"}], ids=str)
def test_the_digest_is_the_same_where_messages_fit(change: dict[str, Value]) -> None:
    assert plan_of(**change).agreed.digest == plan_of().agreed.digest


def test_plans_of_equal_settings_are_built_once() -> None:
    assert plan_of(run__seed=11) is plan_of(run__seed=11)


def test_the_buffers_of_the_network_are_on_the_device_of_the_plan() -> None:
    network = plan_for(Settings.from_flat(BASE), "meta").learner.network
    assert {buffer.device.type for buffer in network.buffers()} == {"meta"}


@pytest.mark.parametrize("network", ["omniglot", "plans_own:flat"], ids=["with buffers", "without tensors"])
@pytest.mark.parametrize("device", ["cuda:99", "quantum"])
def test_a_device_that_cannot_be_used_is_named(
    network: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plans_own.py").write_text("from torch import nn\n\ndef flat(shape):\n    return nn.Flatten()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = Settings.from_flat({**BASE, "model.network": network, "model.head": "linear"})
    with pytest.raises(SettingsError, match=device):
        plan_for(settings, device)
