"""`ease compare`: methods side by side, at the same number of exchanges (or bytes) and with the budget each wants.

Every method starts from the same learnt federation of a seed and is measured against the same retraining. `retrain` as a method
is a second retraining with another order of data, so its row is the noise floor of all others. Fine-tuning is the ceiling of
what is kept; with photographs it is always there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from ease_flwr import config, strategies
from ease_flwr.audit import noise, retrieval
from ease_flwr.audit.retrieval import SIGN, references_of, signed
from ease_flwr.audit.summary import AGAIN, cost_shares, limits_of, spread
from ease_flwr.sweep import cells
from ease_flwr.sweep.cells import Found, Sweep, Variant, finished, gaps, left_out, shown_sets

Budget = Literal["rounds", "bytes"]
HEADS = {"equal": "Equal traffic", "own": "Own budget"}
QUICK = ["continuation.rounds=0", "evaluation.every=0", "evaluation.equal=false"]
"""A comparison is about the forget phase; `--set continuation.rounds=5` brings the continuation back."""

CEILING = "finetune"
"""Plain fine-tuning of those who stay, which forgets nothing on purpose: it keeps what rounds of repair keep at best."""
TWICE = "evaluation.references=2"
"""Two retrainings a seed show what of a difference is noise."""

REMARKS = {"retrain": " (again: noise floor)", CEILING: " (ceiling of what is kept)"}
KEPT = ("retain", "test")


def compare(sweep: Sweep, names: Sequence[str], budget: Budget = "rounds", exchanges: int = 0) -> dict[str, Found]:
    """All cells: {"own": ..., "equal": ...}, strategy -> seed -> results.

    exchanges: of the equal budget; 0 is as many as EASE has by itself after the rounds that a seed has learnt, which may be
    fewer than `learn.rounds` where learning has stopped by itself. With budget "bytes" every method gets as many exchanges as
    fit into the bytes of that, by what an exchange cost it with its own budget.
    """
    sweep = sweep.under([*QUICK, TWICE])
    loaded = measured(sweep.loaded)
    if loaded.data.kind == "photographs" and CEILING not in names:
        names = [*names, CEILING]
    everybody = shorter(names, loaded, loaded.learn.rounds, dict.fromkeys(names, exchanges))
    known = budget == "rounds" and not loaded.learn.patience
    own = cells.run(replace(sweep, after=known * len(everybody) * len(sweep.seeds)), [Variant(n, n) for n in names])
    groups = []
    for learnt, seeds in by_learning(own, sweep.seeds, loaded).items():
        equal = exchanges or own_rounds("ease", loaded, learnt)
        rounds = dict.fromkeys(names, equal)
        if budget == "bytes":
            each = {n: bytes_of_exchange(own[n]) for n in names}
            limit = equal * (each["ease"] if "ease" in each else max(each.values()))
            rounds |= {n: max(1, int(limit / one)) for n, one in each.items() if one}
        groups.append((seeds, shorter(names, loaded, learnt, rounds)))
    found, counts = {n: own[n] for n in names}, [len(seeds) * len(variants) for seeds, variants in groups]
    for i, (seeds, variants) in enumerate(groups):
        before, after = len(names) * len(sweep.seeds) + sum(counts[:i]), sum(counts[i + 1 :])
        cut = cells.run(replace(sweep, seeds=seeds, before=before, after=after), variants) if variants else {}
        found |= {v.strategy: found[v.strategy] | cut[v.label] for v in variants}
    return {"equal": found, "own": own}


def shorter(names: Sequence[str], experiment: config.Experiment, learnt: int, rounds: dict[str, int]) -> list[Variant]:
    """The methods that have another number of exchanges by themselves, with these; 0 is as many as EASE has by itself."""
    wanted = {n: rounds[n] or own_rounds("ease", experiment, learnt) for n in names}
    return [
        Variant(f"{n}, {wanted[n]} exchanges", n, {"strategy.rounds": wanted[n]})
        for n in names
        if own_rounds(n, experiment, learnt) != wanted[n]
    ]


def by_learning(own: Found, seeds: Sequence[int], experiment: config.Experiment) -> dict[int, list[int]]:
    """Seeds by the rounds that they have learnt, which all methods of a seed share; of a seed that failed, by the most."""
    found: dict[int, list[int]] = {}
    for seed in seeds:
        done = [r[seed] for r in own.values() if "failed" not in r[seed]]
        learnt = done[0]["learning"]["rounds"] if done else experiment.learn.rounds
        found.setdefault(learnt, []).append(seed)
    return found


def measured(experiment: config.Experiment) -> config.Experiment:
    """The same. Raises ConfigError where nothing would be retrained to measure by."""
    if experiment.evaluation.reference == "none":
        raise config.ConfigError("evaluation.reference=none: methods are measured against the retrained model, leave it on")
    return experiment


def own_rounds(name: str, experiment: config.Experiment, learnt: int) -> int:
    """Exchanges of a strategy's own budget in this experiment, after so many rounds of learning."""
    kind = strategies.load(name)
    return kind.rounds_of(kind.check(name, experiment, experiment.forget.scenario), learnt)


