"""Figures as their reader sees them: nothing is cut off or covered, colours are not needed, and what is drawn is the data."""

import json
import re
from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text

from ease_flwr.audit import figures, opening
from ease_flwr.audit.drawing import INK, MODELS
from ease_flwr.audit.frontier import frontier
from ease_flwr.config import AuditConfig

LIMITS = AuditConfig()
CLIENTS = [f"hospital-{k}" for k in range(8)]
REFERENCES = ("retrain", "retrain_2", "retrain_equal", "retrain_continued")


def numbers(*names):
    """R@1 of these sets and of relearning, of every model that a report draws."""
    keys = [*(f"r1.{n}" for n in names), *(f"relearn.{s}" for s in (0, 1, 5, 15, 40))]
    spread = {m: 30.0 + 10 * i for i, m in enumerate(MODELS)}
    return {m: {k: {"value": v, "low": v - 20, "high": v + 9} for k in keys} for m, v in spread.items()}


def scores(seed=0):
    drawn = np.random.default_rng(seed)
    kinds = ("similarity.forget_exclusive", "similarity.retain", "member", "stranger")
    return {m: {k: drawn.normal(0.3, 0.2, 200).tolist() for k in kinds} for m in figures.THREE}


def facts(**more):
    """What GSD measured in two blocks a tower."""
    blocks = [{"tower": t, "cosines": [0.6, 0.8], "moved": 5.0, "excised": 3.0} for t in ("visual", "visual", "text", "text")]
    shared = np.full((8, 8), 0.3) + 0.1 * np.eye(8)[::-1]
    np.fill_diagonal(shared, 1)
    overlap = {"clients": CLIENTS, "matrix": shared.tolist()}
    return {"targets": CLIENTS[:1], "tau": 1.0, "blocks": blocks, "overlap": overlap, **more}


def events(*told):
    """Of (model, round): R@1 is the round."""
    found = {"forget_exclusive": 1, "retain": 1}
    return [{"model": m, "rounds_in_all": r, "validation": {s: float(r) for s in found}} for m, r in told]


COST = {"client_steps": 4000, "uplink_bytes": 2e8, "downlink_bytes": 2e8, "seconds": 200.0, "server_seconds": 3.0}


def cell(forget, retain):
    return {"forget_exclusive": forget, "retain": retain}


def compared(methods=("ease", "finetune", "excise_random")):
    found = {n: {0: cell(-4.0 + 30 * i, -2.0), 1: cell(-2.0 + 30 * i, 1.0)} for i, n in enumerate(methods)}
    return frontier({"equal": found, "own": {**found, "npo": {0: {"failed": "failed: full"}}}}, lambda g: g, LIMITS)


def every():
    """Every figure that there is."""
    told = events(("learn", 10), ("learn", 20), ("forget", 27), ("retrain", 10), ("retrain", 20), ("retrain_equal", 27))
    return [
        figures.curves(told, {"recall": 3.0, "retained": 3.0}),
        figures.similarities(scores()),
        figures.relearning(numbers()),
        figures.relearning({m: found for m, found in numbers().items() if "continued" not in m}),
        figures.membership(scores()),
        figures.excised(facts()),
        figures.overlap(facts()),
        figures.cost({"learn": COST, "unlearn": COST, "retrain": COST}),
        *opening.pictures(numbers("forget_exclusive", "retain"), scores()),
        opening.pictures({m: {"r1.forget_exclusive": {"value": 9.0}} for m in figures.THREE}, scores())[-1],
        compared(),
    ]


# ---- what a reader sees ----------------------------------------------------------------------------------------------------


def labels(axis, ends):
    """Labels of the ticks that are in view."""
    low, high = sorted(ends)
    found = [t for t in axis.get_majorticklabels() if t.get_visible() and t.get_text()]
    return [t for t in found if low <= t.get_position()[axis.axis_name == "y"] <= high]


