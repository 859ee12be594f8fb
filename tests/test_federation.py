"""The server's view of its clients: roll call, failures, retries, quorum, bytes. The grid is a fake one."""

import sys

import numpy as np
import pytest
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict

from ease_flwr import config
from ease_flwr.exchange.federation import Federation, Request
from ease_flwr.exchange.messages import Learn, pack
from ease_flwr.exchange.roll_call import Roster, Wanted, roll_call
from ease_flwr.exchange.training import train
from ease_flwr.exchange.transport import FederationError
from tests.in_process_grid import InProcessGrid, at_once
from tests.small import RUN_CONFIG, small_experiment

pytestmark = pytest.mark.usefixtures("still")


def transport(tamper=None, clients=3):
    return at_once(InProcessGrid(clients, RUN_CONFIG, tamper=tamper))


def call(tamper=None, clients=3, leaving=(), **changes):
    """The roll call of these clients: (roster, what each said)."""
    experiment = small_experiment(**changes)
    names = tuple(f"client-{k}" for k in range(experiment.data.clients))
    return roll_call(transport(tamper, clients), experiment, Wanted(names, frozenset(leaving)))


def federation(tamper=None, said=None, **changes):
    """Three clients with a hundred pairs each, without a roll call."""
    names = tuple(f"client-{k}" for k in range(3))
    roster = Roster(names, {n: 100 + k for k, n in enumerate(names)}, dict.fromkeys(names, 100))
    say = (said if said is not None else []).append
    return Federation(transport(tamper), small_experiment(**changes), roster, say)


def instruct(federation, **changes):
    instruction = Learn(phase="learn", round=1, train=federation.experiment.learn, **changes)
    return {name: Request(instruction, once={"extra": np.zeros(10, np.float32)}) for name in federation.clients}


def ask(federation, theta, **how):
    return train(federation, theta, instruct(federation), **how)


def is_hello(reply):
    return reply.has_content() and "answer" in reply.content and "pairs" in reply.content["answer"]["json"][:100]


def fake(adapters, **metrics):
    """A tamper function that answers every training message itself."""

    def tamper(name, reply):
        if is_hello(reply):
            return reply
        values = adapters(name) if callable(adapters) else adapters
        content = {
            "arrays": pack({"adapters": values}),
            "metrics": MetricRecord({"num-examples": 5, "steps": 2, "loss": 1.0, **metrics}),
        }
        reply.__dict__["_content"] = RecordDict(content)
        reply.__dict__["_error"] = None
        return reply

    return tamper


def test_roll_call_gives_names_sizes_and_code():
    found = call()
    roster, present = found.roster, found.said
    assert roster.clients == tuple(present) == ("client-0", "client-1", "client-2")
    assert all(p.code == config.code_hash() and p.pairs == roster.pairs[n] > 0 for n, p in present.items())
    assert not found.missing
    assert not found.strange
    assert roster.nodes == {"client-0": 100, "client-1": 101, "client-2": 102}


@pytest.mark.parametrize("leaving", [(), ("client-0",)], ids=["all", "one leaves"])
def test_too_few_nodes_of_a_simulation_print_the_right_command(monkeypatch, leaving):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/flwr-simulation"])
    with pytest.raises(FederationError) as error:
        call(clients=2, leaving=leaving, **{"federation.start_timeout": 0.1})
    assert str(error.value) == (
        "2 nodes are connected, experiment personas has 3 clients: run "
        '`flwr run . --stream --federation-config "num-supernodes=3 client-resources-num-cpus=1"`'
    )


def test_bytes_steps_and_order():
    f = federation(fake(lambda name: np.full(4, int(name[-1]), np.float32)))
    first = ask(f, np.zeros(4, np.float32))
    assert first.notified == set(f.clients)
    assert list(first.updates) == ["client-0", "client-1", "client-2"]
    assert [u.adapters[0] for u in first.updates.values()] == [0, 1, 2]
    assert (first.cost.rounds, first.cost.client_steps, first.cost.uplink_bytes) == (1, 6, 3 * 16)
    assert first.cost.downlink_bytes == 3 * (16 + 40)
    second = ask(f, np.zeros(4, np.float32), notified=first.notified)
    assert second.cost.downlink_bytes == 3 * 16  # `once` arrays travel once


