"""The references: what learning again without the forget set leads to, in as many rounds as the run has had."""

from __future__ import annotations

from dataclasses import replace

from ease_flwr.exchange.rounds import Plan
from ease_flwr.server.continuation import returning
from ease_flwr.server.learn import context, ordinary
from ease_flwr.server.state import FederationState, Server
from strategies.ordinary import Continuing, Learning


def references(server: Server, state: FederationState) -> FederationState:
    """Adds the models *retrain* (as many rounds as learning had), *retrain_equal* (as many as *unlearned* has had in all) and
    *retrain_continued* (as many as *continued*)."""
    rounds = server.experiment.learn.rounds
    number = "" if len(state.served) == 1 else f"-{len(state.served)}"
    learning = Learning(context(server, state, "learn"))
    fresh = replace(state, theta=server.model.initial, rounds=0)
    retrain = ordinary(server, fresh, f"retrain{number}", learning, Plan("learn", rounds))
    found = state.with_model("retrain", retrain.theta).with_cost("retrain", retrain.cost)
    if not server.experiment.evaluation.equal:
        return found
    more = Plan("learn", state.unlearned_at - rounds, first=rounds + 1)
    learning = Learning(context(server, state, "learn"))
    equal = ordinary(server, replace(state, theta=retrain.theta, rounds=rounds), f"retrain_equal{number}", learning, more)
    found = found.with_model("retrain_equal", equal.theta)
    if "continued" not in state.models:
        return found
    continuing = Continuing(context(server, state, "continuation"), None, returning(server, state))
    start = replace(state, theta=equal.theta, rounds=state.unlearned_at)
    name = f"retrain_continued{number}-{state.continued}"
    last = ordinary(server, start, name, continuing, Plan("continuation", state.continued))
    return found.with_model("retrain_continued", last.theta)
