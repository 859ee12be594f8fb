"""The figures of a report, drawn by matplotlib: from the files of a run to a figure and the data beside it (drawing.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ease_flwr.audit.drawing import BLUE, INK, MODELS, VERMILION, Drawing, bars, draw, legend
from ease_flwr.audit.retrieval import numbered

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Plain = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Model -> number -> {"value", "low", ...}, as audit.json has them."""
Scores = Mapping[str, Mapping[str, list[float]]]
"""Model -> kind -> a score a pair, as audit.json has them."""
THREE = ("original", "unlearned", "retrain")
"""Models that most figures show; the first may have been purged."""
RELEARNT, ALIKE = ["model", "steps", "r1", "low", "high"], ["set", "model", "cosine"]
"""Heads of the data of two figures that a report has in two sizes."""
TOWERS = {"visual": "image tower", "text": "text tower"}


def curves(events: list[dict[str, Any]], limits: Mapping[str, float]) -> Drawing | None:
    """Validation recall over all rounds of learning, forgetting and continuing, beside the retrained reference.

    limits: the `audit` section of the experiment.
    """
    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    forgetting: dict[str, list[int]] = {}
    for e in events:
        label = str(e.get("model", ""))
        model = label.partition("-")[0]  # further requests have their number behind a dash
        if numbered("retrain", [model]):
            continue  # a second curve beside the first would show the noise, not the run
        if model == "forget":
            forgetting.setdefault(label, []).append(e["rounds_in_all"])
        who = "retrained" if model.startswith("retrain") else "this run"
        for name, value in e.get("validation", {}).items():
            points.setdefault(name, {}).setdefault(who, []).append((e["rounds_in_all"], value))
    shown = [n for n in (forgotten(points), "retain") if n in points]
    if not shown:
        return None
    figure, axes = draw(7, 2.9, 1, len(shown), squeeze=False)
    rows = []
    for ax, name in zip(axes[0], shown, strict=True):
        for i, rounds in enumerate(forgetting.values()):
            ax.axvspan(min(rounds) - 1, max(rounds), color=INK, alpha=0.12, lw=0, label=None if i else "forgetting")
        if reference := points[name].get("retrained"):
            limit, (_, end) = limits["retained" if name == "retain" else "recall"], reference[-1]
            band = f"retrained at its end ± {limit:g}"
            ax.axhspan(end - limit, end + limit, color=BLUE, alpha=0.25, lw=0, label=band)
        for who, model in (("retrained", "retrain"), ("this run", "unlearned")):
            style, xy = MODELS[model], points[name].get(who, [])
            ax.plot(*_risen(xy), style.line, marker=style.marker, color=style.color, label=who)
            rows += [[name, who, x, y] for x, y in xy]
        target = " (target: retrained)" if reference else ""
        title, better = ("to be kept", " (higher is better)") if name == "retain" else ("to be forgotten", target)
        ax.set(title=f"{name}, {title}", xlabel="rounds", ylabel=f"R@1 %{better}", ylim=(0, 102))
    legend(figure, *axes[0])
    reading = "recall on validation pairs, round by round"
    if any("retrained" in points[name] for name in shown):
        reading += ": after forgetting, what was forgotten should be where retraining ends, in the band, and what is kept not "
        reading += "below it"
    rows.sort(key=lambda row: row[1] == "retrained")
    return Drawing("recall", "Recall over the rounds", reading, figure, (["set", "model", "round", "r1"], rows))


def aim(there: Any) -> str:
    """What an axis says of the target, where a retrained model is among these models."""
    return " (target: retrained)" if "retrain" in there else ""


