"""Runs in Python: `import ease_flwr as ease`. What the commands of `ease` do, and what they leave, as objects.

    run = ease.run("personas", overrides={"learn.rounds": 20})
    print(run.table())
    model = run.model("unlearned")

Nothing heavy is imported before a model is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ease_flwr import config, data, launcher
from ease_flwr.audit.summary import current_audit, read_results, read_run_config
from ease_flwr.config import ConfigError, Experiment, RunError
from ease_flwr.data.pairs import Pairs
from ease_flwr.exchange.judgement import SETS
from ease_flwr.hosts.link import read_state
from ease_flwr.hosts.simulation import Where
from ease_flwr.notebook import followed

if TYPE_CHECKING:
    from ease_flwr.audit.embedding import Model


def run(
    experiment: str | Path = "personas",
    *,
    seed: int | None = None,
    strategy: str = "ease",
    overrides: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    fresh: bool = False,
    until: str = "",
    where: Where | None = None,
) -> Run:
    """Learn, forget, continue and judge; returns when it is done.

    Args:
        experiment: a name in conf/experiment/, with +VARIANT, or a YAML file.
        seed: decides the world, the adapters at the start and all orders; None: the experiment's own, 0 where it says none.
        strategy: a name in strategies/.
        overrides: fields of the experiment by their dotted paths, {"learn.rounds": 20}.
        folder: a new folder for the run; None: one among the runs.
        fresh: compute learn phases again instead of taking them from the cache.
        until: "learn" ends it when it has learnt; `Run.forget` does the rest.
        where: a simulation with so many cores a client, or a deployed federation; None: a simulation.

    Raises:
        ConfigError: a setting is wrong. Nothing was started.
        RunError: the run has stopped before its end.
    """
    if until not in ("", "learn"):
        raise ConfigError(f"until={until!r}: expected learn")
    config.own.take_along()
    experiment = config.own.named(str(experiment))
    said = assignments(overrides or {})
    new = launcher.NewRun(experiment, strategy, seed, Path(folder) if folder is not None else None, fresh, said, until)
    ready = launcher.ready(new, where or Where())
    return _done(ready.folder, lambda: launcher.start(ready, where or Where()))


def open_run(folder: str | Path) -> Run:
    """A run that has finished, or has learnt. Raises ConfigError where there is none."""
    found = Run(Path(folder).absolute())
    read_results(found.folder)
    return found


class Run:
    """A run on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        """The table, in a notebook."""
        rows = self._rows()
        head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{_shown(v)}</td>" for v in row.values()) + "</tr>" for row in rows)
        return f"<table><caption>R@1 in percent</caption><tr>{head}</tr>{body}</table>"

    @property
    def results(self) -> dict[str, Any]:
        """results.json, see docs/architecture.md. Raises ConfigError where the run has not finished."""
        return read_results(self.folder)

    @property
    def experiment(self) -> Experiment:
        """Its settings."""
        return config.from_run_config(read_run_config(self.folder))[0]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models that it has: original, retrain, unlearned, ..."""
        return tuple(self.results["models"])

    def table(self) -> Any:
        """R@1 in percent, mean of both directions: a row a model, a column a set of pairs.

        A pandas DataFrame where pandas is installed, else a list of dictionaries with the model's name under "model", which
        prints as a table.
        """
        rows = self._rows()
        try:
            import pandas
        except ImportError:
            return Rows(rows)
        return pandas.DataFrame(rows).set_index("model")

    def _rows(self) -> list[dict[str, Any]]:
        models = self.results["models"]
        names = [s for s in SETS if s in next(iter(models.values()))]
        return [{"model": m, **{s: sets[s]["r1"] for s in names}} for m, sets in models.items()]

    def verdict(self) -> str:
        """Its last audit in one sentence: is it forgotten, is the rest kept, how sure is that? "" without an audit."""
        from ease_flwr.audit import opening, verdict

        _, found = current_audit(self.folder, self.results)
        return opening.text(opening.sentence(verdict.read_rows(found["verdict"]), found["level"])) if found else ""

    def audit(self, level: str = "full", references: int = 0, where: Where | None = None) -> dict[str, Any]:
        """Ask every client about every model; returns audit.json.

        Args:
            level: "quick" is recall, similarity and membership; "full" adds relearning and probes.
            references: retrainings, trained now where a run with one has fewer; 0: 2 for full, 1 for quick.

        A run without a reference is set beside pairs that nobody trained on, see docs/audit.md; `reference` trains one.
        """
        if level not in ("quick", "full"):
            raise ConfigError(f"level={level!r}: expected quick or full")
        to = self.folder / f"audit-{level}"
        _done(to, lambda: launcher.audit(self.folder, level, where or Where(), references))
        found: dict[str, Any] = json.loads((to / "audit.json").read_text(encoding="utf-8"))
        return found

    def reference(self, count: int = 0, where: Where | None = None) -> Run:
        """Train what a run without a reference is set beside: *retrain*, and what its experiment wants with it.

        Args:
            count: retrainings in all; 0: as many as the experiment says.

        It prints what that costs, and does nothing where it is there. Raises ConfigError where nothing was forgotten yet.
        """
        if count < 0:
            raise ConfigError(f"count={count}: give the number of retrainings, 1 or more")
        return _done(self.folder, lambda: launcher.reference(self.folder, count, where or Where()))

    def forget(
        self,
        *,
        client: str | Sequence[str] = (),
        label: str | Sequence[str] = (),
        pairs: str | Sequence[str] = (),
        request: Request | None = None,
        where: Where | None = None,
    ) -> Run:
        """A request to forget, done now: clients that leave, labels that are withdrawn, or single pairs as CLIENT/PAIR.

        Asked twice it is done once. Raises ConfigError for a request that cannot be served, RunError where it stops.
        """
        asked = {"client": _several(client), "class": _several(label), "sample": _several(pairs)}
        given = [(scenario, targets) for scenario, targets in asked.items() if targets]
        if len(given) != 1:
            raise ConfigError("name one of client, label and pairs: what is to be forgotten")
        scenario, targets = given[0]
        wanted = config.validate(config.ForgetConfig, {"scenario": scenario, "targets": targets}, "request")
        how = request or Request()
        put = launcher.Asked(wanted, how.strategy, assignments(how.settings), how.id)
        return _done(self.folder, lambda: launcher.forget(self.folder, put, where or Where()))

    def continue_training(self, rounds: int = 5, where: Where | None = None) -> Run:
        """Those who stay go on learning for so many rounds, under the forget lock."""
        if rounds < 1:
            raise ConfigError(f"rounds={rounds}: give the number of rounds, 1 or more")
        return _done(self.folder, lambda: launcher.continue_training(self.folder, rounds, where or Where()))

    def resume(self, where: Where | None = None) -> Run:
        """Go on with a run that was killed, or whose request queue has something left."""
        return _done(self.folder, lambda: launcher.resume(self.folder, where or Where()))

    def report(self, pictures: bool = True) -> Path:
        """Write report.html; returns its path. Raises ConfigError where the run has no audit."""
        from ease_flwr.audit import report

        return report.of_run(self.folder, pictures)

    def model(self, name: str = "unlearned") -> Model:
        """A model of the run, ready to embed pictures and captions. Raises ConfigError for an unknown name."""
        from ease_flwr.audit.embedding import Model

        return Model.of_run(self.folder, name)

    def export(self, name: str, to: str | Path, form: str = "open_clip") -> Path:
        """Write a model as one open_clip checkpoint (a new file, .safetensors), or (form peft) as a folder of adapters."""
        from ease_flwr.audit.export import export_run

        export_run(self.folder, name, Path(to), form)
        return Path(to)

    def pairs(self, client: str) -> Pairs:
        """The training pairs of a simulated client. Raises ConfigError for pairs that are on hosts."""
        experiment = self.experiment
        world = data.load(config.pictures(experiment), experiment.seed)
        if client not in world.clients:
            raise ConfigError(f"no client {client}: {config.among(client, world.clients)}")
        try:
            return world.client(client).train
        except KeyError:
            raise ConfigError(f"the pairs of {client} are on its host, not here") from None


class Rows(list[dict[str, Any]]):
    """Rows that print as a table."""

    def __str__(self) -> str:
        lines = [list(self[0]), *([_shown(v) for v in row.values()] for row in self)]
        wide = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        return "\n".join(
            "  ".join(v.rjust(w) if i else v.ljust(w) for i, (v, w) in enumerate(zip(line, wide, strict=True)))
            for line in lines
        )


class Request:
    """How something is to be forgotten: by which strategy, with which of its settings, under which name."""

    def __init__(self, strategy: str = "ease", settings: Mapping[str, Any] | None = None, id: str = "") -> None:
        self.strategy, self.settings, self.id = strategy, settings or {}, id


def assignments(overrides: Mapping[str, Any]) -> list[str]:
    """{"forget.targets": ["client-0"], "learn.rounds": 3} as ["forget.targets=client-0", "learn.rounds=3"]."""
    for value in overrides.values():
        if isinstance(value, Mapping):
            raise ConfigError(f'{dict(value)!r}: give fields by their dotted paths, {{"learn.rounds": 3}}')
    return [f"{key}={config.spelled(value)}" for key, value in overrides.items()]


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    every = [names] if isinstance(names, str) or not isinstance(names, Iterable) else names
    return tuple(map(config.spelled, every))


def _shown(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else escape(str(value))


def _done(folder: Path, work: Callable[[], int]) -> Run:
    """The run in `folder`, once its work is done. Raises RunError where that has failed."""
    with followed(folder):
        status = work()
    if status:
        raise RunError(read_state(folder)["error"] or f"{folder}: the run ended with status {status}")
    return Run(folder)
