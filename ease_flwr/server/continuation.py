"""The continuation: those who stay go on learning, under the forget lock."""

from __future__ import annotations

from dataclasses import replace

from ease_flwr.config import union
from ease_flwr.exchange.messages import Returning
from ease_flwr.exchange.rounds import Plan
from ease_flwr.server.learn import context, ordinary
from ease_flwr.server.state import FederationState, Server
from ease_flwr.store import clients
from ease_flwr.store.queue import Step
from ease_flwr.strategies.ordinary import Continuing


def continuation(server: Server, state: FederationState, step: Step, name: str) -> FederationState:
    """Some more rounds of those who stay."""
    method = Continuing(context(server, state, "continuation"), state.lock, returning(server, state))
    assert state.history is not None
    new = tuple(n for n in method.context.clients if not state.history.knows(n))  # no earlier phase has updates of theirs
    if not server.run.layout.done(name):
        clients.trained(server.run.folder, method.context.clients)
    plan = Plan("continuation", step.rounds, first=state.continued + 1, recorded=new)
    found = ordinary(server, state, name, method, plan)
    assert found.history is not None
    state = replace(
        state,
        theta=found.theta,
        history=state.history.followed_by(found.history),
        rounds=state.rounds + step.rounds,
        continued=state.continued + step.rounds,
        failures=state.failures + found.failures,
    )
    return state.with_model("continued", found.theta).with_cost("continuation", found.cost)


def returning(server: Server, state: FederationState) -> Returning | None:
    """Fresh pairs about forgotten knowledge that the first client meets, if the experiment has it so."""
    count = server.experiment.continuation.overlap
    return Returning(about=union(state.served), count=count) if count and state.served else None
