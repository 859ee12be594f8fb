"""Calibration of EASE: which scope and threshold the excision takes, by one federated exchange on validation pairs.

A candidate is allowed where it costs the retained clients no more than `drop` of their recall. Of those that are allowed the
shallowest is chosen that brings what is to be forgotten to the level of unseen pairs, or comes nearest to it. Both are measured
as cross-entropy of the partner. Where no forget client is left to say so, the deepest is chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ease_flwr.exchange import evaluation
from ease_flwr.exchange.judgement import Judgement
from ease_flwr.store.cost import Cost
from strategies import gsd
from strategies.base import MethodContext, Vector
from strategies.gsd import Columns, GsdParams, Measured, Scope

NOW = "as it is"
"""The adapters at the request, which are judged beside the candidates."""


@dataclass(frozen=True)
class Choice:
    """Scope and threshold, and what was measured in that scope."""

    scope: Scope
    tau: float
    measured: Measured
    facts: dict[str, Any] = field(default_factory=dict)
    """What calibration found: `goal`, `least` and `candidates`; nothing where there was only one."""
    cost: Cost = field(default_factory=Cost)


def choose(context: MethodContext, params: GsdParams, theta: Vector, columns: Columns) -> Choice:
    """Scope and threshold as set, or by calibration. Forget clients and half of the others judge. Raises FederationError."""
    scopes: list[Scope] = [params.scope] if params.scope else ["tensor", "tower", "vector"]
    taus = [params.tau] if params.tau is not None else sorted(params.taus)
    measured = {s: gsd.measure(params, columns, gsd.blocks_of(context.blocks, s)) for s in scopes}
    if len(scopes) * len(taus) == 1:
        return Choice(scopes[0], taus[0], measured[scopes[0]])
    assert context.forget is not None
    seed, models = context.experiment.seed, {NOW: theta}
    options: dict[str, tuple[Scope, float]] = {f"{scope} {tau}": (scope, tau) for scope in scopes for tau in taus}
    for label, (scope, tau) in options.items():
        cut = gsd.bases(params, measured[scope].angles, tau, seed)
        models[label] = gsd.excised(theta, context.theta_0, measured[scope].spans, cut)
    draw = np.random.default_rng((seed, 30)).permutation(context.clients)
    judges = sorted({*context.forget_clients, *draw[: (len(draw) + 1) // 2].tolist()})
    found, cost = evaluation.validate(context.federation, models, judges, (context.forget,))
    least, goal = (1 - params.drop) * found[NOW].r1("retain"), found[NOW].unseen_loss
    within = [label for label in options if found[label].r1("retain") >= least]
    if not within:
        context.federation.say(f"[{context.phase}] every excision costs too much of the rest: the shallowest is taken")
    allowed = within or [next(iter(options))]
    best = max(allowed, key=lambda label: (min(found[label].partner_loss, goal), -options[label][1]))
    if math.isnan(goal):
        best = max(allowed, key=lambda label: options[label][1])
    candidates = {label: _numbers(found[label]) for label in models}
    for label, (scope, tau) in options.items():
        candidates[label] |= {"scope": scope, "tau": tau, "allowed": label in within, "chosen": label == best}
    facts = {"goal": _known(goal), "least": least, "candidates": candidates}
    _say(context, facts)
    scope, tau = options[best]
    context.federation.say(f"[{context.phase}] calibrated: scope {scope}, tau {tau}")
    return Choice(scope, tau, measured[scope], facts, cost)


def _numbers(found: Judgement) -> dict[str, Any]:
    return {
        "retain": found.r1("retain"),
        "partner_loss": _known(found.partner_loss),
        "unseen_loss": _known(found.unseen_loss),
    }


def _known(loss: float) -> float | None:
    """None where nobody could measure it."""
    return None if math.isnan(loss) else loss


def _say(context: MethodContext, facts: dict[str, Any]) -> None:
    """One line for each candidate, and its numbers for programs."""
    goal = facts["goal"]
    for label, c in facts["candidates"].items():
        line = f"[{context.phase}] calibration, {label}: retain {c['retain']:.1f}"
        line += f" (at least {facts['least']:.1f})" if "tau" in c else ""
        if c["partner_loss"] is not None:
            line += f", partner loss {c['partner_loss']:.2f}" + (f" (goal {goal:.2f})" if goal is not None else "")
        if "tau" in c:
            line += f", {'allowed' if c['allowed'] else 'costs too much'}{', chosen' if c['chosen'] else ''}"
        values = {"candidate": label, "goal": goal, "least": facts["least"], **c}
        context.federation.say(line, model=context.phase, phase=context.phase, calibration=values)
