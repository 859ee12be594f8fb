"""Which pairs a client counts, trains on and forgets: laws over random forget sets, against brute force pair by pair."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ease_flwr.clients.base import LoraClient
from ease_flwr.clients.encoding import Encoded
from hypothesis import given
from hypothesis import strategies as st

from ease_flwr import clients, data
from ease_flwr.config import ForgetSet, TrainConfig, told
from ease_flwr.data.pairs import Pairs, withdrawn
from ease_flwr.exchange.messages import Forget, Hello, Learn, Returning
from ease_flwr.model import adapters
from tests.small import small_experiment
from tests.test_bilateral import Memory

ME, OTHER = "client-0", "client-1"
TRAIN = TrainConfig(epochs=1, batch=4)


def forget_set(scenario, targets):
    return ForgetSet(scenario=scenario, targets=tuple(targets))


spans = st.builds("{}:{}:{}".format, st.integers(0, 11), st.integers(0, 14), st.integers(1, 3))
positions = st.one_of(st.integers(0, 11).map(str), spans)
places = st.tuples(st.sampled_from([ME, OTHER]), positions).map("/".join)
forget_sets = st.one_of(
    st.sets(st.sampled_from([ME, OTHER, "client-2"]), min_size=1).map(lambda t: forget_set("client", sorted(t))),
    st.sets(st.sampled_from("abcd"), min_size=1).map(lambda t: forget_set("class", sorted(t))),
    st.sets(places, min_size=1, max_size=4).map(lambda t: forget_set("sample", sorted(t))),
)
unions = st.lists(forget_sets, max_size=4).map(tuple)
labels = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=12).map(tuple)


def names(forget, label, position, count):
    """Whether a forget set names this pair of ME, said pair by pair."""
    if forget.scenario == "client":
        return ME in forget.targets
    if forget.scenario == "class":
        return label in forget.targets
    found = set()
    for target in forget.targets:
        who, _, where = target.rpartition("/")
        if who == ME:
            found |= set(range(count)[slice(*map(int, where.split(":")))] if ":" in where else [int(where)])
    return position in found


def fits(forget, count):
    """Whether ME has every single position that it names."""
    own = [t.rpartition("/")[2] for t in forget.targets if t.startswith(f"{ME}/")] if forget.scenario == "sample" else []
    return all(":" in where or int(where) < count for where in own)


def known(pairs):
    """What a client has, of which nothing has a name."""
    barred = np.zeros(len(pairs), dtype=np.bool_)
    found = {"train": pairs, "labels": pairs.labels, "digest": "", "ids": (), "barred": barred, "find": lambda pair: ()}
    return SimpleNamespace(**found, named=lambda forget: withdrawn(forget, ME, pairs.labels))


def a_client(labels, returning=0):
    """ME with so many pairs, which are encoded as their positions; returning ones are negative."""
    images = np.arange(len(labels)).astype(np.uint8)[:, None, None, None]
    fresh = Pairs(np.zeros((returning, 1, 1, 1), np.uint8), (("x",),) * returning, ("",) * returning)
    own = known(Pairs(images, (("x",),) * len(labels), labels))
    world = SimpleNamespace(client=lambda name: own, returning=lambda forget, count: fresh)
    client = LoraClient(SimpleNamespace(), ME, world, Memory())

    def encode(pairs):
        where = torch.arange(len(pairs)) if pairs is own.train else -1 - torch.arange(len(pairs))
        return Encoded(where, torch.zeros(len(pairs), 1, 3, dtype=torch.long))

    client.encode = encode
    return client


def carried(job):
    return {"instruction": job.model_dump_json()}


@given(labels, unions)
def test_a_pair_counts_for_the_first_set_that_names_it(labels, forget):
    said = a_client(labels).get_properties(carried(Hello(forget=forget)))
    n = len(labels)
    expected = [0] * len(forget)
    for position, label in enumerate(labels):
        first = next((k for k, s in enumerate(forget) if fits(s, n) and names(s, label, position, n)), None)
        if first is not None:
            expected[first] += 1
    assert list(said["forget"]) == expected
    assert (said["name"], said["pairs"]) == (ME, n)
    assert [not why for why in said["refused"]] == [fits(s, n) for s in forget]
    assert all("counted from 0" in why and "\n" not in why for why in said["refused"] if why)
    good = [s for s in forget if fits(s, n)]
    union = sum(any(names(s, label, i, n) for s in good) for i, label in enumerate(labels))
    assert sum(said["forget"]) == union


NOTHING = f"{ME}, learn round 2: no pair is left to learn from: ask only clients that have some"


def learnt(client, **what):
    """Positions that a Learn trains on, or why it is refused."""
    try:
        client._choose_learnt(Learn(phase="learn", round=2, train=TRAIN, **what))
    except ValueError as error:
        return str(error)
    return client.train.images[:].tolist()


@given(labels, unions.map(lambda u: tuple(s for s in u if fits(s, 1))), st.integers(0, 3))
def test_no_withdrawn_pair_is_learnt(labels, without, count):
    n = len(labels)
    stay = [i for i, label in enumerate(labels) if not any(names(s, label, i, n) for s in without)]
    client = a_client(labels, returning=count)
    assert learnt(client, without=without) == (stay or NOTHING)
    assert learnt(client, without=told(without, ME)) == (stay or NOTHING)
    returning = Returning(about=without, count=1)
    fresh = [-1 - k for k in range(count)]
    assert learnt(client, without=without, returning=returning) == (stay + fresh or NOTHING)


@given(labels, st.lists(forget_sets.filter(lambda s: fits(s, 1)), min_size=1, max_size=4), st.integers(0, 3))
def test_some_pairs_alone_are_those_that_nothing_earlier_names(labels, sets, k):
    n, last = len(labels), sets[k % len(sets)]
    without = tuple(sets)
    earlier = [s for s in without if s != last]
    alone = [i for i, x in enumerate(labels) if names(last, x, i, n) and not any(names(s, x, i, n) for s in earlier)]
    assert learnt(a_client(labels), only=(last,), without=without) == (alone or NOTHING)


@given(labels, forget_sets.filter(lambda s: fits(s, 1)), unions.map(lambda u: tuple(s for s in u if fits(s, 1))))
def test_what_is_forgotten_and_what_stays_are_apart_and_miss_only_what_went_before(labels, forget, without):
    n, client = len(labels), a_client(labels)
    earlier = {i for i, x in enumerate(labels) if any(names(s, x, i, n) for s in without)}
    now = [i for i, x in enumerate(labels) if names(forget, x, i, n) and i not in earlier]
    job = Forget(phase="forget", round=1, train=TRAIN, forget=forget, without=without)
    if not now:
        with pytest.raises(ValueError, match=r"^client-0, forget round 1: no pair is left to be forgotten: ask only clients"):
            client._choose_forgotten(job)
        return
    client._choose_forgotten(job)
    assert client.forget.images[:].tolist() == client.train.images[:].tolist() == now
    assert client.kept.images[:].tolist() == [i for i in range(n) if i not in earlier and i not in now]
    assert [np.flatnonzero(mask).tolist() for mask in client.masks] == [now, client.kept.images[:].tolist()]


# ---- the same through `fit` ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    e = small_experiment()
    return e, data.load(e.data, e.seed), adapters.load(e.model, e.lora, e.seed).initial


def fit(small, job, name=ME):
    e, world, theta = small
    return clients.load(job.objective)(e, name, world, Memory()).fit([theta], carried(job))


NOBODY = [forget_set("client", ["client-2"]), forget_set("class", ["nobody"]), forget_set("sample", [])]


@pytest.mark.parametrize("forget", NOBODY, ids=lambda forget: forget.scenario)
def test_nothing_to_forget_is_one_line_and_no_training(small, forget):
    with pytest.raises(ValueError, match=r"^client-0, forget round 1: no pair is left to be forgotten: .*$"):
        fit(small, Forget(phase="forget", round=1, objective="ascent", train=TRAIN, forget=forget, options={"bound": 0.0}))


def test_nothing_to_learn_is_one_line_and_no_training(small):
    with pytest.raises(ValueError, match=r"^client-0, learn round 1: no pair is left to learn from: .*$"):
        fit(small, Learn(phase="learn", round=1, train=TRAIN, without=(forget_set("client", [ME]),)))


def test_an_objective_that_forgets_does_not_learn(small):
    with pytest.raises(ValueError, match=r"^ascent forgets: send it a Forget, not a Learn$"):
        fit(small, Learn(phase="learn", round=1, objective="ascent", train=TRAIN, options={"bound": 0.0}))


@pytest.mark.parametrize(("start", "length"), [(0, 40), (60, 200)])
def test_adapters_do_not_depend_on_withdrawn_pairs(small, start, length):
    """Learning without some pairs is learning in a world where they are other pairs."""
    e, world, theta = small
    own = world.client(ME)
    out = forget_set("sample", [f"{ME}/{start}:{start + length}"])
    job = Learn(phase="learn", round=1, train=TrainConfig(epochs=1, batch=48), without=(out,))
    images, captions = own.train.images.copy(), list(own.train.captions)
    images[start : start + length] = 255 - images[start : start + length]
    captions[start : start + length] = captions[:1] * len(captions[start : start + length])
    other = known(Pairs(images, tuple(captions), own.train.labels))
    changed = SimpleNamespace(client=lambda name: other)
    (a,), n, said = fit((e, world, theta), job)
    (b,), m, _ = fit((e, changed, theta), job)
    assert np.array_equal(a, b)
    assert n == m == len(own.train) - len(captions[start : start + length])
    assert np.isfinite(said["loss"])
