"""ViT-B/32 with random weights on a generated set in Flickr30K's format: learn, forget, continue, audit."""

import json

import pytest

from benchmarks.generated import write
from tests.in_process_grid import submit
from tests.small import RUN_CONFIG

pytestmark = pytest.mark.long


def test_vit_b_32_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path))
    write(tmp_path / "set", train=36, val=6, test=6)
    small = "learn.rounds=1 learn.average=1 learn.batch=12 strategy.rounds=1 strategy.gsd.tau=0.5 continuation.rounds=1"
    small += f" evaluation.every=0 data.clients=3 data.unseen=8 data.cache={tmp_path}/cache model.context=16"
    small += " evaluation.equal=false model.weights="
    run_config = {
        **RUN_CONFIG,
        "experiment": "flickr30k+top6+bf16",
        "run-dir": str(tmp_path / "run"),
        "set": small,
        "data.root": str(tmp_path / "set"),
        "forget.targets": "client-2",
    }
    submit(run_config)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["models"]) == ["original", "retrain", "unlearned", "continued"]
    sets = results["models"]["unlearned"]
    assert {n: s["gallery"] for n, s in sets.items()} == {"forget": 12, "retain": 12, "test": 6}
    assert sets["forget"]["n"] + sets["retain"]["n"] == 36 - 36 // 3  # the others are for validation
    assert (tmp_path / "run" / "adapters" / "unlearned" / "adapter_model.safetensors").stat().st_size > 4 * 368_640
    assert all(len(row["blocks"]) > 2 for row in results["requests"])
    assert json.loads((tmp_path / "run" / "audit.json").read_text())["verdict"]
    kept = {f.stat().st_size for f in (tmp_path / "cache").glob("*.npy")}
    assert 128 + 12 * 224 * 224 * 3 in kept  # decoded images of a client
    assert 128 + 12 * 50 * 768 * 4 in kept  # activations before block 6 of the image tower
