"""Runs side by side."""

import json

import pytest

from ease_flwr.audit.summary import summary
from ease_flwr.config import ConfigError


def write(folder, seed, unlearned, retrain):
    folder.mkdir()

    def sets(r1):
        return {"forget": {"r1": r1}, "retain": {"r1": 50.0}}

    cost = {"rounds": 1, "client_steps": 10, "uplink_bytes": 100, "downlink_bytes": 100, "seconds": 1.0}
    results = {
        "schema": 2,
        "experiment": "flickr8k",
        "strategy": "ease",
        "seed": seed,
        "forget": {"scenario": "client", "targets": ["client-3"]},
        "models": {"original": sets(60.0), "retrain": sets(retrain), "unlearned": sets(unlearned)},
        "gaps": {"forget": unlearned - retrain, "retain": 0.0},
        "cost": {"retrain": cost, "unlearn": {**cost, "client_steps": 2, "uplink_bytes": 0}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_gaps_have_mean_spread_and_worst(tmp_path):
    text = summary([write(tmp_path / "a", 0, 14.0, 10.0), write(tmp_path / "b", 1, 9.0, 10.0)])
    assert "| flickr8k, ease, 1, client-3 | unlearned | 9.0 | 50.0 |" in text
    assert "| unlearned minus retrain | +1.5 ± 3.5, +4.0 ! | +0.0 ± 0.0, +0.0 |" in text
    assert "- seed 0, client-3: forgetting took 20.0% of the client steps and 50.0% of the bytes of retraining" in text
    assert "continued minus" not in text


def test_a_run_is_counted_once(tmp_path):
    run = write(tmp_path / "a", 0, 14.0, 10.0)
    (tmp_path / "link").symlink_to(run)
    for again in (run, tmp_path / "link", tmp_path / "x" / ".." / "a"):
        with pytest.raises(ConfigError, match=r" is named twice: a mean would count it twice, name it once$"):
            summary([run, again])


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(ConfigError, match=r"no run there: give the folder of one"):
        summary([tmp_path])
    (tmp_path / "results.json").write_text('{"schema": 7}')
    with pytest.raises(ConfigError, match="has schema 7, this version reads 2"):
        summary([tmp_path])
