"""One round of training. A client that fails is asked once more, and is left out if it fails again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ease_flwr.config import digest
from ease_flwr.exchange import fitting
from ease_flwr.exchange.answers import Update, read_update
from ease_flwr.exchange.bounds import in_proportion
from ease_flwr.exchange.federation import Federation, Request
from ease_flwr.exchange.journal import Exchange
from ease_flwr.exchange.judgement import Evaluation
from ease_flwr.exchange.messages import ADAPTERS, STEP, Evaluate, Learn, as_told
from ease_flwr.exchange.transport import FederationError, printable, reason
from ease_flwr.store.cost import Cost

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """What came of one round of training."""

    updates: dict[str, Update]
    """Sorted by name, so that the same answers always add up to the same bits."""
    cost: Cost
    notified: frozenset[str]
    """Clients that have their `once` arrays now."""
    failures: tuple[dict[str, Any], ...] = ()
    """Answers that did not come or were not fit to be used: {"phase", "round", "client", "why"}."""


def train(
    federation: Federation,
    theta: Vector,
    requests: Mapping[str, Request],
    notified: frozenset[str] = frozenset(),
    before: Evaluate | None = None,
    usual: Mapping[str, float] | None = None,
) -> Trained:
    """One round from the adapters theta, float32 (p,). Raises FederationError below the quorum.

    notified: clients that have their `once` arrays already.
    before: the evaluation of theta that everybody asked does first, in the same message.
    usual: by kind of work, length of an update so far in the run, see bounds.Usual.
    """
    how = {"before": before, "half": federation.experiment.federation.half}
    jobs: dict[str, Any] = {n: r.instruction for n, r in requests.items()}
    requests = {n: replace(r, instruction=jobs[n].model_copy(update=how)) for n, r in requests.items()}
    journal = federation.journal

    def exchange() -> Exchange:
        # another process has notified them, for another run of Flower's
        return _train(federation, theta, requests, frozenset() if journal.resumed else notified, usual or {})

    asked = digest("train", sha256(theta), identities(requests)) if journal.folder else ""
    found = journal.once(asked, exchange)
    for line in found.info["said"]:
        federation.say(line)
    arrays: dict[str, dict[str, Any]] = {}
    for key, array in found.arrays.items():
        client, _, name = key.rpartition("/")
        arrays.setdefault(client, {})[name] = array
    updates = {}
    for n, (metrics, judged) in sorted(found.info["answers"].items()):
        evaluation = None if judged is None else Evaluation.model_validate(judged)
        updates[n] = Update(n, arrays[n][ADAPTERS], arrays[n].get(STEP), metrics, evaluation)
    return Trained(updates, Cost(**found.info["cost"]), frozenset(found.info["notified"]), tuple(found.info["failed"]))


def _train(
    federation: Federation,
    theta: Vector,
    requests: Mapping[str, Request],
    notified: frozenset[str],
    usual: Mapping[str, float],
) -> Exchange:
    cost, started = Cost(rounds=1), time.monotonic()
    updates: dict[str, Update] = {}
    failures: dict[str, str] = {}
    said: list[str] = []
    failed: list[dict[str, Any]] = []
    asked = dict(requests)
    sent = theta.astype(np.float16 if federation.experiment.federation.half else np.float32)
    start = sent.astype(np.float32)
    for attempt in (1, 2):
        replies, spent = federation.send({ADAPTERS: sent}, asked, notified)
        cost += spent
        notified |= set(asked)
        failures = {}
        for name in sorted(asked):
            try:
                updates[name], spent = _read(federation, name, replies.get(name), start, asked[name])
                cost += spent
            except ValueError as error:
                failures[name] = printable(str(error))
        if not failures:
            break
        for name, why in failures.items():
            said.append(f"{name} failed{', asked again' if attempt == 1 else ', left out'}: {why}")
            failed.append(_failure(requests[name], name, why))
        asked = {name: asked[name] for name in failures}
        notified -= set(asked)  # whoever failed may have lost what it was told
    try:
        federation.check_quorum(updates, failures)
    except FederationError:
        for line in said:
            federation.say(line)
        raise
    jobs = {n: requests[n].instruction for n in updates}
    updates, shortened = in_proportion(start, updates, jobs, federation.experiment.federation.norm_bound, usual)
    judged = {n: {"": u.judged} for n, u in updates.items() if u.judged}
    weighed, heavy = fitting.weighed(judged, federation.experiment.federation.weight_bound)
    updates |= {n: replace(updates[n], judged=of[""]) for n, of in weighed.items()}
    said += heavy
    for name, why in shortened.items():
        said.append(f"{name}: {why}")
        failed.append(_failure(requests[name], name, why))
    cost = replace(cost, seconds=time.monotonic() - started)
    arrays = {f"{n}/{ADAPTERS}": u.adapters for n, u in updates.items()}
    arrays |= {f"{n}/{STEP}": u.step for n, u in updates.items() if u.step is not None}
    answers = {n: [u.metrics, u.judged and u.judged.model_dump(mode="json")] for n, u in updates.items()}
    info = {"cost": asdict(cost), "notified": sorted(notified), "said": said, "failed": failed, "answers": answers}
    return Exchange(info, arrays)


def _read(federation: Federation, name: str, reply: Any, start: Vector, request: Request) -> tuple[Update, Cost]:
    if reply is None or reply.has_error():
        raise ValueError(reason(reply))
    job: Any = request.instruction
    returning = job.returning.count if isinstance(job, Learn) and job.returning else 0
    update = read_update(name, reply, start, job, federation.pairs[name] + returning)
    if update.judged:
        fitting.judged(job.before, {"": update.judged}, federation.judged_on.get(name))
    metrics = {**update.metrics, "num-examples": min(update.examples, federation.most)}
    update = replace(update, metrics=metrics)
    steps, memory = (int(update.metrics.get(key, 0)) for key in ("steps", "memory"))
    return update, Cost(uplink_bytes=update.nbytes, client_steps=steps, client_memory=memory)


def _failure(request: Request, client: str, why: str) -> dict[str, Any]:
    """One entry of Trained.failures."""
    job: Any = request.instruction
    return {"phase": job.phase, "round": job.round, "client": client, "why": why}


def identities(requests: Mapping[str, Request]) -> dict[str, list[Any]]:
    """What makes requests the same requests, by client: what each is told, and the arrays that it gets."""
    out = {}
    for name, r in sorted(requests.items()):
        job: Any = as_told(r.instruction, name)
        out[name] = [job.model_dump_json(), *({k: sha256(a) for k, a in arrays.items()} for arrays in (r.arrays, r.once))]
    return out


def sha256(array: NDArray[Any]) -> str:
    """Of an array's kind, shape and bytes."""
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
