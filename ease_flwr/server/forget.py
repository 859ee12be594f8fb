"""The forget phase: one request, by the method that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ease_flwr import strategies
from ease_flwr.config import ForgetRequest
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.rounds import Plan, run_rounds
from ease_flwr.server import admission
from ease_flwr.server.learn import context
from ease_flwr.server.parties import Parties, asked, leaving, parties
from ease_flwr.server.phase import once
from ease_flwr.server.progress import Reporter
from ease_flwr.server.state import FederationState, Server
from ease_flwr.store import clients
from ease_flwr.store.phases import PhaseResult
from ease_flwr.store.queue import Step
from ease_flwr.strategies.base import Method


class NoHelpError(Exception):
    """A method can do nothing without the help of clients that do not answer, or whose owners do not let them."""

    def __init__(self, request: ForgetRequest, holders: Sequence[str], unable: Sequence[str] = ()) -> None:
        """unable: what is said of those who answer."""
        why = "none of them answers: ask again when one does"
        if unable:
            why = f"none of them may give it: {'; '.join(unable)}: ask their owners"
        super().__init__(
            f"strategy {request.strategy} needs the help of {', '.join(holders)}, and {why}, or with another strategy "
            "(`ease methods`)"
        )
        self.request = request.id


def forget(server: Server, state: FederationState, step: Step, name: str) -> FederationState:
    """Serve one request. Raises NoHelpError where its method needs a client that does not answer, or may not help."""
    request = step.request
    assert request is not None
    served = (*state.served, request)
    gone = state.departed | state.absent

    def compute(federation: Federation, reporter: Reporter, folder: Path) -> PhaseResult:
        concerned = asked(request, server.roll_call, gone)
        who = parties(request, server.roll_call, gone, federation.answering(concerned))
        there = federation.without(who.absent)
        return _serve(server, state, step, who, replace(reporter, federation=there), folder)

    earlier = server.run.layout.done(name)  # in another process: who was silent then is asked again in this one
    found = once(server, state, name, state.rounds, compute)
    rounds = int(found.facts["rounds"])
    state = replace(
        state,
        theta=found.theta,
        history=state.history.followed_by(found.history) if state.history and found.history else state.history,
        lock=found.lock,
        departed=state.departed | set(found.facts["departed"]),
        absent=state.absent if earlier else state.absent | set(found.facts["absent"]),
        served=served,
        rounds=state.rounds + rounds,
        unlearned_at=state.rounds + rounds,
        continued=0,
        facts=(*state.facts, found.facts["request"]),
        failures=state.failures + found.failures,
    )
    _disclose(server, name, state)
    if "unlearned" in state.models:
        state = replace(state, models={**state.models, f"unlearned_{len(served) - 1}": state.models["unlearned"]})
    return state.with_model("unlearned", found.theta, "unlearned", "continued").with_cost("unlearn", found.cost)


def _serve(server: Server, state: FederationState, step: Step, who: Parties, reporter: Reporter, folder: Path) -> PhaseResult:
    """The phase, with the clients that are there: those of the reporter's federation. folder: for updates."""
    from ease_flwr.store.history import History  # imports torch

    request, theta, history = step.request, state.theta, state.history
    assert request is not None
    assert history is not None
    kind = strategies.load(request.strategy)
    experiment = admission.serving(request, server.experiment)
    params: Any = kind.check(request.strategy, experiment, request.scenario)
    if kind.history and request.leaving and not any(map(history.knows, request.leaving)):
        line = f"[{reporter.label}] {', '.join(request.leaving)} never took part: nothing to take back, the others go on"
        server.run.event(line)
        kind, params = Method, Method.Params(rounds=params.rounds)
    if kind.needs_help(params, request.scenario) and not who.forget_clients:
        holders = asked(request, server.roll_call, state.departed) or request.leaving
        raise NoHelpError(request, holders, [server.roll_call.owner_says(n) for n in who.unable])
    for client in who.absent:
        server.run.event(
            f"[{reporter.label}] {client} does not answer: what it holds is forgotten without its help, nobody judges its pairs"
        )
    for client in who.unable:
        line = f"{client} does not help, its pairs are forgotten without it: {server.roll_call.owner_says(client)}"
        server.run.event(f"[{reporter.label}] {line}")
    served = (*state.served, request)
    setting = replace(
        context(server, replace(state, served=served), reporter.label),
        federation=reporter.federation,
        clients=who.retained,
        forget_clients=tuple(sorted(who.forget_clients)),
        forget=request.forget_set,
    )
    method = kind(setting, params, state.lock)
    with method.meter.on_server():
        start = method.prepare(theta, history)
    new = tuple(n for n in who.retained if not history.knows(n))  # no earlier phase has updates of theirs
    clients.trained(server.run.folder, who.retained)
    plan = Plan(
        reporter.label,
        method.rounds,
        history=History(folder, server.experiment.history) if new else None,
        recorded=new,
        evaluation_request=reporter.evaluation_request,
        usual=state.usual,
        report=reporter,
    )
    outcome = run_rounds(reporter.federation, method, start, plan)
    with method.meter.on_server():
        lock = method.lock_after(outcome.theta)
    server_bytes = (history.nbytes if method.reads_history else 0) + (lock.nbytes if lock else 0)
    said = {"id": request.id, "strategy": request.strategy, "targets": list(request.targets), "rounds": method.rounds}
    silent = set(setting.away) - set(server.here(state).clients)
    facts = {
        "request": {**said, "params": params.model_dump(mode="json"), "server_bytes": server_bytes, **method.facts},
        "rounds": method.rounds,
        "absent": sorted({*who.absent, *(silent if request.scenario == "class" else ())}),
        "departed": sorted(leaving(request, server.roll_call)),
        "forget_clients": sorted({*who.forget_clients, *who.unable}),
    }
    cost, forgotten = method.meter.spent + outcome.cost, tuple(r.id for r in served)
    return PhaseResult(outcome.theta, cost, forgotten, None, lock, facts, (*method.failures, *outcome.failures))


def _disclose(server: Server, phase: str, state: FederationState) -> None:
    """Say what the lock gives away, and to whom."""
    if lock := state.lock:
        sent = f"{lock.nbytes} bytes to each client of the continuation" if lock.strength else "they stay on the server"
        server.run.event(f"[{phase}] {lock.dimension} directions locked, derived from what was forgotten; {sent}")