def texts(figure):
    """Every text that is drawn."""
    found = [text for legend in figure.legends for text in legend.get_texts()]
    for ax in figure.axes:
        found += [*ax.texts, ax.xaxis.label, ax.yaxis.label, *labels(ax.xaxis, ax.get_xlim()), *labels(ax.yaxis, ax.get_ylim())]
        found += [t for t in ax.findobj(Text) if t.get_text() and t.get_text() == ax.get_title(loc="left")]
    return [t for t in found if t.get_visible() and t.get_text()]


@pytest.mark.parametrize("drawing", every(), ids=lambda d: d.name)
def test_no_text_is_cut_off_or_lies_on_data_or_on_another(drawing):
    """Law: only the numbers of a heat map lie inside of axes, and no legend does."""
    figure = drawing.figure
    figure.draw_without_rendering()
    boxes = [(t, t.get_window_extent()) for t in texts(figure)]
    assert len(boxes) > 5
    for text, box in boxes:
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
        inside = [ax for ax in figure.axes if ax.bbox.padded(-2).overlaps(box)]
        assert not inside or drawing.name == "overlap", text
    for (one, box), (other, its) in combinations(boxes, 2):
        slanted = one.get_rotation() == other.get_rotation() == 60  # their boxes are wider than they are
        assert slanted or not box.overlaps(its), (one, other)
    assert not any(ax.get_legend() for ax in figure.axes)


@pytest.mark.parametrize("drawing", every(), ids=lambda d: d.name)
def test_an_axis_with_numbers_says_of_what(drawing):
    for ax in drawing.figure.axes:
        for axis, ends in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            figures_there = [t for t in labels(axis, ends) if re.fullmatch(r"[-\N{MINUS SIGN}\d.,]+", t.get_text())]
            assert not figures_there or axis.label.get_text(), (drawing.name, figures_there)


def test_a_drawing_is_svg_of_the_page_and_files_on_white(tmp_path):
    drawing = figures.cost({"learn": COST, "unlearn": COST, "retrain": COST})
    assert drawing.svg().startswith(f'<svg role="img" aria-label="Cost: {drawing.reading}"')
    assert INK not in drawing.svg()
    assert "currentColor" in drawing.svg()
    drawing.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"cost.svg", "cost.png", "cost.csv"}
    assert '<svg style="background: white"' in (tmp_path / "cost.svg").read_text()
    assert (tmp_path / "cost.csv").read_text().splitlines()[:2] == ["phase,what,value", "learn,client steps,4000"]


# ---- without colours -------------------------------------------------------------------------------------------------------

EYES = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
"""What is seen of linear RGB (Machado, Oliveira and Fernandes 2009)."""
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
GROUNDS = {"#ffffff": "#1c1f24", "#15181c": "#e7e9ec"}
"""Light and dark ground of the page, with the ink on it."""


