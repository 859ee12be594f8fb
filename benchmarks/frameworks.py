"""The same learning task here, in apple/pfl-research and in fluke: seconds of a round and peak memory.

    python -m benchmarks.frameworks FILE.json PFL_PYTHON FLUKE_PYTHON [CLIENTS ...]

Interpreters of environments of their own, each with the framework (pfl 0.6.0, fluke-fl 0.8.1) and torch,
open_clip_torch, peft, pydantic and pyyaml as in constraints.txt; "-" leaves one out. All train the same small random
CLIP with the same LoRA adapters by the same loss on the same generated pairs: 128 a client, two batches of 64, every
client in every round, AdamW, plain averaging. Ours runs by `ease run` on two actors of one thread. pfl runs once on one
process of two threads and once under torchrun on two processes of one thread, fluke, which is sequential, on one
process of two threads.
Seconds are medians over the rounds after the first two. Memory is by how much the machine's free memory fell: let nothing
else run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PAIRS, BATCH, ROUNDS, WARM = 128, 64, 6, 2
RATE = 1e-3
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
}


def settings(folder: Path, clients: int) -> dict[str, Any]:
    """What differs from the experiment flickr30k."""
    return {
        "data.root": folder / "images", "data.clients": clients, "data.mixed": 1, "data.unseen": 64,
        "data.cache": folder / "cache",
        "model.name": "", "model.weights": folder / "small.safetensors", "learn.rounds": ROUNDS, "learn.batch": BATCH,
        "learn.lr": RATE, "evaluation.every": 0, "forget.targets": "client-0",
    }  # fmt: skip


def prepare(folder: Path, clients: int) -> None:
    """Images, model and, for the other frameworks, every client's tensors."""
    import open_clip
    import torch
    from ease_flwr.clients.encoding import encode
    from safetensors.torch import save_file

    from benchmarks import generated
    from ease_flwr import config, data
    from ease_flwr.model import adapters

    generated.write(folder / "images", PAIRS * clients, 64, 64)
    (folder / "small.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(folder / "small.json")
    torch.manual_seed(0)
    save_file(open_clip.create_model("small").state_dict(), folder / "small.safetensors")
    experiment = config.load("flickr30k", {k: str(v) for k, v in settings(folder, clients).items()})
    (folder / "experiment.json").write_text(experiment.model_dump_json())
    world = data.load(experiment.data, experiment.seed)
    model = adapters.load(experiment.model, experiment.lora, experiment.seed)
    for name in world.clients:
        pairs = encode(model, world.client(name).train, experiment.data)
        assert len(pairs) == PAIRS
        torch.save((pairs.images, pairs.tokens[:, 0].contiguous()), folder / f"{name}.pt")


def task(folder: Path) -> tuple[Any, list[Any]]:
    """The model as a torch module with its loss, and every client's tensors."""
    import torch
    from torch.nn import functional as F

    from ease_flwr import config
    from ease_flwr.model import adapters, towers

    experiment = config.Experiment.model_validate_json((folder / "experiment.json").read_text())
    adapted = adapters.load(experiment.model, experiment.lora, experiment.seed)

    class Task(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = adapted.model

        def loss(self, images: Any, tokens: Any, **_: Any) -> Any:
            clip = self.clip.base_model.model
            words = towers.without_padding(tokens)
            f, g = clip.encode_image(images, normalize=True), clip.encode_text(words, normalize=True)
            logits, target = clip.logit_scale.exp() * f @ g.T, torch.arange(len(images))
            return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

        def metrics(self, *_: Any, **__: Any) -> dict[str, Any]:
            return {}

    names = [f"client-{k}" for k in range(experiment.data.clients)]
    return Task(), [torch.load(folder / f"{name}.pt") for name in names]


def in_pfl(folder: Path) -> list[float]:
    """Times at which the rounds ended."""
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    module, data = task(folder)
    ends: list[float] = []

    class Clock(TrainingProcessCallback):
        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Any]:
            ends.append(time.perf_counter())
            return False, Metrics()

    def optimizer(parameters: Any, lr: float) -> Any:
        return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=lr, weight_decay=0.0)

    trained = [p for p in module.parameters() if p.requires_grad]
    model = PyTorchModel(module, optimizer, torch.optim.SGD(trained, lr=1.0))
    users = FederatedDataset(
        lambda k: Dataset(data[k], user_id=str(k)), get_user_sampler("minimize_reuse", list(range(len(data))))
    )
    backend = SimulatedBackend(training_data=users, val_data=users, postprocessors=[WeightByDatapoints()])
    plan = NNAlgorithmParams(
        central_num_iterations=ROUNDS, evaluation_frequency=2 * ROUNDS, train_cohort_size=len(data), val_cohort_size=0
    )
    train = NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=RATE, local_max_grad_norm=1.0)
    FederatedAveraging().run(algorithm_params=plan, backend=backend, model=model, model_train_params=train, callbacks=[Clock()])
    return ends


