"""Asking every client about every model of a run: at its end, and again whenever somebody wants to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flwr.serverapp import Grid

from ease_flwr import data
from ease_flwr.audit import anchors, examination, measures, noise, omitted, strangers, verdict
from ease_flwr.audit import references as asking
from ease_flwr.audit.intervals import Measure
from ease_flwr.audit.references import name_of
from ease_flwr.audit.retrieval import references_of
from ease_flwr.audit.summary import read_results
from ease_flwr.clients.audit import FORGET_SETS
from ease_flwr.config import ConfigError, Experiment, Union, union
from ease_flwr.config.request import now
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.roll_call import Wanted, roll_call
from ease_flwr.exchange.transport import Transport
from ease_flwr.server import parties, roster
from ease_flwr.server.references import retraining
from ease_flwr.server.state import FederationState, Server, Vector
from ease_flwr.store import phases, purge, queue
from ease_flwr.store.files import write_text
from ease_flwr.store.layout import RunLayout
from ease_flwr.store.run import Run
from ease_flwr.strategies.ordinary import packed

if TYPE_CHECKING:
    from ease_flwr.model.lock import ForgetLock

SECOND, EQUAL = "retrain_2", "retrain_equal"


@dataclass(frozen=True)
class Audited:
    """What an audit is about."""

    thetas: Mapping[str, Vector]
    """The models, by name."""
    forget: Union
    """All that the run has forgotten."""
    lock: ForgetLock | None
    holders: frozenset[str]
    """Clients that have pairs of it: the lock goes to them where they learn these again."""
    departed: frozenset[str] = frozenset()
    """Clients that left: they may not answer."""
    rounds: tuple[dict[str, Any], ...] = ()
    """What the continuation noted of the lock, see strategies/ordinary.py."""
    price: str = ""
    """What a reference would cost, where there is none."""
    trained: tuple[str, ...] = ()
    """Models that the run did not have: they were trained for this audit."""


def held_in(finished: RunLayout) -> tuple[dict[str, Any], ...]:
    """What the continuation since the last request that is done noted of the forget lock, round by round."""
    steps = queue.read(finished.folder)
    named = [(n, s) for n, s in zip(queue.names(steps), steps, strict=True) if finished.done(n)]
    last = max(i for i, (_, step) in enumerate(named) if step.request)
    return tuple(r for name, _ in named[last + 1 :] for r in phases.read_file(finished.phase(name))["facts"].get("lock", ()))


def audit(run: Run, federation: Federation, about: Audited, level: Any) -> None:
    """Write audit.json and audit.md into the folder of `run`."""
    import torch

    from ease_flwr.model import adapters

    experiment = federation.experiment
    thetas, lock, alone = about.thetas, about.lock, "retrain" not in about.thetas
    initial = adapters.load(experiment.model, experiment.lora, experiment.seed).initial
    sent = examination.Packed(*packed(lock), about.holders)
    models = {**thetas, strangers.BASE: initial} if alone else thetas
    answers = examination.examine(federation, models, about.forget, level, experiment.evaluation.split, sent)
    own = {m: measures.estimates(a) for m, a in answers.items()}
    reference = {m: references_of(m, list(answers)) for m in answers}

    def beside(model: str, names: Sequence[str]) -> dict[str, Measure]:
        return measures.numbers(answers[model], own[model], [(answers[n], own[n]) for n in names])

    raw = {m: beside(m, names) for m, names in reference.items()}
    again = measures.plain(raw[SECOND]) if SECOND in raw else {}
    known = noise.known(experiment.name, noise.differences(again))
    found = raw if alone else {m: known.on(numbers) for m, numbers in raw.items()}
    asked = verdict.asked_of(level, known.source, alone)
    judged = [verdict.Beside(m, reference[m], found[m]) for m in ("unlearned", "continued") if m in found]
    if "unlearned" in found and EQUAL in found:
        judged.insert(1, verdict.Beside("unlearned", (EQUAL,), known.on(beside("unlearned", (EQUAL,)))))
    sampled = {m: strangers.samples(a) for m, a in answers.items()} if alone else {}
    three = strangers.view(sampled)
    if alone:
        rows = strangers.rows(own, sampled, experiment.audit)
        if "original" in own:
            kept = verdict.Beside("unlearned", ("original",), beside("unlearned", ("original",)))
            rows += verdict.as_before(kept, experiment.audit)
    else:
        rows = verdict.verdict(judged, experiment.audit, level)
    continued = ("continued", "retrain_continued")
    drift = {m: float(lock.drift(torch.from_numpy(thetas[m])).norm()) for m in continued if lock and m in thetas}
    plain = {m: measures.plain(f) for m, f in found.items()}
    probes = examination.asked(level, alone)
    left_out = omitted.of_models({m: omitted.of_audit(answers[m], raw[m], probes, bool(reference[m])) for m in raw})
    anchored = {
        "modality": anchors.modality(plain),
        "subspace": anchors.subspace(lock, {m: theta - initial for m, theta in thetas.items()}, answers),
        "temporal": anchors.temporal(lock, about.rounds, drift, own),
    }
    result = {
        "schema": 2,
        "at": now(),
        "level": level,
        "asked": asked,
        "adapters_sha256": {m: adapters.sha256(theta) for m, theta in thetas.items()},
        "trained": list(about.trained),
        "reference": reference,
        "numbers": plain,
        "left_out": left_out,
        "drift": drift,
        "anchors": anchored,
        "strangers": three,
        "reference_price": about.price,
        "scores": {m: examination.scores(a) for m, a in answers.items()},
        "verdict": verdict.plain(rows),
    }
    run.write("audit.json", result)
    text = f"{verdict.table(rows, asked)}\n{anchors.table(anchors.lines(anchored, level))}"
    if alone:
        text = f"{text}\n{strangers.table(three)}\n{strangers.CANNOT} {about.price}\n"
    text = f"{text}\n{omitted.table(left_out)}" if left_out else text
    if not any(m.sets.keys() & set(FORGET_SETS) for m in answers.values()):
        text = f"{strangers.nobody(sorted(about.holders | about.departed))}\n{text}"
    write_text(run.folder / "audit.md", text)
    run.event(f"[audit] {level}\n{text}")


def audit_again(grid: Grid, run: Run, experiment: Experiment, level: str) -> None:
    """Audit the finished run whose folder is the parent of this one's. Raises ConfigError."""
    from ease_flwr.model import adapters

    finished = RunLayout(run.folder.parent)
    results, served = read_results(finished.folder), queue.served(finished.folder)
    if not served:
        raise ConfigError(f"{finished.folder}: nothing was forgotten there yet")
    requests = tuple(request for _, request in served)
    if [said["id"] for said in results["requests"]] != [r.id for r in requests]:
        raise ConfigError(
            f"{finished.folder}: its models are older than its last request: `ease resume {finished.folder}` first"
        )
    clients = data.load(experiment.data, experiment.seed).clients
    transport = Transport(grid)
    left = frozenset(c for r in requests for c in r.leaving)
    wanted = Wanted(clients, left)
    called = roll_call(transport, experiment, wanted)
    roster.say_missing(run, called)
    expected = len(wanted.expected)
    federation = Federation(transport, experiment, called.roster, run.event, optional=left, expected=expected)
    model = adapters.load(experiment.model, experiment.lora, experiment.seed)
    blocks = model.blocks
    there = purge.left(finished.folder, results["adapters_sha256"])
    thetas = {name: adapters.read(finished.adapters / name, blocks) for name in there}
    if changed := [name for name, theta in thetas.items() if adapters.sha256(theta) != results["adapters_sha256"][name]]:
        raise ConfigError(f"{finished.adapters}/{changed[0]} is not what results.json names: it was changed since")
    said = federation.counted(tuple(r.forget_set for r in requests), len(requests))
    federation = federation.without([n for n in federation.clients if n not in said.pairs]).with_pairs(said.sizes)
    answers = parties.RollCall(said.sizes, requests, said.pairs, said.smallest)
    more = range(2, experiment.evaluation.references + 1) if "retrain" in thetas else ()
    missing = [n for n in more if name_of(n) not in thetas]
    if missing:
        server = Server(run, experiment, federation, answers, model)
        state = FederationState(model.initial, departed=left, served=requests, learnt=results["cost"]["learn"]["rounds"])
        thetas |= {name_of(n): retraining(server, state, n).theta for n in missing}
    lock = phases.read(finished.phase(served[-1][0])).lock
    trained = tuple(name_of(n) for n in missing)
    rounds = held_in(finished)
    price = "" if "retrain" in thetas else asking.offer(finished.folder, experiment, len(clients))
    about = Audited(thetas, union(requests), lock, parties.holders(answers), left, rounds, price, trained)
    audit(run, federation, about, level)
