"""A network with its head and its normalisation: all that ``adapt`` and ``judge`` need of a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from common.errors import SettingsError
from common.learning.checkpointing import blocks_of, checkpointed
from common.learning.episode import Examples
from common.learning.heads import Head, LinearHead, PrototypeHead
from common.learning.networks import build_network, embedding_size
from common.learning.params import Params
from common.settings import ModelSettings, Settings

Buffers = dict[str, Tensor]


class Learner:
    """Maps (params, examples) to losses and predictions. Holds no params of its own.

    Only parameters are learned and travel. Buffers do not: normalisation statistics are computed
    from the support set each time, and anything else (constants, integer counters) stays as the
    network's function built it.
    """

    def __init__(
        self, network: nn.Module, head: Head, model: ModelSettings, embedding: int, transductive: bool
    ) -> None:
        self.network = network.requires_grad_(False)
        self.embedding = embedding
        self.head = head
        self.normalisation = model.normalisation
        self.transductive = transductive
        self.blocks = blocks_of(network)
        self._places = _places(network)
        self._normalisations = self._prepared_normalisations()

    def _prepared_normalisations(self) -> list[_BatchNorm]:
        found = []
        for name, module in self.network.named_modules():
            if isinstance(module, _InstanceNorm) and module.track_running_stats:
                raise SettingsError(
                    f"layer {name!r} normalises each input by itself and yet keeps running statistics, which would be "
                    "used in predictions only; build it with track_running_stats=False"
                )
            if not isinstance(module, _BatchNorm):
                continue
            if self.normalisation == "frozen" and not module.track_running_stats:
                raise SettingsError(
                    f"layer {name!r} keeps no running statistics (track_running_stats=False), so they cannot be "
                    "frozen from the support set; build it with running statistics or set model.normalisation = 'batch'"
                )
            # A cumulative average over one batch, from a fresh counter, is that batch's statistics.
            module.momentum = None
            module.reset_running_stats()
            found.append(module)
        return found

    def to(self, device: str) -> "Learner":
        """Move the network's buffers to a device."""
        self.network.to(device)
        return self

    def loss(self, params: Params, examples: Examples, precision: str = "full", checkpointing: bool = False) -> Tensor:
        """Return the inner loss on a batch, normalised with the batch's own statistics.

        Args:
            precision: "full", or "bf16": torch's autocast runs the network's large operations in bfloat16. The head
                stays in the params' precision: it costs next to nothing, and distances between embeddings and
                logarithms of probabilities are small differences of large numbers.
            checkpointing: keep only the inputs of ``blocks`` for the backward pass, which computes the rest again.
        """
        self.network.train()
        with _computing(precision, examples.inputs.device), checkpointed(self.blocks if checkpointing else ()):
            embeddings = self._call(params, examples.inputs, self._fresh_buffers())
        if precision == "bf16":
            embeddings = embeddings.float()
        return self.head.loss(params, embeddings, examples.labels, examples.way)

    @torch.no_grad()
    def log_probs(self, params: Params, support: Examples, inputs: Tensor) -> Tensor:
        """Return log-probabilities [n, way] of inputs [n, *shape], given the support set.

        With frozen normalisation the result for one input does not depend on the others. With
        batch normalisation each input shares a batch with the whole support set (paper, section
        6.1, without transduction), or all inputs share one batch without it (transduction).
        """
        if not len(inputs):
            return inputs.new_zeros(0, support.way)
        if self.normalisation == "frozen":
            return self.classify(params, self.freeze(params, support), support, inputs)
        if self.transductive:
            known = self._measure(params, support.inputs, self._fresh_buffers())
            query = self._measure(params, inputs, self._fresh_buffers())
            return self.head.log_probs(params, known, support.labels, support.way, query)
        rows = []
        for one in torch.split(inputs, 1):
            batch = torch.cat([support.inputs, one])
            both = self._measure(params, batch, self._fresh_buffers())
            rows.append(self.head.log_probs(params, both[:-1], support.labels, support.way, both[-1:]))
        return torch.cat(rows)

    @torch.no_grad()
    def freeze(self, params: Params, support: Examples) -> Buffers:
        """Return buffers that hold the normalisation statistics of the support set under these params."""
        buffers = self._fresh_buffers()
        self._measure(params, support.inputs, buffers)
        return buffers

    @torch.no_grad()
    def embed(self, params: Params, buffers: Buffers, inputs: Tensor) -> Tensor:
        """Return embeddings [n, d], normalised with frozen statistics."""
        self.network.eval()
        return self._call(params, inputs, buffers)

    def classify(self, params: Params, buffers: Buffers, support: Examples, inputs: Tensor) -> Tensor:
        """Return log-probabilities [n, way] with statistics that ``freeze`` returned."""
        known = self.embed(params, buffers, support.inputs)
        query = self.embed(params, buffers, inputs)
        return self.head.log_probs(params, known, support.labels, support.way, query)

    def _fresh_buffers(self) -> Buffers:
        return {name: buffer.clone() for name, buffer in self.network.named_buffers()}

    def _measure(self, params: Params, inputs: Tensor, buffers: Buffers) -> Tensor:
        """Embed with the batch's own statistics, which ``buffers`` then hold; nothing is dropped at random."""
        self.network.eval()
        for layer in self._normalisations:
            layer.train()
        return self._call(params, inputs, buffers)

    def _call(self, params: Params, inputs: Tensor, buffers: Buffers) -> Tensor:
        tensors = {**params, **buffers}
        placed = {place: tensors[name] for place, name in self._places.items()}
        embeddings: Tensor = functional_call(self.network, placed, (inputs,), tie_weights=False)
        return embeddings


