"""Learning stops when validation recall has stopped rising: at the round that the rule says, after a kill too."""

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ease_flwr import launcher
from ease_flwr.config import ConfigError
from ease_flwr.exchange.judgement import Evaluation, SetCounts
from ease_flwr.server import patience
from tests.in_process_grid import submit
from tests.small import RUN_CONFIG, TINY, hashes, settings, small_experiment
from tests.standing import SIMULATION, die

STILL = {"learn.lr": 1e-9, "learn.rounds": 30, "learn.patience": 2, "learn.judge_every": 3}
"""Nothing is learnt, so recall cannot rise."""
MOVING = {"learn.rounds": 9, "learn.patience": 1, "learn.judge_every": 1}


def played(tmp_path, monkeypatch, **changes):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    folder = tmp_path / "run"
    submit(settings(folder, **changes))
    return folder, json.loads((folder / "results.json").read_text())


def log(folder):
    return (folder / "log.txt").read_text()


def judging(monkeypatch, hits, **learn):
    """A Patience for which all 200 own pairs are judged, and so many are hit each time; and what it says."""

    def evaluate(federation, models, question, names=None):
        asked.append((question.forget, question.split))
        n = next(numbers)
        counts = SetCounts(images=200, texts=200, i2t=(n, n, n), t2i=(n, n, n), gallery=200)
        return {"current": {"a": Evaluation(sets={"retain": counts})}}, None

    asked, numbers, said = [], iter(hits), []
    monkeypatch.setattr(patience, "evaluate", evaluate)
    federation = SimpleNamespace(experiment=small_experiment(**{f"learn.{k}": v for k, v in learn.items()}), clients=("a",))
    return patience.Patience(federation, lambda line, **_: said.append(line)), asked, said


def rounds_of(rule, limit):
    return next((r for r in range(1, limit + 1) if rule.over(r, None)), limit)


@pytest.mark.parametrize(
    ("hits", "wait", "stops"),
    [
        ([10, 20, 30, 30, 30], 2, 25),  # the same again is no rise
        ([10, 9, 8], 2, 15),
        ([10, 9, 11, 8, 10, 11], 3, 30),  # 11 is the best from the third on: three that do not rise
        ([10, 9, 11, 12, 13, 14, 15, 16], 2, 40),  # the limit
    ],
)
def test_stops_when_the_best_has_not_risen_for_so_long(hits, wait, stops, monkeypatch):
    rule, asked, _ = judging(monkeypatch, hits, rounds=40, patience=wait, judge_every=5)
    assert rounds_of(rule, 40) == stops
    assert rule.judged == [{"round": 5 * i + 5, "recall": hits[i] / 2} for i in range(len(hits))]
    assert set(asked) == {((), "validation")}


@given(st.lists(st.integers(0, 6), min_size=12, max_size=12), st.integers(1, 4))
def test_all_that_follows_the_best_is_no_better_and_no_longer_than_patience(hits, wait):
    with pytest.MonkeyPatch.context() as patch:
        rule, _, _ = judging(patch, hits, rounds=12, patience=wait, judge_every=1)
        stops = rounds_of(rule, 12)
    seen = hits[:stops]
    after = len(seen) - 1 - seen.index(max(seen))
    assert after == wait or (stops == 12 and after < wait)
    for n in range(1, stops):  # not before
        assert n - 1 - hits[:n].index(max(hits[:n])) < wait


def test_the_last_round_is_judged_and_the_limit_said_once(monkeypatch):
    rule, _, said = judging(monkeypatch, [10, 20, 30], rounds=12, patience=1, judge_every=5)
    assert rounds_of(rule, 12) == 12
    assert [j["round"] for j in rule.judged] == [5, 10, 12]
    assert said[2] == (
        "[learn 12/12] R@1 of all own pairs 15.0: learning stops at learn.rounds=12 before it has stopped rising; "
        "the best is 15.0 of round 12: raise learn.rounds"
    )


def test_without_patience_nothing_is_judged(monkeypatch):
    rule, asked, said = judging(monkeypatch, [], rounds=8)
    assert rounds_of(rule, 8) == 8
    assert not asked
    assert not said


