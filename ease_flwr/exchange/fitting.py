"""Whether an answer fits what was asked, and itself: every model is judged on the same queries, and on no more than there are.

What one answer can contradict by itself, its type refuses (judgement.py, examined.py). All functions raise ValueError.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ease_flwr.exchange.answers import MOST_PAIRS
from ease_flwr.exchange.bounds import most_pairs
from ease_flwr.exchange.examined import Examination, ExaminedSet, MemberHits
from ease_flwr.exchange.judgement import Evaluation
from ease_flwr.exchange.messages import Audit, Evaluate

CAPTIONS = 1000
"""So many captions no picture has."""
OWN = ("forget", "retain")
"""Sets of photographs whose queries are pairs that the client trains on, or has trained on."""
PHOTOGRAPHS = (*OWN, "test", "neighbours")
"""All sets of photographs."""
A = TypeVar("A", Evaluation, Examination)
ANSWERED = {
    "membership": ("member", "stranger"),
    "relearning": ("relearn", "regained"),
    "cross_modal": ("cross",),
    "swapped": ("swap",),
    "alignment": ("cka",),
    "linear_probe": ("probe",),
    "three_samples": ("samples",),
}
"""Probes of an audit, and the fields of an Examination that answer each."""


def judged(question: Evaluate, said: Mapping[str, Evaluation], pairs: int | None) -> None:
    """The counts of one client about every model that was sent. pairs: that it has, None where queries are others."""
    for model, answer in said.items():
        _sets(question, {name: found.images for name, found in answer.sets.items()}, pairs)
        if "neighbours" in answer.sets:
            raise ValueError("an answer about neighbours, which only an audit asks for")
        for name, found in answer.sets.items():
            if bool(found.similarity) != question.similarity:
                raise ValueError(f"{name}: similarities of {len(found.similarity)} pairs, asked: {question.similarity}")
            if not found.images <= found.gallery <= MOST_PAIRS or not found.images <= found.texts <= CAPTIONS * found.images:
                many = f"{found.images} pictures and {found.texts} captions in a gallery of {found.gallery} pairs"
                raise ValueError(f"{name}: {many}, which cannot be")
        _same(model, _counted(answer), _counted(next(iter(said.values()))))


def examined(question: Audit, said: Mapping[str, Examination], pairs: int | None) -> None:
    """The answers of one client to an audit, about every model that was sent. pairs: as in `judged`."""
    allowed = {field for probe in question.probes for field in ANSWERED.get(probe, ())}
    for model, answer in said.items():
        _sets(question, {name: len(found.i2t) for name, found in answer.sets.items()}, pairs)
        for field in (f for fields in ANSWERED.values() for f in fields):
            if getattr(answer, field) and field not in allowed:
                raise ValueError(f"an answer to {field}, which was not asked")
        _same(model, _shape(answer), _shape(next(iter(said.values()))))


def weighed(said: Mapping[str, Mapping[str, A]], times: float) -> tuple[dict[str, dict[str, A]], list[str]]:
    """Answers client -> model -> what it found, no set of which counts for more than `times` the median of those who have it,
    the lower one of two; and a line about each that counts for less than it says. times: federation.weight_bound."""
    queries: dict[str, dict[str, int]] = {}
    for client, by_model in said.items():
        for name, found in next(iter(by_model.values())).sets.items():
            queries.setdefault(name, {})[client] = found.queries
    most = {name: most_pairs(of.values(), times) for name, of in queries.items()}
    lines = [
        f"{client}: its {count} queries of {name} count as {most[name]}, {times:g} times the median (federation.weight_bound)"
        for name, of in queries.items()
        for client, count in of.items()
        if count > most[name]
    ]

    def less(answer: A) -> A:
        return answer.model_copy(update={"sets": {n: found.at_most(most[n]) for n, found in answer.sets.items()}})

    return {client: {m: less(answer) for m, answer in by_model.items()} for client, by_model in said.items()}, lines


def _sets(question: Evaluate | Audit, sizes: Mapping[str, int], pairs: int | None) -> None:
    """The sets fit the question, and what the client has."""
    for name, size in sizes.items():
        if (name.startswith("forget") or name == "neighbours") and not question.forget:
            raise ValueError(f"an answer about {name}, and nothing is to be forgotten")
        if pairs is not None and name not in PHOTOGRAPHS:
            raise ValueError(f"an answer about {name}, which photographs do not have")
        if pairs is not None and name in OWN and size > pairs:
            raise ValueError(f"{name}: {size} queries of {pairs} pairs")


def _same(model: str, shape: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Every model was judged on the same."""
    if wrong := sorted(k for k in shape.keys() | first.keys() if shape.get(k) != first.get(k)):
        raise ValueError(f"{model} was judged on other queries than the first model: {', '.join(wrong)[:100]}")


def _counted(answer: Evaluation) -> dict[str, Any]:
    return {n: (f.images, f.texts, f.gallery) for n, f in answer.sets.items()}


def _shape(answer: Examination) -> dict[str, Any]:
    """What of an answer must be the same for every model: how much was judged, and what it is about. CKA is none of it: where
    all embeddings of a model are the same, it has none."""
    shape: dict[str, Any] = {name: _of(found) for name, found in answer.sets.items()}
    shape |= {f"samples.{name}": _of(found) for name, found in answer.samples.items()}
    shape |= {"member": len(answer.member), "stranger": len(answer.stranger), "backdoor": len(answer.backdoor)}
    shape |= {"labels": (answer.member_labels, answer.stranger_labels), "regained": len(answer.regained)}
    shape |= {"probe": [len(side) for side in answer.probe or ()]}
    shape |= {"relearn": _about(answer.relearn)}
    for probe in ("cross", "swap"):
        shape |= {f"{probe}.{tower}": _about(found) for tower, found in getattr(answer, probe).items()}
    return shape


def _of(found: ExaminedSet) -> tuple[Any, ...]:
    return found.labels, found.captions


def _about(found: tuple[MemberHits, ...]) -> list[Any]:
    return [(hits.label, hits.of) for hits in found]
