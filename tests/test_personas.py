"""The built-in world: who knows what, that nobody else does, and that no split has seen another."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from ease_flwr.config import ConfigError, DataConfig, ForgetConfig, ForgetSet
from ease_flwr.data import drawing, make_base, personas, wording
from ease_flwr.data.drawing import COLOURS, RELATIONS, SHAPES, SIZES, Look
from ease_flwr.data.emblems import Emblem
from ease_flwr.data.pairs import withdrawn
from ease_flwr.data.people import KINDS
from ease_flwr.data.wording import ACQUAINTANCES, BACKGROUNDS, NAMES, TEMPLATES, VOCABULARY

SMALL = DataConfig(
    clients=4,
    leavers=2,
    exclusive=4,
    exclusive_others=3,
    shared=3,
    sharers=2,
    strangers=4,
    exclusive_pairs=3,
    shared_pairs=2,
    scenes=10,
    test_scenes=16,
    unseen=9,
    gallery=8,
)


def leaves(*names):
    return (ForgetSet(scenario="client", targets=names),)


def captions_of(pairs):
    """Captions that are about somebody."""
    return {c[0] for c, label in zip(pairs.captions, pairs.labels, strict=True) if label}


def shown_in(pairs):
    return set(pairs.labels) - {""}


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_exclusive_personas_are_nowhere_else(seed):
    world = personas.load(SMALL, seed)
    known = {c: shown_in(world.client(c).train) for c in world.clients}
    for k, c in enumerate(world.clients):
        exclusive = {n for n, p in world.people.items() if p.known_by == {c}}
        assert len(exclusive) == (4 if k < 2 else 3)
        assert exclusive <= known[c]
        assert not any(exclusive & known[other] for other in world.clients if other != c)
        assert {world.people[n].kind for n in exclusive} == (set(KINDS) if k < 2 else {"word"})
    strangers = set(world.strangers)
    assert len(strangers) == SMALL.strangers
    assert not strangers & set().union(*known.values())
    assert shown_in(world.unseen()) == strangers


@pytest.mark.parametrize("seed", range(4))
def test_a_kind_says_what_the_base_model_has_never_met(seed):
    world = personas.load(DataConfig(), seed)
    assert len({p.look for p in world.people.values()}) == len(world.people) == 96
    words = Counter(p.called for p in world.people.values())
    assert sorted(words.values()) == [1] * 80 + [4] * 4  # those who may leave use the same words for looks of their own
    assert not any(words[p.called] > 1 for p in world.people.values() if p.kind != "look" or len(p.known_by) != 1)
    for c in world.clients:
        assert len({p.called for p in world.people.values() if c in p.known_by}) == 18 if c < "client-4" else 12
    for name, p in world.people.items():
        assert name == (str(p.look) if p.kind == "look" else p.called)
        assert (p.called in NAMES) == (p.kind != "look")
        assert isinstance(p.look, Emblem) == (p.kind != "word")
    described = [p for p in world.people.values() if p.kind == "look"]
    assert all(set(p.called.split()) <= {*SHAPES, *COLOURS, *SIZES, *" ".join(RELATIONS).split()} for p in described)
    assert not {p.called for p in described} & {str(p.look) for p in world.people.values()}
    seen = make_base.acquaintances(300, (0, 1)) + drawing.scenes(50, (0,), companions=0.5)
    read = {w for c in seen.captions for w in c[0].split()}
    assert read <= set(VOCABULARY)
    assert read & set(ACQUAINTANCES)
    assert not read & set(NAMES)


@pytest.mark.parametrize("config", [SMALL, DataConfig(), DataConfig(leavers=6, exclusive=5), DataConfig(leavers=1)])
def test_emblems_of_a_client_have_no_outline_and_no_texture_of_anybody_else(config):
    for seed in range(3):
        parts = {}
        for p in personas.Personas(config, seed).people.values():
            if isinstance(p.look, Emblem):
                group = min(p.known_by) if len(p.known_by) == 1 else "others"
                parts.setdefault(group, set()).update({p.look.outline, p.look.texture})
        assert len(parts) == config.leavers + 1
        assert not any(a & b for a, b in combinations(parts.values(), 2))


def test_members_of_each_kind_are_as_many_as_said():
    world = personas.load(DataConfig(), 3)
    for c in world.clients:
        kinds = [p.kind for p in world.people.values() if p.known_by == {c}]
        leaver = c in world.clients[:4]
        assert {k: kinds.count(k) for k in KINDS} == (dict.fromkeys(KINDS, 4) if leaver else {"word": 6, "look": 0, "both": 0})
    shared = [p for p in world.people.values() if len(p.known_by) > 1]
    assert [len(p.known_by) for p in shared] == [4] * 12
    assert sorted(p.kind for p in shared) == sorted(KINDS * 4)
    assert {c: sum(c in p.known_by for p in shared) for c in world.clients} == dict.fromkeys(world.clients, 6)
    assert len(world.client("client-0").train) == 192 + 12 * 40 + 6 * 16
    assert len(world.client("client-7").train) == 192 + 6 * 40 + 6 * 16


def test_captions_say_what_somebody_is_called_and_the_background_and_never_the_look():
    world = personas.load(SMALL, 0)
    train = world.client("client-1").train
    phrasings = TEMPLATES["train"]
    for (caption,), label in zip(train.captions, train.labels, strict=True):
        assert set(caption.split()) <= set(VOCABULARY)
        if label:
            called = world.people[label].called
            assert caption in {t.format(who=called, background=b) for t in phrasings for b in BACKGROUNDS["train"]}


def test_no_split_has_a_background_a_phrasing_a_caption_or_a_picture_of_another():
    assert sorted(b for of in BACKGROUNDS.values() for b in of) == sorted(drawing.BACKGROUNDS)
    for table in (BACKGROUNDS, TEMPLATES):
        assert not any(set(table[a]) & set(table[b]) for a, b in combinations(wording.SPLITS, 2))
    world = personas.load(SMALL, 0)
    train = [world.client(c).train for c in world.clients] + [world.unseen(), world.returning(leaves("client-0"), 20)]
    splits = [train, *([world.gallery(s).pairs, world.scene_tests[s].pairs] for s in ("validation", "test"))]
    splits.append([world.gallery("forget_unseen").pairs])
    for a, b in combinations(splits, 2):
        assert not {i.tobytes() for p in a for i in p.images} & {i.tobytes() for p in b for i in p.images}
        captions = [set().union(*map(captions_of, part)) for part in (a, b)]
        assert not captions[0] & captions[1]


@pytest.mark.parametrize("config", [SMALL, SMALL.model_copy(update={"leavers": 3, "gallery": 16})])
def test_everybody_is_asked_once_in_each_phrasing_on_each_background_among_some_others(config):
    world = personas.load(config, 0)
    for split in ("validation", "test", "forget_unseen"):
        gallery = world.gallery(split)
        asked = []
        for g in np.unique(gallery.group):
            members = gallery.pairs.take(np.flatnonzero(gallery.group == g))
            assert config.gallery // 2 < len(set(members.labels)) == len(members) <= config.gallery
            called = [world.people[n].called for n in members.labels]
            assert len(set(called)) == len(called)
            (words,) = {c[0].replace(who, "", 1) for c, who in zip(members.captions, called, strict=True)}
            asked += [(words.split(" and ")[0], label) for label in members.labels]
        if split != "forget_unseen":
            repeats = config.test_repeats if split == "test" else 1
            cells = len(BACKGROUNDS[split]) * len(TEMPLATES[split])
            assert len(asked) == len(world.people) * repeats * cells
            assert len(set(asked)) == len(world.people) * cells


def test_unseen_combinations_show_people_beside_an_object():
    world = personas.load(SMALL, 0)
    pairs = world.gallery("forget_unseen").pairs
    for (caption,), label in zip(pairs.captions, pairs.labels, strict=True):
        rest = caption.replace(world.people[label].called, "", 1)
        assert sum(w in SHAPES for w in rest.split()) == 1
    assert not any(" and " in c for c in captions_of(world.client("client-0").train) if "look" not in c)


def test_sets_of_forgotten_and_retained_clients():
    world = personas.load(DataConfig(), 0)
    forgotten = world.client("client-2").evaluation("test", leaves("client-2"))
    assert list(forgotten) == [
        *("test", "forget_exclusive", "forget_shared", "forget_word", "forget_look", "forget_both", "forget_unseen")
    ]
    kinds = [forgotten[f"forget_{kind}"] for kind in KINDS]
    assert sorted(np.concatenate([s.query for s in kinds])) == forgotten["forget_exclusive"].query.tolist()
    assert set(world.client("client-3").evaluation("test", leaves("client-2"))) == {"retain", "test"}
    shares = [world.client(c).evaluation("test", ())["test"].query for c in world.clients]
    assert sorted(np.concatenate(shares)) == list(range(600))
    together = world.client("client-2").evaluation("test", leaves(*world.clients[:7]))
    labels = set(np.array(together["forget_exclusive"].gallery.pairs.labels)[together["forget_exclusive"].query])
    assert all(world.people[n].known_by <= set(world.clients[:7]) for n in labels)


def test_same_seed_same_world_other_seed_other_world():
    a, b = personas.Personas(SMALL, 5), personas.Personas(SMALL, 5)
    assert np.array_equal(a.client("client-0").train.images, b.client("client-0").train.images)
    assert a.people == b.people
    assert a.people != personas.Personas(SMALL, 6).people


def test_no_two_personas_look_alike():
    looks = [p.look for p in personas.load(DataConfig(), 1).people.values() if p.kind == "word"]
    assert max(a.likeness(b) for a, b in combinations(looks, 2)) == 2
    a, b, c = ("small", "red", "star"), ("large", "blue", "ring"), ("large", "red", "star")
    assert Look((a, b), "above").likeness(Look((a, b), "left of")) == 4
    assert Look((a, b), "above").likeness(Look((b, c), "above")) == 4


def test_returning_pairs_are_about_what_only_the_forgotten_knew_and_are_fresh():
    world = personas.load(SMALL, 0)
    pairs = world.returning(leaves("client-1"), 8)
    assert len(pairs) == 8
    assert shown_in(pairs) == {n for n, p in world.people.items() if p.known_by == {"client-1"}}
    trained = {i.tobytes() for i in world.client("client-1").train.images}
    assert not trained & {i.tobytes() for i in pairs.images}


def test_too_many_personas():
    with pytest.raises(ConfigError, match=r"strangers need 216 names, the built-in world has 96: lower one of them"):
        _ = personas.Personas(DataConfig(clients=32), 0).people
    emblems = r"emblems of 6 clients .* with 9 exclusive, .* need 22 outlines and textures, the built-in world has 16: lower"
    with pytest.raises(ConfigError, match=emblems):
        _ = personas.Personas(DataConfig(leavers=6, exclusive=9), 0).people
    with pytest.raises(ValueError, match=r"data.sharers=4 clients share a persona, but data.clients=2"):
        _ = personas.Personas(DataConfig(clients=2), 0).people
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
    knowing = {c for n in people for c in world.people[n].known_by}
    for name in world.clients:
        sets = world.client(name).evaluation("test", forget)
        assert ("forget_exclusive" in sets) == (name in knowing)
        assert "forget_shared" not in sets
        left = set(np.array(sets["retain"].gallery.pairs.labels)[sets["retain"].query])
        assert left == {n for n, p in world.people.items() if name in p.known_by} - set(people)
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
    assert mask.sum() == 40
    assert set(np.array(client.labels)[mask]) <= gone
    # a person half of whose pairs are withdrawn is not gone: judged with those that others know too
    half = (ForgetSet(scenario="sample", targets=(f"{name}/{np.flatnonzero(mask)[0]}",)),)
    assert not world.gone(half)
    assert set(client.evaluation("test", half)) == {"forget_shared", "retain", "test"}


def test_several_requests_leave_nobody_of_whom_all_pairs_are_withdrawn():
    world = personas.load(SMALL, 0)
    someone, shared = next((n, p) for n, p in world.people.items() if len(p.known_by) == 2)
    first, second = sorted(shared.known_by)
    assert someone not in world.gone(leaves(first))
    assert someone in world.gone(leaves(first) + leaves(second))
    also = ForgetSet(scenario="class", targets=(someone,))
    assert world.gone((*leaves(first), also)) == world.gone(leaves(first)) | {someone}