def _risen(xy: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Both coordinates of a line that is broken where training began anew."""
    out: list[tuple[float, float]] = []
    for x, y in xy:
        out += [(np.nan, np.nan)] if out and x < out[-1][0] else []
        out.append((x, y))
    return [x for x, _ in out], [y for _, y in out]


def forgotten(names: Any, before: str = "") -> str:
    """The set that shows what was forgotten: what nobody else knows, where that is split off. before: its name in `names`."""
    return next((s for s in ("forget_exclusive", "forget") if before + s in names), "")


def similarities(scores: Scores) -> Drawing | None:
    """Histograms of the cosines of forgotten and kept pairs."""
    own = scores.get("unlearned", {})  # purged scores are none
    kinds = [s for s in (forgotten(own, "similarity."), "retain") if f"similarity.{s}" in own]
    if not kinds:
        return None
    figure, axes = draw(7, 2.6, 1, len(kinds), squeeze=False)
    rows = [row for ax, kind in zip(axes[0], kinds, strict=True) for row in ridge(ax, scores, kind)]
    legend(figure, axes[0][0])
    reading = "how alike image and caption of each pair are to each model"
    reading += "; the pairs should lie where the retrained model has them, not lower and not higher" if aim(scores) else ""
    return Drawing("similarity", "Similarity of pairs", reading, figure, (ALIKE, rows))


def ridge(ax: Axes, scores: Scores, kind: str) -> list[list[Any]]:
    """Histograms of the similarities of a set, a row a model, with the mean of the retrained one through all; returns them."""
    found = {m: scores[m][f"similarity.{kind}"] for m in THREE if m in scores}
    every = np.concatenate(list(found.values()))
    cuts = np.linspace(every.min(), every.max(), 31)
    counts = {m: np.histogram(v, cuts)[0] for m, v in found.items()}
    levels = range(len(found) - 1, -1, -1)
    for y, (model, count) in zip(levels, counts.items(), strict=True):
        top = y + 0.85 * count / max(c.max() / c.sum() for c in counts.values()) / count.sum()
        ax.stairs(top, cuts, baseline=y, fill=True, color=MODELS[model].color, alpha=0.35)
        ax.stairs(top, cuts, baseline=y, color=MODELS[model].color, lw=1.2)
    if "retrain" in found:
        ax.axvline(float(np.mean(found["retrain"])), color=BLUE, ls="--", lw=1.2, label="mean of retrained")
    ax.set(yticks=levels, yticklabels=[MODELS[m].label for m in found], ylim=(0, len(found)))
    ax.set(title=kind, xlabel=f"cosine{aim(found)}")
    ax.tick_params(axis="y", length=0)
    return [[kind, model, v] for model, values in found.items() for v in values]


def relearning(numbers: Plain) -> Drawing | None:
    """Recall after some steps of learning the forgotten pairs again."""
    panels = (
        ("after forgetting", (*THREE, "retrain_2")),
        ("after going on", ("continued", "retrain_continued")),
    )
    there = [(title, [m for m in models if "relearn.0" in numbers.get(m, {})]) for title, models in panels]
    there = [(title, models) for title, models in there if models]
    if not there:
        return None
    figure, axes = draw(max(5, 3.6 * len(there)), 3, 1, len(there), squeeze=False, sharey=True)
    rows = []
    for ax, (title, models) in zip(axes[0], there, strict=True):
        rows += relearnt(ax, numbers, models)
        ax.set(title=title)
    axes[0][0].set(ylabel=f"R@1 %{aim(numbers)}")
    legend(figure, *axes[0])
    reading = "how fast each model learns the forgotten pairs again"
    reading += ": above retraining something is left, below it too much is gone" if aim(numbers) else ""
    reading += "; whiskers are intervals over members and orders of batches"
    return Drawing("relearning", "Learning it again", reading, figure, (RELEARNT, rows))


def relearnt(ax: Axes, numbers: Plain, models: Sequence[str]) -> list[list[Any]]:
    """The curves of these models, side by side at each number of steps; returns their data."""
    steps = sorted(int(k.partition(".")[2]) for k in numbers[models[0]] if k.startswith("relearn.") and k[8:].isdigit())
    rows = []
    for i, model in enumerate(models):
        style, found = MODELS[model], [numbers[model][f"relearn.{s}"] for s in steps]
        values = np.array([f["value"] for f in found])
        ends = np.array([[f.get(end, np.nan) for f in found] for end in ("low", "high")])
        x = np.arange(len(steps)) + 0.08 * (i - (len(models) - 1) / 2)
        ax.errorbar(
            x,
            values,
            np.abs(ends - values),
            fmt=style.marker,
            ls=style.line,
            color=style.color,
            label=style.label,
            elinewidth=1,
        )
        rows += [[model, s, f["value"], f.get("low"), f.get("high")] for s, f in zip(steps, found, strict=True)]
    ax.set(xticks=range(len(steps)), xticklabels=steps, xlabel="steps on the forgotten pairs", ylim=(0, 102))
    return rows


def membership(scores: Scores) -> Drawing | None:
    """ROC of the cosine attack."""
    if not scores.get("unlearned", {}).get("member"):
        return None
    figure, ax = draw(4.6, 3.9)
    rows = []
    for model in (m for m in THREE if m in scores):
        style, (member, stranger) = MODELS[model], (np.array(scores[model][side]) for side in ("member", "stranger"))
        cuts = np.quantile(np.concatenate([member, stranger]), np.linspace(1, 0, 60))
        false, true = ([100 * float((x >= c).mean()) for c in cuts] for x in (stranger, member))
        ax.plot(false, true, style.line, marker=style.marker, markevery=(4, 12), color=style.color, label=style.label)
        rows += [[model, f, t] for f, t in zip(false, true, strict=True)]
    ax.plot([0, 100], [0, 100], color=INK, lw=0.6, label="guessing")
    ax.set(xlabel="% of unseen pairs taken for trained ones", aspect="equal")
    ax.set(ylabel=f"% of trained pairs found{aim(scores) or ' (target: guessing)'}")
    legend(figure, ax)
    reading = "who was trained on, told by the cosine of image and caption; nearer to the diagonal is harder to tell"
    reading += ", and the target is the retrained model" if aim(scores) else ""
    return Drawing("membership", "Membership attack", reading, figure, (["model", "false", "true"], rows))


def excised(facts: Mapping[str, Any]) -> Drawing | None:
    """Block by block: which part of the directions of who leaves is theirs alone, how much of what was learnt was cut out."""
    if "blocks" not in facts:
        return None
    figure, axes = draw(7, 3.6, 2, 2, sharex="col", sharey="row")
    rows, who = [], facts["targets"][0] if len(facts.get("targets", ())) == 1 else "those who leave"
    edge = {"width": 0.9, "edgecolor": INK, "lw": 0.4}
    for (above, below), (tower, title) in zip(axes.T, TOWERS.items(), strict=True):
        found = [b for b in facts["blocks"] if b["tower"] == tower]
        own = np.array([100 - 100 * float(np.mean(np.square(b["cosines"] or [1.0]))) for b in found])
        cut = [100 * (b["excised"] / b["moved"]) ** 2 if b["moved"] else 0.0 for b in found]
        rows += [[tower, i, *both] for i, both in enumerate(zip(own.tolist(), cut, strict=True))]
        above.bar(range(len(own)), own, color=VERMILION, label=f"of {who} alone", **edge)
        above.bar(range(len(own)), 100 - own, bottom=own, color=BLUE, hatch="///", label="shared with others: stays", **edge)
        below.bar(range(len(own)), cut, color=VERMILION, **edge)
        above.set(title=title, ylim=(0, 100))
        below.set(xlabel="block of the adapters, from input to output", ylim=(0, 100))
        below.xaxis.get_major_locator().set_params(integer=True)
    axes[0][0].set(ylabel="% of directions")
    axes[1][0].set(ylabel="% of all learnt,\ncut out")
    legend(figure, axes[0][0])
    reading = f"above, how much of the directions in which {who} moved the adapters nobody else did: this is cut out; below, "
    reading += "how much of all that was learnt went with it, and rounds of repair bring back what others need"
    if foil := FOILS.get(facts.get("params", {}).get("gsd", {}).get("subspace", "")):
        reading += f"; this method is a foil, which cut out {foil} instead"
    elif facts["tau"] < 1:
        reading += f"; directions with a cosine above tau {facts['tau']:g} stay whole"
    head = ["tower", "block", "own_percent", "cut_percent"]
    return Drawing("excised", "What was cut out", reading, figure, (head, rows))


FOILS = {"whole": "all of these directions, shared or not", "random": "as many random directions"}


def overlap(facts: Mapping[str, Any]) -> Drawing | None:
    """How much every two clients' subspaces share."""
    if "overlap" not in facts or len(facts["overlap"]["clients"]) < 2:
        return None
    names, matrix = facts["overlap"]["clients"], 100 * np.array(facts["overlap"]["matrix"])
    shown, side = np.ma.masked_array(matrix, np.eye(len(names), dtype=bool)), min(7.0, 2 + 0.33 * len(names))
    figure, ax = draw(side + 0.8, side)
    image = ax.imshow(shown, cmap="cividis")
    leave = facts.get("targets", ())
    labels = [f"{n} (leaves)" if n in leave else n for n in names]
    every = range(0, len(names), 1 + len(names) // 25)
    ax.set_xticks(every, [labels[i] for i in every], rotation=60, ha="right", rotation_mode="anchor")
    ax.set_yticks(every, [labels[i] for i in every])
    ax.spines[:].set_visible(False)
    if len(names) <= 12:
        for i, j in zip(*np.nonzero(~shown.mask), strict=True):
            dark = image.norm(matrix[i, j]) < 0.5
            ax.text(j, i, f"{matrix[i, j]:.1f}", ha="center", va="center", size=8, color="#ffffff" if dark else "#000000")
    figure.colorbar(image, ax=ax, shrink=0.8, label="% in common")
    rows = [[a, b, float(matrix[i, j])] for i, a in enumerate(names) for j, b in enumerate(names) if i != j]
    reading = "how much of the directions in which they moved the adapters every two clients have in common, mean over blocks; "
    reading += "mind the scale: 100 would be the same subspace, 0 nothing in common"
    return Drawing("overlap", "What clients' updates share", reading, figure, (["client", "other", "percent"], rows))


def samples(found: Mapping[str, Any]) -> Drawing | None:
    """Where each model has forgotten pairs, kept ones and strangers. found: the three-sample view, see strangers.py."""
    models = [m for m in ("original", "unlearned", "continued") if "similarity.forget" in found["models"].get(m, {})]
    if not models:
        return None
    figure, axes = draw(7, 2.4, 1, 2, sharey=True)
    rows = []
    for ax, (kind, label) in zip(axes, (("similarity", "cosine of a pair"), ("r1", "R@1 %")), strict=True):
        for shift, (sample, (words, color, marker)) in zip((0.2, 0.0, -0.2), SAMPLES.items(), strict=True):
            there = [(i, found["models"][m].get(f"{kind}.{sample}")) for i, m in enumerate(models)]
            there = [(i, n) for i, n in there if n]
            x, y = [n["value"] for _, n in there], [len(models) - 1 - i + shift for i, _ in there]
            ends = [[abs(n.get(end, n["value"]) - n["value"]) for _, n in there] for end in ("low", "high")]
            ax.errorbar(x, y, xerr=ends, fmt=marker, color=color, label=words, elinewidth=1)
            rows += [[kind, models[i], words, n["value"], n.get("low"), n.get("high")] for i, n in there]
        ax.set(xlabel=label, yticks=range(len(models)), yticklabels=[MODELS[m].label for m in reversed(models)])
    legend(figure, axes[0])
    reading = (
        "before forgetting, the forgotten pairs lie with the kept ones, afterwards they should lie with the strangers, on "
    )
    reading += "which nobody trained; no retrained model says where they would lie by themselves"
    head = ["number", "model", "sample", "value", "low", "high"]
    return Drawing("samples", "Three samples", reading, figure, (head, rows))


SAMPLES = {"forget": ("forgotten", VERMILION, "^"), "retain": ("kept", BLUE, "s"), "strangers": ("strangers", INK, "o")}
"""How the samples are called and drawn."""


def cost(costs: Mapping[str, Mapping[str, float]]) -> Drawing | None:
    """Client steps and bytes of forgetting beside retraining."""
    phases = [p for p in ("learn", "unlearn", "retrain") if p in costs]
    figure, axes = draw(7, 1.8, 1, 3, sharey=True)
    rows = []
    parts: tuple[tuple[str, Callable[[Mapping[str, float]], float]], ...] = (
        ("client steps", lambda c: c["client_steps"]),
        ("MB both ways", lambda c: (c["uplink_bytes"] + c["downlink_bytes"]) / 1e6),
        ("seconds", lambda c: c["seconds"] + c["server_seconds"]),
    )
    for ax, (label, value) in zip(axes, parts, strict=True):
        bars(ax, {p: value(costs[p]) for p in phases}, [MODELS[PHASES[p]].color for p in phases], ",.0f")
        ax.set(xlabel=f"{label} (less is better)")
        rows += [[p, label, value(costs[p])] for p in phases]
    reading = "what forgetting took, beside what learning took and what learning again without would take"
    return Drawing("cost", "Cost", reading, figure, (["phase", "what", "value"], rows))


PHASES = {"learn": "original", "unlearn": "unlearned", "retrain": "retrain"}
"""Which model a phase makes."""