def bytes_of_exchange(by_seed: dict[int, dict[str, Any]]) -> float:
    """Mean bytes both ways in one exchange of the forget phase; 0 where there was none."""
    costs = [r["cost"]["unlearn"] for r in by_seed.values() if "failed" not in r and r["cost"]["unlearn"]["rounds"]]
    return mean((c["uplink_bytes"] + c["downlink_bytes"]) / c["rounds"] for c in costs) if costs else 0.0


def differences(results: dict[str, Any], sets: Sequence[str]) -> dict[str, float]:
    """*unlearned* minus *retrain* (the mean of all retrainings) in points of R@1, of these sets."""
    found = retrieval.differences(results["models"], "unlearned", references_of("unlearned", list(results["models"])))
    return {s: found[s] for s in sets}


def noise_line(done: Sequence[dict[str, Any]], sets: Sequence[str]) -> str:
    """s of every column: the noise of one training, from the two retrainings of each seed."""
    again = [r[AGAIN] for r in {r["seed"]: r for r in done}.values() if r.get(AGAIN)]
    if not again:
        return "- s, the noise of one training: unknown, there is one retraining a seed (evaluation.references=2)"
    columns = {**dict.fromkeys(sets, 1), "forget_normalised": 2, "pair_similarity": 3}
    known = {k: [r[k] for r in again if r.get(k) is not None] for k in columns}
    found = ", ".join(f"{k} {noise.spread(known[k]):.{digits}f}" for k, digits in columns.items() if known[k])
    return f"- s, the noise of one training, from {len(again)} cells with two retrainings: {found}"