def test_stops_early_and_the_references_take_as_many_rounds(tmp_path, monkeypatch):
    more = {"evaluation.reference": "retrain", "evaluation.references": 2, "continuation.rounds": 0}
    folder, results = played(tmp_path, monkeypatch, **STILL, **more)
    assert results["learning"]["rounds"] == 9
    assert [j["round"] for j in results["learning"]["judged"]] == [3, 6, 9]
    assert {p: c["rounds"] for p, c in results["cost"].items()} == {"learn": 9, "retrain": 9, "retrain_2": 9, "unlearn": 2}
    assert log(folder).count("[learn 9/30] R@1 of all own pairs") == 1
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    equal = [e["rounds_in_all"] for e in events if e.get("model") == "retrain_equal" and "answered" in e]
    assert equal == [10, 11]  # as many in all as *unlearned* has had
    assert [e["own_pairs"] for e in events if "own_pairs" in e] == [j["recall"] for j in results["learning"]["judged"]]
    # another run takes it from the cache, with what was judged; with another patience it learns by itself
    for change, cached in (({}, True), ({"learn.patience": 1}, False)):
        again = tmp_path / f"again {cached}"
        submit({**settings(again, **(STILL | change)), "until": "learn"})
        assert ("[learn] from the cache: 9 rounds" in log(again)) == cached
        assert json.loads((again / "results.json").read_text())["learning"]["rounds"] == (9 if cached else 6)


@pytest.mark.slow
def test_retraining_as_a_method_takes_as_many_rounds_where_it_is_not_told_otherwise(home):
    values = {k: v for k, v in {**TINY, **STILL}.items() if not k.startswith("strategy.")}
    for own, expected in (("", 9), (" strategy.rounds=1", 1)):
        folder = home / f"retrain {expected}"
        told = " ".join(f"{k}={v}" for k, v in values.items()) + own
        submit({**RUN_CONFIG, "strategy": "retrain", "run-dir": str(folder), "set": told})
        results = json.loads((folder / "results.json").read_text())
        assert (results["requests"][0]["rounds"], results["cost"]["unlearn"]["rounds"]) == (expected, expected)
        assert f"[forget {expected}/{expected}]" in log(folder)


def test_what_is_judged_last_is_what_learning_ends_with(home):
    submit({**settings(home / "end", **MOVING), "until": "learn"})
    events = [json.loads(line) for line in (home / "end" / "metrics.jsonl").read_text().splitlines()]
    (end,) = (e for e in events if "validation" in e)
    judged = json.loads((home / "end" / "results.json").read_text())["learning"]["judged"]
    assert (end["round"], end["validation"]["retain"]) == (judged[-1]["round"], judged[-1]["recall"])


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("moment", [6, 9])
def test_a_killed_run_stops_at_the_same_round(tmp_path, monkeypatch, moment):
    whole, results = played(tmp_path, monkeypatch, **MOVING)
    recall = [j["recall"] for j in results["learning"]["judged"]]
    assert results["learning"]["rounds"] == len(recall) > 3
    assert all(a < b for a, b in pairwise(recall[:-1]))  # it rose until then
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "another"))  # no cache
    run = tmp_path / "killed"
    assert die(settings(run, **MOVING), moment)
    launcher.resume(run, SIMULATION)
    assert "[learn] goes on after" in log(run)
    assert json.loads((run / "results.json").read_text())["learning"] == results["learning"]
    assert hashes(run) == hashes(whole)


def test_a_client_that_does_not_judge_is_a_failure_of_the_phase(monkeypatch):
    rule, _, _ = judging(monkeypatch, [10], rounds=8, patience=1, judge_every=8)
    rule.federation.clients = ("a", "b")
    assert rounds_of(rule, 8) == 8
    assert rule.failures == [{"phase": "learn", "round": 8, "client": "b", "why": "did not judge"}]


@pytest.mark.parametrize("wrong", ["patience=-1", "judge_every=0", "patience=soon"])
def test_wrong_values_are_said_in_one_line(wrong):
    key, _, value = wrong.partition("=")
    with pytest.raises(ConfigError, match=rf"learn.{key}='?{value}'?: ") as said:
        small_experiment(**{f"learn.{key}": value})
    assert "\n" not in str(said.value)
