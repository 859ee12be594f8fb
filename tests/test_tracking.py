"""Experiment trackers: nothing unless asked, one line if missing, numbers if there."""

import sys
from types import SimpleNamespace

import pytest

from ease_flwr.config import ConfigError
from ease_flwr.store.run import Run
from ease_flwr.store.tracking import flat, tracker
from tests.small import small_experiment


def test_numbers_are_flattened():
    values = {"loss": [1.0, 2.0], "validation": {"retain": 90.0}, "phase": "learn", "empty": [], "round": 3}
    assert flat(values) == {"loss": 1.5, "validation.retain": 90.0, "round": 3.0}


def test_nothing_is_asked_of_anybody_by_default(tmp_path):
    assert tracker(small_experiment(), tmp_path) is None


def test_a_tracker_that_is_not_there_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match=r"tracking=trackio: .*: pip install trackio, or leave tracking empty"):
        Run(tmp_path / "run", small_experiment(tracking="trackio"), "ease")


def test_events_with_numbers_are_sent(tmp_path, monkeypatch):
    sent = []
    run = SimpleNamespace(log=lambda numbers, step: sent.append((step, numbers)))
    asked = {}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: asked.update(options) or run))
    r = Run(tmp_path / "run", small_experiment(tracking="wandb"), "ease")
    r.event("hello")
    r.event("[learn 1/2]", model="learn", round=1, loss=[1.0, 3.0])
    assert sent == [(1, {"learn/round": 1.0, "learn/loss": 2.0})]
    assert asked["project"] == "ease_flwr"
    assert asked["config"]["name"] == "personas"


def test_tensorboard_writes_into_the_run(tmp_path, monkeypatch):
    written = []
    writer = SimpleNamespace(add_scalar=lambda *a: written.append(a), flush=lambda: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=lambda where: writer))
    r = Run(tmp_path / "run", small_experiment(tracking="tensorboard"), "ease")
    r.event("[learn 1/2]", model="learn", round=1)
    assert written == [("learn/round", 1.0, 1)]
