"""Whether two checkouts make bitwise the same adapters: same settings, same seed, one small federation per case in each.

    python -m benchmarks.same_adapters OLD_CHECKOUT NEW_CHECKOUT [--only NAME ...] [--to RESULT.json]
        [--save-old ADAPTERS.json] [--old-from ADAPTERS.json]

A case is a strategy in a scenario that it serves, or EASE with rarer settings; each checkout goes through all of them in one
process of one thread, and what results.json says of every model is compared. Bits depend on the machine, so no digest is kept
in the repository, and --old-from takes only what --save-old wrote on the same machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

GSD = ("reference", "tau", "energy", "subspace")
BKE = ("epochs", "batch", "weight", "margin", "evidence", "target", "way", "sides")
SETTINGS = {
    "hold.rounds": "continuation.rounds",
    "hold.overlap": "continuation.overlap",
    "data.holders": "data.sharers",
    "data.holdout_repeats": "data.forget_unseen_repeats",
    "strategy.gsd": "strategy.gsd.source",
    **{f"strategy.{key}": f"strategy.gsd.{key}" for key in GSD},
    "strategy.bke": "strategy.bke.enabled",
    **{f"strategy.bke_{key}": f"strategy.bke.{key}" for key in BKE},
    "strategy.lock": "strategy.lock.strength",
    **{f"strategy.lock_{key}": f"strategy.lock.{key}" for key in ("share", "halving", "release")},
}
"""Old and new names of settings. A checkout that has a folder ease_flwr/core knows the old ones."""
MODELS = {"held": "continued", "retrain_held": "retrain_continued"}
"""Old and new names of models."""

WORLD = """data.clients=3 data.exclusive=4 data.shared=3 data.sharers=2 data.strangers=6 data.exclusive_pairs=16
    data.shared_pairs=16 data.scenes=16 data.test_repeats=1 data.forget_unseen_repeats=1 data.test_scenes=16 data.unseen=16
    learn.rounds=6 learn.batch=32 continuation.rounds=2 evaluation.every=0 evaluation.reference=none audit.level=none
    strategy.rounds=2"""
RETRAIN = "evaluation.reference=retrain"
"""With it the three retrained models are compared too."""
SCENARIOS = {
    "client": "forget.targets=client-0",
    "class": "forget.scenario=class forget.targets= forget.draw=2",
    "sample": "forget.scenario=sample forget.targets= forget.draw=2",
}
STRATEGIES = {
    "ease": RETRAIN,
    "finetune": "",
    "retrain": "strategy.rounds=4",
    "federaser": "strategy.rounds=3",
    "fedosd": "strategy.rounds=4",
    "pga": "",
    "sfu": "",
    "multidelete": "",
    "npo": "",
    "mode": "strategy.rounds=4",
    "ascent": "",
    "ccu": "",
    "cliperase": "",
    "excise_all": "",
    "excise_random": "",
    "fedrecovery": "strategy.rounds=0 strategy.sigma=0.001",
    "fused": "",
    "gdfa": "strategy.rounds=3 strategy.probes=2",
    "lip": "",
    "mvi": "strategy.steps=20",
    "negate": "",
    "sifu": "",
}
RARER = {
    "ease client then another": f"forget.then=client-1 {RETRAIN}",
    "ease client half precision": "federation.half=true",
    "ease client FedAvgM": "learn.aggregator=FedAvgM learn.aggregator_options.server_momentum=0.5",
    "ease client fraction": "learn.fraction=0.5",
    "ease client sketched history": "history.rank=2 history.half=true",
    "ease client other subspaces": "strategy.gsd.fill=0.1 strategy.gsd.tau=0.2 strategy.gsd.energy=0.7",
    "ease client whole subspace": "strategy.gsd.subspace=whole",
    "ease client full projection": "strategy.projection=1",
    "ease client with BKE": """strategy.bke.enabled=true strategy.bke.rate=0.2 strategy.bke.epochs=2
        strategy.bke.batch=24 strategy.bke.weight=20 strategy.bke.margin=2 strategy.bke.evidence=0.6
        strategy.bke.target=unseen strategy.bke.way=0.7 strategy.bke.sides=visual""",
    "ease client other lock": """strategy.gsd.reference=request strategy.lock.strength=5 strategy.lock.share=0.8
        strategy.lock.halving=1 strategy.lock.release=2 continuation.rounds=3 continuation.overlap=8""",
}
CASES = {f"{name} {scenario}": own for name, own in STRATEGIES.items() for scenario in SCENARIOS} | RARER
"""By name, which begins with the strategy and the scenario: settings that differ from those of WORLD, by their new names."""


def adapters(case: str, folder: Path) -> dict[str, str] | None:
    """Run a case in the checkout that is the working directory: sha256 of each model, None if the scenario is not served."""
    from importlib import import_module

    from flwr.app import Context, RecordDict

    import ease_flwr
    from ease_flwr import server_app
    from tests.in_process_grid import InProcessGrid

    strategies = import_module("ease_flwr.strategies" if len(ease_flwr.__path__) > 1 else "strategies")  # the old layout
    strategy, scenario = case.split()[:2]
    if scenario not in strategies.load(strategy).scenarios:
        return None
    old = {new: old for old, new in SETTINGS.items()} if Path("ease_flwr/core").is_dir() else {}
    items = (item.partition("=") for item in f"{WORLD} {SCENARIOS[scenario]} {CASES[case]}".split())
    settings = " ".join(f"{old.get(key, key)}={value}" for key, _, value in items)
    run_config = {"experiment": "personas", "strategy": strategy, "seed": 0, "run-dir": str(folder), "fresh": False}
    run_config |= {"set": settings, "data.root": "", "model.weights": "", "forget.targets": ""}
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=run_config)
    server_app.main(InProcessGrid(3, run_config), context)
    ours = [m for n, m in sys.modules.items() if n.split(".")[0] in ("ease_flwr", "strategies", "clients", "tests")]
    assert all(Path(m.__file__ or "").resolve().is_relative_to(Path.cwd()) for m in ours), "another checkout was imported"
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))["adapters_sha256"]
    return {MODELS.get(model, model): sha256 for model, sha256 in found.items()}


def child(cases: list[str]) -> None:
    """Print a line of JSON for each case: what `adapters` found, or why it failed."""
    out = sys.stdout
    for case in cases:
        with contextlib.redirect_stdout(sys.stderr):
            try:
                said: Any = adapters(case, Path(os.environ["EASE_FLWR_HOME"]) / case)
            except Exception as error:
                said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(json.dumps(said), file=out, flush=True)


def begin(checkout: Path, home: Path, cases: list[str]) -> Iterator[Any]:
    """Start a process in a checkout at once; then what it prints for each case."""
    home.mkdir()
    same = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **same, "PYTHONPATH": str(checkout), "EASE_FLWR_HOME": str(home)}
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "child", *cases]
    with (home / "stderr").open("w") as log:
        process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)

    def lines() -> Iterator[Any]:
        assert process.stdout is not None
        with process:
            for _ in cases:
                line = process.stdout.readline()
                yield json.loads(line or json.dumps(f"its process ended: {(home / 'stderr').read_text()[-200:].strip()}"))

    return lines()


def verdict(old: Any, new: Any) -> str:
    """same, DIFFERENT: which models, or failed: reason."""
    for which, said in (("old", old), ("new", new)):
        if not isinstance(said, dict):
            return f"failed: {which}: {said or 'does not serve this scenario'}"
    differ = [model for model in {**old, **new} if old.get(model) != new.get(model)]
    return f"DIFFERENT: {', '.join(differ)}" if differ else f"same: {', '.join(old)}"


def compare(old: Path, new: Path, cases: list[str], known: dict[str, Any]) -> Iterable[tuple[str, Any, Any]]:
    """(case, old checkout's answer, new one's) for every case that the old one serves; what is known is not asked again."""
    with tempfile.TemporaryDirectory() as folder:
        before = (known[case] for case in cases) if known else begin(old, Path(folder) / "old", cases)
        for case, *answers in zip(cases, before, begin(new, Path(folder) / "new", cases), strict=True):
            if answers[0] is not None:
                yield case, *answers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same_adapters", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("new", type=Path, metavar="NEW_CHECKOUT")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases whose names begin so, or strategies")
    for option in ("--to", "--save-old", "--old-from"):
        parser.add_argument(option, type=Path)
    told = parser.parse_args()
    known = json.loads(told.old_from.read_text(encoding="utf-8")) if told.old_from else {}
    cases = [c for c in CASES if not told.only or any(f"{c} ".startswith(f"{name} ") for name in told.only)]
    cases = [c for c in cases if c in known or not known]
    began, verdicts, before = time.monotonic(), {}, {}
    for case, was, now in compare(told.old.resolve(), told.new.resolve(), cases, known):
        before[case], verdicts[case] = was, verdict(was, now)
        print(f"{case:32} {verdicts[case]}", flush=True)
    same = sum(v.startswith("same") for v in verdicts.values())
    print(f"{same} of {len(verdicts)} cases bitwise the same, after {time.monotonic() - began:.0f} s")
    for file, content in ((told.save_old, before), (told.to, {"same": same, "of": len(verdicts), "cases": verdicts})):
        if file:
            file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if verdicts and same == len(verdicts) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2:])
    else:
        sys.exit(main())
