"""The figures of a report, drawn by matplotlib: from the files of a run to a figure and the data beside it.

Colours are written as names that the page replaces, so that a figure follows its light or dark background.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""Stands for the colour of text on the page."""
PALETTE = {
    "original": "#8a8f98",
    "retrain": "#2f7fd1",
    "retrain_2": "#5f9fe0",
    "retrain_equal": "#7ab3e8",
    "unlearned": "#d9782d",
    "continued": "#b0488f",
    "retrain_continued": "#4a5fc1",
}
Table = tuple[list[str], list[list[Any]]]
"""Head and rows of the data behind a figure."""


@dataclass(frozen=True)
class Drawing:
    """A figure with its name for files, a title, one sentence on how to read it, and its data."""

    name: str
    title: str
    reading: str
    figure: Figure
    data: Table

    def svg(self) -> str:
        """Inline SVG in the colours of the page, with an accessible name."""
        out = io.StringIO()
        self.figure.savefig(out, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
        text = out.getvalue()
        text = text[text.index("<svg") :].replace(INK, "currentColor")
        return text.replace("<svg ", f'<svg role="img" aria-label="{self.title}: {self.reading}" ', 1)


def draw(width: float, height: float, *grid: int) -> tuple[Figure, Any]:
    """An empty figure in the page's colours."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "ease", "font.size": 9, "legend.frameon": False}
    settings |= {"axes.spines.top": False, "axes.spines.right": False, "legend.labelcolor": INK, "text.color": INK}
    settings |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    mpl.rcParams.update(settings)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*(grid or (1, 1)))


def curves(events: list[dict[str, Any]], limits: Mapping[str, float]) -> Drawing | None:
    """Validation recall over all rounds of learning, forgetting and continuing, beside the retrained reference.

    limits: the `audit` section of the experiment.
    """
    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for e in (e for e in events if not re.match(r"retrain_\d", str(e.get("model", "")))):
        who = "reference" if str(e.get("model", "")).startswith("retrain") else "run"
        for name, value in e.get("validation", {}).items():
            if name in ("forget_exclusive", "forget", "retain"):
                points.setdefault(name, {}).setdefault(who, []).append((e["rounds_in_all"], value))
    shown = [
        n
        for n in ("forget_exclusive", "forget", "retain")
        if n in points and not (n == "forget" and "forget_exclusive" in points)
    ]
    if not shown:
        return None
    figure, axes = draw(7, 2.6, 1, len(shown))
    rows = []
    for ax, name in zip(np.atleast_1d(axes), shown, strict=True):
        for who, label, style in (("run", "this run", "-o"), ("reference", "retrained", "--s")):
            xy = points[name].get(who, [])
            ax.plot(
                *zip(*xy, strict=True), style, label=label, color=PALETTE["unlearned" if who == "run" else "retrain"], ms=4
            ) if xy else None
            rows += [[name, label, x, y] for x, y in xy]
        if reference := points[name].get("reference"):
            limit = limits["retained" if name == "retain" else "recall"]
            ax.axhspan(reference[-1][1] - limit, reference[-1][1] + limit, color=PALETTE["retrain"], alpha=0.15, lw=0)
        ax.set(title=name, xlabel="rounds", ylabel="R@1 %", ylim=(0, 100))
        ax.legend()
    reading = "recall on validation pairs while learning, forgetting and going on; dashed, the model that never saw them, and "
    reading += "around its end the band that the verdict calls like retraining"
    return Drawing("recall", "Recall over the rounds", reading, figure, (["set", "model", "round", "r1"], rows))


def similarities(scores: Mapping[str, Mapping[str, list[float]]]) -> Drawing | None:
    """Histograms of the cosines of forgotten and kept pairs."""
    keys = [k for k in ("similarity.forget_exclusive", "similarity.forget", "similarity.retain") if k in scores["original"]]
    keys = [k for k in keys if k != "similarity.forget" or "similarity.forget_exclusive" not in keys]
    figure, axes = draw(7, 2.6, 1, len(keys))
    rows = []
    for ax, key in zip(np.atleast_1d(axes), keys, strict=True):
        low, high = (f(f(scores[m][key]) for m in scores) for f in (min, max))
        for model in ("original", "retrain", "unlearned"):
            ax.hist(
                scores[model][key],
                bins=list(np.linspace(low, high, 31)),
                histtype="step",
                lw=1.8,
                color=PALETTE[model],
                label=model,
            )
            rows += [[key.partition(".")[2], model, v] for v in scores[model][key]]
        ax.set(title=key.partition(".")[2], xlabel="cosine of image and caption", ylabel="pairs")
        ax.legend()
    reading = "after forgetting the pairs should lie where the retrained model has them, not lower and not higher"
    return Drawing("similarity", "Similarity of pairs", reading, figure, (["set", "model", "cosine"], rows))


def relearning(numbers: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Drawing | None:
    """Recall after some steps of learning the forgotten pairs again."""
    steps = sorted(int(k.partition(".")[2]) for k in numbers["unlearned"] if k.startswith("relearn.") and k[8:].isdigit())
    if not steps:
        return None
    figure, ax = draw(4.2, 2.8)
    rows = []
    for model in ("original", "retrain", "retrain_2", "unlearned", "continued"):
        if model in numbers:
            found = [numbers[model][f"relearn.{s}"] for s in steps]
            ax.plot(range(len(steps)), [f["value"] for f in found], "-o", color=PALETTE[model], label=model, ms=4)
            ends = [[f.get(end, np.nan) for f in found] for end in ("low", "high")]
            ax.fill_between(range(len(steps)), *ends, color=PALETTE[model], alpha=0.15, lw=0)
            rows += [[model, s, f["value"], f.get("low"), f.get("high")] for s, f in zip(steps, found, strict=True)]
    ax.set(xticks=range(len(steps)), xticklabels=steps, xlabel="steps on the forgotten pairs", ylabel="R@1 %", ylim=(0, 100))
    ax.legend()
    reading = "above retraining is residue, below it is damage; bands are intervals over members and orders of batches"
    return Drawing("relearning", "Learning it again", reading, figure, (["model", "steps", "r1", "low", "high"], rows))


def membership(scores: Mapping[str, Mapping[str, list[float]]]) -> Drawing | None:
    """ROC of the cosine attack."""
    if not scores["original"].get("member"):
        return None
    figure, ax = draw(3, 2.8)
    rows = []
    for model in ("original", "retrain", "unlearned"):
        member, stranger = np.array(scores[model]["member"]), np.array(scores[model]["stranger"])
        cuts = np.quantile(np.concatenate([member, stranger]), np.linspace(1, 0, 60))
        false, true = ([float((x >= c).mean()) for c in cuts] for x in (stranger, member))
        ax.plot(false, true, color=PALETTE[model], label=model)
        rows += [[model, f, t] for f, t in zip(false, true, strict=True)]
    ax.plot([0, 1], [0, 1], ":", color=INK, lw=0.8)
    ax.set(xlabel="unseen pairs taken for members", ylabel="members found", aspect="equal")
    ax.legend()
    reading = "who was trained on, told by cosine; the diagonal is guessing, the target is the retrained model"
    return Drawing("membership", "Membership attack", reading, figure, (["model", "false", "true"], rows))


def spectrum(facts: Mapping[str, Any]) -> Drawing | None:
    """Cosines of the forgotten client's directions to the others', with the threshold."""
    if "blocks" not in facts:
        return None
    figure, ax = draw(7, 2.4)
    rows = []
    for tower, colour in (("visual", PALETTE["unlearned"]), ("text", PALETTE["retrain"])):
        chosen = [(i, b["cosines"]) for i, b in enumerate(facts["blocks"]) if b["tower"] == tower]
        x, y = [i for i, c in chosen for _ in c], [v for _, c in chosen for v in c]
        ax.scatter(x, y, s=8, color=colour, label=tower, alpha=0.7)
        rows += [[tower, i, v] for i, v in zip(x, y, strict=True)]
    ax.axhline(facts["tau"], color=INK, lw=1, ls="--", label=f"tau {facts['tau']}: what lies below is excised")
    ax.set(xlabel="block of the adapters", ylabel="cosine to the others", ylim=(0, 1.02))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
    reading = "each point is a direction in which the forgotten client moved the adapters; low ones are its own"
    return Drawing("spectrum", "Principal angles", reading, figure, (["tower", "block", "cosine"], rows))


def overlap(facts: Mapping[str, Any]) -> Drawing | None:
    """How much every two clients' subspaces share."""
    if "overlap" not in facts:
        return None
    names, matrix = facts["overlap"]["clients"], np.array(facts["overlap"]["matrix"])
    figure, ax = draw(3.4, 3)
    image = ax.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
    ax.set_xticks(range(len(names)), names, rotation=60, ha="right")
    ax.set_yticks(range(len(names)), names)
    figure.colorbar(image, ax=ax, shrink=0.8)
    rows = [[a, b, float(matrix[i, j])] for i, a in enumerate(names) for j, b in enumerate(names)]
    reading = "one is the same subspace, zero is nothing in common"
    return Drawing("overlap", "What clients' updates share", reading, figure, (["client", "other", "share"], rows))


def excised(facts: Mapping[str, Any]) -> Drawing | None:
    """Share of what was learnt that the excision took, block by block."""
    if "blocks" not in facts:
        return None
    figure, ax = draw(7, 2.2)
    blocks = facts["blocks"]
    share = [100 * (b["excised"] / b["moved"]) ** 2 if b["moved"] else 0.0 for b in blocks]
    colours = [PALETTE["unlearned"] if b["tower"] == "visual" else PALETTE["retrain"] for b in blocks]
    ax.bar(range(len(blocks)), share, color=colours)
    ax.set(xlabel="block of the adapters: image tower orange, text tower blue", ylabel="% of squared length")
    rows = [[b["tower"], i, s] for i, (b, s) in enumerate(zip(blocks, share, strict=True))]
    reading = "how much of what had been learnt was cut out; both towers should have some"
    return Drawing("excised", "What was excised", reading, figure, (["tower", "block", "percent"], rows))


def cost(costs: Mapping[str, Mapping[str, float]]) -> Drawing | None:
    """Client steps and bytes of forgetting beside retraining."""
    phases = [p for p in ("learn", "unlearn", "retrain") if p in costs]
    figure, axes = draw(7.5, 1.8, 1, 3)
    rows = []
    parts: tuple[tuple[str, Callable[[Mapping[str, float]], float]], ...] = (
        ("client steps", lambda c: c["client_steps"]),
        ("MB both ways", lambda c: (c["uplink_bytes"] + c["downlink_bytes"]) / 1e6),
        ("seconds", lambda c: c["seconds"] + c["server_seconds"]),
    )
    for ax, (label, value) in zip(axes, parts, strict=True):
        _bars(ax, phases, [value(costs[p]) for p in phases])
        ax.set(xlabel=label)
        rows += [[p, label, value(costs[p])] for p in phases]
    return Drawing("cost", "Cost", "what forgetting took, beside learning again", figure, (["phase", "what", "value"], rows))


def _bars(ax: Axes, names: list[str], values: list[float]) -> None:
    ax.barh(names, values, color=[PALETTE["unlearned"] if n == "unlearn" else PALETTE["original"] for n in names])
    for i, v in enumerate(values):
        ax.annotate(f"{v:,.0f}", (v, i), xytext=(3, 0), textcoords="offset points", va="center")
    ax.margins(x=0.15)


def frontier(tables: Mapping[str, Mapping[str, Mapping[Any, Any]]], differences: Callable[[Any], dict[str, float]]) -> Drawing:
    """Methods by what is forgotten too little or too much and by what is lost, with their spread over seeds."""
    figure, axes = draw(7.5, 3.6, 1, len(tables))
    rows = []
    for ax, (budget, found) in zip(np.atleast_1d(axes), tables.items(), strict=True):
        for name, by_seed in found.items():
            gaps = [differences(r) for r in by_seed.values() if "failed" not in r]
            if not gaps:
                continue
            x = [g.get("forget_exclusive", g.get("forget", 0.0)) for g in gaps]
            y = [g["retain"] for g in gaps]
            colour = (
                PALETTE["unlearned"] if name == "ease" else PALETTE["retrain"] if name == "retrain" else PALETTE["original"]
            )
            ax.errorbar(np.mean(x), np.mean(y), xerr=np.std(x), yerr=np.std(y), fmt="o", color=colour, ms=4, lw=0.8)
            ax.annotate(name, (float(np.mean(x)), float(np.mean(y))), xytext=(3, 3), textcoords="offset points", fontsize=7)
            rows += [[budget, name, seed, a, b] for seed, a, b in zip(by_seed, x, y, strict=False)]
        ax.axhline(0, color=INK, lw=0.6)
        ax.axvline(0, color=INK, lw=0.6)
        ticks = [-30, -10, -3, 0, 3, 10, 30]
        ax.set_xscale("symlog", linthresh=5)
        ax.set_yscale("symlog", linthresh=5)
        ax.set_xticks(ticks, ticks)
        ax.set_yticks(ticks, ticks)
        ax.minorticks_off()
        ax.set(title=budget, xlabel="forgotten pairs: R@1 minus retraining's", ylabel="kept pairs: R@1 minus retraining's")
    reading = "the crossing of the lines is retraining; right too little is forgotten, left too much, below something is lost"
    return Drawing("frontier", "Methods", reading, figure, (["budget", "strategy", "seed", "forget", "retain"], rows))
