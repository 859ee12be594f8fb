"""What is said after every round: one line about the training, and now and then one about recall on validation pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ease_flwr.config import Union
from ease_flwr.exchange.evaluation import evaluate, judge
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.judgement import Evaluation, Judgement, pool
from ease_flwr.exchange.messages import Evaluate
from ease_flwr.exchange.rounds import Progress

TIMES = ("process_seconds", "load_seconds", "seconds")
"""Of each client's answer: the age of its process when it began, what loading took, and all of the work."""
CURRENT = "current"
"""What the adapters at hand are called in an evaluation of them."""


@dataclass(frozen=True)
class Reporter:
    """Says how a phase goes."""

    federation: Federation
    event: Callable[..., None]
    label: str
    """What the phase makes, in the lines."""
    forget: Union
    """All that the run was asked to forget when the phase began: recall on it is told apart."""
    offset: int
    """Rounds that the adapters have had before round 1 of this phase."""

    def evaluation_request(self, round: int) -> Evaluate | None:
        """What is asked of those who train in a round about the adapters that it begins with."""
        every = self.federation.experiment.evaluation.every
        due = every and round > 1 and (round - 1) % every == 0
        return Evaluate(forget=self.forget, split="validation") if due else None

    def __call__(self, p: Progress) -> None:
        """One line about a round, and one about recall where clients have counted it, or at the end."""
        if question := self.evaluation_request(p.round):
            said: dict[str, Evaluation] = {n: u.judged for n, u in p.updates.items() if u.judged}
            if others := [n for n in self.federation.clients if n not in said]:
                answers, _ = evaluate(self.federation, {CURRENT: p.before}, question, others)
                said |= answers[CURRENT]
            self._recall(p, p.round - 1, pool(said))
        losses = [u.metrics["loss"] for u in p.updates.values()]
        eta = p.cost.seconds / p.cost.rounds * (p.last - p.round)
        values: dict[str, Any] = {"last": p.last, "asked": p.asked, "answered": len(p.updates), "loss": losses}
        values |= asdict(p.cost) | {"eta": eta}
        values["timing"] = [[round(float(u.metrics.get(k, 0)), 3) for k in TIMES] for u in p.updates.values()]
        if own := {n: u.own for n, u in p.updates.items() if u.own}:
            values["objective"] = own
        line = f"[{self.label} {p.round}/{p.last}] {len(p.updates)}/{p.asked} clients  loss {sum(losses) / len(losses):.3f}"
        self._say(f"{line}  {p.cost.seconds:.0f} s  ETA {eta:.0f} s", p, p.round, values)
        if p.round == p.last:
            self._recall(p, p.round, judge(self.federation, {CURRENT: p.theta}, self.forget, "validation")[CURRENT])

    def _recall(self, p: Progress, round: int, found: Judgement) -> None:
        """One line about the adapters after a round."""
        recall = {s: found.r1(s) for s in found.sets}
        line = f"[{self.label} {round}/{p.last}] validation R@1: " + ", ".join(f"{s} {r:.1f}" for s, r in recall.items())
        self._say(line, p, round, {"validation": recall})

    def _say(self, line: str, p: Progress, round: int, values: dict[str, Any]) -> None:
        at = self.offset + round
        self.event(line, model=self.label, phase=p.phase, round=round, rounds_in_all=at, **values)
