"""The loop over rounds, and ordinary learning in it, with clients that only count."""

import numpy as np
import pytest
import torch
from ease_flwr.strategies.base import Method
from ease_flwr.strategies.ordinary import Continuing, Learning

from ease_flwr.config import ConfigError, Experiment, FederationConfig, ForgetSet, TrainConfig
from ease_flwr.exchange.federation import Request
from ease_flwr.exchange.messages import Returning
from ease_flwr.exchange.rounds import Plan, drawn, sendable
from ease_flwr.model.lock import ForgetLock
from ease_flwr.store.history import History
from tests.server_half import LEAVES, Clients, context, run, update


def counting(theta, requests):
    """Two clients of 30 and 10 examples that move by +1 and +5 in every round: +2 on average."""
    return {n: update(n, theta + np.float32(d), k) for n, k, d in (("a", 30, 1), ("b", 10, 5))}


def ordinary(clients=("a", "b"), kind=Method, experiment=None, phase="learn", **learn):
    experiment = experiment or Experiment(learn=TrainConfig(**{"average": 1, **learn}))
    who = context(np.zeros(2), forget=None, experiment=experiment, clients=clients, forget_clients=(), phase=phase)
    return kind(who, Method.Params(rounds=20)) if kind is Method else kind(who)


def continuing(lock=None, returning=None):
    return Continuing(ordinary(phase="continuation").context, lock, returning)


def lock(*rules):
    """The first of two numbers is to stay where it is."""
    return ForgetLock.around(torch.zeros(2), [0], [torch.tensor([[1.0], [0.0]])], *rules)


@pytest.mark.parametrize(("average", "end"), [(1, 6.0), (2, 5.0), (9, 4.0)])
def test_a_phase_ends_with_the_mean_of_its_last_rounds(average, end, monkeypatch):
    seen = []
    plan = Plan("learn", 3, report=lambda p: seen.append((p.round, p.theta[0])))
    found = run(monkeypatch, Clients(counting), ordinary(average=average), [0, 0], plan)
    assert found.theta.tolist() == [end, end]  # the rounds end at 2, 4, 6
    assert found.theta.dtype == np.float32
    assert seen == [(1, 2.0), (2, 4.0), (3, end)]
    assert found.cost.rounds == 3


def test_half_precision_loses_nothing_over_the_rounds(monkeypatch):
    """float16 has steps of .00098 above 1: without what rounding leaves over, moves of .0002 would never arrive."""
    experiment = Experiment(learn=TrainConfig(average=1), federation=FederationConfig(half=True))
    theta, unsent, sent = np.ones(2, np.float32), np.zeros(2, np.float32), []
    for _ in range(100):
        before, unsent = sendable(experiment, theta, unsent)
        sent.append(before)
        theta = before + np.float32(0.0002)
    assert all(np.array_equal(s, s.astype(np.float16)) for s in sent)
    assert sent[-1][0] == pytest.approx(1 + 99 * 0.0002, abs=0.001)
    assert theta[0] + unsent[0] == pytest.approx(1.02, abs=1e-5)
    clients = Clients(lambda theta, requests: {"a": update("a", theta + np.float32(0.0002))})
    found = run(monkeypatch, clients, ordinary(experiment=experiment), [1, 1], Plan("learn", 100))
    assert np.array_equal(found.theta, theta)


def test_history_has_weighted_updates_that_add_up(tmp_path, monkeypatch):
    history, clients = History(tmp_path), Clients(counting)
    theta = run(monkeypatch, clients, ordinary(), [0, 0], Plan("learn", 3, first=5, history=history)).theta
    columns = [history.columns(n) for n in ("a", "b")]
    assert columns[0][0].tolist() == [0.75, 0.75, 0.75]
    assert columns[1][0].tolist() == [1.25, 1.25, 1.25]
    assert np.allclose(sum(c.sum(1) for c in columns), theta)
    assert [bool(n) for n in clients.notified] == [False, True, True]
    assert [asked["a"].round for asked in clients.asked] == [5, 6, 7]


def test_a_lock_travels_in_the_continuation_only_and_binds_on_the_server_always(monkeypatch):
    after = continuing(lock(3.0))
    assert run(monkeypatch, Clients(counting), after, [0, 0], Plan("continuation", 2)).theta.tolist() == [0, 4]
    asked = after.requests(1)["a"]
    assert len(asked.instruction.lock) == 64
    assert list(asked.once) == ["lock"]
    forgetting = Method(after.context, Method.Params(), lock(3.0))
    assert run(monkeypatch, Clients(counting), forgetting, [0, 0], Plan("forget", 2)).theta.tolist() == [0, 4]
    assert forgetting.requests(1)["a"].instruction.lock == ""
    assert not forgetting.requests(1)["a"].once
    assert not continuing(lock(0.0)).requests(1)["a"].once  # without strength it stays on the server


