"""Losses of the client half, by hand."""

import math

import pytest
import torch
from ease_flwr.clients.bilateral import bilateral_loss
from ease_flwr.clients.contrastive import info_nce

from ease_flwr.model.retrieval import partner_cross_entropy


def angle(*degrees: float) -> torch.Tensor:
    r = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([r.cos(), r.sin()], dim=1)


def test_info_nce_by_hand():
    images, texts = torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    loss = info_nce(images, texts, torch.tensor(2.0, dtype=torch.float64))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    swapped = info_nce(images, texts.flip(0), torch.tensor(2.0, dtype=torch.float64))
    assert swapped.item() == pytest.approx(2 + math.log(1 + math.exp(-2)))


BOTH = torch.tensor([True, True])
ONE = torch.tensor([True])


def test_bilateral_loss_of_two_pairs_by_hand():
    f0, g0 = angle(0, 0), angle(0, 60)  # s° = 1 and 1/2
    target = torch.tensor([0.5, 0.9], dtype=torch.float64)
    # pair 1: nothing has moved, so s = s_v = s_t = 1: (1 - .5)^2 + 2 (1 - .75)^2 = .375
    # pair 2: its target is above where it is: no loss, however far away
    assert bilateral_loss((f0, g0), (f0, g0), target, BOTH).item() == pytest.approx(0.375 / 2)
    # as a pair that others know too it is drawn back to its target: (.5 - .9)^2 + 2 (.5 - .7)^2 = .24
    mixed = bilateral_loss((f0, g0), (f0, g0), target, torch.tensor([True, False]))
    assert mixed.item() == pytest.approx((0.375 + 0.24) / 2)


def test_bilateral_gradient_pushes_both_towers_apart_and_stops_at_the_target():
    f0, g0 = angle(0.0), angle(0.0)
    target = torch.tensor([0.5], dtype=torch.float64)
    f, g = angle(10.0).requires_grad_(), angle(-10.0).requires_grad_()
    bilateral_loss((f, g), (f0, g0), target, ONE).backward()
    s, half = math.cos(math.radians(20)), math.cos(math.radians(10))
    expected_f = 2 * (s - 0.5) * g.detach()[0] + 2 * (half - 0.75) * g0[0]
    expected_g = 2 * (s - 0.5) * f.detach()[0] + 2 * (half - 0.75) * f0[0]
    assert torch.allclose(f.grad[0], expected_f)
    assert torch.allclose(g.grad[0], expected_g)
    f, g = angle(45.0).requires_grad_(), angle(-45.0).requires_grad_()  # s = 0 and s_v = s_t = .71: all below
    loss = bilateral_loss((f, g), (f0, g0), target, ONE)
    loss.backward()
    assert loss.item() == 0
    assert f.grad.abs().max() == g.grad.abs().max() == 0


def test_half_way_targets_let_both_towers_share_the_way():
    """Both towers turned by the same angle meet s and the two half-way terms together, in the limit of small angles."""
    f0 = g0 = angle(0.0)
    f, g = angle(8.0), angle(-8.0)
    target = (f * g).sum(1)
    leftover = bilateral_loss((f, g), (f0, g0), target, ONE).item()
    full_targets = 2 * ((f * g0).sum(1) - target).clamp_min(0).square().item()
    assert leftover < 0.5 * full_targets


def test_partner_cross_entropy_counts_public_pairs_as_rivals():
    e = torch.eye(3, dtype=torch.float64)
    scale = torch.tensor(2.0, dtype=torch.float64)
    alone = partner_cross_entropy(e[:1], e[:1], e[:0], e[:0], scale)
    assert torch.allclose(alone, torch.zeros(2, 1, dtype=torch.float64))
    # the partner scores 2, a public caption like the picture scores 2 too, a public picture unlike the caption 0
    rivals = partner_cross_entropy(e[:1], e[:1], e[1:2], e[:1], scale)
    assert rivals[0].item() == pytest.approx(math.log(2))
    assert rivals[1].item() == pytest.approx(math.log(1 + math.exp(-2)))
