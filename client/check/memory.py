"""How much memory one piece of a run's work takes, worked out from four inputs; and how much there is."""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from client.check.findings import Finding, NeedsError, Subject, ok, problem, skipped, warning
from common.deployment.supervisor import read_state
from common.errors import SettingsError
from common.learning.episode import Examples
from common.plan import Plan, plan_for
from common.settings import Settings

TRIED = 4
"""Inputs that are computed on to measure what one takes."""
COPIES = 4
"""Of the params at once: received, initial, adapted, gradients."""
MARGIN = 1.5
"""On what is kept for gradients: the largest of them is there twice, and convolutions unfold their inputs."""
LAYERS = 3
"""Results of the largest layer that are there at once."""
FIXED = 32 << 20
MEGABYTE = 1 << 20


def memory_needed(settings: Settings, inputs_at_once: int = 0) -> int:
    """Return the bytes that an adaptation and its judging take, beside torch and the data.

    It is an estimate from above: of the project's networks a real adaptation takes between half of it and all.

    Args:
        inputs_at_once: inputs that are embedded in one go, if more than an episode's: all of a class table's.

    Raises:
        SettingsError: if the model cannot be built.
    """
    plan, episode = plan_for(settings), settings.episode
    kept, largest = _bytes_an_input(plan)
    support = episode.way * max(episode.shot, settings.judge.shot)
    loops = (settings.inner, settings.adaptation)
    batch = max(min(loop.batch_size, episode.way * episode.shot * loop.views) for loop in loops)
    most = max(support, episode.way * episode.query, batch, inputs_at_once)
    params = sum(value.nbytes for value in plan.initial.values())
    slots = sum(value.nbytes for value in plan.initial_slots.values())
    return int(COPIES * params + 2 * slots + MARGIN * kept * batch + LAYERS * largest * most) + FIXED


def check_memory(subject: Subject) -> Iterator[Finding]:
    """There is memory for one adaptation of the agreed model, on the device that site.toml names."""
    settings, device = subject.settings, subject.config.device
    if read_state(subject.home.run) is not None:
        yield ok("memory", "the site is running and has its memory already")
        return
    try:
        needed = memory_needed(settings, _all_inputs(subject))
        there = free_memory(device)
    except (SettingsError, RuntimeError, AssertionError, ValueError):
        yield skipped("memory", "model and device")
        return
    where = "this machine's memory" if device == "cpu" else f"memory of {device}"
    cause = f"a piece of work takes about {needed / MEGABYTE:.0f} MB"
    if there is None:
        yield ok("memory", f"{cause}; how much of {where} is free cannot be told on this system")
    elif needed > there:
        yield problem(
            "memory",
            f"{cause}, and only {there / MEGABYTE:.0f} MB of {where} are free",
            "end other processes there, take another device in site.toml, or ask the operator for smaller "
            "inner.batch-size, episode.shot or model.width",
        )
    elif needed > 0.8 * there:
        yield warning("memory", f"{cause} of {there / MEGABYTE:.0f} MB free", "leave this machine to the site alone")
    else:
        yield ok("memory", f"{cause}; {there / MEGABYTE:.0f} MB of {where} are free")


def free_memory(device: str) -> int | None:
    """Return the bytes that a new process could take on a device; None where the system does not say.

    Raises:
        RuntimeError, AssertionError, ValueError: if torch cannot use the device.
    """
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(torch.device(device))
        return free
    if sys.platform != "linux":
        return None
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min([found, *_left_of_group()])


def _left_of_group() -> Iterator[int]:
    """Yield what the control group of this process (a container, a systemd unit) leaves of its limit."""
    try:
        name = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition("::/")[2]
        for folder in (Path("/sys/fs/cgroup") / name, Path("/sys/fs/cgroup")):
            limit = (folder / "memory.max").read_text(encoding="ascii").strip()
            if limit.isdigit():
                yield int(limit) - int((folder / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return


def _all_inputs(subject: Subject) -> int:
    """Return how many inputs a class table is made of; 0 if none may leave, or the data cannot be read."""
    try:
        if not subject.policy.classes.tables:
            return 0
        return sum(subject.data.count(name) for name in subject.data.classes())
    except NeedsError:
        return 0


def _bytes_an_input(plan: Plan) -> tuple[float, float]:
    """Return what is kept for gradients, and the largest result of a layer, in bytes for each input."""
    params = {name: value.clone().requires_grad_() for name, value in plan.initial.items()}
    own = {value.untyped_storage().data_ptr() for value in params.values()}
    kept: dict[int, int] = {}
    largest = 0

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def measure(_module: nn.Module, _inputs: object, result: object) -> None:
        nonlocal largest
        largest = max(largest, result.nbytes if isinstance(result, Tensor) else 0)

    settings = plan.settings
    way = settings.episode.way if settings.model.head == "linear" else 2
    shape, dtype = settings.data.shape, plan.params.torch_dtype
    examples = Examples(torch.zeros(TRIED, *shape, dtype=dtype), torch.arange(TRIED) % 2, way)
    hooks = [module.register_forward_hook(measure) for module in plan.learner.network.modules()]
    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = plan.learner.loss(params, examples)  # holds what is kept
    finally:
        for hook in hooks:
            hook.remove()
    del loss
    return sum(size for place, size in kept.items() if place not in own) / TRIED, largest / TRIED
