"""The update history on disk: all columns, or a sketch of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ease_flwr.config import HistoryConfig
from ease_flwr.model import subspaces
from ease_flwr.store.history import History


def test_columns_come_back_in_order_of_rounds(tmp_path):
    history = History(tmp_path)
    for round in (2, 1, 10):
        history.append(round, "client-0", np.full(3, round, np.float32))
    assert history.columns("client-0").tolist() == [[1, 2, 10]] * 3
    assert history.columns("client-0", 1, 2).tolist() == [[1, 2, 10]]
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(ValueError, match=r"no update history of client-9 in .*: it never took part, or it was purged"):
        history.columns("client-9")


def test_half_precision_is_near(tmp_path):
    history = History(tmp_path, HistoryConfig(half=True))
    column = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    history.append(1, "client-0", column)
    assert np.allclose(history.columns("client-0")[:, 0], column, rtol=2**-8)
    assert (tmp_path / "client-0" / "00001.safetensors").stat().st_size < 50 * 2 + 200


def both(folder, columns, rank):
    full, sketch = History(folder / "full"), History(folder / "sketch", HistoryConfig(rank=rank))
    for t, column in enumerate(columns.T, 1):
        for history in (full, sketch):
            history.append(t, "client-0", np.ascontiguousarray(column, dtype=np.float32))
    return (torch.from_numpy(h.columns("client-0")).double() for h in (full, sketch))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 12))
def test_a_sketch_of_sufficient_rank_spans_the_same_subspace(tmp_path_factory, seed, rank, rounds):
    rng = np.random.default_rng(seed)
    columns = rng.standard_normal((30, rank)) @ rng.standard_normal((rank, rounds))
    full, sketch = both(tmp_path_factory.mktemp("h"), columns, rank)
    assert sketch.shape[1] <= rank
    assert torch.allclose(full @ full.T, sketch @ sketch.T, atol=1e-3 * float((full @ full.T).abs().max()))
    u, v = subspaces.basis(full, 0.999), subspaces.basis(sketch, 0.999)
    assert u.shape == v.shape
    assert subspaces.principal_angles(u, subspaces.Support([v])).sines.max() < 1e-3


def test_a_sketch_that_is_too_small_keeps_the_leading_directions(tmp_path):
    """Singular values 2^0 .. 2^-11: four of twelve columns hold the energy up to 2^-8, and the angle is as small."""
    rng = np.random.default_rng(1)
    u, v = (np.linalg.qr(rng.standard_normal((n, 12)))[0] for n in (60, 12))
    full, sketch = both(tmp_path, u @ np.diag(0.5 ** np.arange(12)) @ v.T, 4)
    assert sketch.shape == (60, 4)
    lost = 1 - float((sketch**2).sum() / (full**2).sum())
    assert lost < 2**-7
    angles = subspaces.principal_angles(torch.from_numpy(u[:, :2]), subspaces.Support([torch.linalg.qr(sketch)[0]]))
    assert angles.sines.max() < 0.05