def linear(color):
    c = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of linear RGB."""
    x, y, z = np.cbrt(XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("ground", GROUNDS)
def test_every_colour_stands_out_on_the_ground(ground):
    """By the contrast that WCAG 2.2 wants of graphics."""
    for style in MODELS.values():
        color = GROUNDS[ground] if style.color == INK else style.color
        dark, light = sorted(float(XYZ[1] @ linear(c)) for c in (color, ground))
        assert (light + 0.05) / (dark + 0.05) >= 3, color


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize("ink", GROUNDS.values())
def test_colours_differ_for_every_eye(eyes, ink):
    colors = {ink if s.color == INK else s.color for s in MODELS.values()}
    for one, other in combinations(colors, 2):
        assert np.linalg.norm(lab(EYES[eyes] @ linear(one)) - lab(EYES[eyes] @ linear(other))) > 15, (one, other)


def test_no_two_models_look_alike_without_colours():
    assert len({s.marker for s in MODELS.values()}) == len(MODELS)
    assert len({s.label for s in MODELS.values()}) == len(MODELS)


# ---- what is drawn ---------------------------------------------------------------------------------------------------------


def test_a_curve_is_broken_where_training_began_anew():
    told = events(("learn", 1), ("retrain", 1), ("retrain", 5), ("retrain-2", 2), ("retrain_equal-2", 7))
    figure = figures.curves(told, {"recall": 3.0, "retained": 3.0}).figure
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "retrained"]
    np.testing.assert_array_equal(line.get_xdata(), [1, 5, np.nan, 2, 7])


def test_forgetting_is_grey_from_its_first_round_to_its_last():
    told = events(("learn", 20), ("forget", 21), ("forget", 23), ("continuation", 25), ("forget-2", 26), ("forget-2", 27))
    (ax, _) = figures.curves(told, {"recall": 3.0, "retained": 3.0}).figure.axes
    assert [(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches] == [(20, 23), (25, 27)]


def test_what_is_cut_out_is_what_nobody_else_did():
    """cos 0.6 and 0.8: half of the squared lengths is shared. 3 of a movement of 5 are 36 % of its squared length."""
    drawing = figures.excised(facts())
    assert [row[:2] for row in drawing.data[1]] == [["visual", 0], ["visual", 1], ["text", 0], ["text", 1]]
    assert all(row[2:] == pytest.approx([50, 36]) for row in drawing.data[1])
    assert "instead" not in drawing.reading
    foil = figures.excised(facts(params={"gsd": {"subspace": "random"}}))
    assert foil.reading.endswith("which cut out as many random directions instead")
    assert figures.excised(facts(tau=0.9)).reading.endswith("with a cosine above tau 0.9 stay whole")
    assert figures.excised({"targets": ["x"]}) is None


def test_the_heat_map_shows_what_differs():
    drawing = figures.overlap(facts())
    (image,) = drawing.figure.axes[0].images
    assert image.get_array().mask.diagonal().all()
    assert (image.norm.vmin, image.norm.vmax) == pytest.approx((30, 40))
    assert len(drawing.figure.axes[0].texts) == 8 * 7
    assert drawing.data[1][0] == ["hospital-0", "hospital-1", pytest.approx(30)]
    many = {"clients": [f"c{k}" for k in range(40)], "matrix": np.eye(40).tolist()}
    axes = figures.overlap({"overlap": many}).figure.axes[0]
    assert not axes.texts
    assert len(axes.get_xticks()) == 20
    figures.overlap({"overlap": {"clients": ["a", "b"], "matrix": [[1, 0.2], [0.2, 1]]}}).svg()  # one value has a scale too
    assert figures.overlap({"overlap": {"clients": ["a"], "matrix": [[1]]}}) is None


def test_methods_stand_beside_retraining_line_by_line():
    drawing = compared()
    assert drawing.data[1][0] == ["equal", "ease", 0, -4.0, -2.0]
    assert len(drawing.data[1]) == 2 * 3 * 2  # what failed has no point
    left, right = drawing.figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["ease", "finetune", "excise_random", "npo"]
    assert right.get_xlim()[1] >= 10


def test_small_figures_are_about_what_was_asked():
    full = opening.pictures(numbers("forget_exclusive", "forget", "retain"), scores())
    assert [d.name for d in full] == ["first-forget", "first-retain", "first-again"]
    assert [row[0] for row in full[0].data[1]] == ["original", "unlearned", "retrain", "retrain_2"]
    assert [row[0] for row in full[1].data[1]][-1] == "retrain_equal"
    (target,) = full[0].figure.axes[0].lines[-1:]
    assert target.get_xdata()[0] == 55  # the mean of 50 and 60, as in the verdict
    asked = {m: {"r1.forget": {"value": 9.0}, "r1.retain": {"value": 80.0}} for m in figures.THREE}
    similar = {m: {"similarity.forget": [0.1, 0.2, 0.3]} for m in figures.THREE}
    assert [d.name for d in opening.pictures(asked, similar)] == ["first-forget", "first-retain", "first-alike"]
    gone = {m: {"r1.retain": {"value": 80.0}} for m in figures.THREE}
    assert [d.name for d in opening.pictures(gone, {m: {} for m in figures.THREE})] == ["first-retain"]


def test_numbers_of_a_figure_are_plain_json():
    assert all(json.dumps(drawing.data) for drawing in every())
