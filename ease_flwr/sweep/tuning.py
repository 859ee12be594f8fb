"""`ease tune`: the same small search for every method, on validation pairs of seeds that no result is reported for.

A field declares what may be tried (config/section.py: searched), in nested sections too. The first trial is the
defaults, the others are drawn from all combinations, by the method's name.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from operator import attrgetter
from statistics import mean
from typing import Any

import numpy as np

from ease_flwr import config, strategies
from ease_flwr.config.section import leaves
from ease_flwr.sweep import cells
from ease_flwr.sweep.cells import Found, Sweep, Variant
from ease_flwr.sweep.comparison import QUICK, differences, measured

VALIDATION = [*QUICK, "evaluation.split=validation"]


def trials(name: str, experiment: config.Experiment, budget: int) -> list[Variant]:
    """At most `budget` settings of a strategy, the defaults first."""
    kind = strategies.load(name)
    params: Any = kind.check(name, experiment, experiment.forget.scenario)
    extra = {f: field.json_schema_extra for f, field, _ in leaves(kind.Params)}
    searched: dict[str, Any] = {f: e["search"] for f, e in extra.items() if isinstance(e, dict) and "search" in e}
    defaults = tuple(attrgetter(f)(params) for f in searched)
    others = [c for c in itertools.product(*searched.values()) if c != defaults]
    draw = np.random.default_rng(int(config.digest(name)[:16], 16)).permutation(len(others))
    chosen = [defaults, *(others[i] for i in draw[: budget - 1])]
    return [Variant(_label(name, dict(zip(searched, c, strict=True))), name, _settings(searched, c)) for c in chosen]


def _settings(searched: dict[str, Any], values: tuple[Any, ...]) -> dict[str, Any]:
    return {f"strategy.{f}": v for f, v in zip(searched, values, strict=True)}


def _label(name: str, values: dict[str, Any]) -> str:
    return " ".join([name, *(f"{k}={v}" for k, v in values.items())])


def score(results: dict[str, Any]) -> float:
    """Mean distance to retraining in points of R@1, lower is better: both ways on what is to be forgotten or shared, and
    what is missing on what is kept."""
    above = differences(results, cells.shown_sets([results]))
    return mean(abs(d) if s.startswith("forget") else max(0.0, -d) for s, d in above.items())


def tune(sweep: Sweep, names: Sequence[str], budget: int) -> Found:
    """All trials of all methods: label -> seed -> results on validation pairs."""
    sweep = sweep.under(VALIDATION)
    loaded = measured(sweep.loaded)
    variants = [v for name in names for v in trials(name, loaded, budget)]
    return cells.run(sweep, variants)


def table(found: Found, budget: int) -> str:
    """Markdown: the trials of every method, the best of each in bold."""
    scores = {label: _mean_score(by_seed) for label, by_seed in found.items()}
    known = [(s, label) for label, s in scores.items() if s < float("inf")]
    best = {min(k for k in known if k[1].split()[0] == n)[1] for n in {label.split()[0] for _, label in known}}
    lines = [f"At most {budget} trials a method, mean distance to retraining on validation pairs.", ""]
    lines += ["| method | settings | distance |", "|---|---|---:|"]
    for label, value in scores.items():
        name, _, settings = label.partition(" ")
        bold = "**" if label in best else ""
        shown = f"{value:.1f}" if value < float("inf") else "failed"
        lines.append(f"| {name} | {bold}{settings or 'nothing to set'}{bold} | {bold}{shown}{bold} |")
    return "\n".join(lines) + "\n"


def _mean_score(by_seed: dict[int, dict[str, Any]]) -> float:
    runs = [r for r in by_seed.values() if "failed" not in r]
    return mean(score(r) for r in runs) if len(runs) == len(by_seed) else float("inf")
