"""The story of a run on one page: roll call -> learn -> forget -> hold -> audit."""

from __future__ import annotations

import contextlib
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
from ease_flwr.core import agenda, config
from ease_flwr.core.federation import Cost, Federation, FederationError
from ease_flwr.core.history import History
from ease_flwr.core.messages import NOW, Instruction
from ease_flwr.core.paths import default_folder, write_text
from ease_flwr.core.retrieval import Judgement, pool
from ease_flwr.core.run import PhaseResult, Run, read_phase
from strategies.base import Progress, Setting, Unlearning, Vector

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
    run = Run(folder, experiment, submission.strategy, submission.fresh, submission.resume)
    try:
        if submission.audit:
            audit_again(grid, run, experiment, submission.audit)
        else:
            if not submission.resume:
                run.write("run_config.json", dict(context.run_config))
                agenda.write(folder, first_steps(experiment, submission))
            Story(grid, run, experiment).tell()
        run.state("finished")
    except BaseException as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if "No space left on device" in why:
            why = f"the disk of {folder} is full: make room, then `ease resume {folder}`; nothing that was done is lost"
        with contextlib.suppress(OSError):  # of a full disk too
            run.state("failed", why)
            run.event(f"failed: {why}")
        raise
    finally:
        run.close()


def first_steps(experiment: config.Experiment, submission: config.Submission) -> list[agenda.Step]:
    """The agenda of a new run: learn, forget what the experiment names, hold; or learn alone."""
    learn = [agenda.Step(kind="learn")]
    if submission.until == "learn":
        return learn
    strategies.load(submission.strategy).check(submission.strategy, experiment)
    asked = data.load(experiment.data, experiment.seed).request(experiment.forget)
    forget = [agenda.request(r, submission.strategy, experiment.strategy) for r in asked.requests()]
    hold = [agenda.Step(kind="hold", rounds=experiment.hold.rounds)] if experiment.hold.rounds else []
    return [*learn, *forget, *hold]


