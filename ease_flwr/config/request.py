"""What is to be forgotten, three values: a set of pairs, a request for one, and how an experiment writes requests down.

A *forget set* says which pairs: all of some clients, all with some labels, or single ones. A *request* is a forget set with a
name, the method that serves it, and when it came. `ForgetConfig` is the section `forget` of an experiment; it is gone once its
requests have been read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator

from ease_flwr.config.identity import digest
from ease_flwr.config.section import Section

SAMPLE = re.compile(r"[^/\s]+/(\d+|\d*:\d*(:\d+)?)")
"""A target of the sample scenario: CLIENT/POSITION or CLIENT/START:STOP:STEP."""
Scenario = Literal["client", "class", "sample"]


class ForgetSet(Section):
    """Which training pairs: all of some clients, all with certain labels, or single ones."""

    scenario: Scenario
    targets: tuple[str, ...]
    """client: names of clients.  class: labels.  sample: CLIENT/POSITION or CLIENT/START:STOP:STEP, counted from 0."""

    @property
    def named(self) -> set[str]:
        """Clients that the targets name."""
        if self.scenario == "class":
            return set()
        return {t.rpartition("/")[0] if self.scenario == "sample" else t for t in self.targets}

    @property
    def leaving(self) -> tuple[str, ...]:
        """Clients of whom everything is forgotten."""
        return self.targets if self.scenario == "client" else ()

    def told(self, client: str) -> ForgetSet:
        """What this client is told: of single pairs, its own only."""
        if self.scenario != "sample":
            return self
        return self.model_copy(update={"targets": tuple(t for t in self.targets if t.startswith(f"{client}/"))})


Union = tuple[ForgetSet, ...]
"""Several forget sets at once: a pair that any of them names is to be forgotten. None: nothing is."""


def told(union: Union, client: str) -> Union:
    """What this client is told of several forget sets; those that no longer name anything are left out."""
    return tuple(s for s in (part.told(client) for part in union) if s.targets)


class ForgetRequest(ForgetSet):
    """One request: a forget set, the method that serves it, and when it was received."""

    id: str
    """Names the request. By default it follows from what is asked, so asking twice is asking once."""
    strategy: str
    """File in strategies/."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Of the method, by name; they go before what the experiment says about it."""
    received: str
    """UTC."""

    @classmethod
    def of(cls, asked: ForgetSet, strategy: str, settings: dict[str, Any], id: str = "") -> ForgetRequest:
        """A request that is received now."""
        name = id or digest({"scenario": asked.scenario, "targets": list(asked.targets)})[:12]
        return cls(**asked.model_dump(), id=name, strategy=strategy, settings=settings, received=now())

    @property
    def forget_set(self) -> ForgetSet:
        """What is to be forgotten, without who asked how."""
        return ForgetSet(scenario=self.scenario, targets=self.targets)


def union(requests: Iterable[ForgetRequest]) -> Union:
    """All that these requests forget."""
    return tuple(r.forget_set for r in requests)


def described(forget: Union) -> dict[str, Any]:
    """For results and people: {"scenario", "targets"}; of different scenarios, "several"."""
    scenarios = {part.scenario for part in forget}
    scenario = scenarios.pop() if len(scenarios) == 1 else "several"
    return {"scenario": scenario, "targets": [t for part in forget for t in part.targets]}


def now() -> str:
    """The time, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class ForgetConfig(Section):
    """The section `forget` of an experiment: which requests it makes once it has learnt."""

    scenario: Scenario = "client"
    """What is to be forgotten. client: all that some clients brought, who leave.  class: all pairs with certain labels,
    whoever holds them.  sample: single pairs of some clients, who stay with the rest."""
    targets: tuple[str, ...] = ()
    """client: names of clients.  class: labels.  sample: CLIENT/POSITION or CLIENT/START:STOP:STEP in the client's training
    pairs, counted from 0."""
    draw: int = Field(1, ge=1)
    """Where there are no targets, the seed draws so many. class: labels (personas: people whom several clients know).
    sample: pairs of every client (personas: clients who withdraw all pairs of one of their exclusive people)."""
    then: tuple[str, ...] = ()
    """client: names of clients that ask to be forgotten after the targets have been, each a request of its own."""

    @model_validator(mode="after")
    def _targets_are_well_formed(self) -> ForgetConfig:
        if self.scenario == "client" and not self.targets:
            raise ValueError("targets: (empty): name the clients that leave")
        if self.then and self.scenario != "client":
            raise ValueError("then: further requests are for the client scenario")
        named = (*self.targets, *self.then)
        if twice := sorted({t for t in named if named.count(t) > 1}):
            raise ValueError(f"targets: {twice[0]} is named twice: name it once, in targets or in then")
        if self.scenario == "sample" and (bad := [t for t in self.targets if not SAMPLE.fullmatch(t)]):
            raise ValueError(f"targets: {bad[0]!r} is not CLIENT/POSITION or CLIENT/START:STOP:STEP")
        return self

    def forget_sets(self) -> list[ForgetSet]:
        """One after the other: what the targets ask, then each client of `then`."""
        return [ForgetSet(scenario=self.scenario, targets=t) for t in (self.targets, *((n,) for n in self.then))]

    @property
    def named(self) -> set[str]:
        """Clients that it names."""
        return {name for part in self.forget_sets() for name in part.named}
