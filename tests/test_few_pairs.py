"""What a server can learn of single pairs of a host: each attack is a test."""

import json

import numpy as np
import pytest
from ease_flwr.clients.base import LoraClient

from ease_flwr.client_app import on_host
from ease_flwr.config import ForgetSet, from_run_config
from ease_flwr.data import folder as hosts_data
from ease_flwr.exchange.messages import Evaluate, Forget, Hello, Returning
from tests.hosts import run_config
from tests.test_owner import PLAN, ask, host, learn, log, theta, told

__all__ = ["host", "theta"]


def test_two_chosen_pairs_are_not_returned_alone(host, theta):
    two = ForgetSet(scenario="sample", targets=tuple(f"north/{i}" for i, _ in host.ids[:2]))
    for job in (
        Forget(phase="forget", round=1, train=PLAN, objective="ascent", options={"bound": 0.0}, forget=two),
        learn(only=(two,)),
        learn(without=(ForgetSet(scenario="sample", targets=tuple(f"north/{i}" for i, _ in host.ids[2:])),)),
    ):
        line = "host north refuses: smallest-set: 4 pairs at least, and this is about fewer"
        assert told(ask(host, job, {"adapters": theta})) == line
        assert log(host)[-1]["refused"] == line
    host.allow(smallest_set=2)
    assert not ask(host, learn(only=(two,)), {"adapters": theta}).has_error()


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("multidelete", {"decouple": 0.0, "fused": 1.0, "single": 0.0}),
        ("cliperase", {"forgetting": 0.0, "retention": 1.0, "consistency": 0.0}),
    ],
)
def test_a_pair_that_stays_is_not_trained_on_alone(host, theta, objective, options):
    """All pairs but one are to be forgotten, and the loss is about what stays."""
    rest = ForgetSet(scenario="sample", targets=tuple(f"north/{i}" for i, _ in host.ids[1:]))
    job = Forget(phase="forget", round=1, train=PLAN, objective=objective, options=options, forget=rest)
    line = "host north refuses: smallest-set: 4 pairs at least, and this is about fewer"
    for asked in (job, learn(beside=job)):
        assert told(ask(host, asked, {"adapters": theta, "request": theta})) == line


def test_a_host_that_leaves_with_all_it_has_may_help(host, theta):
    everything = ForgetSet(scenario="client", targets=("north",))
    job = Forget(phase="forget", round=1, train=PLAN, objective="ascent", options={"bound": 0.0}, forget=everything)
    assert not ask(host, job, {"adapters": theta}).has_error()


@pytest.mark.parametrize("pair", ["0:100000", ":", "3", "0:9:2"])
def test_nobody_counts_through_the_pairs_of_a_host(host, theta, pair):
    """A roll call was told the ids of all."""
    by_position = ForgetSet(scenario="sample", targets=(f"north/{pair}",))
    line = f"north/{pair}: a host knows its pairs by their names and ids (`ease data ids`), not by positions"
    answer = json.loads(ask(host, Hello(forget=(by_position,))).content["answer"]["json"])
    assert (answer["ids"], answer["forget"], answer["refused"]) == ([[]], [0], [line])
    assert told(ask(host, Hello(forget=(by_position,), served=1))) == line
    assert told(ask(host, learn(without=(by_position,)), {"adapters": theta})) == line
    assert told(ask(host, Evaluate(forget=(by_position,)), {"now": theta})) == line
    row = host.train[0]
    for name in (row[0], host.id(row), host.picture(row)):
        named = ForgetSet(scenario="sample", targets=(f"north/{name}",))
        answer = json.loads(ask(host, Hello(forget=(named,))).content["answer"]["json"])
        assert answer["ids"] == [[host.id(row), host.picture(row)] if name != host.picture(row) else []]


SIMULATED = {"data.kind": "photographs", "data.partition": "iid", "data.names": "north,b", "data.clients": 2}
"""A run config that would have a host's data dealt out like those of a simulation."""
DEALT = "host north refuses: data.kind=photographs is for simulations, hosts take folder and personas"


def test_one_chosen_pair_does_not_come_back_as_a_returning_one(host, theta):
    """Nothing of the host's stays, and the one pair that is named returns: its update would be about that pair alone."""
    everybody = ForgetSet(scenario="client", targets=("north", "b"))
    for pair, _ in host.ids:
        one = ForgetSet(scenario="sample", targets=(f"north/{pair}",))
        job = learn(without=(everybody,), returning=Returning(about=(one,), count=1))
        assert told(ask(host, job, {"adapters": theta}, **SIMULATED)) == DEALT
        assert "none are drawn" in told(ask(host, job, {"adapters": theta}, **{"data.names": "north,b"}))


def test_what_was_withdrawn_stays_out_whatever_data_the_run_config_names(host):
    """Pairs of a simulation know no withdrawals: the pair would be trained on again."""
    gone = ForgetSet(scenario="sample", targets=(f"north/{host.ids[0][0]}",))
    assert not ask(host, Hello(forget=(gone,), served=1)).has_error()
    assert told(ask(host, Hello(), **SIMULATED)) == DEALT
    here = json.loads(ask(host, Hello()).content["answer"]["json"])
    assert (here["pairs"], here["barred"]) == (len(host.train) - 1, 1)


def test_hits_of_a_small_set_are_numbers_about_single_pairs(host, theta):
    one, all_but_one = (
        ForgetSet(scenario="sample", targets=tuple(f"north/{i}" for i, _ in ids)) for ids in (host.ids[:1], host.ids[1:])
    )
    assert not ask(host, Evaluate(forget=(one,)), {"now": theta}).has_error()
    host.allow(scores=False)
    line = "host north refuses: smallest-set: 4 pairs at least, and this is about fewer"
    for forget in (one, all_but_one):
        assert told(ask(host, Evaluate(forget=(forget,)), {"now": theta})) == line
        assert told(ask(host, learn(before=Evaluate(forget=(forget,))), {"adapters": theta})) == line
    world = on_host(from_run_config(run_config("/x"))[0], host.node)
    validated = hosts_data.load(world.data, world.seed).chosen_on
    for split, few in (("validation", validated), ("test", ~validated)):
        some = [*np.flatnonzero(few)[:1], *np.flatnonzero(~few)[:3]]  # four pairs, of which this split judges one
        four = ForgetSet(scenario="sample", targets=tuple(f"north/{host.ids[i][0]}" for i in some))
        assert told(ask(host, Evaluate(forget=(four,), split=split), {"now": theta})) == line
    assert not ask(host, Evaluate(), {"now": theta}).has_error()
    assert not ask(host, learn(before=Evaluate()), {"adapters": theta}).has_error()


@pytest.mark.parametrize("batch", [4, 6, 8, 11])
def test_no_step_is_about_fewer_pairs_than_the_owner_allows(host, theta, batch, monkeypatch):
    """The last batch of an epoch may be half of one."""
    steps = []
    batches = LoraClient._batches

    def noted(client, *how):
        found = batches(client, *how)
        steps.extend(len(b.index) for b in found)
        return found

    monkeypatch.setattr(LoraClient, "_batches", noted)
    plan = PLAN.model_copy(update={"batch": batch})
    for count in range(4, len(host.ids) + 1):
        some = ForgetSet(scenario="sample", targets=tuple(f"north/{i}" for i, _ in host.ids[:count]))
        done = ask(host, learn(train=plan, only=(some,)), {"adapters": theta})
        assert done.has_error() == (batch < 8)
    assert min(steps, default=4) >= 4
