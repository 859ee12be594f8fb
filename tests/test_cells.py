"""Cells of docs/results.md (benchmarks/cells.py): what their numbers mean, by hand."""

import pytest

from benchmarks import cells
from ease_flwr.exchange.examined import MemberHits
from ease_flwr.sweep.ablation import ABLATION


def test_recall_is_the_mean_over_orders_and_both_directions():
    hits = (((0, 0), (2, 1)), ((0, 0), (4, 3)))  # two orders of batches, two stops
    members = [MemberHits(label=1.0, of=(4, 8), hits=hits), MemberHits(label=2.0, of=(4, 8), hits=hits)]
    assert cells.recall(members, 0) == 0
    assert cells.recall(members, 1) == pytest.approx(50 * (6 / 8 + 4 / 16))  # 3 of 4 and 2 of 8 each, in the mean


def test_a_difference_is_from_the_mean_of_the_references():
    found = {"retain": 80.0, "re1": 10.0, "similarity": [0.5, 0.1]}
    references = [
        {"retain": 82.0, "re1": 12.0, "similarity": [0.3, 0.1]},
        {"retain": 84.0, "re1": 14.0, "similarity": [0.5, 0.3]},
    ]
    assert cells.difference(found, references) == pytest.approx({"retain": -3, "re1": -3, "distance": 0.1})
    assert "retain -3.0" in cells.line("a cell", cells.difference(found, references))
    nobody = [{**r, "similarity": []} for r in references]
    assert cells.difference({**found, "similarity": []}, nobody)["distance"] == 0


def test_the_cell_is_the_experiment_with_the_client_of_its_seed():
    cell = cells.Cell("personas+sharing", 22, "cpu")
    assert cell.forget.targets == cell.concerned == ("client-2",)
    assert cell.context("learn", everybody=True).clients == tuple(cell.clients)
    context = cell.context("forget")
    assert "client-2" not in context.clients
    assert context.without == {"client-2": (cell.forget,)}
    assert context.learnt == cell.experiment.learn.rounds


def test_default_variants_are_known():
    known = {v.label for group in ABLATION.values() for v in group}
    assert {"EASE", "no projection", "whole forget subspace", "with BKE", "random subspace"} <= known
