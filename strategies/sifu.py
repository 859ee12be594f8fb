"""SIFU: go back to the last model that hardly depends on the leaving client, add noise, and learn on from there.

Fraboni et al., Sequential Informed Federated Unlearning, AISTATS 2024 (arXiv 2211.11656). With P the leaving clients' share of
the weights, theta_t the global model after round t and theta_t^i theirs, the sensitivity of the model to them is bounded by

    Psi(t) = c Psi(t - 1) + P / (1 - P) ||theta_t - theta_t^i||
    go back to the last t with Psi(t) <= epsilon sigma / sqrt(2 ln(1.25 / delta)), add N(0, sigma^2), continue without them

which makes that model (epsilon, delta)-unlearnt. c is the contraction of local training, (1 - lr lambda)^steps for a
lambda-strongly convex loss; nothing of the kind is known here, and c = 1 is assumed, which holds for convex losses. The
certificate in results.json is therefore conditional on that. Our re-implementation.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from ease_flwr.strategies.base import Method, PhaseParams, Vector
from pydantic import Field

if TYPE_CHECKING:
    from ease_flwr.store.history import History


class Sifu(Method):
    """Roll back to a model of bounded sensitivity, add noise, continue learning; with a certificate."""

    class Params(PhaseParams):
        rounds: int = Field(40, ge=0)
        """Exchanges of the forget phase, all of them: learning on from the model that was gone back to."""
        epsilon: float = Field(10.0, gt=0)
        """Of the certificate: how far apart the odds may be."""
        delta: float = Field(0.01, gt=0, lt=1)
        """Of the certificate: the probability that they are further apart."""
        sigma: float = Field(0.02, gt=0)
        """Standard deviation of the noise on every adapter parameter."""

    scenarios: ClassVar[tuple[str, ...]] = ("client",)
    history: ClassVar[Literal["", "updates", "rounds"]] = "rounds"

    def prepare(self, theta: Vector, history: History) -> Vector:
        p = self.params
        leaving = self.context.leaving
        bound = p.epsilon * p.sigma / math.sqrt(2 * math.log(1.25 / p.delta))
        model, back, psi, found = self.context.theta_0, self.context.theta_0, 0.0, (0, 0.0)
        for t, columns in enumerate(history.rounds(), 1):
            share = self.context.weight(leaving, columns)
            moved = np.sum(list(columns.values()), axis=0)
            if share:
                theirs = np.sum([c for n, c in columns.items() if n in leaving], axis=0) / np.float32(share)
                psi += share / (1 - share) * float(np.linalg.norm(moved - theirs))
            model = model + moved
            if psi <= bound:
                back, found = model, (t, psi)
        rules = {"epsilon": p.epsilon, "delta": p.delta, "sigma": p.sigma}
        self.facts["certificate"] = {"round": found[0], "psi": found[1], "bound": bound, "psi_at_request": psi, **rules}
        noise = np.random.default_rng((self.context.experiment.seed, 32)).normal(0, p.sigma, len(theta))
        return np.asarray(back + noise, dtype=np.float32)
