"""The server's view of its clients: roll call, failures, retries, quorum, bytes. The grid is a fake one."""

import hashlib
import json
import sys

import hypothesis
import numpy as np
import pytest
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from hypothesis import given
from hypothesis import strategies as st

from ease_flwr import config
from ease_flwr.exchange.federation import Federation, Request
from ease_flwr.exchange.messages import Learn, pack
from ease_flwr.exchange.roll_call import Roster, Wanted, roll_call
from ease_flwr.exchange.training import train
from ease_flwr.exchange.transport import FederationError
from tests.in_process_grid import InProcessGrid, at_once
from tests.small import RUN_CONFIG, small_experiment


def transport(tamper=None, clients=3):
    return at_once(InProcessGrid(clients, RUN_CONFIG, tamper=tamper))


def call(tamper=None, clients=3, **changes):
    """The roll call of these clients: (roster, what each said)."""
    experiment = small_experiment(**changes)
    names = tuple(f"client-{k}" for k in range(experiment.data.clients))
    return roll_call(transport(tamper, clients), experiment, Wanted(names))


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


def test_too_few_nodes_of_a_simulation_print_the_right_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/flwr-simulation"])
    with pytest.raises(FederationError) as error:
        call(clients=2, **{"federation.start_timeout": 0.1})
    assert str(error.value) == (
        "2 nodes are connected, experiment personas has 3 clients: run "
        '`flwr run . --stream --federation-config "num-supernodes=3 client-resources-num-cpus=1"`'
    )


MISMATCHES = [
    (
        {"name": "client-9"},
        "it did not come",
        "client-9: unknown client 'client-9': this experiment has client-0, client-1, ",
    ),
    ({"code": "0" * 64}, "client-1 runs other code than the server: install the same version on both", ""),
    (
        {"base": "0" * 64},
        "client-1 has another base model than the server: model.weights must be the same file on both",
        "",
    ),
    (
        {"pairs": -1},
        "it did not come",
        "node 101: it did not answer the roll call as a client of this app: answer pairs",
    ),
]


def saying(change):
    """A tamper function: client-1 says something else of itself."""

    def tamper(name, reply):
        if name == "client-1":
            reply.content["answer"]["json"] = json.dumps({**json.loads(reply.content["answer"]["json"]), **change})
        return reply

    return tamper


@pytest.mark.parametrize(("change", "why", "strange"), MISMATCHES)
def test_who_does_not_fit_is_left_out_by_name_and_the_quorum_decides(change, why, strange):
    found = call(saying(change), **{"federation.quorum": 0.6, "federation.start_timeout": 0.2})
    assert found.roster.clients == ("client-0", "client-2")
    assert dict(found.missing) == {"client-1": why}
    assert "".join(found.strange).startswith(strange)
    with pytest.raises(FederationError) as error:
        call(saying(change), **{"federation.start_timeout": 0.2})
    assert str(error.value).startswith("2 of 3 clients are there, federation.quorum=1 wants 3: client-1: " + why)
    assert str(error.value).endswith("with a lower --quorum it goes on without them")
    assert strange in str(error.value)


def test_two_nodes_of_one_name_stop_the_run():
    with pytest.raises(FederationError, match=r"two nodes call themselves 'client-2': names must be unique"):
        call(saying({"name": "client-2"}), **{"federation.quorum": 0.1})


def test_a_node_that_misses_the_roll_call_is_asked_again():
    heard = []

    def tamper(name, reply):
        heard.append(name)
        return None if name == "client-1" and heard.count(name) == 1 else reply

    assert call(tamper, **{"federation.start_timeout": 0.4}).roster.clients == ("client-0", "client-1", "client-2")
    assert sorted(heard) == ["client-0", "client-1", "client-1", "client-2"]


def test_a_node_that_cannot_be_reached_yet_is_asked_until_it_can(monkeypatch):
    """As after a restart of the SuperLink. What a client raises itself is not asked again."""
    heard = []
    hello = transport()

    def tamper(name, reply):
        heard.append(name)
        if name == "client-1" and heard.count(name) < 5:
            return Message(Error(code=5, reason="Node Unavailable"), reply_to=reply_to[name])
        if name == "client-2":
            return Message(Error(code=2, reason="this host is called otherwise"), reply_to=reply_to[name])
        return reply

    hello.grid.tamper, reply_to, push = tamper, {}, hello.grid.push_messages

    def noted(messages):
        reply_to.update({f"client-{m.metadata.dst_node_id - 100}": m for m in messages})
        return push(messages)

    monkeypatch.setattr(hello.grid, "push_messages", noted)
    experiment = small_experiment(**{"federation.start_timeout": 20, "federation.quorum": 0.6})
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    found = roll_call(hello, experiment, Wanted(tuple(f"client-{k}" for k in range(3))))
    assert found.roster.clients == ("client-0", "client-1")
    assert heard.count("client-1") == 5
    assert heard.count("client-2") == 1


@pytest.mark.parametrize(
    ("registered", "key", "why"),
    [
        ("client-2", "new", "it was registered as client-2: one name for both"),
        ("client-1", "old", "it has the key of gone, which was forgotten: a client comes back under its own name"),
    ],
)
def test_a_name_belongs_to_a_node_and_a_key_to_a_name(registered, key, why):
    told = {"name": registered, "public_key": key.encode()}

    class Registered(InProcessGrid):
        def get_nodes(self):
            return [NodeInfo(node_id=n, **(told if n == 101 else {})) for n in self.contexts]

    experiment = small_experiment(**{"federation.quorum": 0.6})
    buried = {hashlib.sha256(b"old").hexdigest(): "gone"}
    wanted = Wanted(("client-0", "client-1", "client-2"), buried=buried)
    found = roll_call(at_once(Registered(3, RUN_CONFIG)), experiment, wanted)
    assert found.roster.clients == ("client-0", "client-2")
    assert any(why in line for line in (*found.missing.values(), *found.strange))


@given(st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4)), st.floats(0.05, 1))
@hypothesis.settings(max_examples=40, deadline=None)
def test_who_leaves_is_not_counted_and_who_stays_by_the_quorum(gone, leaving, quorum):
    """Law: hosts that are gone stop a run if, and only if, fewer of those who stay are there than the quorum wants."""
    names = tuple(f"client-{k}" for k in range(5))
    grid = InProcessGrid(5, {**RUN_CONFIG, "set": RUN_CONFIG["set"].replace("data.clients=3", "data.clients=5")})
    for k in gone:
        del grid.contexts[100 + k]
    experiment = small_experiment(**{"data.clients": 5, "federation.quorum": quorum, "federation.start_timeout": 0.1})
    staying = [k for k in range(5) if k not in leaving]
    there = [k for k in staying if k not in gone]
    wanted = Wanted(names, frozenset(names[k] for k in leaving))
    if len(there) >= max(1, quorum * len(staying) - 1e-9):
        found = roll_call(at_once(grid), experiment, wanted)
        assert found.roster.clients == tuple(n for k, n in enumerate(names) if k not in gone)
        assert set(found.missing) == {names[k] for k in staying if k in gone}
    else:
        with pytest.raises(FederationError, match=rf"{len(there)} of {len(staying)} clients are there"):
            roll_call(at_once(grid), experiment, wanted)


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
