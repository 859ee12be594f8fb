"""What a forget client aims at, by hand: embeddings in the plane stand for a model."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ease_flwr.clients.base import Batch
from ease_flwr.clients.bilateral import LANDED, Bilateral
from ease_flwr.clients.encoding import Encoded
from ease_flwr.strategies.ease import BkeParams

from ease_flwr.model.retrieval import partner_cross_entropy

UNSEEN = (0.1, 0.2, 0.3)
"""Similarities of public pairs: u = .2, d = .1."""
LOSSES = (5.0, 1.0, 3.0)
"""Their partner losses."""


def pairs(*similarities):
    """Pairs of these cosines, (n, 2) and (n, 1, 2)."""
    s = torch.tensor(similarities, dtype=torch.float64)
    return torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(len(s), 1), torch.stack([s, (1 - s**2).sqrt()], 1)[:, None]


def client(requested=None, stays=False, **options):
    """A forget client without a model or data."""
    made = type("Made", (Bilateral,), {"scale": torch.tensor(1.0, dtype=torch.float64), "model": None})
    found = made.__new__(made)
    found.options = Bilateral.Options(**{**BkeParams().options, **options})
    found.train, found.public, found.stays = "train", "public", stays
    found.requested = torch.tensor(requested or [])
    return found


def snapshot(before, after, known=None, requested=None, **options):
    """What is remembered where pairs have these similarities at the request and under the teacher (none: there is no teacher),
    and these partner losses under the teacher. Targets and margins, (n,) each."""
    c = client(requested or [True] * len(before), **options)
    models = {"request": before, "teacher": after, "initial": (0.0,) * len(before)}
    embedded = {name: pairs(*s) for name, s in models.items() if s}
    public = pairs(*UNSEEN)
    c.embed_all = lambda theta, which, most=None: public if which == "public" else embedded[theta]
    c.model = SimpleNamespace(initial="initial")
    # public pairs 0, 1, 2, 2, ... are drawn
    c.mates = SimpleNamespace(integers=lambda n, size: np.minimum(np.arange(size), n - 1))

    def losses(own, others):
        if own[0] is embedded.get("teacher", [None])[0]:
            return torch.tensor(known or [9.0] * len(before), dtype=torch.float64)[:, None]
        assert own[0] is public[0], "the level of unseen pairs is that of public ones"
        assert others[0] is embedded["request"][0]
        return torch.tensor(LOSSES, dtype=torch.float64)[:, None]

    c._losses = losses
    found = c.snapshot({name: name for name in ("request", "teacher") if models[name]})
    return found["target"][:, 0].tolist(), found["margin"][:, 0].tolist()


def test_a_target_is_the_teachers_between_a_floor_and_a_ceiling():
    # a pair is exclusive where the teacher took it .375 of the way to u: from .9 by more than .2625
    target, margin = snapshot(before=(0.9, 0.9, 0.9, 0.9, 0.05), after=(-0.5, 0.15, 0.5, 0.7, -0.3))
    # below u - d = .1: the floor; in between: its own; above u = .2: the ceiling; not exclusive: as it is; and no pair
    # is drawn up to the floor
    assert target == pytest.approx([0.1, 0.15, 0.2, 0.9, 0.05])
    assert [math.isnan(m) for m in margin] == [False, False, False, True, False]


def test_pairs_that_stay_are_never_exclusive_whatever_the_teacher_says():
    target, margin = snapshot(before=(0.9, 0.9), after=(0.0, 0.0), requested=[True, False])
    assert target == pytest.approx([0.1, 0.9])
    assert math.isnan(margin[1])


def test_the_weakest_evidence_that_counts_is_as_set():
    for evidence, exclusive in ((0.5, True), (0.6, False)):  # .9 -> .5 is 4/7 of the way to .2
        margin = snapshot(before=(0.9,), after=(0.5,), evidence=evidence)[1]
        assert math.isnan(margin[0]) != exclusive


def test_a_margin_is_the_public_pairs_of_its_rank_but_no_more_than_the_teachers_own():
    # drawn: 5, 1, 3, 3, in order 1, 3, 3, 5; the teacher's .5, 2, 4, 9 in order
    margin = snapshot(before=(0.9,) * 4, after=(0.0,) * 4, known=[4.0, 0.5, 2.0, 9.0])[1]
    assert margin == [3.0, 0.5, 2.0, 5.0]


def test_without_a_teacher_all_go_to_the_level_of_unseen_pairs():
    target, margin = snapshot(before=(0.9, 0.8, 0.9), after=(), requested=[True, True, False])
    assert target == pytest.approx([0.2, 0.2, 0.9])
    assert margin[:2] == [5.0, 1.0]
    assert math.isnan(margin[2])
    assert snapshot(before=(0.9,), after=(0.15,), target="unseen")[0] == pytest.approx([0.2])


# ---- the loss --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "margin"), [(0, 0), (2, 0), (0, 3), (2, 3)])
def test_each_form_of_the_loss_has_its_weight(weight, margin):
    c = client(weight=weight, margin=margin)
    e = torch.eye(2, dtype=torch.float64)
    c.embed = lambda batch: (e[:1], e[:1])
    c.before = {"f0": e[:1], "g0": e[:1, None], "target": torch.tensor([[0.5]]), "margin": torch.tensor([[1.0]])}
    c.public = Encoded(e[1:], e[1:, None])
    c.mates = np.random.default_rng(0)
    c.model = SimpleNamespace(embed_images=lambda x: x, embed_texts=lambda x: x)
    found = c.loss(Batch(torch.tensor([0]), torch.tensor([0]))).item()
    similarity = 0.5**2 + 2 * 0.25**2  # s = 1 against .5, each tower 1 against .75
    hinge = 2 * (1 - math.log(1 + math.exp(-1)))  # the partner has 1, the public pair 0; both directions
    assert found == pytest.approx(weight * similarity + margin * hinge)


def test_a_pair_that_others_know_has_no_margin_and_one_past_its_margin_is_left_alone():
    c = client(weight=0, margin=1)
    e = torch.eye(2, dtype=torch.float64)
    c.embed = lambda batch: (e, e)
    c.public = Encoded(e[:1], e[:1, None])
    c.mates = np.random.default_rng(0)
    c.model = SimpleNamespace(embed_images=lambda x: x, embed_texts=lambda x: x)
    c.before = {"f0": e, "g0": e[:, None], "target": torch.ones(2, 1), "margin": torch.tensor([[2.0], [torch.nan]])}
    own = partner_cross_entropy(e, e, e[:1].repeat(2, 1), e[:1].repeat(2, 1), c.scale)[:, 0]
    batch = Batch(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert c.loss(batch).item() == pytest.approx(float((2 - own).sum()) / 2)  # the mean over both pairs
    c.before["margin"][0] = 0.1
    assert c.loss(batch).item() == 0


# ---- where the step ends ---------------------------------------------------------------------------------------------------


def finished(slope, level, stays=False, margins=((2.0,), (2.0,), (torch.nan,))):
    """`finish` of a step along which the partner loss is level + slope * share: what it says, and where the model is."""
    c = client(stays=stays)
    c.before = {"margin": torch.tensor(margins)}
    c.forget = range(3)
    at = []
    c.model = SimpleNamespace(get=lambda: np.ones(1, np.float32))
    c._partner_loss_at = lambda theta: at.append(float(theta[0])) or level + slope * float(theta[0])
    return c.finish(np.zeros(1, np.float32)), at[-1] if at else None


def test_a_step_is_shortened_to_the_goal_from_below():
    said, end = finished(slope=4, level=0)
    assert said == {"exclusive": 2, "pairs": 3, "share": 0.5, "partner_loss": 2.0, "goal": 2.0}
    assert end == 0.5
    assert finished(slope=2, level=0)[0]["share"] == 1  # just so far
    assert finished(slope=2.0001, level=0)[0]["share"] == 1 - 1 / 64  # six halvings
    said, end = finished(slope=1, level=3)
    assert (said["share"], said["partner_loss"], end) == (0, 3, 0)


def test_a_client_that_stays_has_landed_at_nine_tenths():
    said, _ = finished(slope=4, level=0, stays=True)
    assert said["goal"] == pytest.approx(2 * LANDED)
    assert said["share"] == 28 / 64  # 1.75 <= 1.8 < 1.8125


def test_without_exclusive_pairs_the_whole_step_is_taken():
    said, end = finished(slope=4, level=0, margins=((torch.nan,),) * 3)
    assert said == {"exclusive": 0, "pairs": 3, "share": 1.0, "partner_loss": 0.0, "goal": 0.0}
    assert end is None


@pytest.mark.parametrize(("stays", "expected"), [(False, math.log(2)), (True, (0.5 + math.log(2)) / 2)])
def test_a_pair_of_a_client_that_stays_counts_up_to_its_target(stays, expected):
    c = client(stays=stays)
    same = pairs(1.0, 1.0, 1.0)  # nothing tells any pair apart: each loss is log 2 of one partner and one public pair
    c.embed_all = lambda theta, which, most=None: same
    c.batch = 1
    c.before = {"margin": torch.tensor([[0.5], [9.0], [torch.nan]], dtype=torch.float64)}
    assert c._partner_loss_at(np.zeros(1)) == pytest.approx(expected)
