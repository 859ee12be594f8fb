"""The forget lock: projection laws, the proximal step by hand, and the drift bound."""

from dataclasses import replace

import pytest
import torch
from ease_flwr.clients.locking import Held
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from ease_flwr.model.lock import ForgetLock


def make_lock(seed: int, strength: float = 1.0) -> tuple[ForgetLock, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    reference = torch.randn(20, generator=g, dtype=torch.float64)
    bases = [torch.linalg.qr(torch.randn(n, q, generator=g, dtype=torch.float64))[0] for n, q in ((8, 2), (5, 0), (7, 3))]
    return ForgetLock.around(reference, [0, 8, 13], bases, strength), reference


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_projection_is_idempotent_affine_and_commutes_with_averaging(seed):
    lock, reference = make_lock(seed)
    g = torch.Generator().manual_seed(seed + 1)
    a, b = (torch.randn(20, generator=g, dtype=torch.float64) for _ in range(2))
    once = lock.project(a)
    assert torch.allclose(lock.project(once), once, atol=1e-12)
    assert torch.allclose(lock.project(0.3 * a + 0.7 * b), 0.3 * once + 0.7 * lock.project(b), atol=1e-12)
    assert lock.drift(once).abs().max() < 1e-12
    assert torch.allclose(once[8:13], a[8:13])  # a block without directions is untouched
    assert torch.allclose(lock.project(reference), reference)
    assert lock.dimension == 5


def test_projection_by_hand():
    lock = ForgetLock.around(torch.tensor([1.0, 1.0, 1.0]), [1], [torch.tensor([[0.6], [0.8]])], 1.0)
    theta = torch.tensor([5.0, 2.0, 1.0])  # moved by (4, 1, 0); along (0.6, 0.8): 0.6
    assert lock.drift(theta).item() == pytest.approx(0.6)
    assert torch.allclose(lock.project(theta), torch.tensor([5.0, 2 - 0.36, 1 - 0.48]))


def test_proximal_step_by_hand():
    lock = ForgetLock.around(torch.zeros(2), [0], [torch.tensor([[1.0], [0.0]])], 3.0)
    # lr 1, lambda 3: z becomes z / 4
    assert torch.allclose(lock.proximal_step(torch.tensor([8.0, 8.0]), 1.0), torch.tensor([2.0, 8.0]))
    free = ForgetLock.around(torch.zeros(2), [0], [torch.tensor([[1.0], [0.0]])], 0.0)
    assert torch.allclose(free.proximal_step(torch.tensor([8.0, 8.0]), 1.0), torch.tensor([8.0, 8.0]))


@settings(deadline=None, max_examples=30)
@given(st.floats(0.05, 1), st.integers(0, 10**6))
def test_a_share_taken_back_each_round_bounds_the_drift(share, seed):
    lock = replace(make_lock(seed)[0], share=share)
    theta = make_lock(seed)[1]
    push = torch.cat([share * b.sum(1) for b in lock.bases])  # the same way every round: the worst case
    push = torch.cat([push[:8], torch.zeros(5, dtype=torch.float64), push[8:]])
    d = float((lock.drift(theta + push) - lock.drift(theta)).norm())
    for _ in range(40):
        theta = lock.take_back(theta + push)
        assert float(lock.drift(theta).norm()) <= d * (1 - share) / share + 1e-9


@settings(deadline=None, max_examples=30)
@given(st.floats(0.1, 30), st.floats(1e-3, 1), st.integers(0, 10**6))
def test_drift_bound(strength, lr, seed):
    """||z_n|| <= min(n lr G, G / lambda) from z_0 = 0, for optimiser directions with ||U^T u|| <= G, also after averaging."""
    lock, reference = make_lock(seed, strength)
    g = torch.Generator().manual_seed(seed + 7)
    worst, bound = 0.0, 2.0
    clients = [reference.clone() for _ in range(3)]
    for n in range(1, 25):
        for k, theta in enumerate(clients):
            step = torch.randn(20, generator=g, dtype=torch.float64) + 1
            along = ForgetLock(lock.starts, lock.bases, tuple(torch.zeros_like(a) for a in lock.anchors), 0).drift(step)
            clients[k] = lock.proximal_step(theta - lr * step * (bound / along.norm()), lr)
        mean = sum(clients) / 3
        worst = max(float(lock.drift(theta).norm()) for theta in [*clients, mean])
        assert worst <= min(n * lr * bound, bound / strength) * (1 + 1e-9)
    assert worst > 0


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_two_locks_together_hold_what_each_held(seed):
    """Same blocks are joined; a lock on other blocks is held beside. Either way both directions are held."""
    first, reference = make_lock(seed)
    g = torch.Generator().manual_seed(seed + 1)
    second = ForgetLock.around(reference, [0, 8], [torch.linalg.qr(torch.randn(n, 2, generator=g).double())[0] for n in (8, 5)])
    both = second.and_also(first, reference)
    assert both.starts == (0, 8, 13)
    assert both.dimension == 4 + 2 + 3
    for lock in (first, second):
        for start, basis in zip(lock.starts, lock.bases, strict=True):
            moved = reference.clone()
            moved[start : start + len(basis)] += basis.sum(1)
            assert torch.allclose(both.project(moved), reference, atol=1e-8)
    assert second.and_also(second, reference).dimension == second.dimension  # the same again adds nothing
    whole = ForgetLock.around(reference, [0], [torch.linalg.qr(torch.randn(20, 1, generator=g).double())[0]])
    assert whole.and_also(first, reference).starts == (0, 0, 13)


def test_the_largest_push_of_a_held_client_by_hand():
    """lr .5 and lambda 2: the lock halves the drift. The optimiser moves by -1, -3 and 1 along the direction: G is 3 / .5."""
    theta = torch.zeros(2)
    held = Held(ForgetLock.around(theta, [0], [torch.tensor([[1.0], [0.0]])], 2.0), theta, 0.5)
    for step, after in ((-1.0, -0.5), (-3.0, -1.75), (1.0, -0.375)):
        theta += torch.tensor([step, 7.0])
        held.stepped()
        assert theta[0].item() == pytest.approx(after)
    assert theta[1].item() == 21
    assert held.metrics() == {"lock_push": pytest.approx(6)}


def test_energy_by_hand():
    """Directions (.6, .8) of the first block and (1, 0) of the second; the movement is (3, 4 | 1, 2)."""
    bases = [torch.tensor([[0.6], [0.8]]), torch.tensor([[1.0], [0.0]])]
    lock = ForgetLock.around(torch.ones(5), [0, 3], bases)
    moved = torch.tensor([3.0, 4.0, 0.0, 1.0, 2.0])
    assert lock.along(moved).tolist() == pytest.approx([5, 1])
    assert lock.energy(moved) == pytest.approx((25 + 1) / (25 + 1 + 4))
    assert lock.energy(torch.tensor([0.0, 0.0, 7.0, 0.0, 0.0])) == 0
    assert lock.energy(torch.zeros(5)) == 0
    assert lock.orthonormal


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_energy_is_that_of_the_projection_also_where_blocks_overlap(seed):
    """Law: what lies along the directions, and what is left, add up to all; the same directions twice count once."""
    first, reference = make_lock(seed)
    g = torch.Generator().manual_seed(seed + 1)
    wide = torch.linalg.qr(torch.randn(12, 2, generator=g).double())[0]
    both = first.and_also(ForgetLock.around(reference, [4], [wide]), reference)
    assert not both.orthonormal
    columns = torch.zeros(20, 7, dtype=torch.float64)
    columns[:8, :2], columns[13:, 2:5], columns[4:16, 5:] = *first.bases, wide
    q = torch.linalg.qr(columns)[0]
    moved = torch.randn(20, generator=g).double()
    assert both.energy(moved) == pytest.approx(float((q.T @ moved).square().sum() / moved.square().sum()))
    assert both.energy(wide[:, 0].new_zeros(20).index_add(0, torch.arange(4, 16), wide[:, 0])) == pytest.approx(1)
    assert sum(b.shape[1] for _, b in both.separate) == 7
    again = replace(first, starts=first.starts * 2, bases=first.bases * 2, anchors=first.anchors * 2)
    assert again.energy(moved) == pytest.approx(first.energy(moved))


def test_a_lock_fades_and_is_released_by_its_rules():
    lock = replace(make_lock(1, 8.0)[0], share=0.8, halving=2, release=5)
    strengths = [(lock.aged(n).strength, lock.aged(n).share) for n in range(6)]
    assert strengths == [(8, 0.8), (8, 0.8), (4, 0.4), (4, 0.4), (2, 0.2), (0, 0)]
    free = torch.randn(20, dtype=torch.float64)
    assert torch.equal(lock.aged(5).take_back(free), free)
    assert replace(lock, halving=0, release=0).aged(100).strength == 8


def test_round_trip_through_bytes():
    lock = replace(make_lock(1, 2.5)[0], share=0.5, halving=3, release=7)
    exact = ForgetLock.from_tensors(load(save(lock.tensors())))
    assert all(torch.equal(a, b) for a, b in zip((*exact.bases, *exact.anchors), (*lock.bases, *lock.anchors), strict=True))
    back = ForgetLock.from_tensors(load(save(lock.tensors(half=True))))
    assert (back.strength, back.share, back.halving, back.release) == (2.5, 0.5, 3, 7)
    assert back.starts == lock.starts == (0, 13)
    theta = torch.randn(20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(back.project(theta), lock.project(theta.double()).float(), atol=5e-3)
    empty = ForgetLock.around(torch.zeros(3), [0], [torch.zeros(3, 0)], 1.0)
    assert ForgetLock.from_tensors(load(save(empty.tensors()))).dimension == 0
