"""The story of a run on one page: roll call -> learn -> forget -> hold -> audit."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import strategies
from ease_flwr import data
from ease_flwr.audit import examination, retrieval, verdict
from ease_flwr.audit.summary import PAIRS, cost_line, read_results
from ease_flwr.core import config
from ease_flwr.core.federation import Cost, Federation, FederationError
from ease_flwr.core.history import History
from ease_flwr.core.paths import default_folder
from ease_flwr.core.retrieval import Judgement
from ease_flwr.core.run import PhaseResult, Run, write_text
from strategies.base import Progress, Setting, Unlearning

if TYPE_CHECKING:
    from ease_flwr.core.lock import ForgetLock

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Read the run config, run the experiment, and leave state.json behind whatever happens."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    experiment, submission = config.from_run_config(context.run_config)
    folder = Path(submission.run_dir) if submission.run_dir else default_folder(experiment, submission.strategy)
    if not folder.is_absolute():
        raise config.ConfigError(f"run-dir {folder}: give an absolute path, the app runs in another folder than you")
    run = Run(folder, experiment, submission.strategy, submission.fresh)
    try:
        if submission.audit:
            audit_again(grid, run, experiment, submission.audit)
        else:
            run.write("run_config.json", dict(context.run_config))
            play(grid, run, experiment, submission.strategy)
    except BaseException as error:
        run.state("failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
        run.event(f"failed: {error}")
        raise
    run.state("finished")


def play(grid: Grid, run: Run, experiment: config.Experiment, strategy_name: str) -> None:
    """All phases of one run."""
    run.event(f"run directory {run.folder}")
    method = strategies.load(strategy_name)
    params: Any = method.check(strategy_name, experiment)
    world = data.load(experiment.data, experiment.seed)
    experiment = experiment.model_copy(update={"forget": world.request(experiment.forget)})
    requests, everything = experiment.forget.requests(), experiment.forget.together()
    federation = Federation(grid, experiment, world.clients, run.event)
    present = federation.roll_call(everything)
    sizes = ", ".join(f"{name} {said['pairs']}" for name, said in present.items())
    run.event(f"[roll call] pairs: {sizes}", roll_call=present)
    holders = tuple(n for n, said in present.items() if said["forget"])
    retained = tuple(n for n, said in present.items() if said["forget"] < said["pairs"])
    if not holders or not retained:
        raise config.ConfigError(f"forget: the request concerns {'every pair' if holders else 'no pair'} of the federation")

    from ease_flwr.core import adapters  # imports torch and open_clip: only now, with all clients there

    model = adapters.load(experiment.model, experiment.lora, experiment.seed)
    theta_0 = model.initial
    everyone = Setting(experiment, federation, theta_0, model.blocks, world.clients)
    without = replace(everyone, clients=retained, holders=holders, forget=everything)
    run.event(
        f"[model] {model.size} adapter parameters, {4 * model.size} bytes a message; forget pairs of {', '.join(holders)}"
    )

    report = partial(tell, run, federation, experiment)

    def learn(
        label: str, who: Setting, phase: str, theta: Any, rounds: int, first: int = 1, overlap: int = 0, record: bool = False
    ) -> PhaseResult:
        def compute(folder: Path) -> PhaseResult:
            history = History(folder, experiment.history) if record else None
            strategy = Unlearning(who, Unlearning.Params(), overlap=overlap)
            if phase == "learn":
                strategy.learning()
            return PhaseResult(*strategy.run(phase, theta, rounds, partial(report, label=label), first, history))

        settings = (experiment.seed, experiment.data, experiment.model, experiment.lora, experiment.learn)
        kept = experiment.history if record else None
        order = (experiment.evaluation.order_seed, kept, phase, rounds, first, overlap, record, who.clients, who.forget)
        return run.cached((*settings, *order, adapters.sha256(theta)), compute)

    rounds = experiment.learn.rounds
    original = learn("learn", everyone, "learn", theta_0, rounds, record=True)
    assert original.history is not None
    thetas, costs = {"original": original.theta}, {"learn": original.cost, "unlearn": Cost()}
    facts: list[dict[str, Any]] = []

    theta, lock, gone = original.theta, None, set()
    for i, request in enumerate(requests, 1):
        phase = "forget" if i == 1 else f"forget-{i}"
        asking = tuple(n for n in holders if request.scenario != "client" or n in request.targets)
        helping = who_helps(run, federation, phase, asking)
        if method.holders == "needed" and not helping:
            raise FederationError(f"strategy {strategy_name} needs {', '.join(asking)}, who does not answer: use another")
        gone |= set(asking) - set(retained)
        clients = tuple(n for n in federation.clients if n not in gone)
        strategy = method(replace(without, clients=clients, holders=helping, forget=request), params, lock)
        with strategy.cost.on_server():
            start = strategy.prepare(theta, original.history)
        theta, cost = strategy.run(phase, start, params.rounds, report)
        with cost.on_server():
            lock = strategy.lock_after(theta)
        keep(run, phase, lock)
        thetas["unlearned" if i == len(requests) else f"unlearned_{i}"] = theta
        costs["unlearn"] += cost
        server_bytes = original.history.nbytes if method.history else 0
        server_bytes += lock.nbytes if lock else 0
        facts.append({"targets": list(request.targets), "server_bytes": server_bytes, **strategy.facts})

    clients = tuple(n for n in federation.clients if n in retained)
    without = replace(without, clients=clients, holders=tuple(n for n in holders if n in clients))
    if experiment.evaluation.reference == "retrain":
        more = params.rounds * len(requests)
        retrain = learn("retrain", without, "learn", theta_0, rounds)
        thetas["retrain"], costs["retrain"] = retrain.theta, retrain.cost
        if experiment.evaluation.equal:
            thetas["retrain_equal"] = learn("retrain", without, "learn", retrain.theta, more, first=rounds + 1).theta
    if hold := experiment.hold.rounds:
        overlap = experiment.hold.overlap
        holding = Unlearning(without, Unlearning.Params(), lock=lock, overlap=overlap)
        thetas["held"], costs["hold"] = holding.run("hold", theta, hold, report)
        if "retrain_equal" in thetas:
            held = learn("retrain, hold", without, "hold", thetas["retrain_equal"], hold, overlap=overlap)
            thetas["retrain_held"] = held.theta

    steps = [m for m in thetas if m.startswith("unlearned_")]
    order = ("original", "retrain", "retrain_equal", *steps, "unlearned", "held", "retrain_held")
    models = retrieval.judge(federation, {m: thetas[m] for m in order if m in thetas}, everything, experiment.evaluation.split)
    hashes = {m: adapters.sha256(thetas[m]) for m in models}
    finish(run, experiment, strategy_name, params, models, costs, hashes, facts)
    for name in models:
        model.save(thetas[name], run.folder / "adapters" / name)
    if experiment.audit.level != "none" and "retrain" in thetas:
        audit(run, federation, experiment, thetas, everything, experiment.audit.level, lock)


def audit(
    run: Run,
    federation: Federation,
    experiment: config.Experiment,
    thetas: dict[str, Any],
    forget: config.ForgetConfig,
    level: examination.Level,
    lock: ForgetLock | None,
) -> None:
    """Ask every client about every model, and write audit.json and audit.md."""
    import torch

    answers = examination.examine(federation, thetas, forget, level, experiment.evaluation.split)
    reference = {
        m: "retrain_held" if m in ("held", "retrain_held") and "retrain_held" in answers else "retrain" for m in answers
    }
    found = {m: examination.numbers(a, answers[reference[m]]) for m, a in answers.items()}
    rows = verdict.verdict(found, experiment.audit)
    drift = {m: float(lock.drift(torch.from_numpy(thetas[m])).norm()) for m in ("held", "retrain_held") if lock and m in thetas}
    numbers = {m: examination.plain(f) for m, f in found.items()}
    scores = {m: examination.scores(a) for m, a in answers.items()}
    result = {"schema": 1, "level": level, "reference": reference, "numbers": numbers, "drift": drift, "scores": scores}
    run.write("audit.json", {**result, "verdict": verdict.plain(rows)})
    text = verdict.table(rows)
    write_text(run.folder / "audit.md", text)
    run.event(f"[audit] {level}\n{text}")


def audit_again(grid: Grid, run: Run, experiment: config.Experiment, level: examination.Level) -> None:
    """Audit the finished run whose folder is the parent of this one's."""
    from safetensors.torch import load_file

    from ease_flwr.core import adapters
    from ease_flwr.core.lock import ForgetLock

    finished = run.folder.parent
    results = read_results(finished)
    world = data.load(experiment.data, experiment.seed)
    forget = world.request(experiment.forget).together()
    federation = Federation(grid, experiment, world.clients, run.event)
    federation.roll_call(forget)
    blocks = adapters.load(experiment.model, experiment.lora, experiment.seed).blocks
    thetas = {name: adapters.read(finished / "adapters" / name, blocks) for name in results["adapters_sha256"]}
    if changed := [name for name, theta in thetas.items() if adapters.sha256(theta) != results["adapters_sha256"][name]]:
        raise config.ConfigError(f"{finished}/adapters/{changed[0]} is not what results.json names: it was changed since")
    if "retrain" not in thetas:
        raise config.ConfigError(f"{finished}: an audit needs the retrained model, this run has none (evaluation.reference)")
    file = finished / "lock.safetensors"
    lock = ForgetLock.from_tensors(load_file(file)) if file.is_file() else None
    audit(run, federation, experiment, thetas, forget, level, lock)