class Story:
    """What happens in a run, from its agenda: every step is a phase, and phases that were done before are not done again."""

    def __init__(self, grid: Grid, run: Run, experiment: config.Experiment) -> None:
        self.run, self.experiment = run, experiment
        run.event(f"run directory {run.folder}")
        self.steps = agenda.read(run.folder)
        self.forget = agenda.everything(self.steps)
        world = data.load(experiment.data, experiment.seed)
        self.federation = run.federation = Federation(grid, experiment, world.clients, run.event)
        present = self.federation.roll_call(self.forget, self.left())
        sizes = ", ".join(f"{name} {said['pairs']}" for name, said in present.items())
        run.event(f"[roll call] pairs: {sizes}", roll_call=present)
        self.concerned = {name: said["forget"] for name, said in present.items()}
        self.who()

        from ease_flwr.core import adapters  # imports torch and open_clip: only now, with all clients there

        self.model = adapters.load(experiment.model, experiment.lora, experiment.seed)
        half = experiment.federation.half
        run.event(f"[model] {self.model.size} adapter parameters, {(2 if half else 4) * self.model.size} bytes a message")
        self.thetas: dict[str, Vector] = {}
        self.costs: dict[str, Cost] = {}
        self.requests: list[dict[str, Any]] = []
        self.method = ""
        self.params: Any = config.Section()
        self.gone: set[str] = set()
        self.lock: ForgetLock | None = None
        self.history: History | None = None
        self.held = 0

    def left(self) -> set[str]:
        """Clients that left in requests that are done: they need not be there any more."""
        named = zip(self.steps, agenda.names(self.steps), strict=True)
        done = [step.forget for step, name in named if step.forget and self.run.has(name)]
        return {client for forget in done for client in forget.leaving()}

    def who(self) -> None:
        """Who holds what is to be forgotten, and who keeps something. Raises ConfigError where that is nobody or everybody."""
        pairs = self.federation.pairs
        self.holders = tuple(n for n, count in sorted(self.concerned.items()) if count)
        self.retained = tuple(n for n in sorted(pairs) if self.concerned.get(n, 0) < pairs[n])
        if self.forget and (not self.retained or not (self.holders or self.left())):
            what = "every pair" if self.holders else "no pair"
            raise config.ConfigError(f"forget: the request concerns {what} of the federation")

    def everyone(self) -> Setting:
        """All clients, training on all they have."""
        clients = tuple(sorted(self.federation.pairs))
        return Setting(self.experiment, self.federation, self.model.initial, self.model.blocks, clients)

    def without(self) -> Setting:
        """The clients that stay, training on what they keep."""
        clients = tuple(n for n in self.federation.clients if n in self.retained)
        holders = tuple(n for n in self.holders if n in clients)
        return replace(self.everyone(), clients=clients, holders=holders, forget=self.forget)

    def tell(self) -> None:
        """All steps, those too that are asked for in the meantime, then the reference, the judgement and the audit."""
        does = {"learn": self.do_learn, "forget": self.do_forget, "hold": self.do_hold}
        theta, position = self.model.initial, 0
        while position < len(self.steps):
            theta = does[self.steps[position].kind](self.steps[position], agenda.names(self.steps)[position], theta)
            position += 1
            if position == len(self.steps):
                self.ask_again()
        self.conclude()

    def ask_again(self) -> None:
        """Whether there are new requests."""
        self.steps = agenda.read(self.run.folder)
        if (forget := agenda.everything(self.steps)) != self.forget:
            self.forget = forget
            self.concerned = self.federation.concerned(forget)
            self.who()

    # ---- steps: (what, name of the phase, adapters before it) -> adapters after it -------------------------------------

    def do_learn(self, step: agenda.Step, name: str, theta: Vector) -> Vector:
        """Everybody learns everything."""
        found = self.learn(name, self.everyone(), "learn", theta, self.experiment.learn.rounds, record=True)
        self.costs["learn"], self.history = found.cost, found.history
        self.know("original", found.theta)
        return found.theta

    def know(self, model: str, theta: Vector) -> None:
        """A model to be judged at the end, unless it was purged."""
        if theta.size:
            self.thetas[model] = theta

    def do_forget(self, step: agenda.Step, name: str, theta: Vector) -> Vector:
        """One request, by the method it names."""
        asked, history, older = step.forget, self.history, self.lock
        assert asked is not None
        assert history is not None
        method = strategies.load(step.strategy)
        experiment = self.experiment.model_copy(update={"strategy": step.settings})
        params: Any = method.check(step.strategy, experiment)
        self.method, self.params, self.held = step.strategy, params, 0

        def compute(_: Path) -> PhaseResult:
            asking = tuple(n for n in self.holders if asked.scenario != "client" or n in asked.targets)
            helping = who_helps(self.run, self.federation, name, asking)
            if method.holders == "needed" and not helping:
                raise FederationError(f"strategy {step.strategy} needs {', '.join(asking)}, who does not answer: use another")
            gone = self.gone | (set(asking) - set(self.retained))
            clients = tuple(n for n in self.federation.clients if n not in gone)
            setting = replace(self.everyone(), clients=clients, holders=helping, forget=asked)
            strategy = method(setting, params, older)
            with strategy.cost.on_server():
                start = strategy.prepare(theta, history)
            after, cost = strategy.run(name, start, params.rounds, partial(tell, self, label=name), question=self.question)
            with cost.on_server():
                lock = strategy.lock_after(after)
            server_bytes = (history.nbytes if method.history else 0) + (lock.nbytes if lock else 0)
            request = {"targets": list(asked.targets), "server_bytes": server_bytes, **strategy.facts}
            absent = sorted(set(asking) - set(helping))
            return PhaseResult(after, cost, None, lock, {"gone": sorted(gone), "absent": absent, "request": request})

        found = self.run.phase(name, compute)
        self.gone, self.lock = set(found.facts["gone"]), found.lock
        for absent in found.facts["absent"]:
            self.federation.leave(absent)
        disclose(self.run, name, found.lock)
        if "unlearned" in self.thetas:
            self.thetas[f"unlearned_{len(self.requests)}"] = self.thetas.pop("unlearned")
        self.thetas.pop("held", None)
        self.know("unlearned", found.theta)
        self.costs.setdefault("unlearn", Cost()).add(found.cost)
        self.requests.append(found.facts["request"])
        return found.theta

    def do_hold(self, step: agenda.Step, name: str, theta: Vector) -> Vector:
        """The others go on learning, under the lock."""
        overlap = self.experiment.hold.overlap
        found = self.learn(name, self.without(), "hold", theta, step.rounds, self.held + 1, overlap, lock=self.lock)
        self.held += step.rounds
        self.thetas["held"] = found.theta
        self.costs.setdefault("hold", Cost()).add(found.cost)
        return found.theta

    def learn(
        self,
        name: str,
        who: Setting,
        phase: str,
        theta: Vector,
        rounds: int,
        first: int = 1,
        overlap: int = 0,
        record: bool = False,
        lock: ForgetLock | None = None,
    ) -> PhaseResult:
        """Ordinary federated learning. What the settings decide alone is taken from the cache if it is there."""
        from ease_flwr.core import adapters

        experiment = self.experiment

        def compute(folder: Path) -> PhaseResult:
            history = History(folder, experiment.history) if record else None
            strategy = Unlearning(who, Unlearning.Params(), lock=lock, overlap=overlap)
            if phase == "learn":
                strategy.learning()
            report = partial(tell, self, label=name)
            return PhaseResult(*strategy.run(phase, theta, rounds, report, first, history, self.question), history)

        half = experiment.federation.half
        settings = (experiment.seed, experiment.data, experiment.model, experiment.lora, experiment.learn, half)
        files = [config.file_sha256(f) for f in (experiment.data.labels, experiment.data.parts, experiment.model.weights)]
        kept = experiment.history if record else None
        order = (experiment.evaluation.order_seed, kept, phase, rounds, first, overlap, record, who.clients, who.forget)
        decided = lock is None and experiment.data.kind != "folder"  # hosts' own data are not among the settings
        return self.run.phase(name, compute, (*settings, *files, *order, adapters.sha256(theta)) if decided else ())

    def question(self, round: int) -> Instruction | None:
        """What is asked of those who train in a round about the adapters that it begins with."""
        every = self.experiment.evaluation.every
        due = every and round > 1 and (round - 1) % every == 0
        return retrieval.question(self.federation, self.forget, "validation") if due else None

    # ---- the end -----------------------------------------------------------------------------------------------------------

    def conclude(self) -> None:
        """The retrained reference, then everything about every model."""
        experiment, thetas = self.experiment, self.thetas
        if experiment.evaluation.reference == "retrain" and self.requests:
            self.references(len(self.requests))
        steps = [m for m in thetas if m.startswith("unlearned_")]
        order = ("original", "retrain", "retrain_equal", *steps, "unlearned", "held", "retrain_held")
        chosen = {m: thetas[m] for m in order if m in thetas}
        models = retrieval.judge(self.federation, chosen, self.forget, experiment.evaluation.split)
        self.finish(models)
        for name in models:
            self.model.save(thetas[name], self.run.folder / "adapters" / name)
        if experiment.audit.level != "none" and "retrain" in thetas and self.forget:
            audit(self.run, self.federation, experiment, chosen, self.forget, experiment.audit.level, self.lock)

    def references(self, requests: int) -> None:
        """Learning again without what is forgotten: as many rounds as learning had, as many as forgetting had too, and on."""
        rounds, thetas = self.experiment.learn.rounds, self.thetas
        number = "" if requests == 1 else f"-{requests}"
        without = self.without()
        retrain = self.learn(f"retrain{number}", without, "learn", self.model.initial, rounds)
        thetas["retrain"], self.costs["retrain"] = retrain.theta, retrain.cost
        if not self.experiment.evaluation.equal:
            return
        more = self.params.rounds * requests
        equal = self.learn(f"retrain_equal{number}", without, "learn", retrain.theta, more, first=rounds + 1)
        thetas["retrain_equal"] = equal.theta
        if "held" in thetas:
            overlap, name = self.experiment.hold.overlap, f"retrain_held{number}-{self.held}"
            thetas["retrain_held"] = self.learn(name, without, "hold", equal.theta, self.held, overlap=overlap).theta

    def finish(self, models: dict[str, Judgement]) -> None:
        """Write results.json and table.md."""
        from ease_flwr.core import adapters

        results: dict[str, Any] = {
            "schema": 1,
            "experiment": self.experiment.name,
            "strategy": self.method,
            "params": self.params.model_dump(mode="json"),
            "seed": self.experiment.seed,
            "forget": self.forget.described() if self.forget else {},
            "requests": self.requests,
            "models": {m: j.sets for m, j in models.items()},
            "clients": {m: j.clients for m, j in models.items()},
            "gaps": {},
            "cost": {phase: asdict(cost) for phase, cost in self.costs.items()},
            "failures": self.federation.failures,
            "adapters_sha256": {m: adapters.sha256(self.thetas[m]) for m in models},
        }
        text = retrieval.table(models)
        for unlearned, reference, key in PAIRS:
            if unlearned in models and reference in models:
                results[key] = gap = retrieval.gaps(models, unlearned, reference)
                shown = "  ".join(f"{k} {'-' if v is None else format(v, '.3g')}" for k, v in gap.items())
                text += f"\n{unlearned} against {reference}: {shown}\n"
        if "retrain" in self.costs:
            text += f"\n{cost_line(results)}\n"
        self.run.write("results.json", results)
        write_text(self.run.folder / "table.md", text)
        self.run.event(text)


