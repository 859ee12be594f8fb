"""What a client is told: of single pairs that are to be forgotten its own alone, and all that it needs to do as it is asked."""

import json

import numpy as np
import pytest
import torch
from ease_flwr.clients.encoding import Encoded
from hypothesis import given
from hypothesis import strategies as st

from ease_flwr.config import ConfigError, ForgetSet, TrainConfig
from ease_flwr.data.pairs import withdrawn
from ease_flwr.exchange.federation import Federation, Request
from ease_flwr.exchange.messages import Audit, Evaluate, Forget, Hello, Learn, Returning, as_told, read_instruction
from ease_flwr.exchange.roll_call import Roster
from ease_flwr.exchange.transport import Transport
from tests.in_process_grid import InProcessGrid
from tests.small import RUN_CONFIG, small_experiment
from tests.test_which_pairs import ME, a_client, carried, fits, forget_set, labels, positions

NAMES = (ME, "client-00", "client", "client-1")
"""The first begins the second, the third begins them all."""
TRAIN = TrainConfig(epochs=1, batch=4)
EXPERIMENT = small_experiment()
ABOUT_PAIRS = {"forget", "without", "only", "before", "beside"}
"""Fields of instructions in which forget sets are."""

targets = st.tuples(st.sampled_from(NAMES), positions).map("/".join)
forget_sets = st.one_of(
    st.sets(st.sampled_from(NAMES), min_size=1, max_size=2).map(lambda t: forget_set("client", sorted(t))),
    st.sets(st.sampled_from("abc"), min_size=1, max_size=2).map(lambda t: forget_set("class", sorted(t))),
    st.sets(targets, min_size=1, max_size=5).map(lambda t: forget_set("sample", sorted(t))),
)
unions = st.lists(forget_sets, max_size=3).map(tuple)
evaluations = st.builds(Evaluate, forget=unions)
maybe = st.one_of(st.none(), evaluations)
forgets = st.builds(
    Forget, phase=st.just("forget"), round=st.just(1), train=st.just(TRAIN), forget=forget_sets, without=unions, before=maybe
)
learns = st.builds(
    Learn,
    phase=st.just("learn"),
    round=st.just(1),
    train=st.just(TRAIN),
    without=unions,
    only=unions,
    before=maybe,
    beside=st.one_of(st.none(), forgets),
    returning=st.one_of(st.none(), st.builds(Returning, about=unions, count=st.just(2))),
)
audits = st.builds(Audit, forget=unions, train=st.just(TRAIN))
jobs = st.one_of(learns, forgets, evaluations, audits, st.builds(Hello, forget=unions))


def named(value, scenarios):
    """Targets of these scenarios anywhere in plain values, in order; what returns is left aside."""
    if isinstance(value, list):
        return [t for v in value for t in named(v, scenarios)]
    if not isinstance(value, dict):
        return []
    if value.get("scenario") in scenarios:
        return value["targets"]
    return [t for key, v in value.items() if key != "returning" for t in named(v, scenarios)]


def plain(job):
    return job.model_dump(mode="json")


@given(jobs, st.sampled_from(NAMES))
def test_of_single_pairs_a_client_is_told_its_own_no_more_and_no_less(job, client):
    told = as_told(job, client)
    own = [t for t in named(plain(job), ("sample",)) if t.rpartition("/")[0] == client]
    assert named(plain(told), ("sample",)) == own
    whole = ("client", "class")
    assert named(plain(told), whole) == named(plain(job), whole)
    assert type(told) is type(job)
    assert told.model_dump(exclude=ABOUT_PAIRS) == job.model_dump(exclude=ABOUT_PAIRS)
    assert as_told(told, client) == told


class Wire(Transport):
    """Takes every message, and nobody answers."""

    def ask(self, messages, deadline):
        self.grid.sent.extend(messages)
        return {}


@given(st.dictionaries(st.sampled_from(NAMES), jobs, min_size=1), unions)
def test_no_message_names_single_pairs_of_another_client(asked, forget):
    nodes = {name: 100 + k for k, name in enumerate(NAMES)}
    wire = Wire(InProcessGrid(0, RUN_CONFIG))
    federation = Federation(wire, EXPERIMENT, Roster(NAMES, nodes, dict.fromkeys(NAMES, 5)), print)
    federation.send({"adapters": np.zeros(2, np.float32)}, {name: Request(job) for name, job in asked.items()})
    federation.counted(forget)
    federation.answering(NAMES)
    assert len(wire.grid.sent) == len(asked) + (len(NAMES) if forget else 0) + len(NAMES)
    at = {node: name for name, node in nodes.items()}
    for message in wire.grid.sent:
        config = dict(message.content["config"])
        client, sent = at[message.metadata.dst_node_id], named(json.loads(config["instruction"]), ("sample",))
        assert all(t.rpartition("/")[0] == client for t in sent)
        assert named(plain(read_instruction(config)), ("sample",)) == sent


