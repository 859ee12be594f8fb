"""The references: what learning again without the forget set leads to, in as many rounds as the run has had."""

from __future__ import annotations

from dataclasses import replace

from ease_flwr.audit import references as asking
from ease_flwr.audit.references import name_of, phase_of
from ease_flwr.exchange.rounds import Plan
from ease_flwr.server.continuation import returning
from ease_flwr.server.learn import context, ordinary
from ease_flwr.server.phase import begun
from ease_flwr.server.state import FederationState, Server
from ease_flwr.store import clients
from ease_flwr.store.phases import PhaseResult
from ease_flwr.strategies.base import MethodContext
from ease_flwr.strategies.ordinary import Continuing, Learning


def references(server: Server, state: FederationState) -> FederationState:
    """Adds the models *retrain* (as many rounds as learning had), *retrain_2* and so on (the same in other orders of data),
    *retrain_equal* (as many as *unlearned* has had in all) and *retrain_continued* (as many as *continued*), where the
    experiment wants them, or `ease reference` has asked for them when the same requests were done."""
    count, on = _wanted(server, state)
    if not count:
        return state
    rounds, found = state.learnt, state
    for again in range(1, count + 1):
        trained = retraining(server, state, again)
        found = found.with_model(name_of(again), trained.theta).with_cost(name_of(again), trained.cost)
        if away := trained.facts.get("away"):
            said = (
                f"{name_of(again)} was trained without {', '.join(away)}, who did not answer or may not train on so little: "
                "numbers beside it differ by that"
            )
            found = replace(found, remarks=(*found.remarks, said))
    if not server.experiment.evaluation.equal:
        return found
    retrain = found.models["retrain"]
    more = Plan("learn", state.unlearned_at - rounds, first=rounds + 1)
    name = phase_of("retrain_equal", state.served)
    here = begun(server, state, name)
    learning = Learning(_those_who_learnt(here, context(here, state, "learn")))
    equal = ordinary(here, replace(state, theta=retrain.theta, rounds=rounds), name, learning, more)
    found = found.with_model("retrain_equal", equal.theta)
    if "continued" not in state.models or not on:
        return found
    name = phase_of("retrain_continued", state.served, state.continued)
    here = begun(server, state, name)
    continuing = Continuing(context(here, state, "continuation"), None, returning(here, state))
    start = replace(state, theta=equal.theta, rounds=state.unlearned_at)
    last = ordinary(here, start, name, continuing, Plan("continuation", state.continued))
    return found.with_model("retrain_continued", last.theta)


def retraining(server: Server, state: FederationState, again: int) -> PhaseResult:
    """The learn phase without what was forgotten: the first in the order of data that learning had, others in other ones."""
    name = phase_of(name_of(again), state.served)
    server = begun(server, state, name)
    learning = Learning(replace(_those_who_learnt(server, context(server, state, "learn")), order=again - 1))
    return ordinary(server, replace(state, theta=server.model.initial, rounds=0), name, learning, Plan("learn", state.learnt))


def _those_who_learnt(server: Server, who: MethodContext) -> MethodContext:
    """Of hosts, those whose pairs the run has learnt: one that has only joined is in none of its models."""
    folder = server.run.folder
    known = clients.read(folder) or clients.read(folder.parent)  # of an audit, which lies inside of the run
    new = {n for n, client in known.items() if client.data and not client.learnt}
    there, away = (tuple(n for n in names if n not in new) for names in (who.clients, who.away))
    return replace(who, clients=there, away=away)


def _wanted(server: Server, state: FederationState) -> tuple[int, bool]:
    """How many retrainings are wanted of these requests, and whether they go through this continuation too."""
    evaluation, asked = server.experiment.evaluation, asking.read(server.run.folder)
    always = evaluation.reference == "retrain"
    if asked is None or asked.requests != state.forgotten:
        return evaluation.references if always else 0, always
    return max(asked.count, evaluation.references if always else 0), always or asked.continued == state.continued
