"""What the two caches save: images decoded once, and the activations before the first adapted block computed once.

    python -m benchmarks.caching FILE.json [IMAGES]

On generated JPEG files of 256 x 320 pixels, with a ViT-B/32 of random weights and adapters from block 6 on. Cold is the
first time, which also writes the cache; warm is another process's first time, which reads it. Without a cache every process
decodes, and every epoch computes the whole tower.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def one(folder: Path, cached: bool) -> dict[str, float]:
    """Seconds until all images of the set are there, and then until they are through the frozen trunk."""
    import torch
    from ease_flwr.clients.contrastive import Contrastive

    from ease_flwr import config
    from ease_flwr.data import photographs

    where: dict[str, Any] = {"data.root": str(folder / "images"), "data.clients": 2, "forget.targets": "client-0"}
    where |= {"data.cache": str(folder / "cache") if cached else "", "model.weights": "", "data.mixed": 1}
    experiment = config.load("flickr30k+top6", where)
    world = photographs.load(experiment.data, 0)
    client = Contrastive(experiment, "client-0", world, None)  # type: ignore[arg-type]
    _ = client.model
    began = time.perf_counter()
    pairs = world.client("client-0").train
    _ = np.asarray(pairs.images).sum()
    decoded = time.perf_counter() - began
    began = time.perf_counter()
    encoded = client.encode(pairs)
    _ = encoded.images.sum()
    through = time.perf_counter() - began
    with torch.no_grad():  # what an epoch spares: the trunk, of all images once more
        began = time.perf_counter()
        for i in range(0, len(pairs), 64):
            client.model.trunk(client.model.base.normalise(pairs.images[i : i + 64]))
        trunk = time.perf_counter() - began
    client.train = encoded
    began = time.perf_counter()
    for _ in client._descend(experiment.learn, np.random.default_rng(0)):
        pass
    epoch = time.perf_counter() - began
    return {"images": len(pairs), "decode": decoded, "trunk": through, "epoch": epoch, "trunk_again": trunk}


def main(file: Path, images: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([sys.executable, "-m", "benchmarks.generated", f"{name}/images", str(2 * images), "8", "8"], check=True)
        found = {}
        for what in ("none", "cold", "warm"):
            command = [sys.executable, "-m", "benchmarks.caching", name, what]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            found[what] = {k: round(v, 3) for k, v in json.loads(done.stdout.splitlines()[-1]).items()}
            print(what, found[what], flush=True)
        sizes = [f.stat().st_size for f in Path(name, "cache").glob("*.npy")]
        found["bytes"] = {"decoded": min(sizes), "trunk": max(sizes)}
    none, cold, warm = found["none"], found["cold"], found["warm"]
    whole = none["epoch"] + none["trunk_again"]
    found["ratios"] = {
        "decoding, none to warm": round(none["decode"] / warm["decode"], 1),
        "trunk, cold to warm": round(cold["trunk"] / warm["trunk"], 1),
        "an epoch with the whole tower to one behind the trunk": round(whole / warm["epoch"], 2),
    }
    print(found["ratios"])
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[2:] and not sys.argv[2].isdigit():
        print(json.dumps(one(Path(sys.argv[1]), sys.argv[2] != "none")))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 300)
