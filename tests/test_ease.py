"""The server half of EASE, on vectors one can follow by hand."""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ease_flwr.core.adapters import Block
from ease_flwr.core.config import ConfigError, Experiment, ForgetConfig
from ease_flwr.core.history import History
from ease_flwr.core.retrieval import Judgement
from strategies.base import Setting
from strategies.ease import Ease, blocks_of

BLOCKS = (Block("visual.a", "visual", (4,), 0), Block("visual.b", "visual", (2, 2), 4), Block("text.a", "text", (4,), 8))


EXPERIMENT = Experiment(forget=ForgetConfig(targets=("client-0",)))


def setting(theta_0):
    return Setting(
        EXPERIMENT, SimpleNamespace(say=print), theta_0, BLOCKS, ("client-1", "client-2"), ("client-0",), EXPERIMENT.forget
    )


def history(folder):
    """client-0 moves along e0 + e1 in the image tower, and along e8 in the text tower; others along e0, e1 not at all."""
    h = History(folder)
    for round in (1, 2):
        for name, where in (("client-0", (0, 1, 8)), ("client-1", (0, 9)), ("client-2", (0, 10))):
            column = np.zeros(12, np.float32)
            column[list(where)] = round
            h.append(round, name, column)
    return h


def test_blocks_of_each_scope():
    assert blocks_of(BLOCKS, "tensor") == [(0, 4), (4, 8), (8, 12)]
    assert blocks_of(BLOCKS, "tower") == [(0, 8), (8, 12)]
    assert blocks_of(BLOCKS, "vector") == [(0, 12)]


def test_excision_takes_the_sine_part_of_exclusive_directions_back_to_the_start(tmp_path):
    theta_0 = np.full(12, 0.5, np.float32)
    theta = theta_0 + np.arange(1, 13, dtype=np.float32)
    ease = Ease(setting(theta_0), Ease.Params(tau=0.8))
    start = ease.prepare(theta, history(tmp_path))
    # image tower: (e0 + e1)/sqrt 2 has cosine .707 to e0, its sine part is e1; text tower: e8 is orthogonal to e9, e10
    expected = theta.copy()
    expected[[1, 8]] = 0.5
    assert np.allclose(start, expected, atol=1e-6)
    assert np.allclose(ease.snapshot["request"], theta)
    assert ease.lock_after(start).dimension == 2


def test_threshold_below_the_cosine_spares_a_direction(tmp_path):
    theta_0, theta = np.zeros(12, np.float32), np.ones(12, np.float32)
    start = Ease(setting(theta_0), Ease.Params(tau=0.5)).prepare(theta, history(tmp_path))
    assert start[1] == 1  # cosine .707 > .5
    assert start[8] == 0


def test_rounds_add_the_forgotten_step_project_and_lock_it(tmp_path):
    theta_0 = np.zeros(12, np.float32)
    ease = Ease(setting(theta_0), Ease.Params(tau=0.8))
    theta = ease.prepare(np.ones(12, np.float32), history(tmp_path))
    step = np.zeros(12, np.float32)
    step[[1, 5]] = (3, 2)
    retained = theta + 0.25
    ease.mean = lambda updates: retained
    updates = {n: SimpleNamespace(adapters=theta + step, step=None) for n in ("client-0", "client-1", "client-2")}
    after = ease.combine(theta, updates)
    expected = retained + step
    expected[[1, 8]] = 0  # the gap stays empty
    assert np.allclose(after, expected, atol=1e-6)
    # later rounds may not take the step back: e5 is locked where it is, besides e1 and e8
    ease.lock = replace(ease.lock_after(after), share=1.0)
    assert ease.lock.dimension == 3
    later = after.copy()
    later[[1, 5, 8, 11]] += 7
    assert np.allclose(ease.locked(later) - after, 7 * np.eye(12)[11], atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 9)), min_size=3, max_size=3),
    st.floats(1, 100),
    st.floats(0, 9),
    st.floats(0, 1),
)
def test_calibration_takes_the_shallowest_that_reaches_the_unseen_level_and_never_costs_too_much(found, before, goal, drop):
    taus = (0.3, 0.5, 0.8)

    def validate(models, names, forget, cost):
        assert list(models) == ["as it is", "tensor 0.3", "tensor 0.5", "tensor 0.8"]
        assert "client-0" in names
        values = [(before, 0.0), *found]
        return {
            m: Judgement(sets={"retain": {"r1": r}}, level=level, unseen=goal)
            for m, (r, level) in zip(models, values, strict=True)
        }

    ease = Ease(setting(np.zeros(12, np.float32)), Ease.Params(taus=taus, drop=drop))
    ease.setting.federation.validate = validate
    with tempfile.TemporaryDirectory() as folder:
        columns = history(Path(folder))
        rows = [[partial(columns.columns, n) for n in names] for names in (("client-0",), ("client-1", "client-2"))]
        scope, tau, _ = ease.chosen(np.ones(12, np.float32), *rows)
    assert scope == "tensor"
    allowed = [t for t, (r, _) in zip(taus, found, strict=True) if r >= (1 - drop) * before]
    assert tau in (allowed or taus[:1])
    levels = dict(zip(taus, (level for _, level in found), strict=True))
    reached = [t for t in allowed if levels[t] >= goal]
    assert not reached or tau == min(reached)
    assert reached or not allowed or levels[tau] == max(levels[t] for t in allowed)


def test_without_a_holder_the_deepest_that_is_allowed_is_taken(tmp_path):
    ease = Ease(setting(np.zeros(12, np.float32)), Ease.Params(taus=(0.3, 0.5, 0.8), drop=0.1))
    recalls = iter((100.0, 99.0, 95.0, 50.0))
    ease.setting.federation.validate = lambda models, *_: {m: Judgement(sets={"retain": {"r1": next(recalls)}}) for m in models}
    start = ease.prepare(np.ones(12, np.float32), history(tmp_path))
    assert ease.facts["tau"] == 0.5
    assert start[1] == 1  # its cosine .707 is beyond


def test_foils(tmp_path):
    theta = np.ones(12, np.float32)

    def start(**params):
        return Ease(setting(np.zeros(12, np.float32)), Ease.Params(tau=0.8, bke=False, **params)).prepare(
            theta, history(tmp_path)
        )

    assert np.array_equal(start(reference="request"), theta)  # since the request nothing was learnt
    whole = start(subspace="whole")
    assert np.allclose(whole[:2], 0, atol=1e-6)  # e0 + e1, shared part and all
    assert np.linalg.norm(whole) < np.linalg.norm(start()) < np.linalg.norm(theta)
    random = start(subspace="random")
    assert not np.allclose(random, start())
    with pytest.raises(ConfigError, match=r"without GSD and without holders that help there is nothing to forget by"):
        start(gsd="none")
