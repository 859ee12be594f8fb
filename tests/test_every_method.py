"""Every method forgets a client in an in-process federation, and forgets by what it does: not by the rounds it takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ease_flwr.config import APP, halves
from tests.small import RUN_CONFIG, SMALL
from tests.test_methods import write_guide
from tests.test_run import play, r1

SETTINGS = {k: v for k, v in SMALL.items() if k != "strategy.rounds"} | {
    "continuation.rounds": 0,
    "evaluation.reference": "none",
    "data.test_scenes": 30,
}


def run(folder, name, rounds, **changes):
    values = {**SETTINGS, "strategy.rounds": rounds, **changes}
    results = play(folder, strategy=name, set=" ".join(f"{k}={v}" for k, v in values.items()))
    assert results["failures"] == []  # no update of an honest client is cut
    return results


@pytest.fixture(scope="module")
def finetuned(home):
    """Exclusive recall by exchanges of ordinary rounds without the client: what time alone forgets."""
    return {n: r1(run(home / f"finetune-{n}", "finetune", n), "unlearned", "forget_exclusive") for n in (1, 4)}


FOUR = {
    "ascent": {},
    "ccu": {"strategy.lr": 5e-3},
    "cliperase": {"strategy.lr": 5e-4, "strategy.forgetting": 1.0},
    "ease": {},
    "excise_all": {},
    "fedosd": {"strategy.lr": 2e-3, "strategy.step": 2},
    "fedrecovery": {},
    "lip": {"strategy.lr": 5e-3, "strategy.epochs": 3},
    "mode": {"strategy.momentum": 0.5, "strategy.lr": 5e-4},
    "multidelete": {"strategy.lr": 5e-4},
    "mvi": {"strategy.temperature": 0.1},
    "negate": {"strategy.modules": 4},
    "npo": {},
    "pga": {},
    "retrain": {},
    "sifu": {},
}
"""Methods that have forgotten more than fine-tuning after four exchanges, and settings that show it in so small a world."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_forgets_more_than_time_alone(name, home, finetuned):
    results = run(home / name, name, 4, **FOUR[name])
    assert r1(results, "unlearned", "forget_exclusive") < finetuned[4] - 5
    assert results["cost"]["unlearn"]["rounds"] == 4
    assert results["params"]["rounds"] == 4


@pytest.mark.slow
def test_federaser_rebuilds_the_model_without_the_client(home):
    results = run(home / "federaser", "federaser", 13)
    assert r1(results, "unlearned", "forget_exclusive") < 30
    assert r1(results, "unlearned", "retain") > r1(results, "original", "retain") - 15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"), [("sfu", {"strategy.lr": 2e-2, "strategy.energy": 0.5}), ("gdfa", {"strategy.probes": 1})]
)
def test_one_step_before_any_repair_forgets(name, changes, home, finetuned):
    results = run(home / name, name, 1, **changes)
    assert r1(results, "unlearned", "forget_exclusive") < finetuned[1] - 5


@pytest.mark.slow
def test_foil_of_random_directions_does_not_forget(home, finetuned):
    results = run(home / "excise_random", "excise_random", 4)
    assert r1(results, "unlearned", "forget_exclusive") > finetuned[4] - 10


@pytest.mark.slow
def test_fused_moves_its_tensors_only_and_is_reversible(home):
    from safetensors.numpy import load_file

    results = run(home / "fused", "fused", 4)
    before, after = (
        load_file(home / "fused" / "adapters" / m / "adapter_model.safetensors") for m in ("original", "unlearned")
    )
    moved = {name for name in before if (before[name] != after[name]).any()}
    chosen = results["requests"][0]["tensors"]
    assert {n.removeprefix("base_model.model.") for n in moved} == {n.replace(".default", "") for n in chosen}
    assert r1(results, "unlearned", "forget_exclusive") < r1(results, "original", "forget_exclusive")


def test_no_method_is_without_a_test():
    tested = {*FOUR, "finetune", "federaser", "sfu", "gdfa", "excise_random", "fused"}
    assert tested == set(halves.names("strategies"))


@pytest.mark.slow
def test_the_recipe_of_the_documentation_works_without_touching_a_file(home, tmp_path):
    """Both files of docs/add-a-method.md in a folder on the path: listed, and run by name."""
    write_guide(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ease = [sys.executable, "-m", "ease_flwr"]
    listed = subprocess.run([*ease, "methods"], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert any(line.startswith("shuffle ") for line in listed.stdout.splitlines())
    script = "\n".join(
        [
            f"import sys; sys.path.insert(0, {str(APP)!r})",
            "from pathlib import Path",
            "from tests.test_every_method import run",
            f"run(Path({str(home / 'shuffle')!r}), 'shuffle', 4)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((Path(home) / "shuffle" / "results.json").read_text())
    assert results["strategy"] == "shuffle"
    assert r1(results, "unlearned", "forget_exclusive") < r1(results, "original", "forget_exclusive") - 10
    assert RUN_CONFIG["strategy"] == "ease"
