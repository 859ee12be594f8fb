"""Who is there: left out by name, counted by the quorum, asked again."""

import hashlib
import json

import hypothesis
import pytest
from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo
from hypothesis import given
from hypothesis import strategies as st

from ease_flwr.exchange.roll_call import Wanted, roll_call
from ease_flwr.exchange.transport import FederationError
from tests.in_process_grid import InProcessGrid, at_once
from tests.small import RUN_CONFIG, small_experiment
from tests.test_federation import call, transport

pytestmark = pytest.mark.usefixtures("still")

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


def test_two_nodes_of_one_name_are_left_out_both():
    found = call(saying({"name": "client-2"}), **{"federation.quorum": 0.1})
    assert found.roster.clients == ("client-0",)
    assert found.missing["client-2"] == "two nodes call themselves so: names must be unique"


def test_of_two_nodes_of_one_name_the_one_with_its_key_stays():
    keys = {"client-1": ("", b"mine"), "client-2": ("", b"hers")}
    hers = {"keys": {"client-2": hashlib.sha256(b"hers").hexdigest()}}
    found = call_of_nodes(keys, hers, tamper=saying({"name": "client-2"}))
    assert found.roster.clients == ("client-0", "client-2")
    assert found.roster.nodes["client-2"] == 102


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
    found = roll_call(hello, experiment, Wanted(tuple(f"client-{k}" for k in range(3))))
    assert found.roster.clients == ("client-0", "client-1")
    assert heard.count("client-1") == 5
    assert heard.count("client-2") == 1


def call_of_nodes(nodes, wanted, tamper=None, **changes):
    """The roll call of three clients, some of them registered: client -> (name, public key). wanted: fields of Wanted."""

    class Registered(InProcessGrid):
        def get_nodes(self):
            told = {100 + int(client[-1]): {"name": name, "public_key": key} for client, (name, key) in nodes.items()}
            return [NodeInfo(node_id=n, **told.get(n, {})) for n in self.contexts]

    experiment = small_experiment(**{"federation.quorum": 0.6, **changes})
    names = ("client-0", "client-1", "client-2")
    return roll_call(at_once(Registered(3, RUN_CONFIG, tamper=tamper)), experiment, Wanted(names, **wanted))


@pytest.mark.parametrize(
    ("registered", "key", "why"),
    [
        ("client-2", "new", "it was registered as client-2: one name for both"),
        ("client-1", "old", "it has the key of gone, which was forgotten: a client comes back under its own name"),
    ],
)
def test_a_name_belongs_to_a_node_and_a_key_to_a_name(registered, key, why):
    buried = {hashlib.sha256(b"old").hexdigest(): "gone"}
    found = call_of_nodes({"client-1": (registered, key.encode())}, {"buried": buried})
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


def test_who_is_away_for_the_same_reason_is_named_in_one_line():
    with pytest.raises(FederationError) as error:
        call(lambda name, reply: None, **{"federation.start_timeout": 0.2})
    assert str(error.value).startswith(
        "0 of 3 clients are there, federation.quorum=1 wants 3: client-0, client-1, client-2: it did not come; "
        "node 100, node 101, node 102: it did not answer the roll call: no answer before the deadline: see that they"
    )