@pytest.mark.parametrize(
    ("adapters", "why"),
    [
        (np.zeros(3, np.float32), "adapters of shape (3,) and type float32, expected (4,) float32"),
        (np.zeros(4, np.float64), "adapters of shape (4,) and type float64, expected (4,) float32"),
        (np.array([0, 1, np.nan, 0], np.float32), "adapters not finite"),
    ],
)
def test_bad_replies_are_named_asked_again_and_never_averaged(adapters, why):
    good = np.ones(4, np.float32)
    said = []
    f = federation(fake(lambda name: adapters if name == "client-1" else good), said=said, **{"federation.quorum": 0.6})
    found = ask(f, good)
    assert list(found.updates) == ["client-0", "client-2"]
    assert said == [f"client-1 failed, asked again: {why}", f"client-1 failed, left out: {why}"]


def test_bad_example_count_and_key_set():
    f = federation(fake(np.ones(4, np.float32), **{"num-examples": 0}))
    with pytest.raises(FederationError, match=r"0 of 3 clients answered, below the quorum: client-0: num-examples is 0"):
        ask(f, np.zeros(4, np.float32))

    def two_arrays(name, reply):
        reply = fake(np.ones(4, np.float32))(name, reply)
        if "arrays" in reply.content:
            reply.content["more"] = ArrayRecord({"x": pack({"x": np.ones(1)})["x"]})
        return reply

    f = federation(two_arrays)
    with pytest.raises(FederationError, match=r"expected one record of adapters, got \[\['adapters'\], \['x'\]\]"):
        ask(f, np.zeros(4, np.float32))


def test_a_client_that_fails_once_gets_everything_again():
    failed = []

    def tamper(name, reply):
        if name == "client-2" and "query" not in str(reply.metadata.message_type) and not failed:
            failed.append(name)
            return Message(Error(code=2, reason="forget lock is missing here"), reply_to=f.transport.grid.sent[-1])
        return fake(np.ones(4, np.float32))(name, reply)

    said = []
    f = federation(tamper, said=said)
    # the error's reply_to is the last message sent, client-2's
    found = ask(f, np.zeros(4, np.float32), notified=frozenset(f.clients))
    assert list(found.updates) == ["client-0", "client-1", "client-2"]
    assert said == ["client-2 failed, asked again: client raised: forget lock is missing here"]
    assert found.cost.downlink_bytes == 3 * 16 + (16 + 40)
    assert [x["client"] for x in found.failures] == ["client-2"]


def test_a_lost_answer_stops_the_run_below_quorum():
    def tamper(name, reply):
        return (
            None
            if name == "client-0" and "query" not in str(reply.metadata.message_type)
            else fake(np.ones(4, np.float32))(name, reply)
        )

    f = federation(tamper, **{"federation.deadline": 0.2})
    with pytest.raises(
        FederationError, match=r"2 of 3 clients answered, below the quorum: client-0: no answer before the deadline"
    ):
        ask(f, np.zeros(4, np.float32))


@pytest.mark.parametrize("word", ["ActorDiedError: The actor died unexpectedly", "ActorUnavailableError: The actor is"])
def test_a_dead_process_of_the_simulation_stops_the_run_with_its_cause(word):
    def tamper(name, reply):
        if name == "client-1":
            return Message(Error(code=0, reason=word), reply_to=f.transport.grid.sent[-2])
        return fake(np.ones(4, np.float32))(name, reply)

    f = federation(tamper, **{"federation.quorum": 0.1})
    with pytest.raises(
        FederationError, match=r"a process of the simulation died, perhaps of memory: client process died: Actor"
    ):
        ask(f, np.zeros(4, np.float32))
