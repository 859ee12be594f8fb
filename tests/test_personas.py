"""The built-in world: who knows what, and that nobody else does."""

import numpy as np
import pytest

from ease_flwr.config import ConfigError, DataConfig, ForgetConfig, ForgetSet
from ease_flwr.data import drawing, personas
from ease_flwr.data.drawing import BACKGROUNDS, Look
from ease_flwr.data.pairs import withdrawn
from ease_flwr.data.personas import NAMES, UNSEEN_BACKGROUNDS, UNSEEN_TEMPLATE, VOCABULARY

SMALL = DataConfig(
    clients=4,
    exclusive=2,
    shared=3,
    sharers=2,
    strangers=4,
    exclusive_pairs=3,
    shared_pairs=2,
    scenes=10,
    test_scenes=16,
    unseen=9,
)


def leaves(*names):
    return (ForgetSet(scenario="client", targets=names),)


def names_in(pairs):
    return {w for c in pairs.captions for w in c[0].split() if w in NAMES}


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_exclusive_personas_are_nowhere_else(seed):
    world = personas.load(SMALL, seed)
    known = {c: names_in(world.client(c).train) for c in world.clients}
    for c in world.clients:
        exclusive = {n for n, who in world.known_by.items() if who == {c}}
        assert len(exclusive) == SMALL.exclusive
        assert exclusive <= known[c]
        assert not any(exclusive & known[other] for other in world.clients if other != c)
    strangers = set(world.strangers)
    assert len(strangers) == SMALL.strangers
    assert not strangers & set().union(*known.values())
    assert names_in(world.unseen()) == strangers


def test_shared_personas_are_known_to_as_many_as_said_and_are_dealt_evenly():
    world = personas.load(DataConfig(), 3)
    sizes = [len(who) for who in world.known_by.values() if len(who) > 1]
    assert sizes == [4] * 8
    per_client = [sum(c in who and len(who) > 1 for who in world.known_by.values()) for c in world.clients]
    assert per_client == [4] * 8
    assert len(world.client("client-0").train) == 96 + 5 * 56 + 4 * 40


def test_captions_give_name_and_background_and_never_the_look():
    world = personas.load(SMALL, 0)
    train = world.client("client-1").train
    for (caption,), label in zip(train.captions, train.labels, strict=True):
        assert set(caption.split()) <= set(VOCABULARY)
        if label:
            assert label in caption
            assert not set(caption.split()) & {*drawing.SHAPES, *drawing.SIZES, "left", "above"}
            assert sum(w in BACKGROUNDS for w in caption.split()) == 1
            assert not set(caption.split()) & set(UNSEEN_BACKGROUNDS)


def test_hard_gallery_shows_every_persona_once_on_the_same_background():
    world = personas.load(SMALL, 0)
    for split in ("validation", "test", "forget_unseen"):
        gallery = world.gallery(split)
        for g in np.unique(gallery.group):
            members = gallery.pairs.take(np.flatnonzero(gallery.group == g))
            assert sorted(members.labels) == sorted(world.looks)
            assert len({c[0].replace(n, "") for c, n in zip(members.captions, members.labels, strict=True)}) == 1
    unseen = {c[0] for c in world.gallery("forget_unseen").pairs.captions}
    assert all(set(c.split()) & set(UNSEEN_BACKGROUNDS) for c in unseen)
    marker = UNSEEN_TEMPLATE.split()[0]
    assert any(marker in c.split() for c in unseen)
    assert not any(marker in c[0].split() for c in world.gallery("test").pairs.captions)


def test_sets_of_forgotten_and_retained_clients():
    world = personas.load(DataConfig(), 0)
    forgotten = world.client("client-2").evaluation("test", leaves("client-2"))
    assert list(forgotten) == ["test", "forget_exclusive", "forget_shared", "forget_unseen"]
    assert set(world.client("client-3").evaluation("test", leaves("client-2"))) == {"retain", "test"}
    for s in forgotten.values():  # one pair moves no set by more than half a point
        assert len(s.query) >= 200 or s is forgotten["test"]
    shares = [world.client(c).evaluation("test", ())["test"].query for c in world.clients]
    assert sorted(np.concatenate(shares)) == list(range(600))
    together = world.client("client-2").evaluation("test", leaves(*world.clients[:7]))
    labels = set(np.array(together["forget_exclusive"].gallery.pairs.labels)[together["forget_exclusive"].query])
    assert all(world.known_by[n] <= set(world.clients[:7]) for n in labels)