def _places(network: nn.Module) -> dict[str, str]:
    """Return every place of a param or buffer in a network, and its name there or where it was found first.

    A layer that is used twice has its places once: of those that it has twice, functional_call puts back the wrong one.
    """
    named = (*network.named_parameters(), *network.named_buffers())
    names = {id(tensor): name for name, tensor in named}
    places: dict[str, str] = {}
    for prefix, module in network.named_modules():
        own = (*module.named_parameters("", False, False), *module.named_buffers("", False, False))
        places |= {f"{prefix}.{name}" if prefix else name: names[id(tensor)] for name, tensor in own}
    return places


def build_learner(settings: Settings) -> tuple[Learner, dict[str, Tensor]]:
    """Build the learner and the initial params that the settings and their seed name.

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        network = build_network(settings.model, settings.data)
        size = embedding_size(network, settings.data)
        params = {name: value.detach().clone() for name, value in network.named_parameters()}
        if any(name.startswith("head.") for name in params):
            raise SettingsError("a parameter of the network is named 'head.…', which is kept for the linear head")
        head: Head = PrototypeHead(settings.model.sharpness)
        if settings.model.head == "linear":
            head = LinearHead()
            dtype = next((value.dtype for value in params.values()), torch.float32)
            layer = nn.Linear(size, settings.episode.way, dtype=dtype)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
            params["head.weight"], params["head.bias"] = layer.weight.detach(), layer.bias.detach()
    learner = Learner(network, head, settings.model, size, settings.judge.transductive)
    _check_loop(settings, learner, params)
    if not trainable_names(params, settings):
        raise SettingsError(f"inner.frozen = {settings.inner.frozen!r} leaves no param to adapt")
    return learner, params


def _check_loop(settings: Settings, learner: Learner, params: Params) -> None:
    """Raise SettingsError if the network cannot be adapted as [inner] says."""
    network, kinds = settings.model.network, {value.dtype for value in params.values()}
    if settings.inner.checkpointing and not learner.blocks:
        raise SettingsError(
            f"inner.checkpointing is on but the network {network!r} has no blocks that could be computed again; put "
            "its layers into an nn.Sequential or nn.ModuleList, or leave inner.checkpointing off"
        )
    if settings.inner.precision == "bf16" and kinds - {torch.float32}:
        raise SettingsError(
            f"inner.precision is 'bf16' but the network {network!r} has parameters of "
            f"{', '.join(sorted(map(str, kinds)))}; build it in float32, or set inner.precision = 'full'"
        )


@contextmanager
def _computing(precision: str, device: torch.device) -> Iterator[None]:
    """Let operations inside run in a precision. Params are cast at each use, so that no copies of them are kept."""
    if precision == "full":
        yield
        return
    with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
        yield


def trainable_names(params: Params, settings: Settings) -> list[str]:
    """Return the names of the params that sites adapt and send updates of."""
    return [name for name in params if not settings.inner.is_frozen(name)]


def with_views(support: Examples, views: int) -> Examples:
    """Return the support set with each input ``views`` times."""
    if views == 1:
        return support
    return replace(
        support,
        inputs=support.inputs.repeat_interleave(views, 0),
        labels=support.labels.repeat_interleave(views, 0),
    )