def test_a_released_lock_binds_nothing_more(monkeypatch):
    end = run(monkeypatch, Clients(counting), continuing(lock(3.0, 1.0, 0, 2)), [0, 0], Plan("continuation", 3)).theta
    assert end.tolist() == [2, 6]  # bound in rounds 1 and 2, free in round 3


def test_only_the_first_client_meets_returning_pairs():
    requests = continuing(returning=Returning(about=(LEAVES,), count=7)).requests(1)
    assert [r.instruction.returning and r.instruction.returning.count for r in requests.values()] == [7, None]


def test_a_client_is_told_what_it_leaves_out_and_nothing_else():
    earlier = ForgetSet(scenario="sample", targets=("client-1/3",))
    requests = Method(context(np.zeros(2), without={"client-1": (earlier,)}), Method.Params()).requests(1)
    assert {n: r.instruction.without for n, r in requests.items()} == {"client-1": (earlier,), "client-2": ()}


def test_a_share_of_the_clients_takes_part_and_the_identity_still_holds(tmp_path, monkeypatch):
    """theta_T - theta_0 is the sum of all recorded columns, whoever took part in which round."""

    def some(theta, requests):
        rng = np.random.default_rng(len(clients.asked))
        names = list(requests)[: 1 + len(clients.asked) % 2]  # one client of two drops out in every second round
        return {n: update(n, theta + rng.standard_normal(2).astype(np.float32), 3 + i) for i, n in enumerate(names)}

    history, clients = History(tmp_path), Clients(some)
    theta = run(monkeypatch, clients, ordinary(tuple("abcd"), fraction=0.5), [0, 0], Plan("learn", 12, history=history)).theta
    seen = [tuple(asked) for asked in clients.asked]
    assert all(len(s) == 2 for s in seen)
    assert len(set(seen)) > 2
    took_part = [n for n in "abcd" if (tmp_path / n).exists()]
    assert np.allclose(sum(history.columns(n).sum(1) for n in took_part), theta, atol=1e-5)


def test_who_has_a_special_job_is_asked_in_every_round():
    method = ordinary(fraction=0.1)
    experiment, requests = method.context.experiment, method.requests(1)
    assert len(drawn(experiment, "forget", 1, requests)) == 1
    job = requests["b"].instruction.model_copy(update={"objective": "bilateral"})
    requests["b"] = Request(job)
    assert list(drawn(experiment, "forget", 1, requests)) == ["a", "b"]
    requests["a"] = Request(requests["a"].instruction.model_copy(update={"beside": job}))
    assert list(drawn(experiment, "forget", 1, requests)) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("FedAvg", {}, 2.0),  # (30 * 1 + 10 * 5) / 40
        ("FedProx", {"proximal_mu": 0.1}, 2.0),
        ("FedAvgM", {"server_momentum": 0.5, "server_learning_rate": 0.5}, 1.0),  # first round: half of the mean
        ("FedMedian", {}, 3.0),
        ("FedTrimmedAvg", {"beta": 0.2}, 3.0),
        ("Krum", {"num_malicious_nodes": 0}, 1.0),
    ],
)
def test_flowers_aggregators_by_name(name, options, expected, monkeypatch):
    clients, method = Clients(counting), ordinary(kind=Learning, aggregator=name, aggregator_options=options)
    assert np.allclose(run(monkeypatch, clients, method, [0, 0], Plan("learn", 1)).theta, expected)
    assert clients.asked[0]["a"].proximal == options.get("proximal_mu", 0.0)


def test_adaptive_aggregation_starts_from_the_global_adapters_and_wrong_options_are_said(monkeypatch):
    adaptive = {"kind": Learning, "aggregator": "FedAdam"}
    method = ordinary(("a",), aggregator_options={"eta": 0.1}, **adaptive)
    clients = Clients(lambda theta, requests: {"a": update("a", theta + np.float32(1))})
    assert (run(monkeypatch, clients, method, [1, 1], Plan("learn", 2)).theta > 1.05).all()
    with pytest.raises(ConfigError, match=r"learn.aggregator_options: FedAdam does not take them: .*'speed'"):
        ordinary(("a",), aggregator_options={"speed": 1.0}, **adaptive)
