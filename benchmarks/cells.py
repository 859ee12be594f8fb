"""EASE and its foils against two retrainings, all from one learnt federation, without Ray: a cell of docs/results.md.

    python -m benchmarks.cells FILE.json SEED... [--experiment personas] [--variants LABEL,...] [--device cpu] [--set KEY=VALUE]

Prints model minus the mean of two retrainings: R@1 on every set of the test split, after one relearning step (re1), after two
steps of one tower alone (xv, xt), and how far each pair's similarity is away (distance). Where clients leave it is
client-(SEED mod 4). LABEL is a variant of `ease ablate`. The learn phase has learn.rounds rounds, without early stopping.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ease_flwr.clients.audit import Audit, Subject
from ease_flwr.strategies import load
from ease_flwr.strategies.base import Method, MethodContext, Vector
from ease_flwr.strategies.ordinary import Continuing, Learning

from ease_flwr import config, data
from ease_flwr.config import ForgetSet
from ease_flwr.exchange import messages
from ease_flwr.exchange.evaluation import judge
from ease_flwr.exchange.examined import MemberHits
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.messages import Returning
from ease_flwr.exchange.roll_call import Roster
from ease_flwr.exchange.rounds import Outcome, Plan, run_rounds
from ease_flwr.model import adapters
from ease_flwr.store.cost import Cost
from ease_flwr.store.history import History
from ease_flwr.sweep.ablation import ABLATION
from tests.in_process_grid import InProcessGrid, at_once

Numbers = dict[str, Any]
LEAVERS = 4


class Memory(dict[str, Any]):
    """What a client of this process keeps between messages."""

    load = dict.get

    def save(self, name: str, value: Any) -> None:
        self[name] = value


class Cell:
    """One experiment with one seed and one request, in this process."""

    def __init__(self, name: str, seed: int, device: str, more: Sequence[str] = ()) -> None:
        leaves = config.load(name).forget.scenario == "client"
        told = {"model.device": device, **({"forget.targets": f"client-{seed % LEAVERS}"} if leaves else {})}
        told |= config.parse_assignments(more)
        self.experiment = config.load(name, told).model_copy(update={"seed": seed})
        self.run_config = {"experiment": name, "strategy": "ease", "seed": seed, "run-dir": "", "fresh": False}
        self.run_config |= {"set": " ".join(f"{k}={v}" for k, v in told.items())}
        self.run_config |= {"data.root": "", "model.weights": "", "forget.targets": ""}
        world = data.load(self.experiment.data, seed)
        asked = world.resolve(self.experiment.forget)
        self.forget = ForgetSet(scenario=asked.scenario, targets=asked.targets)
        self.model = adapters.load(self.experiment.model, self.experiment.lora, seed)
        self.clients = {n: Audit(self.experiment, n, world, Memory()) for n in world.clients}
        self.concerned = tuple(n for n, c in self.clients.items() if c.named((self.forget,)).any())

    def context(self, phase: str, everybody: bool = False, order: int = 0) -> MethodContext:
        """For a phase with all data, or without the forget set."""
        names = tuple(self.clients)
        roster = Roster(
            names, {n: 100 + k for k, n in enumerate(names)}, {n: len(c.data.train) for n, c in self.clients.items()}
        )
        transport = at_once(InProcessGrid(len(names), self.run_config))
        federation = Federation(transport, self.experiment, roster, lambda *said, **numbers: None)
        here = tuple(n for n in names if everybody or n not in self.forget.leaving)
        without = {} if everybody else dict.fromkeys(self.concerned, (self.forget,))
        start, blocks, learnt = self.model.initial, self.model.blocks, self.experiment.learn.rounds
        return MethodContext(
            self.experiment, federation, phase, start, blocks, here, without=without, order=order, learnt=learnt
        )

    def learn(self, context: MethodContext, theta: Vector, plan: Plan) -> Outcome:
        return run_rounds(context.federation, Learning(context), theta, plan)

    def unlearn(self, theta: Vector, history: History, strategy: str, params: Mapping[str, Any]) -> tuple[Any, Vector, Cost]:
        """The method that ran, the adapters after it, and what it cost."""
        context = replace(self.context("forget"), forget_clients=self.concerned, forget=self.forget)
        kind = load(strategy)
        method = kind(context, kind.Params.model_validate(params))
        start = method.prepare(theta, history)
        found = run_rounds(context.federation, method, start, Plan("forget", method.rounds))
        return method, found.theta, method.meter.spent + found.cost

    def go_on(self, theta: Vector, lock: Any) -> Vector:
        """Adapters after the continuation."""
        context, count = self.context("continuation"), self.experiment.continuation.overlap
        returning = Returning(about=(self.forget,), count=count) if count else None
        plan = Plan("continuation", self.experiment.continuation.rounds)
        return run_rounds(context.federation, Continuing(context, lock, returning), theta, plan).theta

    def measured(self, theta: Vector) -> Numbers:
        """R@1 by set, after relearning, and the similarities of exclusive pairs."""
        judged = judge(self.context("cells").federation, {"": theta}, (self.forget,))[""]
        probes: dict[str, list[float]] = {"re1": [], "xv": [], "xt": []}
        asked = messages.Audit(forget=(self.forget,), split="test", probes=(), train=self.experiment.learn)
        for client in (self.clients[name] for name in self.concerned):
            sets = client.data.evaluation("test", (self.forget,))
            subject = Subject(client._forgotten(client.named((self.forget,))), sets, asked, None, None)
            probes["re1"].append(recall(client.relearning(theta, subject)["relearn"], 1))
            cross = client.cross_modal(theta, subject)["cross"]
            probes["xv"].append(recall(cross["visual"], 0))
            probes["xt"].append(recall(cross["text"], 0))
            client._free(())
        found: Numbers = {name: judged.r1(name) for name in judged.sets}
        similarity = judged.similarity.get("forget_exclusive", np.empty(0)).tolist()
        return found | {key: float(np.mean(values)) for key, values in probes.items()} | {"similarity": similarity}


def recall(members: Sequence[MemberHits], stop: int) -> float:
    """R@1 in percent after so many numbers of steps, the mean over orders of batches and both directions."""
    of = np.sum([m.of for m in members], axis=0)
    hits = np.sum([np.mean([order[stop] for order in m.hits], axis=0) for m in members], axis=0)
    return float(50 * (hits / of).sum())


def difference(found: Numbers, references: Sequence[Numbers]) -> dict[str, float]:
    """found minus the mean of the references, and the mean distance of similarities."""
    away = np.abs(np.array(found["similarity"]) - np.mean([r["similarity"] for r in references], axis=0))
    return {k: v - float(np.mean([r[k] for r in references])) for k, v in found.items() if k != "similarity"} | {
        "distance": float(away.mean()) if len(away) else 0.0
    }


def traffic(cost: Cost) -> int:
    """Bytes both ways."""
    return cost.uplink_bytes + cost.downlink_bytes


def line(name: str, found: Mapping[str, float]) -> str:
    """A row of the table."""
    return f"{name:34}" + " ".join(
        f"{k.removeprefix('forget_')} {v:{'.3f' if k == 'distance' else '+.1f'}}" for k, v in found.items()
    )


def one(name: str, seed: int, labels: Sequence[str], device: str, more: Sequence[str] = ()) -> Numbers:
    """All numbers of a cell, printed on the way. more: settings, KEY=VALUE."""
    cell = Cell(name, seed, device, more)
    rounds, start = cell.experiment.learn.rounds, cell.model.initial
    models: dict[str, Numbers] = {}
    costs: dict[str, Cost] = {}
    for k, again in enumerate(("retrain", "retrain_2")):
        context = cell.context("learn", order=k)
        learnt = cell.learn(context, start, Plan("learn", rounds))
        equal = cell.learn(context, learnt.theta, Plan("learn", Method.rounds_of(Method.Params(), rounds), first=rounds + 1))
        costs["retrain"] = learnt.cost
        models[again] = cell.measured(learnt.theta)
        models[again.replace("retrain", "retrain_equal")] = cell.measured(equal.theta)
        models[again.replace("retrain", "retrain_continued")] = cell.measured(cell.go_on(equal.theta, None))
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder))
        original = cell.learn(cell.context("learn", everybody=True), start, Plan("learn", rounds, history=history)).theta
        models["original"] = cell.measured(original)
        out: Numbers = {"cell": f"{seed}, {' '.join(cell.forget.targets)}", "models": models, "differences": {}, "share": {}}
        known = {v.label: v for group in ABLATION.values() for v in group}
        for label in labels:
            variant = known[label]
            told = config.load(name, {**variant.settings}).strategy
            method, theta, costs[label] = cell.unlearn(original, history, variant.strategy, told)
            models[label] = cell.measured(theta)
            out["differences"][label] = difference(models[label], [models["retrain"], models["retrain_2"]])
            spent, whole = costs[label], costs["retrain"]
            shares = spent.client_steps / whole.client_steps, traffic(spent) / traffic(whole)
            out["share"][label] = dict(zip(("steps", "bytes"), shares, strict=True))
            said = line(f"{out['cell']}: {label}", out["differences"][label])
            print(said, "| {:.1%} of the steps, {:.1%} of the bytes".format(*shares), flush=True)
            if label == "EASE":
                models["continued"] = cell.measured(cell.go_on(theta, method.lock_after(theta)))
                later = [models["retrain_continued"], models["retrain_continued_2"]]
                out["differences"]["continued"] = difference(models["continued"], later)
                print(line(f"{out['cell']}: continued", out["differences"]["continued"]), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="cells", description="EASE and its foils against two retrainings.")
    parser.add_argument("file", type=Path, help="JSON file to write")
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--experiment", default="personas")
    parser.add_argument("--variants", default="EASE,no projection,whole forget subspace,with BKE,random subspace")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the experiment")
    told = parser.parse_args()
    wanted, known = told.variants.split(","), [v.label for group in ABLATION.values() for v in group]
    if wrong := [label for label in wanted if label not in known]:
        parser.error(f"no variant {wrong[0]!r}: there are {', '.join(known)}")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    found = []
    for seed in told.seeds:
        found.append(one(told.experiment, seed, wanted, told.device, told.set))
        told.file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
