"""policy.toml: what the owner of a host allows, whatever the server asks.

It lies in the host's folder and is read anew for every message. What is against it is not done. The server is told the host's
name and the rule, and nothing else. A simulation has no owner and no policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, time
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from ease_flwr.config import (
    PACKAGE,
    PUBLISHED,
    ConfigError,
    Experiment,
    ModelConfig,
    Section,
    among,
    halves,
    named_file,
    validate,
)
from ease_flwr.exchange.fitting import ANSWERED
from ease_flwr.exchange.messages import Audit, Evaluate, Forget, Learn
from ease_flwr.hosts.settings import read

POLICY = "policy.toml"
PROBES = tuple(sorted(ANSWERED))
"""What an audit can ask beside ranks and similarities."""
VERBS = {"train": ("learn", "forget"), "evaluate": ("evaluate", "audit"), "query": ("hello",)}
"""Kinds of instruction by the type of the message that carries them."""
COUNTED = ("learn", "forget", "evaluate", "audit")
"""Kinds of instruction by which something of the data leaves: so many a day, at certain hours."""
DIGEST = re.compile(r"[0-9a-f]{64}")
TAG = re.compile(r"[A-Za-z0-9_-]*")
"""A pretrained tag of open_clip, which is no file."""
KINDS = ("folder", "personas")
"""Kinds of data on a host: its own, of which it keeps what was withdrawn out, and drawn ones, which are nobody's."""


class RefusedError(ConfigError):
    """Against the policy of a host's owner. The message names the host and the rule, and holds no data."""


