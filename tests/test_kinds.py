"""Three kinds of association sit where the built-in world says."""

import json

import pytest

from benchmarks import swap
from tests.in_process_grid import submit
from tests.small import RUN_CONFIG

HELD = {
    "word": {"original": 70.0, "retrain": 2.0, "visual": 3.0, "text": 65.0},
    "look": {"original": 60.0, "retrain": 20.0, "visual": 50.0, "text": 30.0},
    "both": {"original": 50.0, "retrain": 1.0, "visual": 5.0, "text": 24.9},
}


def test_the_rule_by_hand():
    assert [line for kind, found in HELD.items() for line in swap.broken(kind, found)] == []
    wrong = {
        ("word", "text", 22.9): "word: the text tower does not bring back 20 more than the other",
        ("look", "text", 30.1): "look: the visual tower does not bring back 20 more than the other",
        ("look", "retrain", 20.1): "look: headroom below 40",
        ("both", "text", 25.0): "both: the text tower alone brings back half",
        ("both", "visual", 25.0): "both: the visual tower alone brings back half",
    }
    for (kind, what, value), line in wrong.items():
        assert swap.broken(kind, HELD[kind] | {what: value}) == [line]


@pytest.mark.long
def test_each_kind_sits_in_the_tower_that_has_to_learn_it(tmp_path, capsys):
    settings = "evaluation.every=0 evaluation.equal=false continuation.rounds=0 strategy.rounds=1"
    submit({**RUN_CONFIG, "run-dir": str(tmp_path / "run"), "set": settings}, clients=8)
    assert swap.main(str(tmp_path / "swap.json"), str(tmp_path / "run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in lines[-5:-2]] == [["| 0, client-0", kind] for kind in swap.CARRIER]
    (one,) = json.loads((tmp_path / "swap.json").read_text())
    shared = json.loads((tmp_path / "run" / "results.json").read_text())["models"]
    assert one["broken"] == []
    assert shared["retrain"]["forget_shared"]["r1"] > shared["original"]["forget_shared"]["r1"] - 15
