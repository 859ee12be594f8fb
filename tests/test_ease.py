"""The server half of EASE, on vectors one can follow by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from ease_flwr.core.adapters import Block
from ease_flwr.core.config import Experiment
from ease_flwr.core.history import History
from strategies.base import Setting
from strategies.ease import Ease, blocks_of

BLOCKS = (Block("visual.a", "visual", (4,), 0), Block("visual.b", "visual", (2, 2), 4), Block("text.a", "text", (4,), 8))


def setting(theta_0):
    return Setting(Experiment(), None, theta_0, BLOCKS, ("client-1", "client-2"), ("client-0",))


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
    assert np.allclose(ease.teacher["request"], theta)
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
    updates = {n: SimpleNamespace(adapters=theta + step) for n in ("client-0", "client-1", "client-2")}
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
