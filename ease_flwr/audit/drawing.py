"""What the figures of a report have in common: how each model looks, and how a figure becomes SVG.

A figure is read without colours too: each model has a marker and a kind of line of its own. The colours are those of Okabe and
Ito (2008) that stand out on white and on dark ground. That of text is written as a name which the page replaces, so that a
figure follows its ground. Legends stand outside of what is drawn.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""Stands for the colour of text on the page."""
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"


class Style(NamedTuple):
    """How a model is drawn, and its name in a figure."""

    color: str
    marker: str
    line: str
    label: str


MODELS = {
    "original": Style(INK, "o", ":", "original"),
    "unlearned": Style(VERMILION, "^", "-", "unlearned"),
    "retrain": Style(BLUE, "s", "--", "retrained"),
    "retrain_2": Style(GREEN, "D", "-.", "retrained again"),
    "retrain_equal": Style(GREEN, "P", "-.", "retrained as long"),
    "continued": Style(PURPLE, "v", "-", "continued"),
    "retrain_continued": Style(BLUE, "X", "--", "retrained, continued"),
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

    @cached_property
    def _svg(self) -> str:
        out = io.StringIO()
        self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        self.figure.set_layout_engine("none")  # it is laid out
        return out.getvalue()

    def svg(self) -> str:
        """Inline SVG in the colours of the page, with an accessible name."""
        text = self._svg[self._svg.index("<svg") :].replace(INK, "currentColor")
        return text.replace("<svg ", f'<svg role="img" aria-label="{escape(f"{self.title}: {self.reading}")}" ', 1)

    def save(self, folder: Path) -> None:
        """The figure as SVG and PNG on white, and its data as CSV."""
        on_white = self._svg.replace("<svg ", '<svg style="background: white" ', 1)
        (folder / f"{self.name}.svg").write_text(on_white, encoding="utf-8")
        self.figure.savefig(folder / f"{self.name}.png", facecolor="white", dpi=200)
        with (folder / f"{self.name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.data[0], *self.data[1]])


def draw(width: float, height: float, *grid: int, **more: Any) -> tuple[Figure, Any]:
    """An empty figure in the page's colours, and its axes. more: of Figure.subplots."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "ease", "font.size": 9, "legend.frameon": False}
    settings |= {"axes.spines.top": False, "axes.spines.right": False, "legend.labelcolor": INK, "text.color": INK}
    settings |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    settings |= {"axes.titlesize": 9, "axes.titlelocation": "left", "lines.markersize": 4.5, "lines.linewidth": 1.5}
    mpl.rcParams.update(settings)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*(grid or (1, 1)), **more)


def legend(figure: Figure, *axes: Axes, **more: Any) -> None:
    """One legend of all these axes above the figure, where it covers nothing. more: of Figure.legend."""
    by_label = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(by_label.values(), by_label.keys(), loc="outside upper left", **{"ncols": 4, **more})


def bars(ax: Axes, values: Mapping[str, float], colors: Sequence[str], form: str, **more: Any) -> None:
    """Bars that lie, by name, the first on top, each with its number at the right. form: of a number.  more: of Axes.barh."""
    faces = [(color, 0.6) for color in colors]
    ax.barh(range(len(values)), list(values.values()), 0.7, color=faces, edgecolor=colors, ecolor=INK, **more)
    ax.set(yticks=range(len(values)), yticklabels=list(values), ylim=(len(values) - 0.5, -0.5))
    for y, value in enumerate(values.values()):
        ax.annotate(format(value, form), (1.02, y), xycoords=("axes fraction", "data"), va="center")
