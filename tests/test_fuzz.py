"""The driver of made-up input (benchmarks/fuzz.py): what counts as a fault, and that a try can be made again."""

import json

import pytest

from benchmarks import fuzz
from ease_flwr.config import ConfigError


def test_every_target_survives_its_first_tries(tmp_path):
    assert fuzz.main(tmp_path / "found.json", 0, 0) == 0


def test_what_counts_as_a_fault(tmp_path, monkeypatch, capsys):
    """One line is a refusal, two are a fault, and so is whatever else is raised."""

    def wrong(rng, folder):
        raise (ConfigError("no"), ConfigError("no\nway"), KeyError("x"))[rng.randrange(3)]

    monkeypatch.setattr(fuzz, "targets", lambda: {"wrong": wrong, "right": lambda rng, folder: "as it was"})
    for seed in range(20):
        fuzz.main(tmp_path / f"{seed}.json", 0, seed)
    every = [json.loads((tmp_path / f"{seed}.json").read_text())["targets"] for seed in range(20)]
    assert all(e["right"] == {"tries": 1, "refused": 0, "faults": []} for e in every)
    errors = {f["error"].splitlines()[-1] for e in every for f in e["wrong"]["faults"]}
    assert errors == {"way", "KeyError: 'x'"}
    assert sum(e["wrong"]["refused"] for e in every) > sum(len(e["wrong"]["faults"]) == 0 for e in every) > 0
    assert "wrong, seed " in capsys.readouterr().out
    fuzz.main(tmp_path / "again.json", 0, 7, ["wrong"])
    assert json.loads((tmp_path / "again.json").read_text())["targets"] == {"wrong": every[7]["wrong"]}


def test_an_unknown_target_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"^no target 'x': there are .*settings"):
        fuzz.main(tmp_path / "found.json", 0, 0, ["x"])
