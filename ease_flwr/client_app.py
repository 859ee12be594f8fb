"""The client side of the app: hands a Flower message to a NumPyClient and its answer back."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if Path(sys.argv[0]).name == "flwr-simulation":
    # Ray puts the working directory of the process that starts it first on its workers' sys.path. In a simulation that is
    # where the SuperLink happened to be started, which may hold another version of this app.
    os.chdir(Path(__file__).resolve().parents[1])

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

import clients
from clients.base import LoraClient
from ease_flwr import data
from ease_flwr.core import config
from ease_flwr.core.messages import ADAPTERS, NOW, STEP, Instruction, metric_record, pack, read_instruction, unpack

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


def on_host(experiment: config.Experiment, node: Mapping[str, Any]) -> config.Experiment:
    """The experiment with this host's own paths: `data-root`, `cache`, `base-model` and `device` of its node config."""
    own = {field: str(node[key]) for field, key in (("root", "data-root"), ("cache", "cache")) if node.get(key)}
    changes: dict[str, Any] = {"data": experiment.data.model_copy(update=own)}
    model = {field: str(node[key]) for field, key in (("weights", "base-model"), ("device", "device")) if node.get(key)}
    changes["model"] = config.validate(config.ModelConfig, experiment.model.model_dump() | model, "node config")
    return experiment.model_copy(update=changes)


def make_client(context: Context, objective: str = "") -> LoraClient:
    """The NumPyClient of an objective, or the one every objective is built on."""
    experiment = on_host(config.from_run_config(context.run_config)[0], context.node_config)
    world = data.load(experiment.data, experiment.seed)
    kind = clients.load(objective) if objective else LoraClient
    return kind(experiment, client_name(context), world, ContextState(context))


def read(message: Message) -> tuple[Instruction, list[str], list[NDArray[Any]]]:
    """The instruction of a message, and its arrays by name."""
    arrays = unpack(message.content.array_records["arrays"])
    return read_instruction(dict(message.content["config"])), list(arrays), list(arrays.values())


@app.train()
def train(message: Message, context: Context) -> Message:
    """fit: train the adapters as instructed; judge them before and do the job beside it if there are such."""
    instruction, names, (sent, *extras) = read(message)
    theta = sent.astype(np.float32)
    judged: dict[str, Any] = {}
    if instruction.before:
        judged = judge(make_client(context), instruction.before, NOW, theta)[1]
    metrics: dict[str, Any] = {}
    results: dict[str, NDArray[Any]] = {}
    for key, job in ((ADAPTERS, instruction), (STEP, instruction.beside)):
        if job:
            told = {"instruction": job.model_dump_json(), "extras": names[1:]}
            (after,), examples, said = make_client(context, job.objective).fit([theta, *extras], told)
            changed = after - theta if instruction.half or key == STEP else after
            results[key] = changed.astype(np.float16) if instruction.half else changed
            metrics = {**{"num-examples": examples, **said}, **metrics, "steps": metrics.get("steps", 0) + said["steps"]}
    return Message(RecordDict({"arrays": pack(results), "metrics": metric_record(metrics | judged)}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """evaluate: judge the client's own pairs, under every model that was sent."""
    instruction, names, arrays = read(message)
    if instruction.objective == "audit":
        sent = {"instruction": instruction.model_dump_json(), "models": names}
        _, examples, said = make_client(context, "audit").evaluate(arrays, sent)
        return Message(RecordDict({"metrics": metric_record({"num-examples": examples, **said})}), reply_to=message)
    client = make_client(context)
    metrics: dict[str, Any] = {}
    for name, theta in zip(names, arrays, strict=True):
        examples, said = judge(client, instruction, name, theta)
        metrics |= {"num-examples": examples, **said}
    return Message(RecordDict({"metrics": metric_record(metrics)}), reply_to=message)


def judge(client: LoraClient, instruction: Instruction, name: str, theta: NDArray[Any]) -> tuple[int, dict[str, Any]]:
    """How many pairs the client judged, and what it counted, as "NAME/SET.kind"."""
    _, examples, said = client.evaluate([theta], {"instruction": instruction.model_dump_json()})
    return examples, {f"{name}/{key}": value for key, value in said.items()}


@app.query()
def hello(message: Message, context: Context) -> Message:
    """get_properties: who is there, with how much data and which code. Needs no torch."""
    client = make_client(context)
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    said = {**client.get_properties(dict(message.content["config"])), "code": config.code_hash(), "threads": threads}
    said["base"] = config.weights_sha256(client.experiment.model)
    return Message(RecordDict({"info": ConfigRecord(said)}), reply_to=message)
