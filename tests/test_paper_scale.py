"""ViT-B/32 with random weights on a generated set in Flickr30K's format: learn, forget, hold, audit."""

import json

import pytest
from flwr.app import Context, RecordDict

from benchmarks.generated import write
from ease_flwr import server_app
from tests.in_process_grid import InProcessGrid
from tests.small import RUN_CONFIG

pytestmark = pytest.mark.slow


def test_vit_b_32_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path))
    write(tmp_path / "set", train=36, val=6, test=6)
    small = "learn.rounds=1 learn.average=1 learn.batch=12 strategy.rounds=1 strategy.tau=0.5 hold.rounds=1 evaluation.every=0"
    small += f" data.clients=3 data.unseen=8 data.cache={tmp_path}/cache model.context=16 evaluation.equal=false model.weights="
    run_config = {
        **RUN_CONFIG,
        "experiment": "flickr30k+top6+bf16",
        "run-dir": str(tmp_path / "run"),
        "set": small,
        "data.root": str(tmp_path / "set"),
        "forget.targets": "client-2",
    }
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)
    server_app.main(InProcessGrid(3, run_config), context)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["models"]) == ["original", "retrain", "unlearned", "held"]
    sets = results["models"]["unlearned"]
    assert {n: (s["n"], s["gallery"]) for n, s in sets.items()} == {"forget": (12, 12), "retain": (24, 12), "test": (6, 6)}
    assert (tmp_path / "run" / "adapters" / "unlearned" / "adapter_model.safetensors").stat().st_size > 4 * 368_640
    assert {row["scope"] for row in results["requests"]} == {"tensor"}
    assert json.loads((tmp_path / "run" / "audit.json").read_text())["verdict"]
    kept = {f.stat().st_size for f in (tmp_path / "cache").glob("*.npy")}
    assert 128 + 12 * 224 * 224 * 3 in kept  # decoded images of a client
    assert 128 + 12 * 50 * 768 * 4 in kept  # activations before block 6 of the image tower
