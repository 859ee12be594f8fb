"""Asking every client about every model of a run: at its end, and again whenever somebody wants to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flwr.serverapp import Grid

from ease_flwr import data
from ease_flwr.audit import examination, verdict
from ease_flwr.audit.summary import read_results
from ease_flwr.config import ConfigError, Experiment, Union, union
from ease_flwr.config.request import now
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.roll_call import roll_call
from ease_flwr.exchange.transport import Transport
from ease_flwr.server.state import Vector
from ease_flwr.store import phases, queue
from ease_flwr.store.files import write_text
from ease_flwr.store.layout import RunLayout
from ease_flwr.store.run import Run

if TYPE_CHECKING:
    from ease_flwr.model.lock import ForgetLock


def audit(
    run: Run, federation: Federation, thetas: dict[str, Vector], forget: Union, level: Any, lock: ForgetLock | None
) -> None:
    """Write audit.json and audit.md into the folder of `run`. forget: all that the run has forgotten."""
    import torch

    from ease_flwr.model.adapters import sha256

    experiment = federation.experiment
    answers = examination.examine(federation, thetas, forget, level, experiment.evaluation.split)
    continued = ("continued", "retrain_continued")
    reference = {m: "retrain_continued" if m in continued and "retrain_continued" in answers else "retrain" for m in answers}
    found = {m: examination.numbers(a, answers[reference[m]]) for m, a in answers.items()}
    rows = verdict.verdict(found, experiment.audit)
    drift = {m: float(lock.drift(torch.from_numpy(thetas[m])).norm()) for m in continued if lock and m in thetas}
    result = {
        "schema": 2,
        "at": now(),
        "level": level,
        "adapters_sha256": {m: sha256(theta) for m, theta in thetas.items()},
        "reference": reference,
        "numbers": {m: examination.plain(f) for m, f in found.items()},
        "drift": drift,
        "scores": {m: examination.scores(a) for m, a in answers.items()},
        "verdict": verdict.plain(rows),
    }
    run.write("audit.json", result)
    text = verdict.table(rows)
    write_text(run.folder / "audit.md", text)
    run.event(f"[audit] {level}\n{text}")


def audit_again(grid: Grid, run: Run, experiment: Experiment, level: str) -> None:
    """Audit the finished run whose folder is the parent of this one's. Raises ConfigError."""
    from ease_flwr.model import adapters

    finished = RunLayout(run.folder.parent)
    results, served = read_results(finished.folder), queue.served(finished.folder)
    if not served:
        raise ConfigError(f"{finished.folder}: nothing was forgotten there yet")
    requests = [request for _, request in served]
    clients = data.load(experiment.data, experiment.seed).clients
    transport = Transport(grid)
    roster, _ = roll_call(transport, experiment, clients, {c for r in requests for c in r.leaving})
    blocks = adapters.load(experiment.model, experiment.lora, experiment.seed).blocks
    thetas = {name: adapters.read(finished.adapters / name, blocks) for name in results["adapters_sha256"]}
    if changed := [name for name, theta in thetas.items() if adapters.sha256(theta) != results["adapters_sha256"][name]]:
        raise ConfigError(f"{finished.adapters}/{changed[0]} is not what results.json names: it was changed since")
    if "retrain" not in thetas:
        raise ConfigError(f"{finished.folder}: an audit needs the retrained model, this run has none (evaluation.reference)")
    lock = phases.read(finished.phase(served[-1][0])).lock
    audit(run, Federation(transport, experiment, roster, run.event), thetas, union(requests), level, lock)
