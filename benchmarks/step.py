"""CPU seconds of a client's training step in this checkout and in another one, by turns, so that the machine is the same.

    python -m benchmarks.step FILE.json OTHER_CHECKOUT [ROUNDS]

Two cases: a client of the built-in world, and CLIP ViT-B/32 with random weights at batch 8. One thread each. The ratio is that
of the medians over the turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "personas": ("personas", {}),
    "ViT-B-32": ("flickr30k", {"model.name": "ViT-B-32", "model.weights": "", "learn.batch": 8}),
}
STEPS = {"personas": 24, "ViT-B-32": 3}


def one(case: str) -> float:
    """Seconds of CPU a step, after a first pass."""
    import torch
    from ease_flwr.clients.contrastive import Contrastive
    from ease_flwr.clients.encoding import Encoded, encode

    from ease_flwr import config, data
    from ease_flwr.model import adapters

    torch.set_num_threads(1)
    name, changes = CASES[case]
    experiment = config.load(name, {**changes, "learn.epochs": 1})
    model, batch = adapters.load(experiment.model, experiment.lora, experiment.seed), experiment.learn.batch
    if case == "personas":
        pairs = encode(model, data.load(experiment.data, experiment.seed).client("client-1").train, experiment.data)
    else:
        side = model.base.image_size
        with torch.no_grad():
            images = model.trunk(torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0)))
        words = model.base.tokenize([f"a picture of number {i} with some more words" for i in range(batch)])
        pairs = Encoded(images.repeat(3, *[1] * (images.ndim - 1)), words[:, None].repeat(3, 1, 1))
    client = Contrastive(experiment, "client-1", None, None)  # type: ignore[arg-type]
    client.train = pairs

    def steps() -> int:
        return sum(1 for _ in client._descend(experiment.learn, np.random.default_rng(0)))

    steps()
    began, done = time.process_time(), 0
    while done < STEPS[case]:
        done += steps()
    return (time.process_time() - began) / done


def turn(checkout: Path, case: str) -> float:
    """The same in a process of its own, of the code of a checkout."""
    code = f"import runpy, sys; sys.argv = ['step', {case!r}]; runpy.run_path({__file__!r}, run_name='__main__')"
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def main(file: Path, other: Path, rounds: int) -> None:
    found = {}
    for case in CASES:
        turns = [(turn(other, case), turn(Path.cwd(), case)) for _ in range(rounds)]
        before, now = (np.array(column) for column in zip(*turns, strict=True))
        found[case] = {
            "other_ms": round(1000 * float(np.median(before)), 1),
            "this_ms": round(1000 * float(np.median(now)), 1),
            "ratio": round(float(np.median(now) / np.median(before)), 3),
            "ratios": [round(float(r), 3) for r in now / before],
        }
        print(case, found[case], flush=True)
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] in CASES:
        print(one(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]).resolve(), int(sys.argv[3]) if len(sys.argv) > 3 else 5)
