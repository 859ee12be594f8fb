"""The flickr8k experiment on real photographs, where they are at hand: one round of everything."""

import json
import os
from pathlib import Path

import pytest

from ease_flwr.config import APP
from tests.in_process_grid import submit
from tests.small import RUN_CONFIG

SHARED = Path(os.environ.get("EASE_SHARED", APP.parent / "shared")).absolute() / "data"
ROOT, WEIGHTS = SHARED / "flickr8k", SHARED / "weights" / "mnv2-flickr8k.safetensors"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not ROOT.is_dir(), reason=f"no photographs in {SHARED}: set EASE_SHARED to a folder that has data/flickr8k"
    ),
]


def test_photographs_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path))
    quick = "learn.rounds=2 strategy.rounds=1 continuation.rounds=0 evaluation.reference=none evaluation.every=0"
    run_config = {
        **RUN_CONFIG,
        "experiment": "flickr8k",
        "run-dir": str(tmp_path / "run"),
        "set": quick,
        "data.root": str(ROOT),
        "model.weights": str(WEIGHTS),
    }
    submit(run_config, clients=8)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["models"]) == ["original", "unlearned"]
    sets = results["models"]["original"]
    assert {name: s["gallery"] for name, s in sets.items()} == {"forget": 250, "retain": 250, "test": 500}
    assert sets["forget"]["n"] + sets["retain"]["n"] == 2000 - 2000 // 3  # the others are for validation
    assert sets["test"]["n"] == 500
    assert sets["test"]["r1"] > 4  # chance is 0.2: the base model is aligned and adapters have not broken it
    assert (tmp_path / "run" / "adapters" / "unlearned" / "adapter_config.json").is_file()