def audit(
    run: Run,
    federation: Federation,
    experiment: config.Experiment,
    thetas: dict[str, Vector],
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
    from ease_flwr.core import adapters

    finished = run.folder.parent
    results = read_results(finished)
    steps = agenda.read(finished)
    forget = agenda.everything(steps)
    if forget is None:
        raise config.ConfigError(f"{finished}: nothing was forgotten there yet")
    clients = data.load(experiment.data, experiment.seed).clients
    federation = Federation(grid, experiment, clients, run.event)
    federation.roll_call(forget, forget.leaving())
    blocks = adapters.load(experiment.model, experiment.lora, experiment.seed).blocks
    thetas = {name: adapters.read(finished / "adapters" / name, blocks) for name in results["adapters_sha256"]}
    if changed := [name for name, theta in thetas.items() if adapters.sha256(theta) != results["adapters_sha256"][name]]:
        raise config.ConfigError(f"{finished}/adapters/{changed[0]} is not what results.json names: it was changed since")
    if "retrain" not in thetas:
        raise config.ConfigError(f"{finished}: an audit needs the retrained model, this run has none (evaluation.reference)")
    requests = sum(s.kind == "forget" for s in steps)
    lock = read_phase(finished / "phases" / ("forget" if requests == 1 else f"forget-{requests}")).lock
    audit(run, federation, experiment, thetas, forget, level, lock)


def tell(story: Story, p: Progress, label: str) -> None:
    """One line about a round, and one about recall on validation pairs where clients have counted it, or at the end."""
    federation, told = story.federation, {n: u.judged for n, u in p.updates.items() if u.judged}
    if question := story.question(p.round):
        if others := [n for n in federation.clients if n not in told]:
            told |= federation.evaluate({NOW: p.before}, question, others, Cost())
        tell_recall(story, p, label, p.round - 1, pool(told, NOW))
    losses = [u.metrics["loss"] for u in p.updates.values()]
    values: dict[str, Any] = {"model": label, "phase": p.phase, "round": p.round, "answered": len(p.updates), "loss": losses}
    values["timing"] = [[round(float(u.metrics.get(k, 0)), 3) for k in TIMES] for u in p.updates.values()]
    line = f"[{label} {p.round}/{p.last}] {len(p.updates)}/{p.asked} clients  loss {sum(losses) / len(losses):.3f}"
    eta = p.cost.seconds / p.cost.rounds * (p.last - p.round)
    story.run.event(f"{line}  {p.cost.seconds:.0f} s  ETA {eta:.0f} s", **values, **asdict(p.cost))
    if p.round == p.last:
        tell_recall(story, p, label, p.round, retrieval.judge(federation, {NOW: p.theta}, story.forget, "validation")[NOW])


def tell_recall(story: Story, p: Progress, label: str, round: int, found: Judgement) -> None:
    """One line about the adapters after a round."""
    line = f"[{label} {round}/{p.last}] R@1 " + " ".join(f"{s} {found.r1(s):.1f}" for s in found.sets)
    story.run.event(line, model=label, phase=p.phase, round=round, validation={s: found.r1(s) for s in found.sets})


TIMES = ("process_seconds", "load_seconds", "seconds")
"""Of each client's answer: the age of its process when it began, what loading took, and all of the work."""


def who_helps(run: Run, federation: Federation, phase: str, asking: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the clients concerned that still answer; the others leave the federation."""
    helping = federation.answering(asking)
    for name in sorted(set(asking) - helping):
        run.event(f"[{phase}] {name} does not answer: it is forgotten without its help, and nobody judges its pairs")
        federation.leave(name)
    return tuple(sorted(helping))


def disclose(run: Run, phase: str, lock: ForgetLock | None) -> None:
    """Say what the lock gives away, and to whom."""
    if lock:
        sent = f"{lock.nbytes} bytes to each client of the hold phase" if lock.strength else "they stay on the server"
        run.event(f"[{phase}] {lock.dimension} directions locked, derived from what was forgotten; {sent}")