def tell(run: Run, federation: Federation, experiment: config.Experiment, p: Progress, label: str = "") -> None:
    """One line about a round, with recall on validation pairs now and then."""
    losses = [u.metrics["loss"] for u in p.updates.values()]
    name = label or p.phase
    values: dict[str, Any] = {"model": name, "phase": p.phase, "round": p.round, "answered": len(p.updates), "loss": losses}
    line = f"[{name} {p.round}/{p.last}] {len(p.updates)}/{p.asked} clients  loss {sum(losses) / len(losses):.3f}"
    every = experiment.evaluation.every
    if p.round == p.last or (every and p.round % every == 0):
        found = retrieval.judge(federation, {"now": p.theta}, experiment.forget.together(), "validation")["now"]
        values["validation"] = {s: found.r1(s) for s in found.sets}
        line += "  R@1 " + " ".join(f"{s} {found.r1(s):.1f}" for s in found.sets)
    eta = p.cost.seconds / p.cost.rounds * (p.last - p.round)
    run.event(f"{line}  {p.cost.seconds:.0f} s  ETA {eta:.0f} s", **values, **asdict(p.cost))


def who_helps(run: Run, federation: Federation, phase: str, asking: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the clients concerned that still answer; the others leave the federation."""
    helping = federation.answering(asking)
    for name in sorted(set(asking) - helping):
        run.event(f"[{phase}] {name} does not answer: it is forgotten without its help, and nobody judges its pairs")
        federation.leave(name)
    return tuple(sorted(helping))


def keep(run: Run, phase: str, lock: ForgetLock | None) -> None:
    """Write the lock into the run folder, and say what it discloses."""
    if lock:
        run.keep_lock(lock)
        sent = f"{lock.nbytes} bytes to each client of the hold phase" if lock.strength else "they stay on the server"
        run.event(f"[{phase}] {lock.dimension} directions locked, derived from what was forgotten; {sent}")


def finish(
    run: Run,
    experiment: config.Experiment,
    strategy: str,
    params: config.Section,
    models: dict[str, Judgement],
    costs: dict[str, Cost],
    hashes: dict[str, str],
    facts: list[dict[str, Any]],
) -> None:
    """Write results.json and table.md."""
    results: dict[str, Any] = {
        "schema": 1,
        "experiment": experiment.name,
        "strategy": strategy,
        "params": params.model_dump(mode="json"),
        "seed": experiment.seed,
        "forget": {"scenario": experiment.forget.scenario, "targets": list(experiment.forget.together().targets)},
        "requests": facts,
        "models": {m: j.sets for m, j in models.items()},
        "clients": {m: j.clients for m, j in models.items()},
        "gaps": {},
        "cost": {phase: asdict(cost) for phase, cost in costs.items()},
        "adapters_sha256": hashes,
    }
    text = retrieval.table(models)
    for unlearned, reference, key in PAIRS:
        if unlearned in models and reference in models:
            results[key] = gap = retrieval.gaps(models, unlearned, reference)
            shown = "  ".join(f"{k} {'-' if v is None else format(v, '.3g')}" for k, v in gap.items())
            text += f"\n{unlearned} against {reference}: {shown}\n"
    if "retrain" in costs:
        text += f"\n{cost_line(results)}\n"
    run.write("results.json", results)
    write_text(run.folder / "table.md", text)
    run.event(text)
