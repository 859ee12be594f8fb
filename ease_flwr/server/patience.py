"""When the learn phase is over: early stopping on validation recall (Prechelt 1998)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ease_flwr.exchange.evaluation import evaluate
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.judgement import pool
from ease_flwr.exchange.messages import Evaluate
from ease_flwr.exchange.transport import FederationError
from ease_flwr.server.progress import CURRENT
from ease_flwr.server.state import Vector


@dataclass
class Patience:
    """Judges the model that learning would end with, every `learn.judge_every` rounds and after the last one.

    It is R@1 on the validation pairs of what the clients know themselves, all clients together and whatever a request says.
    """

    federation: Federation
    event: Callable[..., None]
    judged: list[dict[str, Any]] = field(default_factory=list)
    """So far: {"round", "recall"}."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """Clients that did not judge, see training.Trained."""

    def over(self, round: int, theta: Vector) -> bool:
        """Whether learning stops after this round. theta: the model that it would end with."""
        learn = self.federation.experiment.learn
        if not learn.patience or (round % learn.judge_every and round != learn.rounds):
            return False
        question = Evaluate(split="validation")
        said = evaluate(self.federation, {CURRENT: theta}, question)[0][CURRENT]
        silent = [n for n in self.federation.clients if n not in said]
        self.failures += [{"phase": "learn", "round": round, "client": n, "why": "did not judge"} for n in silent]
        found = pool(said)
        if "retain" not in found.sets:
            raise FederationError("no client has judged pairs of its own, which learn.patience looks at: see their logs")
        self.judged.append({"round": round, "recall": found.r1("retain")})
        best = max(self.judged, key=lambda j: float(j["recall"]))  # the first of the best
        waited = len(self.judged) - 1 - self.judged.index(best)
        over = waited >= learn.patience
        line = f"[learn {round}/{learn.rounds}] R@1 of all own pairs {self.judged[-1]['recall']:.1f}"
        since = f"the best is {best['recall']:.1f} of round {best['round']}"
        if over:
            line += f": learning stops, it has not risen {waited} times; {since}"
        elif round == learn.rounds:
            line += f": learning stops at learn.rounds={round} before it has stopped rising; {since}: raise learn.rounds"
        elif waited:
            line += f"; {since}"
        self.event(line, model="learn", phase="learn", round=round, rounds_in_all=round, own_pairs=self.judged[-1]["recall"])
        return over
