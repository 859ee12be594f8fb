"""CLIP ViT-B/32 and ViT-L/14 with random weights: a client's training step by its own loop and by a bare one, beside what the
machine's matrix product would allow.

    python -m benchmarks.large FILE.json [MODEL ...]

On a GPU where torch sees one. FLOPs are counted by torch in one forward and backward pass; the limit is a product of large
matrices in the same precision. Each case is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

CASES = [("ViT-B-32", 8, "float32", False), ("ViT-B-32", 8, "bfloat16", False), ("ViT-B-32", 8, "float32", True)]
CASES += [("ViT-L-14", 2, "float32", False), ("ViT-L-14", 2, "float32", True)]
GPU_BATCH = 32  # times as many pairs


def one(name: str, batch: int, precision: str, checkpointing: bool) -> dict[str, Any]:
    """Seconds of a step, and what they are made of."""
    import torch
    from ease_flwr.clients.contrastive import Contrastive, info_nce
    from ease_flwr.clients.encoding import Encoded
    from torch.utils.flop_counter import FlopCounterMode

    from ease_flwr import config
    from ease_flwr.model import adapters, towers
    from ease_flwr.store.cost import peak_memory

    gpu = torch.cuda.is_available()
    batch *= GPU_BATCH if gpu else 1
    how = {"model.name": name, "model.weights": "", "model.precision": precision, "model.checkpointing": checkpointing}
    experiment = config.load("flickr30k", {**how, "learn.epochs": 1, "learn.batch": batch})
    model = adapters.load(experiment.model, experiment.lora, experiment.seed)
    draw = torch.Generator().manual_seed(0)
    side, steps = model.base.image_size, 10 if gpu else 3
    with torch.no_grad():
        images = model.trunk(torch.randn(batch, 3, side, side, generator=draw).to(model.device)).cpu()
    words = model.base.tokenize([f"a picture of number {i} with some more words" for i in range(batch)])
    pairs = Encoded(images.repeat(steps, *[1] * (images.ndim - 1)), words[:, None].repeat(steps, 1, 1))

    def wait() -> float:
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    client = Contrastive(experiment, "client-0", None, None)  # type: ignore[arg-type]
    client.train = pairs

    def ours() -> None:
        for _ in client._descend(experiment.learn, np.random.default_rng(0)):
            pass

    def bare() -> None:
        optimizer = torch.optim.AdamW(model.parameters, lr=1e-3, weight_decay=0.0)
        scale, on = model.clip.logit_scale.exp(), model.device
        for i in range(0, len(pairs), batch):
            with torch.autocast(on.type, torch.bfloat16, enabled=precision == "bfloat16"):
                f = model.clip.encode_image(pairs.images[i : i + batch].to(on), normalize=True)
                g = model.clip.encode_text(towers.without_padding(pairs.tokens[i : i + batch, 0]).to(on), normalize=True)
            optimizer.zero_grad(set_to_none=True)
            info_nce(f.float(), g.float(), scale).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters, 1.0)
            optimizer.step()

    with FlopCounterMode(display=False) as counter:
        f, g = model.embed_images(images), model.embed_texts(words)
        info_nce(f, g, client.scale).backward()
    flops, seconds = counter.get_total_flops(), {}
    for what, run in (("bare", bare), ("client", ours)):
        run()
        began = wait()
        run()
        seconds[what] = (wait() - began) / steps
    n, kind = (8192 if gpu else 2048), torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.randn(n, n, device=model.device, dtype=kind)
    _ = a @ a
    began = wait()
    for _ in range(3):
        _ = a @ a
    limit = 3 * 2 * n**3 / (wait() - began)
    memory = torch.cuda.max_memory_allocated() if gpu else peak_memory()
    return {
        "model": name, "device": torch.cuda.get_device_name() if gpu else "cpu", "batch": batch, "precision": precision,
        "checkpointing": checkpointing, "parameters": model.size, "message_MB": round(4 * model.size / 1e6, 2),
        "client_step_seconds": round(seconds["client"], 3), "against_bare": round(seconds["client"] / seconds["bare"], 3),
        "pairs_per_second": round(batch / seconds["client"], 2), "TFLOP_per_pair": round(flops / batch / 1e12, 4),
        "of_matrix_product": round(flops / seconds["client"] / limit, 3), "peak_GiB": round(memory / 2**30, 2),
    }  # fmt: skip


def main(file: Path, names: list[str]) -> None:
    found = []
    for case in CASES:
        if names and case[0] not in names:
            continue
        command = [sys.executable, "-m", "benchmarks.large", json.dumps(case)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(found[-1], flush=True)
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1].startswith("["):
        print(json.dumps(one(*json.loads(sys.argv[1]))))
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
