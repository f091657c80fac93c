"""Rounds of FedJAX's federated averaging, in an environment of its own; imports nothing of this project.

python fedjax_avg.py omniglot|mlp CLIENTS. Prints a line of JSON when it is compiled and ready, and one more for each
line it reads: CPU and wall seconds of one round.
"""
# mypy: disable-error-code="import-not-found,no-untyped-call"

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

# One thread, and the older of XLA's two runtimes: 1.5 to 2 times faster in these rounds.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false --xla_cpu_use_thunk_runtime=false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["JAX_PLATFORMS"] = "cpu"
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import fedjax
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

STEPS, BATCH, RATE = 5, 10, 1e-3
Array = Any


def normalised(hidden: Array) -> Array:
    """Normalise by the batch's own statistics over all axes but the last, with a learned scale and offset."""
    axes = tuple(range(hidden.ndim - 1))
    mean, variance = hidden.mean(axes), hidden.var(axes)
    scale = hk.get_parameter(f"scale{hidden.shape}", hidden.shape[-1:], init=jnp.ones)
    offset = hk.get_parameter(f"offset{hidden.shape}", hidden.shape[-1:], init=jnp.zeros)
    return (hidden - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + offset


def omniglot(inputs: Array) -> Array:
    hidden = inputs
    for _ in range(4):
        hidden = jax.nn.relu(normalised(hk.Conv2D(64, 3, stride=2, padding="SAME")(hidden)))
    return hk.Linear(5)(hidden.reshape(len(hidden), -1))


def mlp(inputs: Array) -> Array:
    return hk.Linear(10)(jax.nn.relu(normalised(hk.Linear(200)(inputs))))


NETWORKS: dict[str, tuple[Callable[[Array], Array], tuple[int, ...], int]] = {
    "omniglot": (omniglot, (28, 28, 1), 5),
    "mlp": (mlp, (784,), 10),
}


class Rounds:
    """Rounds over clients with random inputs, all of them in each round."""

    def __init__(self, network: str, clients: int) -> None:
        forward, shape, way = NETWORKS[network]
        net = hk.without_apply_rng(hk.transform(forward))

        def loss(params: Any, batch: dict[str, Array], key: Array) -> Array:
            logits = net.apply(params, batch["x"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

        self.algorithm = fedjax.algorithms.fed_avg.federated_averaging(
            jax.grad(loss),
            fedjax.optimizers.adam(RATE, b1=0.0, b2=0.999),
            fedjax.optimizers.sgd(1.0),
            fedjax.ShuffleRepeatBatchHParams(batch_size=BATCH, num_epochs=1, seed=0),
        )
        draw, key = np.random.default_rng(0), jax.random.PRNGKey(0)

        def some() -> fedjax.ClientDataset:
            inputs = draw.random((STEPS * BATCH, *shape), dtype=np.float32)
            return fedjax.ClientDataset({"x": inputs, "y": draw.integers(0, way, STEPS * BATCH)})

        self.clients = [(f"client {i}", some(), jax.random.fold_in(key, i)) for i in range(clients)]
        self.state = self.algorithm.init(net.init(key, jnp.zeros((BATCH, *shape))))

    def one(self) -> None:
        self.state, _ = self.algorithm.apply(self.state, self.clients)
        jax.block_until_ready(self.state.params)


def main() -> None:
    network, clients = sys.argv[1], int(sys.argv[2])
    rounds = Rounds(network, clients)
    began = time.perf_counter()
    rounds.one()
    print(json.dumps({"first": time.perf_counter() - began, "clients": clients}), flush=True)
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        rounds.one()
        print(json.dumps({"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}), flush=True)


if __name__ == "__main__":
    main()
