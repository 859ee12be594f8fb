"""The driver of made-up input (benchmarks/fuzz.py): what counts as a fault, and that a try can be made again."""

import json

import pytest

from benchmarks import fuzz
from ease_flwr.config import ConfigError


def test_what_counts_as_a_fault(tmp_path, monkeypatch):
    """A ConfigError is a refusal; whatever else is raised is a fault. The same seed tries the same again."""

    def wrong(rng, folder):
        raise (ConfigError("no\nway"), KeyError("x"), AssertionError("another"))[rng.randrange(3)]

    def found(seed, *only):
        assert fuzz.main(tmp_path / "found.json", 0, seed, only) == sum(len(t["faults"]) for t in read().values())
        return read()

    def read():
        return json.loads((tmp_path / "found.json").read_text())["targets"]

    monkeypatch.setattr(fuzz, "targets", lambda: {"wrong": wrong, "right": lambda rng, folder: "as it was"})
    every = [found(seed) for seed in range(20)]
    assert all(e["right"] == {"tries": 1, "refused": 0, "faults": []} for e in every)
    assert all(e["wrong"]["refused"] + len(e["wrong"]["faults"]) == 1 for e in every)
    faults = [(seed, f) for seed, e in enumerate(every) for f in e["wrong"]["faults"]]
    assert {f["error"].splitlines()[-1] for _, f in faults} == {"KeyError: 'x'", "AssertionError: another"}
    assert all(seed == f["seed"] for seed, f in faults)
    assert 0 < len(faults) < 20
    assert found(7, "wrong") == {"wrong": every[7]["wrong"]}


def test_an_unknown_target_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"^no target 'x': there are settings"):
        fuzz.main(tmp_path / "found.json", 0, 0, ["x"])


def test_the_first_tries_of_every_target_find_nothing(tmp_path):
    assert fuzz.main(tmp_path / "found.json", 0, 0) == 0