# ---- what it is told is enough ---------------------------------------------------------------------------------------------


def done(labels, job):
    """What the client trains on and keeps, or why it does not train."""
    client = a_client(labels, returning=2)
    try:
        if isinstance(job, Forget):
            client._choose_forgotten(job)
            return client.forget.images[:].tolist(), client.kept.images[:].tolist()
        client._choose_learnt(job)
    except ValueError as error:
        return str(error)
    return client.train.images[:].tolist()


def fitting(union):
    return tuple(s for s in union if fits(s, 1))


@given(labels, unions)
def test_what_is_told_gives_the_same_counts(labels, forget):
    hello = Hello(forget=forget)
    assert a_client(labels).get_properties(carried(as_told(hello, ME))) == a_client(labels).get_properties(carried(hello))


@given(labels, forgets.filter(lambda job: fits(job.forget, 1)))
def test_what_is_told_is_forgotten(labels, job):
    job = job.model_copy(update={"without": fitting(job.without)})
    assert done(labels, as_told(job, ME)) == done(labels, job)


@given(labels, learns)
def test_what_is_told_is_learnt(labels, job):
    only = fitting(job.only)
    job = job.model_copy(update={"without": fitting(job.without), "only": only, "returning": None if only else job.returning})
    whole, told = done(labels, job), done(labels, as_told(job, ME))
    assert told == whole or (only and isinstance(whole, str))  # who has none of the pairs alone is not asked for them


@pytest.mark.parametrize("scenario", ["class", "sample"])
@given(st.lists(st.sampled_from("abc"), min_size=6, max_size=12).filter(lambda x: set(x) == set("abc")))
def test_what_was_forgotten_before_is_neither_forgotten_again_nor_kept(scenario, labels):
    """a was forgotten before, b and a are to be forgotten now, c stays."""
    at = {x: [i for i, label in enumerate(labels) if label == x] for x in "abc"}

    def of(*chosen):
        return forget_set(scenario, chosen if scenario == "class" else [f"{ME}/{i}" for x in chosen for i in at[x]])

    told = {"phase": "forget", "round": 1, "train": TRAIN, "without": (of("a"),)}
    assert done(tuple(labels), Forget(forget=of("b"), **told)) == (at["b"], at["c"])
    assert done(tuple(labels), Forget(forget=of("a", "b"), **told)) == (at["b"], at["c"])


# ---- targets that nobody can have meant ------------------------------------------------------------------------------------


def test_a_step_of_nothing_is_refused_by_who_it_names_and_the_other_sets_count():
    first, wrong, last = (forget_set("sample", [f"{ME}/{where}"]) for where in ("0:2", "0:5:0", "1:4"))
    said = a_client(("a",) * 6).get_properties(carried(Hello(forget=(first, wrong, last))))
    assert said["forget"] == [2, 0, 2]
    line = f"forget.targets: {ME}/0:5:0: a step of 0 names no pair: give 1 or more, or leave it out"
    assert said["refused"] == ["", line, ""]
    with pytest.raises(ConfigError, match=r"a step of 0 names no pair"):
        withdrawn((wrong,), ME, ("a",) * 6)
    assert not withdrawn((wrong,), "client-1", ("a",) * 6).any()
    assert withdrawn((ForgetSet(scenario="sample", targets=(f"{ME}/4:", f"{ME}/9:99")),), ME, ("a",) * 6).sum() == 2


def test_pairs_that_are_chosen_stay_on_disk(tmp_path):
    """What is left out by a request, and what comes back, must not bring a data set into memory."""
    file = np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.float32, (40, 3))
    file[:] = np.arange(120).reshape(40, 3)
    whole = Encoded(torch.from_numpy(file), torch.arange(80).view(40, 2, 1))
    few, back = whole[torch.arange(40) % 3 > 0], Encoded(torch.full((2, 3), -1.0), torch.full((2, 1, 1), 99))
    both = (few + back)[torch.tensor([27, 0, 26, 25, 1])]
    assert both.images.arrays[0].data_ptr() == whole.images.data_ptr()  # nothing was copied
    assert both.images[:].tolist() == [[-1.0] * 3, [3.0, 4.0, 5.0], [-1.0] * 3, [114.0, 115.0, 116.0], [6.0, 7.0, 8.0]]
    assert both.tokens[:, :, 0].tolist() == [[99, 99], [2, 3], [99, 99], [76, 77], [4, 5]]
    assert [len(part) for part in both.images.split(2)] == [2, 2, 1]
    assert torch.equal(both.images[torch.tensor([4, 1])], torch.tensor([[6.0, 7.0, 8.0], [3.0, 4.0, 5.0]]))
