"""The references: what learning again without the forget set leads to, in as many rounds as the run has had."""

from __future__ import annotations

from dataclasses import replace

from ease_flwr.exchange.rounds import Plan
from ease_flwr.server.continuation import returning
from ease_flwr.server.learn import context, ordinary
from ease_flwr.server.phase import begun
from ease_flwr.server.state import FederationState, Server
from ease_flwr.store.phases import PhaseResult
from ease_flwr.strategies.ordinary import Continuing, Learning


def references(server: Server, state: FederationState) -> FederationState:
    """Adds the models *retrain* (as many rounds as learning had), *retrain_2* and so on (the same in other orders of data),
    *retrain_equal* (as many as *unlearned* has had in all) and *retrain_continued* (as many as *continued*)."""
    rounds, number, found = state.learnt, _number(state), state
    for again in range(1, server.experiment.evaluation.references + 1):
        trained = retraining(server, state, again)
        found = found.with_model(name_of(again), trained.theta).with_cost(name_of(again), trained.cost)
    if not server.experiment.evaluation.equal:
        return found
    retrain = found.models["retrain"]
    more = Plan("learn", state.unlearned_at - rounds, first=rounds + 1)
    name = f"retrain_equal{number}"
    here = begun(server, state, name)
    learning = Learning(context(here, state, "learn"))
    equal = ordinary(here, replace(state, theta=retrain.theta, rounds=rounds), name, learning, more)
    found = found.with_model("retrain_equal", equal.theta)
    if "continued" not in state.models:
        return found
    name = f"retrain_continued{number}-{state.continued}"
    here = begun(server, state, name)
    continuing = Continuing(context(here, state, "continuation"), None, returning(here, state))
    start = replace(state, theta=equal.theta, rounds=state.unlearned_at)
    last = ordinary(here, start, name, continuing, Plan("continuation", state.continued))
    return found.with_model("retrain_continued", last.theta)


def retraining(server: Server, state: FederationState, again: int) -> PhaseResult:
    """The learn phase without what was forgotten: the first in the order of data that learning had, others in other ones."""
    name = f"{name_of(again)}{_number(state)}"
    server = begun(server, state, name)
    learning = Learning(replace(context(server, state, "learn"), order=again - 1))
    return ordinary(server, replace(state, theta=server.model.initial, rounds=0), name, learning, Plan("learn", state.learnt))


def name_of(again: int) -> str:
    """What the model of a retraining is called: *retrain*, *retrain_2*, ..."""
    return "retrain" if again == 1 else f"retrain_{again}"


def _number(state: FederationState) -> str:
    """Behind the names of phases, where several requests are done."""
    return "" if len(state.served) == 1 else f"-{len(state.served)}"
