"""Gradient subspace decomposition at scale: seconds and peak memory against clients, rounds and parameters.

    python -m benchmarks.gsd FILE.json [--full]

Each case is a process of its own that writes an update history of random columns (the worst case: every direction counts) in
the blocks of ViT-B/32 with LoRA r = 8 on attention, or a part of them, and then decomposes it as EASE does. The exponent in
parameters is fitted over the cases that differ in nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ease_flwr.model.adapters import Block

WIDTHS = {"visual": 768, "text": 512}


def blocks(layers: int) -> list[Block]:
    """Factors of in_proj and out_proj, r = 8, of so many layers of both towers (12 are all)."""
    found, start = [], 0
    for tower, width in WIDTHS.items():
        for k, n in enumerate(n for _ in range(layers) for n in (width, 3 * width, width, width)):
            found.append(Block(f"{tower}.{k}", tower, (8, n), start))
            start = found[-1].stop
    return found


def one(clients: int, rounds: int, layers: int, rank: int) -> dict[str, float]:
    """Write a history and decompose it; the first client leaves."""
    from functools import partial

    from ease_flwr.strategies.gsd import Columns, GsdParams, measure

    from ease_flwr.config import HistoryConfig
    from ease_flwr.store.cost import peak_memory
    from ease_flwr.store.history import History

    tensors = blocks(layers)
    p = tensors[-1].stop
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder), HistoryConfig(rank=rank))
        began = time.perf_counter()
        for k in range(clients):
            for t in range(rounds):
                history.append(t, f"client-{k}", rng.standard_normal(p, dtype=np.float32))
        written = time.perf_counter() - began
        columns = [partial(history.columns, f"client-{k}") for k in range(clients)]
        before, began = peak_memory(), time.perf_counter()
        found = measure(GsdParams(), Columns(columns[:1], columns[1:]), tensors)
        seconds = time.perf_counter() - began
        middle = float(np.median(np.concatenate([a.cosines.numpy() for a in found.angles])))
        return {
            "clients": clients, "rounds": rounds, "parameters": p, "blocks": len(found.spans), "sketch": rank,
            "seconds": round(seconds, 2), "peak_GiB": round(peak_memory() / 2**30, 2), "before_GiB": round(before / 2**30, 2),
            "append_ms": round(1000 * written / clients / rounds, 2), "disk_GiB": round(history.nbytes / 2**30, 2),
            "median_cosine": round(middle, 3),
        }  # fmt: skip


def main(file: Path, full: bool) -> None:
    cases = [(10, 30, n, 0) for n in (1, 3, 6, 12)]
    cases += [(30, 30, 12, 0), (100, 30, 12, 8)]
    cases += [(100, 30, 12, 0), (1000, 4, 12, 0)] if full else []
    found = []
    for case in cases:
        command = [sys.executable, "-m", "benchmarks.gsd", *map(str, case)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
        print(found[-1], flush=True)
    sizes, seconds = zip(*((f["parameters"], f["seconds"]) for f in found[:4]), strict=True)
    exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    print(f"seconds grow with parameters to the power {exponent:.2f}")
    file.write_text(json.dumps({"cases": found, "exponent_in_parameters": exponent}, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 5:
        print(json.dumps(one(*map(int, sys.argv[1:]))))
    else:
        main(Path(sys.argv[1]), "--full" in sys.argv)
