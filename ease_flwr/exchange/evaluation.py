"""Asking clients about models on their own pairs: all models in one exchange."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any, TypeVar

from numpy.typing import NDArray

from ease_flwr.config import Union, digest
from ease_flwr.exchange import fitting
from ease_flwr.exchange.answers import read_models
from ease_flwr.exchange.examined import Examination
from ease_flwr.exchange.federation import Federation, Request
from ease_flwr.exchange.journal import Exchange
from ease_flwr.exchange.judgement import Evaluation, Judgement, pool
from ease_flwr.exchange.messages import Evaluate
from ease_flwr.exchange.training import identities, sha256
from ease_flwr.exchange.transport import printable, reason
from ease_flwr.store.cost import Cost

Models = Mapping[str, NDArray[Any]]
S = TypeVar("S", Evaluation, Examination)


def evaluate(
    federation: Federation, models: Models, question: Evaluate, names: Iterable[str] | None = None
) -> tuple[dict[str, dict[str, Evaluation]], Cost]:
    """Answers model -> client -> what it counted, of these clients or of all, and what it cost. Raises FederationError."""
    asked = federation.clients if names is None else names
    own = federation.judged_on

    def fits(client: str, said: Mapping[str, Evaluation]) -> None:
        fitting.judged(question, said, own.get(client))

    return _ask(federation, models, {n: Request(question) for n in asked}, Evaluation, fits)


def examine(
    federation: Federation, models: Models, requests: Mapping[str, Request]
) -> tuple[dict[str, dict[str, Examination]], Cost]:
    """Answers model -> client -> what it found in an audit, and what it cost. requests: an Audit for each client.

    Raises FederationError.
    """
    own = federation.judged_on

    def fits(client: str, said: Mapping[str, Examination]) -> None:
        asked: Any = requests[client].instruction
        fitting.examined(asked, said, own.get(client))

    return _ask(federation, models, requests, Examination, fits)


def _ask(
    federation: Federation,
    models: Models,
    requests: Mapping[str, Request],
    kind: type[S],
    fits: Callable[[str, Mapping[str, S]], None],
) -> tuple[dict[str, dict[str, S]], Cost]:
    def exchange() -> Exchange:
        started = time.monotonic()
        read: dict[str, dict[str, S]] = {}
        failures: dict[str, str] = {}
        replies, spent = federation.send(models, requests)
        for n in requests:
            reply: Any = replies.get(n)
            try:
                if reply is None or reply.has_error():
                    raise ValueError(reason(reply))
                found = read_models(reply, kind, models)
                fits(n, found)
                read[n] = found
            except ValueError as error:
                failures[n] = printable(str(error))
        heavy: list[str]
        weighed, heavy = fitting.weighed(read, federation.experiment.federation.weight_bound)
        answers = {n: {m: a.model_dump(mode="json") for m, a in by_model.items()} for n, by_model in weighed.items()}
        federation.check_quorum(answers, failures)
        cost = replace(spent, seconds=time.monotonic() - started)
        said = [*heavy, *(f"{n} failed, left out of the judgement: {why}" for n, why in failures.items())]
        return Exchange({"answers": answers, "cost": asdict(cost), "said": said})

    asked = ""
    if federation.journal.folder:
        asked = digest(kind.__name__, {m: sha256(v) for m, v in models.items()}, identities(requests))
    found = federation.journal.once(asked, exchange)
    for line in found.info["said"]:
        federation.say(line)
    answers = found.info["answers"]
    by_model = {m: {n: kind.model_validate(said[m]) for n, said in sorted(answers.items())} for m in models}
    return by_model, Cost(**found.info["cost"])


def judge(federation: Federation, models: Models, forget: Union, split: Any = "test") -> dict[str, Judgement]:
    """Every client judges its own pairs under these models; counts and similarities pooled, model by model."""
    question = Evaluate(forget=forget, split=split, similarity=True)
    answers, _ = evaluate(federation, models, question)
    return {name: pool(by_client) for name, by_client in answers.items()}
