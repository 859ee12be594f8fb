"""The loop over rounds, with a federation that only counts."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ease_flwr.core.config import Experiment, FederationConfig, ForgetConfig, TrainConfig
from ease_flwr.core.federation import Request
from ease_flwr.core.history import History
from ease_flwr.core.lock import ForgetLock
from strategies.base import Setting, Unlearning


class Counting:
    """Two clients of 30 and 10 examples that move by +1 and +5 in every round."""

    def __init__(self):
        self.firsts = []

    def train(self, theta, requests, cost, told, before):
        self.firsts.append(not told)
        told |= set(requests)
        cost.rounds += 1
        moves = {"a": (30, 1), "b": (10, 5)}
        return {n: SimpleNamespace(examples=k, adapters=theta + np.float32(d), metrics={}) for n, (k, d) in moves.items()}


def strategy(average, lock=None):
    experiment = Experiment(forget=ForgetConfig(targets=("client-0",)), learn=TrainConfig(average=average))
    unlearning = Unlearning(Setting(experiment, Counting(), np.zeros(2, np.float32), (), ("a", "b")), Unlearning.Params(), lock)
    unlearning.mean = lambda updates: sum(u.examples * u.adapters for u in updates.values()) / 40  # +2 a round
    return unlearning


@pytest.mark.parametrize(("average", "end"), [(1, 6.0), (2, 5.0), (9, 4.0)])
def test_a_phase_ends_with_the_mean_of_its_last_rounds(average, end):
    seen = []
    theta, cost = strategy(average).run("learn", np.zeros(2, np.float32), 3, lambda p: seen.append((p.round, p.theta[0])))
    assert theta.tolist() == [end, end]  # the rounds end at 2, 4, 6
    assert theta.dtype == np.float32
    assert seen == [(1, 2.0), (2, 4.0), (3, end)]
    assert cost.rounds == 3


def test_half_precision_loses_nothing_over_the_rounds():
    """float16 has steps of .00098 above 1: without what rounding leaves over, moves of .0002 would never arrive."""
    unlearning = strategy(1)
    unlearning.setting = replace(
        unlearning.setting, experiment=Experiment(learn=TrainConfig(average=1), federation=FederationConfig(half=True))
    )
    unlearning.mean = lambda updates: updates["a"].adapters - np.float32(0.9998)  # + .0002 a round
    sent = []
    theta, _ = unlearning.run("learn", np.ones(2, np.float32), 100, lambda p: sent.append(p.before))
    assert all(np.array_equal(s, s.astype(np.float16)) for s in sent)
    assert sent[-1][0] == pytest.approx(1 + 99 * 0.0002, abs=0.001)
    assert theta[0] + unlearning.left[0] == pytest.approx(1.02, abs=1e-5)


def test_history_holds_weighted_updates_that_add_up(tmp_path):
    history = History(tmp_path)
    unlearning = strategy(1)
    theta, _ = unlearning.run("learn", np.zeros(2, np.float32), 3, lambda p: None, first=5, history=history)
    columns = [history.columns(n) for n in ("a", "b")]
    assert columns[0][0].tolist() == [0.75, 0.75, 0.75]
    assert columns[1][0].tolist() == [1.25, 1.25, 1.25]
    assert np.allclose(sum(c.sum(1) for c in columns), theta)
    assert unlearning.setting.federation.firsts == [True, False, False]


def test_lock_travels_in_the_hold_phase_only_and_holds_on_the_server_always():
    lock = ForgetLock.around(torch.zeros(2), [0], [torch.tensor([[1.0], [0.0]])], 3.0)
    unlearning = strategy(1, lock)
    assert unlearning.run("hold", np.zeros(2, np.float32), 2, lambda p: None)[0].tolist() == [0, 4]
    hold, forget = unlearning.instruct("hold", 1)["a"], unlearning.instruct("forget", 1)["a"]
    assert len(hold.instruction.lock) == 64
    assert list(hold.once) == ["lock"]
    assert forget.instruction.lock == ""
    assert not forget.once


def test_only_the_first_client_meets_returning_pairs():
    unlearning = strategy(1)
    unlearning.overlap = 7
    requests = unlearning.instruct("hold", 1)
    assert [requests[n].instruction.overlap for n in ("a", "b")] == [7, 0]


def test_a_share_of_the_clients_takes_part_and_the_identity_still_holds(tmp_path):
    """theta_T - theta_0 is the sum of all recorded columns, whoever took part in which round."""

    class Sampled(Counting):
        def train(self, theta, requests, cost, told, before):
            self.seen = [*getattr(self, "seen", []), tuple(requests)]
            cost.rounds += 1
            rng = np.random.default_rng(len(self.seen))
            names = list(requests)[: 1 + len(self.seen) % 2]  # one client of two drops out in every second round
            return {
                n: SimpleNamespace(examples=3 + i, adapters=theta + rng.standard_normal(2).astype(np.float32), metrics={})
                for i, n in enumerate(names)
            }

    history, names = History(tmp_path), tuple("abcd")
    experiment = Experiment(learn=TrainConfig(average=1, fraction=0.5))
    unlearning = Unlearning(Setting(experiment, Sampled(), np.zeros(2, np.float32), (), names), Unlearning.Params())

    def mean(updates):
        total = sum(u.examples for u in updates.values())
        return sum(np.float32(u.examples / total) * u.adapters for u in updates.values())

    unlearning.mean = mean
    theta, _ = unlearning.run("learn", np.zeros(2, np.float32), 12, lambda p: None, history=history)
    seen = unlearning.setting.federation.seen
    assert all(len(s) == 2 for s in seen)
    assert len(set(seen)) > 2
    took_part = [n for n in names if (tmp_path / n).exists()]
    assert np.allclose(sum(history.columns(n).sum(1) for n in took_part), theta, atol=1e-5)


def test_who_has_a_special_job_is_asked_in_every_round():
    unlearning = strategy(1)
    object.__setattr__(unlearning.setting, "experiment", Experiment(learn=TrainConfig(fraction=0.1)))
    requests = unlearning.instruct("forget", 1)
    job = requests["b"].instruction.model_copy(update={"objective": "bilateral"})
    requests["b"] = Request(job)
    assert list(unlearning.drawn(requests, "forget")) == ["a", "b"]
    requests["a"] = Request(requests["a"].instruction.model_copy(update={"beside": job}))
    assert list(unlearning.drawn(requests, "forget")) == ["a", "b"]
    assert len(unlearning.drawn(unlearning.instruct("forget", 1), "forget")) == 1


def test_a_released_lock_holds_nothing_more():
    lock = ForgetLock.around(torch.zeros(2), [0], [torch.tensor([[1.0], [0.0]])], 3.0, 1.0, 0, 2)
    end = strategy(1, lock).run("hold", np.zeros(2, np.float32), 3, lambda p: None)[0]
    assert end.tolist() == [2, 6]  # held in rounds 1 and 2, free in round 3
