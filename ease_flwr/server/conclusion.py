"""The end of a run: the references, every model judged on every set, the files that say so, and an audit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ease_flwr import data
from ease_flwr.audit import omitted, retrieval
from ease_flwr.audit import references as asking
from ease_flwr.audit.summary import PAIRS, cost_line, read_results
from ease_flwr.config import ConfigError, Experiment, described, union
from ease_flwr.exchange.evaluation import judge
from ease_flwr.exchange.judgement import Judgement
from ease_flwr.server.audit import Audited, audit, held_in
from ease_flwr.server.parties import holders
from ease_flwr.server.references import references
from ease_flwr.server.state import FederationState, Server
from ease_flwr.store import queue
from ease_flwr.store.files import write_text
from ease_flwr.store.queue import Step
from ease_flwr.store.run import Run

ORDER = ("original", "retrain", "retrain_equal", "unlearned", "continued", "retrain_continued")
"""Models in tables; further retrainings, *retrain_2* and so on, stand behind the first, and earlier models of several requests,
*unlearned_1* and so on, before *unlearned*."""


def conclude(server: Server, state: FederationState) -> FederationState:
    """Everything about every model: results.json, table.md, adapters/, and the audit."""
    experiment = server.experiment
    if state.served:
        state = references(server, state)
    again, earlier = (retrieval.numbered(name, list(state.models)) for name in ("retrain", "unlearned"))
    order = [*ORDER[:2], *again, ORDER[2], *earlier, *ORDER[3:]]
    thetas = {m: state.models[m].theta for m in order if m in state.models}
    everything = union(state.served)
    found = judge(server.here(state), thetas, everything, experiment.evaluation.split)
    results = _results(server, state, found)
    text = retrieval.table(found)
    text += f"\n{retrieval.SIGN}\n" if any(m in found and r in found for m, r, _ in PAIRS) else ""
    for model, reference, key in PAIRS:
        if model in found and reference in found:
            beside = retrieval.meant(model, reference, list(found))
            results[key] = gap = retrieval.gaps(found, model, beside)
            text += f"\n{retrieval.gap_line(model, ' and '.join(beside), gap, experiment.audit)}\n"
    if "retrain" in state.costs:
        text += f"\n{cost_line(results)}\n"
    elif state.served:
        text += f"\n{asking.standing(server.run.folder, state.forgotten)}\n"
    results["left_out"] = omitted.of_results(found, results["gaps"], bool(state.served))
    text += "".join(f"\n{remark}\n" for remark in state.remarks)
    text += "".join(f"\n{omitted.HEAD}: {line}.\n" for line in omitted.lines(results["left_out"]))
    _save(server, state, list(found))
    server.run.write("results.json", results)
    write_text(server.run.layout.table, text)
    server.run.event(text)
    if experiment.audit.level != "none" and state.served:
        who, rounds = holders(server.roll_call), held_in(server.run.layout)
        clients = len(data.load(experiment.data, experiment.seed).clients)
        price = "" if "retrain" in thetas else asking.offer(server.run.folder, experiment, clients)
        about = Audited(thetas, everything, state.lock, who, state.departed | state.absent, rounds, price)
        audit(server.run, server.here(state), about, experiment.audit.level)
    return state


def concluded(run: Run, experiment: Experiment, steps: Sequence[Step]) -> bool:
    """Whether results.json is about all that the queue asks, and has the references that the experiment wants."""
    try:
        results = read_results(run.folder)
    except ConfigError:
        return False
    always = experiment.evaluation.reference == "retrain" and queue.requests(steps)
    wanted = {"retrain"} if always or asking.read(run.folder) else set[str]()
    return results.get("phases") == queue.names(steps) and wanted <= set(results["models"])


def _results(server: Server, state: FederationState, found: dict[str, Judgement]) -> dict[str, Any]:
    """results.json, but for the gaps; docs/architecture.md describes it."""
    from ease_flwr.model.adapters import sha256

    last = state.facts[-1] if state.facts else {}
    return {
        "schema": 2,
        "experiment": server.experiment.name,
        "strategy": last.get("strategy", ""),
        "params": last.get("params", {}),
        "seed": server.experiment.seed,
        "forget": described(union(state.served)) if state.served else {},
        "learning": {"rounds": state.learnt, "judged": list(state.judged)},
        "phases": queue.names(queue.read(server.run.folder)),
        "requests": list(state.facts),
        "models": {m: j.sets for m, j in found.items()},
        "clients": {m: j.clients for m, j in found.items()},
        "limits": server.experiment.audit.model_dump(mode="json", include={"recall", "retained"}),
        "gaps": {},
        "left_out": {},
        "cost": {phase: asdict(cost) for phase, cost in state.costs.items()},
        "failures": list(state.failures),
        "remarks": list(state.remarks),
        "adapters_sha256": {m: sha256(state.models[m].theta) for m in found},
    }


def _save(server: Server, state: FederationState, names: list[str]) -> None:
    """The models as PEFT folders, each with what it has forgotten; folders of models that there are no more are removed."""
    from ease_flwr.audit.export import write_folder

    folder = server.run.layout.adapters
    for stale in [p for p in folder.glob("*") if p.name not in names]:
        shutil.rmtree(stale)
    for name in names:
        write_folder(server.experiment, state.models[name].theta, folder / name, name, state.models[name].forgotten)
