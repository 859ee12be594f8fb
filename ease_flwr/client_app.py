"""The client side of the app: hands a Flower message to a NumPyClient and its answer back."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

if Path(sys.argv[0]).name == "flwr-simulation":
    # Ray puts the working directory of the process that starts it first on its workers' sys.path. In a simulation that is
    # where the SuperLink happened to be started, which may hold another version of this app.
    os.chdir(Path(__file__).resolve().parents[1])
    if os.environ.get("RAY_ADDRESS", "local") != "local":
        # The other machines of a cluster have no such folder, and may have another version of this app: Ray sends them this
        # one, which then comes first on their workers' sys.path.
        os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": {"working_dir": os.getcwd()}})

import numpy as np
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from ease_flwr import clients, config, data
from ease_flwr.clients.base import LoraClient
from ease_flwr.config import Section
from ease_flwr.exchange.answers import Present, answer, trained
from ease_flwr.exchange.judgement import Evaluation
from ease_flwr.exchange.messages import ADAPTERS, STEP, Audit, Evaluate, Forget, Hello, pack, read_instruction, unpack
from ease_flwr.exchange.transport import LINE, RAISED, plain
from ease_flwr.hosts import policy
from ease_flwr.hosts.owner import Owner
from ease_flwr.store.files import home
from ease_flwr.store.tombstones import Told, Tombstones, salted

app = ClientApp()


class ContextState:
    """clients.base.State in Flower's context.state."""

    def __init__(self, context: Context) -> None:
        self.records = context.state

    def load(self, name: str) -> NDArray[Any] | None:
        return unpack(self.records.array_records[name])["value"] if name in self.records else None

    def save(self, name: str, value: NDArray[Any]) -> None:
        self.records[name] = pack({"value": value})


def client_name(context: Context, clients: Sequence[str]) -> str:
    """What this host calls itself: `client-name` of its node config, or in a simulation the client of its partition."""
    node = context.node_config
    return str(node["client-name"]) if "client-name" in node else clients[int(node["partition-id"])]


def kept_here(node: Mapping[str, Any]) -> Tombstones:
    """What this host remembers: in `home` of its node config, or among the runs of its account."""
    return Tombstones(Path(str(node["home"])) if node.get("home") else home() / "hosts" / str(node.get("client-name", "")))


def on_host(experiment: config.Experiment, node: Mapping[str, Any]) -> config.Experiment:
    """The experiment with this host's own paths (`data-root`, `cache`, `base-model`, `device` of its node config) and what it
    remembers in `home`; in a simulation as it is. Raises RefusedError, see policy.own_paths."""
    if "client-name" not in node:
        return experiment
    owner, hosts = Owner.of(node), experiment.data.kind == "folder"
    there = policy.own_paths(experiment, node, owner is None or owner.policy.gpu)
    own = {"barred": kept_here(node).digests if hosts else (), "memory": str(kept_here(node).folder) if hosts else ""}
    return there.model_copy(update={"data": there.data.model_copy(update=own)})


def make_client(context: Context, objective: str = "") -> LoraClient:
    """The NumPyClient of an objective, or the one every objective is built on."""
    experiment = on_host(config.from_run_config(context.run_config)[0], context.node_config)
    world = data.load(config.pictures(experiment), experiment.seed)
    if (name := client_name(context, world.clients)) not in world.clients:
        raise config.ConfigError(
            f"{name} is no client of this run, which has {', '.join(world.clients)}: where it is one of them, mend its "
            f"client-name; a new one takes part after `ease join RUN {name}`"
        )
    kind = clients.load(objective) if objective else LoraClient
    return kind(experiment, name, world, ContextState(context))


def read(message: Message) -> tuple[Any, list[str], list[NDArray[Any]]]:
    """The instruction of a message, and its arrays by name."""
    arrays = unpack(message.content.array_records["arrays"])
    return read_instruction(dict(message.content["config"])), list(arrays), list(arrays.values())


def told(job: Section, **more: Any) -> dict[str, Any]:
    """The config of a NumPyClient that carries an instruction."""
    return {"instruction": job.model_dump_json(), **more}


