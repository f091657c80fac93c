"""Gradient checkpointing (Chen, Xu, Zhang, Guestrin 2016, "Training Deep Nets with Sublinear Memory Cost").

Of each block of a network only the input is kept for the backward pass, which computes the rest again:
less memory for the activations, one more forward pass in time, the same numbers.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def blocks_of(network: nn.Module) -> tuple[nn.Module, ...]:
    """Return the elements of the network's outermost ``nn.Sequential`` and ``nn.ModuleList``, each once.

    An element that is a list itself cannot be called; its elements are blocks instead.
    """
    return tuple(dict.fromkeys(_blocks(network)))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(module, nn.Sequential | nn.ModuleList) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child
        else:
            yield from _blocks(child)


@contextmanager
def checkpointed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, calls of the blocks keep their inputs only; the backward pass may come after. The blocks stay as they
    were."""
    own = {block: vars(block).get("forward") for block in blocks}
    try:
        for block in own:
            block.forward = _recomputed(block)
        yield
    finally:
        for block, forward in own.items():
            vars(block).pop("forward", None)
            if forward is not None:
                block.forward = forward


class _Alone(nn.Module):
    """A block's own forward, without its hooks, which have run by then; its tensors can be replaced by name."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.own = block.forward

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.own(*inputs, **options)


def _params(module: nn.Module) -> dict[str, Tensor]:
    """Return params by name: one that several modules share is there for each, a module that comes twice once.

    ``functional_call`` does not put the tensors of a module back that is named twice.
    """
    parts = module.named_modules()
    return {name: value for prefix, part in parts for name, value in part.named_parameters(prefix, recurse=False)}


def _recomputed(block: nn.Module) -> Callable[..., Any]:
    """Return a forward that is computed again, in the backward pass, with the params and buffers of the first time.

    The network is called through ``functional_call``, so when the backward pass comes, the block has its original
    tensors again: those of the call have to be put back.
    """
    alone = _Alone(block)

    def forward(*inputs: Any, **options: Any) -> Any:
        # The first time may change buffers in place.
        had = {**_params(alone), **{name: value.clone() for name, value in alone.named_buffers()}}
        times = 0

        def run(*inputs: Any, **options: Any) -> Any:
            nonlocal times
            times += 1
            if times == 1:
                return alone(*inputs, **options)
            return functional_call(alone, had, inputs, options, tie_weights=False)

        return checkpoint(run, *inputs, use_reentrant=False, **options)

    return forward