class Policy(Section):
    """policy.toml: what the server may ask of this host."""

    code: tuple[str, ...]
    """sha256 of each app bundle that may run here. `ease host review` shows what is offered, `ease host accept` adds it."""
    objectives: tuple[str, ...]
    """What may be trained: names of clients/."""
    probes: tuple[str, ...]
    """What an audit may ask of forgotten pairs."""
    smallest_set: int = Field(4, ge=1)
    """Pairs that a result of training is about, at least: all of them together, and those of one step."""
    scores: bool = True
    """Whether numbers about single pairs (ranks, similarities, hits of a small set) may leave. No audit can do without."""
    requests: int = Field(2000, ge=0)
    """Messages a day that train, evaluate or audit."""
    hours: str = ""
    """When it trains, evaluates and is audited, local time, as in "20:00-06:00"; "" is always."""
    gpu: bool = True
    """Whether a GPU may be used."""

    @field_validator("code")
    @classmethod
    def _are_digests(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [d for d in value if not DIGEST.fullmatch(d)]:
            raise ValueError(f"{wrong[0]!r} is no sha256: expected 64 hex digits")
        return value

    @field_validator("probes")
    @classmethod
    def _are_probes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := set(value) - set(PROBES):
            raise ValueError(f"no probe {min(wrong)!r}: {among(min(wrong), PROBES)}")
        return value

    @field_validator("hours")
    @classmethod
    def _are_hours(cls, value: str) -> str:
        hours(value)
        return value

    def check(self, verb: str, job: Any, done: int, now: datetime) -> str:
        """The rule that an instruction is against; "" is none. Looks at no data.

        verb: type of the message.  done: messages of today that train, evaluate or audit.
        """
        if job.kind not in VERBS.get(verb, ()):
            return f"no {job.kind} in a message of type {verb}"
        asked = [job, *filter(None, (getattr(job, "beside", None), getattr(job, "before", None)))]
        for part in asked:
            if isinstance(part, Learn | Forget) and part.objective not in self.objectives:
                return f"objectives: not {part.objective[:40]!r}"
            if isinstance(part, Learn | Forget) and part.train.batch < 2 * self.smallest_set:  # the last may be half of it
                return f"smallest-set: {part.train.batch} pairs in a batch, at least {2 * self.smallest_set}"
            if not self.scores and (isinstance(part, Audit) or (isinstance(part, Evaluate) and part.similarity)):
                return "scores: nothing about single pairs leaves"
        if isinstance(job, Audit) and (wrong := [p for p in job.probes if p not in self.probes]):
            return f"probes: not {wrong[0][:40]!r}"
        if job.kind in COUNTED and done >= self.requests:
            return f"requests: {self.requests} a day, and these are done"
        if job.kind in COUNTED and not within(self.hours, now.time()):
            return f"hours: {self.hours}"
        return ""

    def about(self, *pairs: int, counts: bool = False) -> str:
        """The rule that results about so many pairs each are against; "" is none.

        counts: whether they are counts of hits, which for a small set are numbers about single pairs.
        """
        few = any(0 < n < self.smallest_set for n in pairs) and not (counts and self.scores)
        return f"smallest-set: {self.smallest_set} pairs at least, and this is about fewer" if few else ""


def read_policy(file: Path) -> Policy:
    """The policy in a file. Raises ConfigError: one line with every mistake, and where there is no such file."""
    if not file.is_file():
        raise ConfigError(f"no {file}: nothing is done without it; `ease host policy {file.parent}` writes one")
    return read(Policy, file)


def defaults(code: Sequence[str]) -> dict[str, str]:
    """What templates/policy.toml is filled with: these bundles may run, and do all that this version can."""
    objectives = [n for n in halves.names("clients") if n != "audit" and n not in halves.own_files("clients")]
    lists = {"code": code, "objectives": objectives, "probes": PROBES}
    return {name: listed(values) for name, values in lists.items()}


def listed(values: Sequence[str]) -> str:
    """A TOML list, a line each."""
    return "[\n" + "".join(f'    "{value}",\n' for value in values) + "]"


def hours(said: str) -> tuple[time, time] | None:
    """First and last of "20:00-06:00"; None of "". Raises ValueError."""
    if not said:
        return None
    found = re.fullmatch(r"(\d\d):(\d\d)-(\d\d):(\d\d)", said)
    if not found:
        raise ValueError('expected hours such as "20:00-06:00"')
    a, b, c, d = map(int, found.groups())
    return time(a, b), time(c, d)


def within(said: str, now: time) -> bool:
    """Whether a time is inside of these hours; they may go over midnight."""
    if not (found := hours(said)):
        return True
    first, last = found
    return first <= now < last if first < last else now >= first or now < last


def own_paths(experiment: Experiment, node: Mapping[str, Any], gpu: bool = True) -> Experiment:
    """An experiment with the paths of a host's owner (`data-root`, `cache`, `base-model` of its node config) and no others.

    Raises RefusedError where the server names a file, or would have the host's data dealt out as those of a simulation.
    """
    host = str(node["client-name"])
    if experiment.data.kind not in KINDS:
        raise RefusedError(
            f"host {host} refuses: data.kind={experiment.data.kind} is for simulations, hosts take {' and '.join(KINDS)}"
        )
    if experiment.data.labels or experiment.data.parts:
        raise RefusedError(f"host {host} refuses: data.labels and data.parts name files, and only its owner does that")
    weights, device = str(node.get("base-model", "")), str(node.get("device", "")) if gpu else "cpu"
    if not weights and not _ours(experiment.model):
        what = "model.name" if experiment.model.name.startswith(PUBLISHED) else "model.weights"
        raise RefusedError(f"host {host} refuses: {what} names a file, and only its owner does that: base-model in node.toml")
    if weights and experiment.model.name.startswith(PUBLISHED):
        experiment = experiment.model_copy(update={"model": experiment.model.model_copy(update={"name": ""})})
    data = {"root": str(node.get("data-root", "")), "cache": str(node.get("cache", ""))}
    model = {name: value for name, value in (("weights", weights), ("device", device)) if value}
    own = validate(ModelConfig, experiment.model.model_dump() | model, "node config")
    return experiment.model_copy(update={"data": experiment.data.model_copy(update=data), "model": own})


def _ours(model: ModelConfig) -> bool:
    """Whether a base model comes with this program, or by its name from where open_clip finds it."""
    if model.name.startswith(PUBLISHED):
        return False
    return TAG.fullmatch(model.weights) is not None or named_file(model.weights).resolve().is_relative_to(PACKAGE)
