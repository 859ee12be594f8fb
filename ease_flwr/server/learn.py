"""Ordinary learning: the learn phase, and the references that learn again without what is to be forgotten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ease_flwr import data
from ease_flwr.config import chosen, code_of, model_sha256, named_file_sha256
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.rounds import Plan, run_rounds
from ease_flwr.server.parties import left_out
from ease_flwr.server.patience import Patience
from ease_flwr.server.phase import cache_key, once
from ease_flwr.server.progress import Reporter
from ease_flwr.server.state import FederationState, Server, Vector
from ease_flwr.store import clients
from ease_flwr.store.phases import PhaseResult
from ease_flwr.store.queue import Step
from ease_flwr.strategies.base import Method, MethodContext
from ease_flwr.strategies.ordinary import Learning


def learn(server: Server, state: FederationState, step: Step, name: str) -> FederationState:
    """Everybody learns everything; every client's updates are recorded."""
    plan, method = Plan("learn", server.experiment.learn.rounds), Learning(context(server, state, "learn"))
    if not server.run.layout.done(name):
        clients.trained(server.run.folder, method.context.clients)
    found = ordinary(server, state, name, method, plan, first=True)
    state = replace(
        state,
        theta=found.theta,
        history=found.history,
        rounds=found.cost.rounds,
        learnt=found.cost.rounds,
        usual=found.facts.get("usual", {}),
        judged=tuple(found.facts["judged"]),
        failures=state.failures + found.failures,
    )
    return state.with_model("original", found.theta).with_cost("learn", found.cost)


def context(server: Server, state: FederationState, phase: str) -> MethodContext:
    """The clients that stay, training on what they keep after the requests that are done."""
    call, model = server.roll_call, server.model
    here = server.here(state)
    staying = tuple(n for n in here.clients if n not in state.departed and call.trains(n, state.served))
    everybody = data.load(server.experiment.data, server.experiment.seed).clients
    return MethodContext(
        server.experiment,
        here,
        phase,
        model.initial,
        model.blocks,
        staying,
        without=left_out(call, state.served),
        learnt=state.learnt,
        away=tuple(n for n in everybody if n not in state.departed and (n not in here.clients or call.idle(n, state.served))),
    )


def ordinary(server: Server, state: FederationState, name: str, method: Method, plan: Plan, first: bool = False) -> PhaseResult:
    """Rounds of a phase in which nothing is being forgotten, from state.theta.

    first: whether it is the learn phase itself: its updates are recorded, and it may stop early.
    What the settings decide alone, without a lock or data of others, is taken from the cache if it is there.
    """

    who = {"clients": list(method.context.clients), "away": list(method.context.away)}

    def compute(federation: Federation, reporter: Reporter, folder: Path) -> PhaseResult:
        from ease_flwr.store.history import History  # imports torch

        told = replace(plan, evaluation_request=reporter.evaluation_request, report=reporter, usual=state.usual)
        history, patience = History(folder, server.experiment.history), Patience(federation, reporter.event)
        if not first:
            outcome = run_rounds(federation, method, state.theta, replace(told, history=history if plan.recorded else None))
            return PhaseResult(
                outcome.theta, outcome.cost, state.forgotten, facts={**method.facts, **who}, failures=outcome.failures
            )
        outcome = run_rounds(federation, method, state.theta, replace(told, history=history, over=patience.over))
        facts = {**method.facts, **who, "judged": patience.judged, "usual": outcome.usual}
        failures = (*outcome.failures, *patience.failures)
        return PhaseResult(outcome.theta, outcome.cost, state.forgotten, history, facts=facts, failures=failures)

    decided = method.lock is None and server.experiment.data.kind != "folder"  # hosts' own data are not among the settings
    key = _key(server, method, plan, state.theta, first) if decided else ""
    return once(server, state, name, state.rounds - plan.first + 1, compute, key)


def _key(server: Server, method: Method, plan: Plan, theta: Vector, first: bool) -> str:
    """Everything that decides ordinary learning: settings, files that they name, clients and data, and the code that runs."""
    from ease_flwr.model.adapters import sha256

    e, c = server.experiment, method.context
    files = [*(named_file_sha256(f) for f in (e.data.labels, e.data.parts)), model_sha256(e.model)]
    who = [c.clients, {n: [s.model_dump(mode="json") for s in sets] for n, sets in sorted(c.without.items())}]
    rounds = [plan.phase, plan.rounds, plan.first, first, _asked(method, plan.first)]
    code = code_of(*(f"ease_flwr.{m}" for m in ("server.learn", "client_app", f"data.{e.data.kind}", "clients.contrastive")))
    return cache_key(chosen(e, "learning"), files, who, rounds, sha256(theta), code)


def _asked(method: Method, round: int) -> list[str]:
    """What the clients are asked in a round: it says what the method makes of its settings."""
    jobs: list[Any] = [r.instruction for _, r in sorted(method.requests(round).items())]
    return [job.model_dump_json() for job in jobs]
