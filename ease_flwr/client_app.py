"""The client side of the app: hands a Flower message to a NumPyClient and its answer back."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

if Path(sys.argv[0]).name == "flwr-simulation":
    # Ray puts the working directory of the process that starts it first on its workers' sys.path. In a simulation that is
    # where the SuperLink happened to be started, which may hold another version of this app.
    os.chdir(Path(__file__).resolve().parents[1])

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

import clients
from clients.base import LoraClient
from ease_flwr import data
from ease_flwr.core import config
from ease_flwr.core.messages import ADAPTERS, metric_record, pack, read_instruction, unpack

app = ClientApp()


class ContextState:
    """clients.base.State in Flower's context.state."""

    def __init__(self, context: Context) -> None:
        self.records = context.state

    def load(self, name: str) -> NDArray[Any] | None:
        return unpack(self.records.array_records[name])["value"] if name in self.records else None

    def save(self, name: str, value: NDArray[Any]) -> None:
        self.records[name] = pack({"value": value})


def client_name(context: Context) -> str:
    """What this host calls itself: `client-name` of its node config, or client-K of partition K in a simulation."""
    node = context.node_config
    return str(node["client-name"]) if "client-name" in node else f"client-{node['partition-id']}"


def make_client(message: Message, context: Context) -> tuple[LoraClient, list[NDArray[Any]], dict[str, Any]]:
    """The NumPyClient of the objective that the instruction names, with the message as it wants it."""
    sent = dict(message.content["config"])
    arrays = unpack(message.content.array_records["arrays"])
    parameters = [arrays.pop(ADAPTERS), *arrays.values()] if arrays else []
    sent["extras"] = list(arrays)
    experiment, _ = config.from_run_config(context.run_config)
    kind = clients.load(read_instruction(sent).objective)
    world = data.load(experiment.data, experiment.seed)
    return kind(experiment, client_name(context), world, ContextState(context)), parameters, sent


@app.train()
def train(message: Message, context: Context) -> Message:
    """fit: train the adapters as instructed."""
    client, parameters, sent = make_client(message, context)
    arrays, examples, metrics = client.fit(parameters, sent)
    content = RecordDict({"metrics": metric_record({"num-examples": examples, **metrics})})
    content["arrays"] = pack({ADAPTERS: arrays[0]})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """evaluate: judge the client's own pairs."""
    client, parameters, sent = make_client(message, context)
    _, examples, metrics = client.evaluate(parameters, sent)
    return Message(RecordDict({"metrics": metric_record({"num-examples": examples, **metrics})}), reply_to=message)


@app.query()
def hello(message: Message, context: Context) -> Message:
    """get_properties: who is there, with how much data and which code. Needs no torch."""
    experiment, _ = config.from_run_config(context.run_config)
    world = data.load(experiment.data, experiment.seed)
    client = LoraClient(experiment, client_name(context), world, ContextState(context))
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    said = {**client.get_properties({}), "code": config.code_hash(), "threads": threads}
    return Message(RecordDict({"info": ConfigRecord(said)}), reply_to=message)
