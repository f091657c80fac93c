"""A stock Flower app that does the same work: FedAvg, torch in the process of each message, train and evaluate apart.

What the documentation of Flower shows, with our network, our data and the same inner steps; nothing else of ours.
"""

import time
from collections.abc import Iterable
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch import Tensor
from torch.nn.functional import cross_entropy

server_app = ServerApp()
client_app = ClientApp()


def network(way: int, width: int) -> torch.nn.Module:
    from common.learning.networks import OmniglotNetwork

    return torch.nn.Sequential(OmniglotNetwork(1, width), torch.nn.LazyLinear(way))


def examples(context: Context) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of the first classes of the node's folder."""
    from client.data.sites import open_own
    from common.learning.episode import all_of
    from common.settings import DataSettings

    found = all_of(open_own(Path(str(context.node_config["data"])), DataSettings(), None)).support
    rows = found.labels < int(context.run_config["way"])
    return found.inputs[rows], found.labels[rows]


def loaded(message: Message, context: Context, inputs: Tensor) -> torch.nn.Module:
    torch.set_num_threads(1)
    net = network(int(context.run_config["way"]), int(context.run_config["width"]))
    net(inputs[:1])
    arrays = message.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    net.load_state_dict(arrays.to_torch_state_dict())
    return net


def fit(net: torch.nn.Module, inputs: Tensor, labels: Tensor, steps: int, batch: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(steps):
        rows = torch.randperm(len(labels))[:batch]
        optimizer.zero_grad()
        cross_entropy(net(inputs[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    inputs, labels = examples(context)
    net = loaded(message, context, inputs)
    fit(net, inputs, labels, int(context.run_config["steps"]), int(context.run_config["batch"]))
    metrics = MetricRecord({"num-examples": len(labels)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    inputs, labels = examples(context)
    net = loaded(message, context, inputs)
    fit(net, inputs, labels, int(context.run_config["steps"]), int(context.run_config["batch"]))
    with torch.no_grad():
        right = (net(inputs[:50]).argmax(1) == labels[:50]).float().mean().item()
    metrics = MetricRecord({"num-examples": len(labels), "accuracy": right})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


class Timed(FedAvg):
    """FedAvg that notes when each round is over."""

    notes = ""

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        found = super().aggregate_evaluate(server_round, replies)
        note(self.notes)
        return found


def note(path: str) -> None:
    with Path(path).open("a", encoding="ascii") as file:
        file.write(f"{time.time()}\n")


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    nodes = int(context.run_config["nodes"])
    while len(list(grid.get_node_ids())) < nodes:
        time.sleep(0.5)
    net = network(int(context.run_config["way"]), int(context.run_config["width"]))
    net(torch.zeros(1, 1, 28, 28))
    strategy = Timed(min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    strategy.notes = str(context.run_config["notes"])
    note(strategy.notes)
    strategy.start(grid, ArrayRecord(net.state_dict()), num_rounds=int(context.run_config["rounds"]))
