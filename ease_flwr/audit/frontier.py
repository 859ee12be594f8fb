"""The figure of a comparison: methods beside retraining, by what is forgotten and by what is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ease_flwr.audit.drawing import BLUE, INK, VERMILION, Drawing, draw, legend

if TYPE_CHECKING:
    from ease_flwr.config import AuditConfig


STYLES = ((VERMILION, "^"), (BLUE, "s"))
TICKS = (-100, -30, -10, -3, 0, 3, 10, 30, 100)


def frontier(
    tables: Mapping[str, Mapping[str, Mapping[Any, Any]]], differences: Callable[[Any], dict[str, float]], limits: AuditConfig
) -> Drawing:
    """A line a method: what is forgotten too little or too much, and what is lost, mean and spread over seeds."""
    names = list(dict.fromkeys(name for found in tables.values() for name in found))
    figure, axes = draw(7, 1.4 + 0.25 * len(names), 1, 2, sharey=True)
    rows = []
    for k, (budget, found) in enumerate(tables.items()):
        color, marker = STYLES[k]
        for name, by_seed in found.items():
            gaps = {seed: differences(r) for seed, r in by_seed.items() if "failed" not in r}
            points = [(g.get("forget_exclusive", g.get("forget", 0.0)), g["retain"]) for g in gaps.values()]
            rows += [[budget, name, seed, *point] for seed, point in zip(gaps, points, strict=True)]
            y = names.index(name) + 0.2 * (k - (len(tables) - 1) / 2)
            for ax, x in zip(axes, zip(*points, strict=True), strict=bool(points)):
                more = {"color": color, "elinewidth": 1, "label": f"{budget} budget"}
                ax.errorbar(np.mean(x), y, xerr=np.std(x), fmt=marker, **more)
    sides = (
        ("what was to be forgotten", "too much forgotten", "too little", limits.recall),
        ("retain, to be kept", "lost", "more than retraining", limits.retained),
    )
    for ax, column, (title, left, right, limit) in zip(axes, (3, 4), sides, strict=True):
        ax.axvline(0, color=INK, lw=0.8)
        ax.set_xscale("symlog", linthresh=5)
        most = 1.3 * max(10, *(abs(row[column]) for row in rows))
        ax.axvspan(-limit, most if column == 4 else limit, color=INK, alpha=0.12, lw=0, label="within the limit of the audit")
        ticks = [t for t in TICKS if abs(t) <= most]
        ax.set_xticks(ticks, ticks)
        ax.minorticks_off()
        ax.set(title=title, xlabel=f"R@1, points above retraining\n\u2190 {left}     {right} \u2192", xlim=(-most, most))
    axes[0].set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    legend(figure, *axes)
    reading = "each method beside retraining, mean and standard deviation over seeds; in the grey, neither more nor less is "
    reading += "forgotten than by retraining (left), and nothing is lost (right)"
    return Drawing("frontier", "Methods", reading, figure, (["budget", "strategy", "seed", "forget", "retain"], rows))
