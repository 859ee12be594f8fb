"""How much one client weighs and moves: numbers by hand, and laws for whatever it sends."""

import numpy as np
import pytest
from ease_flwr.strategies.ordinary import Learning
from hypothesis import given
from hypothesis import strategies as st

from ease_flwr.config import ForgetSet, TrainConfig
from ease_flwr.exchange.answers import Update
from ease_flwr.exchange.bounds import Usual, in_proportion, most_pairs
from ease_flwr.exchange.messages import Forget, Learn
from ease_flwr.exchange.rounds import Plan
from tests.server_half import Clients, context, run, update

THETA = np.array([1, 0], np.float32)
LEARN = Learn(phase="learn", round=1, train=TrainConfig())
GONE = ForgetSet(scenario="class", targets=("x",))
FORGET = Forget(phase="learn", round=1, train=TrainConfig(), objective="npo", forget=GONE)


def moved(*lengths, step=None):
    """Clients a, b, ... that moved so far along the second axis."""
    return {
        name: Update(name, THETA + np.array([0, far], np.float32), step, {"num-examples": 1})
        for name, far in zip("abcdefgh", lengths, strict=False)
    }


def bounded(updates, usual=0.0, job=LEARN):
    """Twenty times as long as is usual, which all of them are asked."""
    return in_proportion(THETA, updates, dict.fromkeys(updates, job), 20.0, {"contrastive": usual} if usual else {})


def lengths(found):
    return [float(np.linalg.norm(u.adapters - THETA)) for u in found.values()]


@pytest.mark.parametrize(
    ("pairs", "most"),
    [((100, 100, 100), 2000), ((10, 2**62), 200), ((2**62,), 20 * 2**62), ((5, 0, 0, 2**40), 100), ((0, 0), 0), ((), 0)],
)
def test_pairs_count_up_to_a_multiple_of_the_median(pairs, most):
    assert most_pairs(pairs, 20.0) == most


def test_two_answers_are_set_beside_earlier_rounds():
    found, said = bounded(moved(1, 50), usual=2.0)
    assert lengths(found) == [1, 2]
    assert said == {"b": "update of norm 50 cut to 2, which is usual (federation.norm_bound)"}


def test_one_answer_of_the_first_round_is_set_beside_the_adapters():
    assert lengths(bounded(moved(1.9))[0]) == [np.float32(1.9)]
    assert lengths(bounded(moved(2.1))[0]) == pytest.approx([0.1])


def test_another_objective_has_another_length():
    """Directions, or steps at a rate of their own, are not set beside what learning was like."""
    assert bounded(moved(18, 18, 18), usual=0.1, job=FORGET)[1] == {}
    assert bounded(moved(1.5), usual=0.01, job=FORGET)[1] == {}
    alone = LEARN.model_copy(update={"only": (GONE,)})
    assert bounded(moved(1.5), usual=0.01, job=alone)[1] == {}
    both = LEARN.model_copy(update={"beside": FORGET})
    found, said = bounded(moved(0.1, step=np.array([0, 1.5], np.float32)), usual=0.01, job=both)
    assert said == {}
    assert found["a"].step.tolist() == [0, 1.5]


def test_a_median_of_nothing_sets_no_bound_of_its_own():
    found, said = bounded(moved(0, 0, 0, 30), usual=1.0)
    assert lengths(found) == [0, 0, 0, 1]
    assert list(said) == ["d"]


def test_a_median_that_most_clients_have_lifted_is_not_believed():
    found, said = bounded(moved(1, 1000, 1000), usual=1.0)
    assert lengths(found) == [1, 1, 1]
    assert sorted(said) == ["b", "c"]


def test_steps_that_are_added_are_bounded_as_well():
    long = np.array([30, 40], np.float32)
    found, said = bounded(moved(1, step=long), usual=1.0, job=LEARN.model_copy(update={"beside": FORGET}))
    assert found["a"].step.tolist() == pytest.approx([0.06, 0.08])  # a tenth of the length of the adapters
    assert lengths(found) == [1]  # the other half stays as it was
    assert list(said) == ["a"]


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8),
    st.floats(0, 1e6, width=32),
    st.floats(1.5, 100),
)
def test_no_update_is_longer_than_it_may_and_whatever_is_usual_stays(far, usual, times):
    before = moved(*far)
    after, said = in_proportion(THETA, before, dict.fromkeys(before, LEARN), times, {"contrastive": usual} if usual else {})
    assert list(after) == list(before)
    middle = float(np.median(np.abs(far)))
    limit = times * times * usual if usual else max(2.0, times * middle)  # of a median that is itself just in proportion
    for name in before:
        assert np.isfinite(after[name].adapters).all()
        assert (after[name] is before[name]) == (name not in said)
        assert np.linalg.norm(after[name].adapters.astype(np.float64) - THETA) <= limit * (1 + 1e-4) + 1e-3


def test_what_is_usual_is_the_median_of_the_rounds():
    usual = Usual({"contrastive": 7.0, "npo": 2.0})
    assert usual.lengths == {"contrastive": 7, "npo": 2}
    for far in (1, 5, 3):
        found = moved(far, far, far + 100)
        usual.add(THETA, found, dict.fromkeys(found, LEARN))
    usual.add(THETA, {}, {})
    assert usual.lengths == {"contrastive": 3, "npo": 2}


def test_rounds_tell_the_next_one_what_is_usual(monkeypatch):
    clients = Clients(lambda theta, requests: {n: update(n, theta + np.float32(3)) for n in requests})
    method = Learning(context(np.zeros(4), forget=None))
    found = run(monkeypatch, clients, method, [0, 0, 0, 0], Plan("learn", 3, usual={"contrastive": 0.5}))
    assert clients.usual == [{"contrastive": 0.5}, {"contrastive": 6}, {"contrastive": 6}]
    assert found.usual == {"contrastive": 6}
