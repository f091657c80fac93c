"""Rounds of pfl's Reptile, in an environment of its own; imports nothing of this project.

python pfl_reptile.py omniglot|mlp CLIENTS. Prints a line of JSON when it is ready, and one more for each line it reads:
CPU and wall seconds of one round.
"""
# mypy: disable-error-code="import-not-found,no-untyped-call"

import itertools
import json
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import PersonalizedNNAlgorithmParams
from pfl.algorithm.reptile import Reptile
from pfl.data.dataset import Dataset, DatasetSplit
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

STEPS, BATCH, RATE = 5, 10, 1e-3
NEVER = 10**9


class Classifier(nn.Module):
    """A network as pfl wants it: with its loss, and metrics that are never asked for."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.layers(inputs), labels.long())

    def metrics(self, inputs: Tensor, labels: Tensor) -> dict[str, float]:
        return {}


def omniglot() -> tuple[nn.Sequential, tuple[int, ...], int]:
    blocks = [
        layer
        for channels in (1, 64, 64, 64)
        for layer in (nn.Conv2d(channels, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU())
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(256, 5)), (1, 28, 28), 5


def mlp() -> tuple[nn.Sequential, tuple[int, ...], int]:
    return nn.Sequential(nn.Linear(784, 200), nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, 10)), (784,), 10


class Rounds:
    """Rounds over clients with random inputs, all of them in each round."""

    def __init__(self, network: str, clients: int) -> None:
        layers, shape, way = {"omniglot": omniglot, "mlp": mlp}[network]()
        module = Classifier(layers)
        self.model = PyTorchModel(
            module,
            lambda params, lr: torch.optim.Adam(params, lr=lr, betas=(0.0, 0.999)),
            torch.optim.SGD(module.parameters(), lr=1.0),
        )
        draw = np.random.default_rng(0)

        def some() -> Dataset:
            inputs = draw.random((STEPS * BATCH, *shape), dtype=np.float32)
            return Dataset([inputs, draw.integers(0, way, STEPS * BATCH)])

        data = [DatasetSplit(some(), some()) for _ in range(clients)]
        in_turn = itertools.cycle(range(clients))
        clients_of_a_round = FederatedDataset(data.__getitem__, lambda: next(in_turn))
        self.backend = SimulatedBackend(clients_of_a_round, clients_of_a_round)
        self.algorithm = Reptile()
        self.done, self.clients = 0, clients

    def one(self) -> None:
        self.done += 1
        params = PersonalizedNNAlgorithmParams(
            central_num_iterations=self.done,
            evaluation_frequency=NEVER,
            train_cohort_size=self.clients,
            val_cohort_size=None,
            val_split_fraction=None,
            min_train_size=None,
            min_val_size=None,
        )
        training = NNTrainHyperParams(
            local_batch_size=BATCH, local_num_epochs=None, local_learning_rate=RATE, local_num_steps=STEPS
        )
        self.algorithm.run(params, self.backend, self.model, training, send_metrics_to_platform=False)


def main() -> None:
    torch.set_num_threads(1)
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
