"""A simulated federated round against the same training in a bare PyTorch loop, on the same cores, after start-up.

    python -m benchmarks.round FILE.json [ROUNDS]

Ten clients of the built-in world learn, on two actors of one thread each. The bare loop is two processes of one thread that
train on as many batches of the same clients, five each, one after the other: no Flower, no Ray, no message, no averaging.
Seconds are medians over the rounds after the first two; the bare loop is measured before and after.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = {"data.clients": 10, "data.exclusive": 4, "evaluation.every": 0}
WARM = 2


def bare(share: int, rounds: int, together: Any, seconds: Any) -> None:
    """Train every second client, `rounds` times; puts the seconds of each round into the queue."""
    import torch
    from ease_flwr.clients.encoding import encode
    from torch.nn import functional as F

    from ease_flwr import config, data
    from ease_flwr.model import adapters, towers

    torch.set_num_threads(1)
    experiment = config.load("personas", dict(SETTINGS))
    plan, world = experiment.learn, data.load(experiment.data, experiment.seed)
    model = adapters.load(experiment.model, experiment.lora, experiment.seed)
    pairs = [encode(model, world.client(name).train, experiment.data) for name in world.clients[share::2]]
    scale, rng = model.clip.logit_scale.exp(), np.random.default_rng(share)
    for _ in range(rounds):
        together.wait()
        began = time.perf_counter()
        for mine in pairs:
            model.set(model.initial)
            optimizer = torch.optim.AdamW(model.parameters, lr=plan.lr, weight_decay=0.0)
            for _ in range(plan.epochs):
                order = torch.from_numpy(rng.permutation(len(mine)))
                for i in range(0, max(1, len(mine) - plan.batch // 2 + 1), plan.batch):
                    index = order[i : i + plan.batch]
                    images = model.clip.encode_image(mine.images[index], normalize=True)
                    words = towers.without_padding(mine.tokens[index, 0])
                    texts = model.clip.encode_text(words, normalize=True)
                    logits, target = scale * images @ texts.T, torch.arange(len(index))
                    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters, plan.clip)
                    optimizer.step()
        together.wait()
        seconds.put(time.perf_counter() - began)


def bare_rounds(rounds: int) -> list[float]:
    """Seconds of each round of the bare loop after the first ones."""
    spawn = multiprocessing.get_context("spawn")
    together, seconds = spawn.Barrier(2), spawn.Queue()
    workers = [spawn.Process(target=bare, args=(k, rounds, together, seconds)) for k in range(2)]
    for worker in workers:
        worker.start()
    found = [seconds.get(timeout=120) for _ in range(2 * rounds)]
    for worker in workers:
        worker.join()
    return [max(found[2 * r : 2 * r + 2]) for r in range(WARM, rounds)]


def to_learn(experiment: str, folder: Path, settings: dict[str, Any]) -> list[str]:
    """The command that learns an experiment into folder/run, and no more."""
    sets = [word for k, v in settings.items() for word in ("--set", f"{k}={v}")]
    return [sys.executable, "-m", "ease_flwr", "run", experiment, "--until", "learn", "--run-dir", str(folder / "run"), *sets]


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """What folder/run says of each round of learning."""
    events = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [e for e in events if e.get("phase") == "learn" and "timing" in e]


def federated_rounds(rounds: int) -> tuple[list[float], float]:
    """Seconds of each round of `ease run` after the first ones, and the share of them that clients spend in training."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "EASE_FLWR_HOME": folder, "FLWR_HOME": f"{folder}/flwr"}
        command = to_learn("personas", Path(folder), {**SETTINGS, "learn.rounds": rounds})
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        told = rounds_of(Path(folder))
    ends = [e["elapsed"] for e in told]
    training = [sum(t[2] for t in e["timing"]) / 2 for e in told]
    seconds = np.diff([0, *ends])[WARM:].tolist()
    return seconds, float(np.median(training[WARM:]) / np.median(seconds))


def main(file: Path, rounds: int) -> None:
    before = bare_rounds(rounds)
    ours, training = federated_rounds(rounds)
    plain = [*before, *bare_rounds(rounds)]
    found = {
        "bare_seconds": round(float(np.median(plain)), 3),
        "round_seconds": round(float(np.median(ours)), 3),
        "ratio": round(float(np.median(ours) / np.median(plain)), 3),
        "share_of_round_in_clients": round(training, 3),
        "bare_spread": [round(float(q), 3) for q in np.quantile(plain, [0.1, 0.9])],
        "round_spread": [round(float(q), 3) for q in np.quantile(ours, [0.1, 0.9])],
        "rounds": rounds - WARM,
    }
    print(json.dumps(found, indent=1))
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 14)