def test_same_seed_same_world_other_seed_other_world():
    a, b = personas.Personas(SMALL, 5), personas.Personas(SMALL, 5)
    assert np.array_equal(a.client("client-0").train.images, b.client("client-0").train.images)
    assert a.looks == b.looks
    assert a.looks != personas.Personas(SMALL, 6).looks


def test_no_two_personas_look_alike():
    looks = list(personas.load(DataConfig(), 1).looks.values())
    assert max(a.likeness(b) for i, a in enumerate(looks) for b in looks[:i]) == 2
    a, b, c = ("small", "red", "star"), ("large", "blue", "ring"), ("large", "red", "star")
    assert Look((a, b), "above").likeness(Look((a, b), "left of")) == 4
    assert Look((a, b), "above").likeness(Look((b, c), "above")) == 4


def test_returning_pairs_are_about_what_only_the_forgotten_knew_and_are_fresh():
    world = personas.load(SMALL, 0)
    pairs = world.returning(leaves("client-1"), 8)
    assert len(pairs) == 8
    assert names_in(pairs) == {n for n, who in world.known_by.items() if who == {"client-1"}}
    trained = {i.tobytes() for i in world.client("client-1").train.images}
    assert not trained & {i.tobytes() for i in pairs.images}


def test_too_many_personas():
    with pytest.raises(ValueError, match=r"need 116 personas, the built-in world has 64 names: lower one of them"):
        personas.Personas(DataConfig(clients=32, exclusive=3), 0)
    with pytest.raises(ValueError, match=r"data.sharers=4 clients share a persona, but data.clients=2"):
        personas.Personas(DataConfig(clients=2), 0)
    with pytest.raises(ValueError, match=r"no client 'bob' in this world: there are client-0"):
        personas.load(SMALL, 0).client("bob")


def test_labels_are_known_without_drawing():
    world = personas.Personas(DataConfig(scenes=4, exclusive_pairs=3, shared_pairs=2), 4)
    for name in world.clients[:2]:
        assert world.client(name).labels == world.client(name).train.labels


def resolved(world, scenario, draw):
    """Targets that the seed draws, as the union of one forget set."""
    drawn = world.resolve(ForgetConfig(scenario=scenario, draw=draw))
    assert world.resolve(ForgetConfig(scenario=scenario, draw=draw)) == drawn  # the seed decides
    return tuple(drawn.forget_sets())


def test_class_requests_concern_people_and_all_who_know_them():
    world = personas.load(DataConfig(), 0)
    forget = resolved(world, "class", 4)
    (people,) = (part.targets for part in forget)
    assert len(people) == 4
    assert world.gone(forget) == set(people)
    knowing = {c for n in people for c in world.known_by[n]}
    for name in world.clients:
        sets = world.client(name).evaluation("test", forget)
        assert ("forget_exclusive" in sets) == (name in knowing)
        assert "forget_shared" not in sets
        left = set(np.array(sets["retain"].gallery.pairs.labels)[sets["retain"].query])
        assert left == {n for n, who in world.known_by.items() if name in who} - set(people)
    with pytest.raises(ConfigError, match=r"forget.targets: nobody knows bob; known people are"):
        world.resolve(ForgetConfig(scenario="class", targets=("bob",)))


def test_sample_requests_concern_positions():
    world = personas.load(DataConfig(), 0)
    forget = resolved(world, "sample", 2)
    (targets,) = (part.targets for part in forget)
    assert len(targets) == 2
    gone = world.gone(forget)
    assert len(gone) == 2  # all pairs of one of the people whom each of two clients alone knows
    name = targets[0].split("/")[0]
    client = world.client(name)
    mask = withdrawn(forget, name, client.labels)
    assert mask.sum() == 56
    assert set(np.array(client.labels)[mask]) <= gone
    # a person half of whose pairs are withdrawn is not gone: judged with those that others know too
    half = (ForgetSet(scenario="sample", targets=(f"{name}/{np.flatnonzero(mask)[0]}",)),)
    assert not world.gone(half)
    assert set(client.evaluation("test", half)) == {"forget_shared", "retain", "test"}


def test_several_requests_leave_nobody_of_whom_all_pairs_are_withdrawn():
    world = personas.load(SMALL, 0)
    someone, who = next((n, who) for n, who in world.known_by.items() if len(who) == 2)
    first, second = sorted(who)
    assert someone not in world.gone(leaves(first))
    assert someone in world.gone(leaves(first) + leaves(second))
    also = ForgetSet(scenario="class", targets=(someone,))
    assert world.gone((*leaves(first), also)) == world.gone(leaves(first)) | {someone}
