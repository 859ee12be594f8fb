"""Intervals over members: by hand, against other libraries, and that they cover what they say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.metrics import roc_auc_score

from ease_flwr.audit import intervals
from ease_flwr.audit.intervals import Estimate, Measure, auc, compared, drawn, kolmogorov_smirnov, members, student

scores = hnp.arrays(np.float64, st.integers(2, 30), elements=st.integers(-3, 3).map(float))


def alone(*sides):
    """Labels of pairs that stand by themselves."""
    return tuple(np.full(len(side), -1.0) for side in sides)


@given(scores, scores)
def test_auc_is_that_of_scikit_learn(a, b):
    truth = np.repeat([1, 0], [len(a), len(b)])
    assert auc(a, b, alone(a, b)).value == pytest.approx(roc_auc_score(truth, np.concatenate([a, b])))


@given(scores, scores)
def test_distance_of_distributions_is_that_of_scipy(a, b):
    assert kolmogorov_smirnov(a, b) == pytest.approx(stats.ks_2samp(a, b, method="asymp").statistic)


def test_students_t_is_that_of_scipy():
    for freedom in (1, 2, 3, 4, 7, 20, 1000):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


def test_pairs_without_a_label_are_members_by_themselves():
    assert members(np.array([5.0, -1, 9, 5, -1])).tolist() == [0, 2, 1, 0, 3]
    assert members(np.array([-1.0, -1])).tolist() == [0, 1]


def test_draws_are_of_members_and_come_with_all_their_queries():
    """By hand: two members with one and three queries. A draw has the first twice, both, or the second twice."""
    found = intervals.mean(np.array([8.0, 1, 2, 3]), np.array([0, 1, 1, 1]))
    assert found.value == 3.5
    assert set(found.draws.tolist()) == {8, 3.5, 2}
    w = drawn(2)
    assert (w.sum(1) == 2).all()
    assert found.draws[(w[:, 0] == 1).argmax()] == 3.5


def test_recall_is_the_mean_of_both_directions_in_every_draw():
    """A picture with five captions counts as one image query and five text queries."""
    member = np.array([0, 1])
    found = intervals.share_of([np.array([1, 0]), np.array([1] * 4 + [0] * 6)], [member, member.repeat(5)])
    assert found.value == pytest.approx((50 + 40) / 2)
    assert set(found.draws.tolist()) == {90, 45, 0}
    assert found.query == 25  # an image query of two, half of the mean


def test_medians_and_correlations_of_draws_are_those_of_numpy():
    rng = np.random.default_rng(1)
    a, b, member = rng.integers(1, 9, 12).astype(float), rng.normal(size=12), np.arange(12) // 3
    median, correlation = intervals.median(a, member), intervals.correlation(a, b, member)
    assert (median.value, correlation.value) == (np.median(a), pytest.approx(np.corrcoef(a, b)[0, 1]))
    for i, weights in enumerate(drawn(4)[:50]):
        chosen = np.repeat(np.arange(12), weights[member].astype(int))
        assert median.draws[i] == np.median(a[chosen])
        assert correlation.draws[i] == pytest.approx(np.corrcoef(a[chosen], b[chosen])[0, 1])


def test_auc_of_draws_takes_a_label_on_both_sides_together():
    rng = np.random.default_rng(2)
    inside, outside = rng.normal(size=9), rng.normal(size=8)
    labels = np.arange(9.0) // 3, np.array([0.0, 0, 1, 1, 2, 2, 7, -1])
    found = auc(inside, outside, labels)
    other = drawn(2, seed=2)  # 7, and the pair that stands by itself
    for i, weights in enumerate(drawn(3)[:50]):
        a = np.repeat(inside, weights[labels[0].astype(int)].astype(int))
        b = np.repeat(outside, np.concatenate([weights[[0, 0, 1, 1, 2, 2]], other[i]]).astype(int))
        truth = np.repeat([1, 0], [len(a), len(b)])
        assert found.draws[i] == pytest.approx(roc_auc_score(truth, np.concatenate([a, b])))


def test_orders_of_batches_are_drawn_beside_members():
    of = np.full((3, 2), 10.0)
    by_order = np.array([0.0, 2, 4, 10])[:, None, None] * np.ones((4, 3, 2))  # members agree, orders do not
    found = intervals.shares_of_batches(by_order, of)
    assert found.value == 40
    # `compared` stretches by three members: four orders are stretched less
    spread = np.std([0, 20, 40, 100]) / 2 * (student(3) * (4 / 3) ** 0.5) / (student(2) * (3 / 2) ** 0.5)
    assert found.draws.std() == pytest.approx(spread, rel=0.1)
    assert found.units == 3
    hits = np.array([0.0, 2, 10])  # orders agree, members do not
    apart = intervals.shares_of_batches(hits[:, None] * np.ones((4, 3, 2)), of)
    assert apart.draws.tolist() == intervals.shares([hits, hits], [of[:, 0], of[:, 0]]).draws.tolist()
    same = intervals.shares_of_batches(np.full((4, 3, 2), 5.0), of)
    assert set(same.draws.round(6).tolist()) == {50}
    one = intervals.shares_of_batches(by_order[:, :1], of[:1])
    assert (one.value, one.draws) == (40, None)


def test_the_difference_is_paired():
    """Members differ by much, two models on each by the same: the difference is sure, the value is not."""
    rng = np.random.default_rng(0)
    level = rng.normal(50, 20, 30)
    ours, theirs = (intervals.mean(level + shift, np.arange(30)) for shift in (3.0, 0.0))
    found = compared(ours, [theirs])
    assert found.high - found.low > 10
    assert (found.gap, found.gap_low, found.gap_high) == pytest.approx((3, 3, 3))
    both = compared(ours, [theirs, ours])
    assert both.gap == pytest.approx(1.5)


def test_one_member_has_no_interval_and_zero_width_is_no_certainty():
    one = compared(Estimate(40.0, query=2.0), [Estimate(30.0, query=2.0)])
    assert one.gap == 10
    assert np.isnan([one.low, one.high, one.gap_low, one.gap_high]).all()
    assert np.isnan(one.with_noise(1.0, 3).gap_low)
    nobody = intervals.share_of([np.zeros(20)], [np.arange(20) // 5])
    found = compared(nobody, [nobody])
    assert (found.value, found.gap) == (0, 0)
    assert (found.gap_low, found.gap_high) == (-5, 5)  # one query of twenty
    known = found.with_noise(10.0, 3)
    assert (known.gap_low, known.gap_high, known.noise, known.cells) == (-19.6, 19.6, 10, 3)
    wide = Measure(50, 10, 90, 0, -40, 40).with_noise(1.0, 3)
    assert (wide.gap_low, wide.gap_high) == (-40, 40)


def test_intervals_end_where_there_is_nothing_beyond():
    far = {"low": -400.0, "high": 400.0, "gap": 0.0, "gap_low": -400.0, "gap_high": 400.0}
    for key, ends, most in (
        ("r1.forget", (0, 100), 100),
        ("membership.cosine", (0, 1), 1),
        ("correlation.retain", (-1, 1), 2),
        ("wording.test", (0, 50), 50),
        ("distance.forget", (0, 2), 2),
        ("median_rank.test", (1, 400), 400),
        ("drift", (-400, 400), 400),
    ):
        value = sum(ends) / 2
        found = intervals.possible(key, Measure(value, **far))
        assert (found.value, found.low, found.high) == (value, *ends), key
        assert (found.gap_low, found.gap_high) == (-most, most), key
    area = intervals.possible("relearn.area", Measure(-3, -150, 120, -3, -150, 120))
    assert (area.low, area.high, area.gap_low, area.gap_high) == (-100, 100, -100, 100)
    none = intervals.possible("r1.forget", Measure(50))
    assert np.isnan([none.low, none.high, none.gap_low, none.gap_high]).all()


def test_more_hits_than_queries_are_refused():
    with pytest.raises(ValueError, match="7 hits of 5 queries: more than 100 %"):
        intervals.shares([np.array([1.0, 7])], [np.array([5.0, 5])])


@pytest.mark.parametrize("count", [5, 20])
def test_intervals_cover_the_truth_where_members_differ(count):
    """Sixty queries about each of five members: a member's own level decides most of them. Of 95 % intervals over members
    about that many hold the truth; intervals that take queries for independent hold it half as often."""
    rng = np.random.default_rng(count)
    member, truth, trials = np.repeat(np.arange(count), 60), 50.0, 300
    held = naive = 0
    for _ in range(trials):
        level = np.clip(rng.normal(0.5, 0.15, count), 0.05, 0.95)
        hit = rng.random(len(member)) < level[member]
        found = compared(intervals.share_of([hit], [member]))
        held += found.low <= truth <= found.high
        error = 1.96 * 100 * (hit.mean() * (1 - hit.mean()) / len(hit)) ** 0.5
        naive += abs(100 * hit.mean() - truth) <= error
    assert 0.91 <= held / trials <= 0.99
    assert naive / trials < 0.75
