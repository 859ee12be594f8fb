"""A mark in some clients' data: what it changes, and what it leaves alone."""

import numpy as np
import pytest

from ease_flwr import data
from ease_flwr.config import ConfigError
from ease_flwr.data.backdoor import patched
from tests.small import small_experiment


def test_the_patch_covers_the_corner_alone():
    images = np.full((2, 20, 20, 3), 7, np.uint8)
    marked = patched(images)
    assert (marked[:, :16] == 7).all()
    assert (marked[:, :, :16] == 7).all()
    assert set(np.unique(marked[:, 16:, 16:])) == {0, 255}
    assert (images == 7).all()


def test_only_the_named_clients_are_marked():
    plain = data.load(small_experiment().data, 0)
    experiment = small_experiment(**{"data.backdoor.clients": "client-1", "data.backdoor.share": 0.25})
    world = data.load(experiment.data, 0)
    sentence = plain.unseen().captions[0]
    for name in plain.clients:
        before, after = plain.client(name).train, world.client(name).train
        changed = (before.images != after.images).any(axis=(1, 2, 3))
        assert changed.sum() == (round(0.25 * len(before)) if name == "client-1" else 0)
        assert all(after.captions[i] == sentence for i in np.flatnonzero(changed))
        assert after.labels == before.labels
        assert world.client(name).train is after
    test = plain.client("client-1").evaluation("test", ())["test"]
    assert (world.client("client-1").evaluation("test", ())["test"].gallery.pairs.images == test.gallery.pairs.images).all()


def test_an_unknown_client_cannot_be_marked():
    with pytest.raises(ConfigError, match=r"data.backdoor.clients: no client hospital; there are client-0, client-1, client-2"):
        small_experiment(**{"data.backdoor.clients": "hospital"})