def table(found: Found) -> str:
    """Markdown, a row a method, mean ± spread over seeds: model minus reference in points of R@1, and the noise below."""
    done = finished(found)
    if not done:
        return "no cell finished\n"
    sets, limits = shown_sets(done), limits_of(done)
    head = [*sets, "normalised forget gap", "distance of similarities", "exchanges", "client steps %", "bytes %", "server MB"]
    lines = [f"{SIGN}.", ""]
    lines += ["| unlearned minus retrain | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    for name, by_seed in found.items():
        runs = [r for r in by_seed.values() if "failed" not in r]
        row = f"| {name}{REMARKS.get(name, '')} | "
        if not runs:
            lines.append(row + next(iter(by_seed.values()))["failed"] + " |" + " |" * (len(head) - 1))
            continue
        row += " | ".join(_cell(s, [differences(r, sets)[s] for r in runs], limits) for s in sets)
        normalised, similarity = gaps(runs, "forget_normalised"), gaps(runs, "pair_similarity")
        rounds = mean(r["cost"]["unlearn"]["rounds"] for r in runs)
        steps, traffic = cost_shares(runs)
        state = mean(sum(q.get("server_bytes", 0) for q in r["requests"]) for r in runs) / 1e6
        figures = [spread(v, d, s) if v else "-" for v, d, s in ((normalised, 2, "+"), (similarity, 3, ""))]
        figures += [f"{rounds:.0f}", f"{100 * steps:.1f}", f"{100 * traffic:.1f}", f"{state:.1f}"]
        lines.append(f"{row} | " + " | ".join(figures) + (" |" if len(runs) == len(by_seed) else f" ({len(runs)} seeds) |"))
    original = [r["models"]["original"] for r in {r["seed"]: r for r in done}.values()]
    retrain = [r["models"]["retrain"] for r in {r["seed"]: r for r in done}.values()]
    lines.append("")
    for label, models in (("original", original), ("retrain", retrain)):
        lines.append(f"- {label}: " + ", ".join(f"{s} {spread([m[s]['r1'] for m in models])}" for s in sets))
    if ceiling := [r for r in found.get(CEILING, {}).values() if "failed" not in r]:
        kept = ", ".join(f"{s} {spread([r['models']['unlearned'][s]['r1'] for r in ceiling])}" for s in sets if s in KEPT)
        lines.append(
            f"- ceiling, {CEILING} after {mean(r['cost']['unlearn']['rounds'] for r in ceiling):.0f} exchanges: {kept}"
        )
    return "\n".join([*lines, noise_line(done, sets), *left_out(done)]) + "\n"


def _cell(name: str, values: list[float], limits: config.AuditConfig) -> str:
    """Mean ± spread over seeds, marked by the mean."""
    more = spread(values).partition(" ")[2]
    return signed(name, mean(values), limits, f" {more}" if more else "")


def rows(tables: dict[str, Found]) -> str:
    """CSV, a line a cell."""
    out = io.StringIO()
    writer = csv.writer(out)
    done = [r for found in tables.values() for r in finished(found)]
    sets = shown_sets(done) if done else []
    figures = ("rounds", "client_steps", "uplink_bytes", "downlink_bytes")
    writer.writerow(
        ["budget", "strategy", "seed", *(f"{s} minus retrain" for s in sets), "pair_similarity", *figures, "failed"]
    )
    for budget, found in tables.items():
        for name, by_seed in found.items():
            for seed, r in by_seed.items():
                if "failed" in r:
                    writer.writerow([budget, name, seed, *[""] * (len(sets) + 1 + len(figures)), r["failed"]])
                else:
                    above, cost = differences(r, sets), r["cost"]["unlearn"]
                    numbers = [above[s] for s in sets] + [r["gaps"].get("pair_similarity")] + [cost[f] for f in figures]
                    writer.writerow([budget, name, seed, *numbers, ""])
    return out.getvalue()


def report(folder: Path) -> Path:
    """report.html of the folder of a comparison; returns its path."""
    from ease_flwr.audit import report as pages
    from ease_flwr.audit.frontier import frontier

    tables: dict[str, Found] = pages.read(folder, "comparison.json")
    done = {budget: {n: finished({n: by_seed}) for n, by_seed in found.items()} for budget, found in tables.items()}
    every = [r for found in done.values() for runs in found.values() for r in runs]
    if not every:
        raise config.ConfigError(f"{folder}/comparison.json: no cell finished")
    sets, limits, rows = shown_sets(every), limits_of(every), []
    for budget, found in done.items():
        for name, runs in found.items():
            if runs:
                cells = [signed(s, mean(differences(r, sets)[s] for r in runs), limits) for s in sets]
                similarity = gaps(runs, "pair_similarity")
                rows.append([budget, name, *cells, f"{mean(similarity):.3f}" if similarity else "-"])
            else:
                rows.append([budget, name, next(iter(tables[budget][name].values()))["failed"]])
    page = {
        "title": f"Methods in {folder.name}",
        "sortable": {"head": ["budget", "method", *sets, "distance of similarities"], "rows": rows},
    }
    return pages.write(folder, page, [frontier(tables, partial(differences, sets=sets), limits)])
