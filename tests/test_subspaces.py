"""Linear algebra of GSD: laws, scipy as an oracle, and directions planted by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from ease_flwr.model.subspaces import Support, basis, exclusive, join, principal_angles


def random_basis(p: int, q: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(p, q, generator=generator, dtype=torch.float64))[0]


dimensions = st.tuples(st.integers(1, 6), st.integers(0, 9), st.integers(0, 10**6))


@settings(deadline=None, max_examples=40)
@given(dimensions)
def test_cosines_and_sines(case):
    q_f, q_r, seed = case
    f, r = random_basis(24, q_f, seed), random_basis(24, q_r, seed + 1)
    a = principal_angles(f, Support([r]))
    assert a.cosines.shape == a.sines.shape == (q_f,)
    assert torch.allclose(a.cosines**2 + a.sines**2, torch.ones(q_f, dtype=torch.float64), atol=1e-10)
    assert torch.linalg.norm(r.T @ a.sine) < 1e-10
    assert torch.allclose(a.principal.T @ a.principal, torch.eye(q_f, dtype=torch.float64), atol=1e-10)
    if q_r:
        ours = torch.sort(torch.acos(a.cosines.clamp(0, 1)))[0][: min(q_f, q_r)]
        theirs = np.sort(subspace_angles(f.numpy(), r.numpy()))
        assert np.allclose(ours.numpy(), theirs[: len(ours)], atol=1e-7)


def test_angle_of_a_known_plane():
    e = torch.eye(4, dtype=torch.float64)
    f = torch.stack([(3 * e[0] + 4 * e[1]) / 5, e[2]], dim=1)  # cosines to span(e0): 3/5 and 0
    a = principal_angles(f, Support([e[:, :1]]))
    assert torch.allclose(a.cosines, torch.tensor([0.6, 0.0], dtype=torch.float64))
    assert torch.allclose(a.sines, torch.tensor([0.8, 1.0], dtype=torch.float64))
    assert torch.allclose(exclusive(a, 0.5).abs(), e[:, 2:3])
    assert exclusive(a, 0.6 + 1e-9).shape == (4, 2)
    assert torch.allclose(exclusive(a, 1.0) @ exclusive(a, 1.0).T, torch.diag(torch.tensor([0.0, 1, 1, 0]).double()))


def test_tiny_sines_keep_their_digits():
    e = torch.eye(3, dtype=torch.float64)
    tiny = 1e-9
    f = (e[:, :1] + tiny * e[:, 1:2]) / (1 + tiny**2) ** 0.5
    assert principal_angles(f, Support([e[:, :1]])).sines.item() == pytest.approx(tiny, rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 10**6), st.booleans())
def test_support_is_the_sum_however_its_parts_overlap(sizes, seed, repeated):
    parts = [random_basis(24, q, seed + i) for i, q in enumerate(sizes)]
    parts += [parts[0]] if repeated else []  # singular: S^T S has no factor
    known, x = join(parts), random_basis(24, 3, seed - 1)
    support = Support(parts)
    assert torch.allclose(support.outside(x), x - known @ (known.T @ x), atol=1e-10)
    everyone = [x, *parts]
    expected = [[(a.T @ b).square().sum() / max(1, min(a.shape[1], b.shape[1])) for b in everyone] for a in everyone]
    assert torch.allclose(support.shared_with([x]), torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_nearly_equal_subspaces_are_told_apart_as_far_as_numbers_can():
    e = torch.eye(5, dtype=torch.float64)
    for tiny in (1e-2, 1e-3, 1e-5):
        leaning = (e[:, :1] + tiny * e[:, 1:2]) / (1 + tiny**2) ** 0.5
        support = Support([e[:, :1], leaning])  # together they span e0 and e1, however little they differ
        assert torch.allclose(support.outside(e[:, 1:3]), e[:, 1:3] * torch.tensor([0.0, 1.0]), atol=1e-9)


def test_planted_exclusive_direction_is_found():
    g = torch.Generator().manual_seed(3)
    shared, secret = random_basis(200, 5, 1), random_basis(200, 1, 2)
    secret = torch.linalg.qr(torch.cat([shared, secret], 1))[0][:, 5:]
    retain = [basis(shared @ torch.randn(5, 8, generator=g, dtype=torch.float64)) for _ in range(3)]
    forget = shared @ torch.randn(5, 8, generator=g, dtype=torch.float64)
    forget = forget + secret @ torch.randn(1, 8, generator=g, dtype=torch.float64)
    found = exclusive(principal_angles(basis(forget, 0.9999), Support(retain)), 0.5)
    assert found.shape == (200, 1)
    assert (found.T @ secret).abs().item() == pytest.approx(1, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_basis_does_not_depend_on_mixing_of_columns(seed):
    g = torch.Generator().manual_seed(seed)
    m = torch.randn(30, 4, generator=g, dtype=torch.float64)
    mix = torch.randn(4, 4, generator=g, dtype=torch.float64) + 4 * torch.eye(4, dtype=torch.float64)
    a, b = basis(m, 1.0), basis(m @ mix, 1.0)
    assert torch.allclose(a @ a.T, b @ b.T, atol=1e-7)


def test_energy_chooses_the_smallest_sufficient_basis():
    m = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64))  # squared 9, 4, 1 of 14
    assert basis(m, 9 / 14 - 1e-9).shape[1] == 1
    assert basis(m, 0.9).shape[1] == 2
    assert basis(m, 0.99).shape[1] == 3
    assert basis(m, 1.0).shape[1] == 3  # the zero column is no direction


def test_empty_and_rank_deficient_inputs():
    zero = torch.zeros(7, 3, dtype=torch.float64)
    empty = basis(zero)
    assert empty.shape == (7, 0)
    assert join([empty, empty]).shape == (7, 0)
    one = torch.ones(7, 3, dtype=torch.float64)
    assert basis(one, 1.0).shape == (7, 1)
    assert join([basis(one), basis(2 * one)]).shape == (7, 1)
    assert principal_angles(empty, Support([basis(one)])).cosines.shape == (0,)
    alone = principal_angles(basis(one), Support([empty]))
    assert alone.cosines.item() == 0
    assert alone.sines.item() == pytest.approx(1)