def in_one_line(answer: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
    """What a host's owner does not allow is not done (hosts/owner.py). What is raised here is answered in one line, which the
    server can show. This host's log has the whole text, and where it is no mistake with its own words, the traceback."""

    @wraps(answer)
    def answered(message: Message, context: Context) -> Message:
        owner = Owner.of(context.node_config)
        try:
            if owner:
                owner.asked(message, context.run_config)
            reply = answer(message, context)
            if owner:
                owner.sends(reply)
            return reply
        except Exception as error:
            if not isinstance(error, config.ConfigError):
                traceback.print_exc()
            whole = line_of(error)
            print(f"ease_flwr: {whole}", file=sys.stderr, flush=True)
            travels = line_of(error, whole=False) if "client-name" in context.node_config else whole
            if owner:
                with suppress(OSError):  # a log that cannot be written has ended this message already
                    owner.fails(error, travels)
            return Message(Error(RAISED, travels), reply_to=message)

    return answered


def line_of(error: Exception, whole: bool = True) -> str:
    """An error in one line. whole: what it says; otherwise only where no data can be in it: in a mistake about settings."""
    text = " ".join(str(error).split())
    if isinstance(error, config.ConfigError) and (whole or not isinstance(error, config.DataError)):
        return text if whole else plain(text, LINE)
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"({Path(last.filename).name}, line {last.lineno}, {last.name})"
    return f"{type(error).__name__}: {text} {place}" if whole else f"{type(error).__name__} {place}"


def concerned(client: LoraClient, job: Any) -> tuple[int, ...]:
    """How many of a client's pairs a training is about, as clients/base.py chooses them; of a Forget those that stay, too."""
    named = client.named
    if isinstance(job, Forget):
        gone, earlier = named((job.forget,)), named(job.without)
        return int((gone & ~earlier).sum()), int((~gone & ~earlier & ~client.data.barred).sum())
    earlier = named(tuple(part for part in job.without if part not in job.only))
    return (int((~earlier & (named(job.only) if job.only else ~client.data.barred)).sum()),)


@app.train()
@in_one_line
def train(message: Message, context: Context) -> Message:
    """fit: train the adapters as instructed; judge them before and do the job beside it if there are such."""
    instruction, names, (sent, *extras) = read(message)
    theta = sent.astype(np.float32)
    judged = judge(context, instruction.before, {"": theta})[""] if instruction.before else None
    metrics: dict[str, Any] = {}
    results: dict[str, NDArray[Any]] = {}
    for key, job in ((ADAPTERS, instruction), (STEP, getattr(instruction, "beside", None))):
        if job:
            client = make_client(context, job.objective)
            if owner := Owner.of(context.node_config):
                owner.concerns(*concerned(client, job))
            (after,), examples, said = client.fit([theta, *extras], told(job, extras=names[1:]))
            short = instruction.half or key == STEP
            results[key] = (after - theta).astype(np.float16) if short else after
            metrics = {**{"num-examples": examples, **said}, **metrics, "steps": metrics.get("steps", 0) + said["steps"]}
    return Message(trained(results, metrics, judged), reply_to=message)


@app.evaluate()
@in_one_line
def evaluate(message: Message, context: Context) -> Message:
    """evaluate: judge the client's own pairs, under every model that was sent."""
    instruction, names, arrays = read(message)
    if isinstance(instruction, Audit):
        _, _, said = make_client(context, "audit").evaluate(arrays, told(instruction, models=names))
        return Message(answer(said["answer"]), reply_to=message)
    return Message(answer(judge(context, instruction, dict(zip(names, arrays, strict=True)))), reply_to=message)


def judge(context: Context, question: Evaluate, models: Mapping[str, NDArray[Any]]) -> dict[str, Evaluation]:
    """What the client counts on its own pairs under each model."""
    client, owner = make_client(context), Owner.of(context.node_config)
    found: dict[str, Evaluation] = {}
    for name, theta in models.items():
        found[name] = Evaluation.model_validate_json(client.evaluate([theta], told(question))[2]["answer"])
        if owner:
            owner.concerns(*(judged.images for judged in found[name].sets.values()), counts=True)
    return found


def remembering(client: LoraClient, asked: Hello, context: Context) -> LoraClient:
    """The client of a host, once the host has written down which of its pairs this run has forgotten, and which the server says
    it has withdrawn before: on these it does not train."""
    mine, data, told = kept_here(context.node_config), client.data, asked.told or Told(salt="")
    known = mine.read()
    new = {key: set(labels) for key, labels in told.classes.items() if key not in known.heard}
    mask = data.named(asked.forget[: asked.served])
    for i, (both, label) in enumerate(zip(data.ids, data.labels, strict=True) if told.pairs or new else ()):
        digest = salted(told.salt, label)
        before = any(salted(told.salt, of) in told.pairs for of in both)
        mask[i] |= before or any(digest in labels for labels in new.values())
    found = [i for n in np.flatnonzero(mask).tolist() for i in data.ids[n] if salted(known.salt, i) not in known.pairs]
    mine.add(client.name, str(config.decoded(context.run_config)["run-dir"]), found, new)
    return make_client(context) if found else client


@app.query()
@in_one_line
def hello(message: Message, context: Context) -> Message:
    """get_properties: who is there, with how much data and which code. A host decodes its pictures first. Needs no torch."""
    question = dict(message.content["config"])
    client = make_client(context)
    if client.experiment.data.kind == "folder":
        client.world.prove(lambda line: print(f"ease_flwr: {line}", file=sys.stderr, flush=True))
        client = remembering(client, read_instruction(question), context)
    said = client.get_properties(question)
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    smallest = owner.policy.smallest_set if (owner := Owner.of(context.node_config)) else 1
    same = {"code": config.code_hash(), "base": config.model_sha256(client.experiment.model)}
    return Message(answer(Present(**said, **same, threads=threads, smallest=smallest)), reply_to=message)