def in_fluke(folder: Path) -> list[float]:
    """Times at which the rounds ended."""
    import torch
    from fluke.client import Client
    from fluke.config import OptimizerConfigurator
    from fluke.data import FastDataLoader
    from fluke.server import Server

    module, data = task(folder)
    ends: list[float] = []

    class Contrastive(Client):  # type: ignore[misc]
        def fit(self, override_local_epochs: int = 0) -> float:
            trained = [p for p in self.model.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
            for images, tokens in self.train_set:
                optimizer.zero_grad()
                loss = self.model.loss(images, tokens)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, 1.0)
                optimizer.step()
            return loss.item()

    class Timed(Server):  # type: ignore[misc]
        def aggregate(self, eligible: Any, client_models: Any) -> None:
            super().aggregate(eligible, client_models)
            ends.append(time.perf_counter())

    how = OptimizerConfigurator({"name": torch.optim.AdamW, "lr": RATE})
    loaders = [FastDataLoader(*tensors, num_labels=0, batch_size=BATCH, shuffle=True) for tensors in data]
    clients = [Contrastive(i, loader, None, how, torch.nn.Identity(), 1, persistency=False) for i, loader in enumerate(loaders)]
    server = Timed(module, None, clients, weighted=True)
    for client in clients:
        client.set_channel(server.channel)
    server.fit(ROUNDS, 1, finalize=False)
    return ends


def measured(command: list[str], **environment: str) -> tuple[str, float]:
    """Output of a command, and by how many GiB the machine's free memory fell while it ran."""
    import psutil

    before = low = psutil.virtual_memory().available
    done = threading.Event()

    def watch() -> None:
        nonlocal low
        while not done.wait(0.1):
            low = min(low, psutil.virtual_memory().available)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        ran = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    finally:
        done.set()
        watcher.join()
    if ran.returncode:
        sys.exit(ran.stdout + ran.stderr)
    return ran.stdout, (before - low) / 2**30


def ours(folder: Path, clients: int) -> tuple[list[float], float]:
    """Times at which the rounds of `ease run` ended, and its memory."""
    from benchmarks.round import rounds_of, to_learn

    command = to_learn("flickr30k", folder, settings(folder, clients))
    _, memory = measured(command, EASE_FLWR_HOME=str(folder / "home"), FLWR_HOME=str(folder / "flwr"))
    return [e["elapsed"] for e in rounds_of(folder)], memory


def main(file: Path, pythons: dict[str, str], counts: list[int]) -> None:
    found = []
    for clients in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            subprocess.run([sys.executable, "-m", "benchmarks.frameworks", "prepare", name, str(clients)], check=True)
            results = {"ease_flwr": ours(folder, clients)}
            for what, threads, start in (
                ("pfl", 2, ["-m"]),
                ("pfl, two processes", 1, ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m"]),
                ("fluke", 2, ["-m"]),
            ):
                framework = what.split(",")[0]
                if pythons[framework] == "-":
                    continue
                command = [pythons[framework], *start, "benchmarks.frameworks", framework, name]
                out, memory = measured(command, OMP_NUM_THREADS=str(threads))
                results[what] = json.loads(next(x for x in out.splitlines() if x.startswith("[")))[:ROUNDS], memory
            for what, (ends, memory) in results.items():
                rounds = sorted(b - a for a, b in zip(ends[WARM - 1 :], ends[WARM:], strict=False))
                middle = rounds[len(rounds) // 2]
                found.append(
                    {"clients": clients, "framework": what, "round_seconds": round(middle, 3), "GiB": round(memory, 2)}
                )
                print(found[-1], flush=True)
    file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1] in ("pfl", "fluke"):
        print(json.dumps({"pfl": in_pfl, "fluke": in_fluke}[sys.argv[1]](Path(sys.argv[2]))), flush=True)
    else:
        counts = [int(n) for n in sys.argv[4:] or (10, 50, 100)]
        main(Path(sys.argv[1]), dict(zip(("pfl", "fluke"), sys.argv[2:4], strict=True)), counts)
