"""What settings are chosen on is apart from what is reported: photographs, for every seed, partition and request."""

import numpy as np
import pytest
import torch
from ease_flwr.clients.audit import Audit
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ease_flwr import config
from ease_flwr.config import DataConfig, ForgetSet
from ease_flwr.data import photographs
from tests.photographs import write_photographs
from tests.test_bilateral import Memory

TRAIN, VAL, TEST = 45, 9, 7
SPLITS = ("validation", "test")
CLIENTS = ("client-0", "client-1", "client-2")
REQUESTS = {
    "client": st.lists(st.sampled_from(CLIENTS), min_size=1, max_size=2),
    "class": st.lists(st.sampled_from("abc"), min_size=1, max_size=2),
    "sample": st.lists(st.builds("{}/{}".format, st.sampled_from(CLIENTS), st.integers(0, 7)), min_size=1, max_size=12),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, train=TRAIN, val=VAL, test=TEST)
    return folder


def load(root, seed=0, **changes):
    values = {"kind": "photographs", "root": str(root), "clients": 3, "image_size": 8, "unseen": 8, **changes}
    return photographs.load.__wrapped__(DataConfig(**values), seed)


def names(pairs, chosen=slice(None)):
    return {c[0] for c in np.array(pairs.captions, dtype=object)[chosen]}


def judged(world, split, request):
    """Set -> client -> first captions of what is judged."""
    found = {}
    for client in world.clients:
        for name, chosen in world.client(client).evaluation(split, request).items():
            assert len(chosen.query) or name == "test"
            found.setdefault(name, {})[client] = names(chosen.gallery.pairs, chosen.query)
    return found


def every(found):
    return set().union(*(said for by_client in found.values() for said in by_client.values()))


@st.composite
def requests(draw):
    scenario = draw(st.sampled_from(sorted(REQUESTS)))
    return (ForgetSet(scenario=scenario, targets=tuple(sorted(set(draw(REQUESTS[scenario]))))),)


def there(world, request):
    """Not every partition has every single pair that may be drawn."""
    named = (t.split("/") for t in request[0].targets if "/" in t)
    assume(all(int(i) < len(world.parts[world.clients.index(client)]) for client, i in named))


worlds = st.tuples(st.integers(0, 4), st.sampled_from(["iid", "dirichlet", "label"]))


@settings(deadline=None, max_examples=30)
@given(worlds, worlds, requests(), requests())
def test_no_photograph_is_judged_in_both_splits(root, one, other, asked, later):
    """Settings may be chosen in one world and reported in another."""
    chosen, reported = (load(root, seed, partition=rule) for seed, rule in (one, other))
    there(chosen, asked)
    there(reported, later)
    first, second = judged(chosen, "validation", asked), judged(reported, "test", later)
    train = {
        s: {e.captions[0] for e, v in zip(chosen.splits["train"], chosen.chosen_on, strict=True) if v == (s == "validation")}
        for s in SPLITS
    }
    for split, found in (("validation", first), ("test", second)):
        assert every({"test": found.pop("test")}) <= names(chosen.galleries["val" if split == "validation" else "test"].pairs)
        for by_client in found.values():
            for said in by_client.values():  # its own part of the photographs, or nothing of that
                assert said <= train[split] or not said & train[split]
    assert len(train["validation"]) == TRAIN // 3


@settings(deadline=None, max_examples=30)
@given(worlds, requests())
def test_both_splits_together_judge_every_pair_once(root, world, asked):
    world = load(root, world[0], partition=world[1])
    there(world, asked)
    first, second = (judged(world, split, asked) for split in SPLITS)
    for client in world.clients:
        sets = [found.get(s, {}).get(client, set()) for s in ("forget", "retain") for found in (first, second)]
        assert set().union(*sets) == names(world.client(client).train)
        for a, b in (sets[:2], sets[2:]):
            assert not a & b or a == b  # the same where one split has nothing of it
        assert not (sets[0] | sets[1]) & (sets[2] | sets[3])


@pytest.mark.parametrize("position", range(6))
def test_a_single_pair_is_judged_in_both_splits(root, position):
    world = load(root)
    asked = (ForgetSet(scenario="sample", targets=(f"client-1/{position}",)),)
    first, second = (judged(world, split, asked) for split in SPLITS)
    assert first["forget"] == second["forget"] == {"client-1": names(world.client("client-1").train, [position])}
    assert not first["retain"]["client-1"] & second["retain"]["client-1"]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 4), st.integers(8, 300), st.integers(2, 9))
def test_public_photographs_are_not_judged(root, seed, unseen, count):
    world = load(root, seed, unseen=unseen)
    world.splits["val"] = world.splits["val"][:count]
    public, validation = names(world.unseen()), every({"test": judged(world, "validation", ())["test"]})
    assert not public & validation
    assert len(public) == min(unseen, count // 2)
    assert public | validation == {f"val {i} one" for i in range(count)}
    assert names(world.client("client-0").never_trained("validation", ())) == validation


def test_one_photograph_for_validation_is_public_and_judged(root):
    world = load(root)
    world.splits["val"] = world.splits["val"][:1]
    assert names(world.unseen()) == every({"test": judged(world, "validation", ())["test"]}) == {"val 0 one"}


@pytest.mark.parametrize("split", SPLITS)
def test_neighbours_of_what_is_forgotten_are_kept_pairs_of_the_same_split(root, split, monkeypatch):
    experiment = config.load("personas", {"data.kind": "photographs", "data.root": str(root), "data.clients": 3})
    asked = (ForgetSet(scenario="sample", targets=("client-0/0:15:2",)),)
    client = Audit(experiment, "client-0", load(root), Memory())
    monkeypatch.setattr(client, "_first", lambda pairs, _: (torch.eye(len(pairs), 8), None))  # which pairs, not how near
    sets = client.data.evaluation(split, asked)
    gone = client.named(asked)
    near = client._neighbours(sets, client.data.train.take(np.flatnonzero(gone)))
    assert near.gallery is sets["forget"].gallery
    assert near.query.tolist() == sets["retain"].query.tolist()
    assert len(near.query) < (~gone).sum()
