"""One exchange in which every client answers every question under every model, and its answers put together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ease_flwr.audit.intervals import Numbers
from ease_flwr.clients.audit import FEATURES, FORGET_SETS, SAMPLES
from ease_flwr.config import Union
from ease_flwr.exchange import evaluation
from ease_flwr.exchange.examined import Examination, ExaminedSet, MemberHits
from ease_flwr.exchange.federation import Federation, Request
from ease_flwr.exchange.fitting import ANSWERED
from ease_flwr.exchange.judgement import SETS
from ease_flwr.exchange.messages import Audit

Level = Literal["quick", "full"]
TOWERS: tuple[Literal["visual", "text"], ...] = ("visual", "text")
PROBES: dict[str, tuple[str, ...]] = {"quick": ("membership", "alignment", "swapped")}
PROBES["full"] = (*PROBES["quick"], *(p for p in ANSWERED if p not in (*PROBES["quick"], SAMPLES)))
ALONE: dict[str, tuple[str, ...]] = {"quick": ("membership", SAMPLES)}
"""What is asked where no retrained model is there."""
ALONE["full"] = (*ALONE["quick"], "relearning", "linear_probe")


@dataclass(frozen=True)
class Probed:
    """Hits of a probe by member."""

    labels: Numbers
    """(k,), -1 where a pair stands by itself."""
    of: Numbers
    """Image and text queries, (k, 2)."""
    hits: Numbers
    """(orders of batches, stops, k, 2)."""

    @classmethod
    def of_clients(cls, said: Sequence[Sequence[MemberHits]]) -> Probed:
        found = [h for hits in said for h in hits]
        hits = np.array([h.hits for h in found], dtype=np.float64).transpose(1, 2, 0, 3)
        return cls(np.array([h.label for h in found]), np.array([h.of for h in found], dtype=np.float64), hits)

    def about(self, labels: Numbers) -> Probed:
        """The same of the members with these labels alone."""
        chosen = np.isin(self.labels, labels)
        return Probed(self.labels[chosen], self.of[chosen], self.hits[:, :, chosen])


@dataclass
class Answers:
    """What all clients said about one model, put together in order of their names. See exchange/examined.py: Examination."""

    sets: dict[str, dict[str, Numbers]] = field(default_factory=dict)
    """Fields of ExaminedSet, by set."""
    member: Numbers = field(default_factory=lambda: np.zeros((0, len(FEATURES))))
    stranger: Numbers = field(default_factory=lambda: np.zeros((0, len(FEATURES))))
    sides: tuple[Numbers, Numbers] = (np.zeros(0), np.zeros(0))
    """Labels of member and stranger."""
    looked_at: tuple[int, ...] = ()
    """By client that has some: forgotten pairs that its probes look at."""
    relearn: Probed | None = None
    cross: dict[str, Probed] = field(default_factory=dict)
    swap: dict[str, Probed] = field(default_factory=dict)
    regained: Numbers = field(default_factory=lambda: np.zeros(0))
    """Mean over the clients, by order of batches."""
    probe: tuple[Numbers, Numbers] | None = None
    probe_sides: tuple[Numbers, Numbers] = (np.zeros(0), np.zeros(0))
    """Labels of these: clients with one such pair have no probe."""
    cka: dict[str, Numbers] = field(default_factory=dict)
    samples: dict[str, dict[str, Numbers]] = field(default_factory=dict)
    """As `sets`: "forget", "retain" and "strangers"."""
    backdoor: Numbers = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Packed:
    """A forget lock as it travels to those who learn again what was forgotten; nothing where there is none."""

    sha256: str = ""
    arrays: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    to: Collection[str] = ()


def examine(
    federation: Federation,
    models: Mapping[str, NDArray[np.float32]],
    forget: Union,
    level: Level,
    split: Any = "test",
    lock: Packed = Packed(),
) -> dict[str, Answers]:
    """Ask every client; answers by model."""
    probes = asked(level, "retrain" not in models)
    question = Audit(forget=forget, split=split, probes=probes, train=federation.experiment.learn)
    requests = {n: Request(question) for n in federation.clients}
    if "relearning" in question.probes:
        locked = Request(question.model_copy(update={"lock": lock.sha256}), once=lock.arrays)
        requests |= {n: locked for n in requests if n in lock.to}
    said, _ = evaluation.examine(federation, models, requests)
    return {name: together(list(by_client.values())) for name, by_client in said.items()}


def asked(level: Level, alone: bool) -> tuple[str, ...]:
    """The probes of an audit. alone: whether no retrained model is there."""
    return (ALONE if alone else PROBES)[level]


def together(said: Sequence[Examination]) -> Answers:
    """All clients' answers about one model. "forget" is the union of its two parts where they exist."""
    sets: dict[str, list[ExaminedSet]] = {}
    for answer in said:
        for kind, found in answer.sets.items():
            sets.setdefault(kind, []).append(found)
    parts = [s for s in ("forget_exclusive", "forget_shared") if s in sets]
    if parts:
        sets["forget"] = [found for part in parts for found in sets[part]]
    out = Answers()
    out.sets = {name: _whole(sets[name]) for name in SETS if name in sets}
    for name in ("forget", "retain", "strangers"):
        if sampled := [a.samples[name] for a in said if name in a.samples]:
            out.samples[name] = _whole(sampled)
    if members := [a for a in said if a.member]:
        rows = (_joined([getattr(a, key) for a in members]) for key in ("member", "stranger"))
        out.member, out.stranger = (side.reshape(-1, len(FEATURES)) for side in rows)
    if sided := [a for a in said if a.member_labels]:
        out.looked_at = tuple(len(a.member_labels) for a in sided)
        out.sides = _sides(sided)
    if probed := [a for a in said if a.probe]:
        both = [a.probe for a in probed if a.probe]
        out.probe = _joined([inside for inside, _ in both]), _joined([outside for _, outside in both])
        out.probe_sides = _sides(probed)
    if relearnt := [a.relearn for a in said if a.relearn]:
        out.relearn = Probed.of_clients(relearnt)
    if first := [a.regained for a in said if a.regained]:
        out.regained = np.mean(np.array(first), axis=0)
    for tower in TOWERS:
        for probe in ("cross", "swap"):
            if there := [getattr(a, probe)[tower] for a in said if getattr(a, probe).get(tower)]:
                getattr(out, probe)[tower] = Probed.of_clients(there)
    out.backdoor = _joined([a.backdoor for a in said]) if any(a.backdoor for a in said) else out.backdoor
    for pairs in ("forget", "public"):
        if aligned := [a.cka[pairs] for a in said if pairs in a.cka]:
            out.cka[pairs] = np.mean(np.array(aligned), axis=0)
    return out


def _whole(found: Sequence[ExaminedSet]) -> dict[str, Numbers]:
    return {key: _joined([getattr(s, key) for s in found]) for key in ExaminedSet.model_fields}


def _sides(said: Sequence[Examination]) -> tuple[Numbers, Numbers]:
    return _joined([a.member_labels for a in said]), _joined([a.stranger_labels for a in said])


def _joined(rows: Sequence[Sequence[Any]]) -> Numbers:
    return np.concatenate([np.asarray(r, dtype=np.float64) for r in rows])


def scores(answers: Answers, most: int = 400) -> dict[str, list[float]]:
    """What a report draws: similarities of sets (at most so many, evenly chosen) and cosines of members and strangers."""
    similarity = {s: answers.sets[s]["similarity"] for s in (*FORGET_SETS, "retain") if s in answers.sets}
    out = {f"similarity.{s}": v[:: max(1, len(v) // most)] for s, v in similarity.items()}
    out |= {"member": answers.member[:, 0], "stranger": answers.stranger[:, 0], "member_partner_loss": answers.member[:, 1]}
    return {key: values.round(4).tolist() for key, values in out.items()}
