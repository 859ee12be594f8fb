"""What is to be forgotten, three values: a set of pairs, a request for one, and how an experiment writes requests down.

A *forget set* says which pairs: all of some clients, all with some labels, or single ones. A *request* is a forget set with a
name, the method that serves it, and when it came. `ForgetConfig` is the section `forget` of an experiment; it is gone once its
requests have been read.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ease_flwr.config.identity import digest
from ease_flwr.config.section import NAME, ConfigError, Section

SAMPLE = re.compile(r"[^/\s]+/(?=.*\S).*", re.DOTALL)
"""A target of the sample scenario: CLIENT/PAIR."""
POSITION = re.compile(r"[0-9]{1,15}|[0-9]{0,15}:[0-9]{0,15}(:[0-9]{1,15})?")
"""A pair, or some, by where they stand among the training pairs of their client, from 0. It moves when data change."""
PAIR_ID = re.compile(r"id:[0-9a-f]{24}")
"""A pair by its content, see data/pairs.py: pair_id. Whatever is neither is the name of its picture in the index."""
Scenario = Literal["client", "class", "sample"]
MANY = 10**6
"""A slice that ends beyond is not written out to be compared."""
UNSEEN = "".join(c for c in map(chr, range(0x10000)) if c.isspace() or unicodedata.category(c) == "Cf")
"""Blanks, and what else cannot be seen: marks of direction, spaces without width."""


def canonical(text: str) -> str:
    """The one spelling of a label or name, in data and in requests: NFC, without blanks and unseen marks around it."""
    return unicodedata.normalize("NFC", text.strip(UNSEEN))


def _spelled(targets: tuple[str, ...]) -> tuple[str, ...]:
    found = tuple(map(canonical, targets))
    if "" in found:  # it would mean the pairs without a label
        raise ValueError(f"{targets[found.index('')]!r} names nothing: leave it out")
    return found


class ForgetSet(Section):
    """Which training pairs: all of some clients, all with certain labels, or single ones."""

    scenario: Scenario
    targets: tuple[str, ...]
    """client: names of clients.  class: labels.  sample: CLIENT/PAIR, where PAIR is id:HEX (`ease data ids`), the name of a
    picture in the index, or, in a simulation, POSITION or START:STOP:STEP, counted from 0."""
    _spelling = field_validator("targets")(_spelled)

    @property
    def named(self) -> set[str]:
        """Clients that the targets name."""
        if self.scenario == "class":
            return set()
        return {t.partition("/")[0] if self.scenario == "sample" else t for t in self.targets}

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(client, pair) of each target of the sample scenario; of others none."""
        return tuple((t.partition("/")[0], t.partition("/")[2]) for t in self.targets) if self.scenario == "sample" else ()

    @property
    def asks(self) -> list[str]:
        """What it names, however it was spelled and in whatever order: sorted, each once, positions one by one."""
        found: set[str] = set()
        for target in self.targets:
            target = target.strip()
            client, _, pair = target.partition("/")
            if self.scenario == "sample" and POSITION.fullmatch(pair):
                found |= {f"{client}/{p}" for p in _positions(pair)}
            else:
                found.add(target)
        return sorted(found)

    @property
    def leaving(self) -> tuple[str, ...]:
        """Clients of whom everything is forgotten."""
        return self.targets if self.scenario == "client" else ()

    def told(self, client: str) -> ForgetSet:
        """What this client is told: of single pairs, its own only."""
        if self.scenario != "sample":
            return self
        return self.model_copy(update={"targets": tuple(t for t in self.targets if t.startswith(f"{client}/"))})


def _positions(spelled: str) -> list[str]:
    """POSITION or START:STOP:STEP with plain numbers; all positions of a slice that has an end."""
    parts = [int(p) if p else None for p in spelled.split(":")]
    if len(parts) == 1:
        return [str(parts[0])]
    start, stop, step = (*parts, None)[:3]
    if stop is None or step == 0 or stop > MANY:
        return [f"{start or 0}:{'' if stop is None else stop}:{1 if step is None else step}"]
    return [str(p) for p in range(start or 0, stop, step or 1)]


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
        """A request that is received now. Raises ConfigError for an id that is no name."""
        if id and not NAME.fullmatch(id):
            raise ConfigError(f"--id {id!r}: expected letters, digits, . _ - and no other, 64 at most")
        name = id or digest({"scenario": asked.scenario, "targets": asked.asks})[:12]
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
    """client: names of clients.  class: labels.  sample: CLIENT/PAIR, see ForgetSet."""
    _spelling = field_validator("targets")(_spelled)
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
        if twice := sorted(t for t, count in Counter(named).items() if count > 1):
            raise ValueError(f"targets: {twice[0]} is named twice: name it once, in targets or in then")
        if self.scenario == "sample" and (bad := [t for t in self.targets if not SAMPLE.fullmatch(t)]):
            raise ValueError(f"targets: {bad[0]!r} is not CLIENT/PAIR: PAIR is id:HEX, the name of a picture, or a position")
        return self

    def forget_sets(self) -> list[ForgetSet]:
        """One after the other: what the targets ask, then each client of `then`."""
        return [ForgetSet(scenario=self.scenario, targets=t) for t in (self.targets, *((n,) for n in self.then))]

    @property
    def named(self) -> set[str]:
        """Clients that it names."""
        return {name for part in self.forget_sets() for name in part.named}
