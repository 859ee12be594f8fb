"""LoraClient: a Flower NumPyClient with the one training loop of the project. An objective overrides `loss`.

torch and open_clip are imported when a client first trains or evaluates, so that a roll call is answered at once.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import psutil
from flwr.client import NumPyClient
from numpy.typing import NDArray

from ease_flwr.core import cache, config
from ease_flwr.core.machine import peak_memory
from ease_flwr.core.messages import Instruction, read_instruction
from ease_flwr.data.pairs import ClientData, EvaluationSet, Pairs, World, withdrawn

if TYPE_CHECKING:
    from torch import Tensor

    from ease_flwr.core.adapters import AdaptedModel
    from ease_flwr.core.lock import ForgetLock


@dataclass(frozen=True, eq=False)
class Encoded:
    """Pairs as the model takes them: images after the frozen trunk, (n, ...), and tokens, (n, captions, length)."""

    images: Tensor
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Encoded:
        """Some of them."""
        return Encoded(self.images[index], self.tokens[index])

    def __add__(self, other: Encoded) -> Encoded:
        """Both, one after the other; who has fewer captions a pair repeats them."""
        import torch

        most = torch.arange(max(self.tokens.shape[1], other.tokens.shape[1]))
        tokens = [e.tokens[:, most % e.tokens.shape[1]] for e in (self, other)]
        return Encoded(torch.cat([self.images, other.images]), torch.cat(tokens))


@dataclass(frozen=True)
class Batch:
    """Positions of pairs in the client's training data, and which caption of each is used."""

    index: Tensor
    caption: Tensor


class State(Protocol):
    """Arrays a client keeps between messages of one run, by name; they may be lost when its host restarts."""

    def load(self, name: str) -> NDArray[Any] | None: ...

    def save(self, name: str, value: NDArray[Any]) -> None: ...


class LoraClient(NumPyClient):
    """One client. Parameters are lists of arrays, the adapter vector first; config carries an Instruction as JSON."""

    def __init__(self, experiment: config.Experiment, name: str, world: World, state: State) -> None:
        self.experiment = experiment
        self.name = name
        self.world = world
        self.state = state

    @property
    def data(self) -> ClientData:
        return self.world.client(self.name)

    def get_properties(self, config: dict[str, Any]) -> dict[str, Any]:
        """Answer of a roll call: name, number of training pairs, and of those that the request in the instruction concerns."""
        labels = self.data.train.labels
        concerned = int(withdrawn(read_instruction(config).forget, self.name, labels).sum())
        return {"name": self.name, "pairs": len(labels), "forget": concerned}

    # ---- what an objective may override -------------------------------------------------------------------------

    def begin(self, instruction: Instruction, extras: dict[str, NDArray[Any]]) -> None:
        """Called once before training, with the arrays that came beside the adapters."""

    def loss(self, batch: Batch) -> Tensor:
        """The loss of one batch, a scalar."""
        raise NotImplementedError

    def stepped(self) -> bool:
        """Called after each optimiser step; may change the adapters. False ends the training."""
        return True

    def finish(self, start: NDArray[np.float32]) -> dict[str, float]:
        """Called once after training, with the adapters before it; may change the model's. Returns metrics."""
        return {}

    # ---- NumPyClient --------------------------------------------------------------------------------------------

    def fit(self, parameters: list[NDArray[Any]], config: dict[str, Any]) -> tuple[list[NDArray[Any]], int, dict[str, Any]]:
        """Train the adapters as instructed. `extras` in config names the arrays after the first."""
        import torch

        began = time.time() - psutil.Process().create_time()
        started = time.perf_counter()
        instruction = read_instruction(config)
        theta, extras = parameters[0], dict(zip(config.get("extras", []), parameters[1:], strict=True))
        self.model.set(theta)
        pairs = self.encode(self.data.train)
        out = torch.from_numpy(withdrawn(instruction.forget, self.name, self.data.train.labels))
        self.train, self.forget = (pairs[~out], pairs[out]) if instruction.forget else (pairs, pairs[:0])
        if instruction.part == "forget":
            self.train = self.forget
        if instruction.overlap and instruction.forget:
            self.train += self.encode(self.world.overlap(instruction.forget, instruction.overlap))
        lock = self._lock(instruction, extras)
        self._free(instruction.tensors)
        rng = np.random.default_rng(self._seed(instruction))
        self.begin(instruction, extras)
        plan, losses, loaded = instruction.train, [], time.perf_counter() - started
        for loss in self._descend(plan, rng, instruction.proximal):
            if lock:
                self.model.set(lock.proximal_step(torch.from_numpy(self.model.get()), plan.lr).numpy())
            losses.append(loss)
            if not self.stepped():
                break
        extra_metrics = self.finish(theta)
        metrics = {"loss": float(np.mean(losses)), "steps": len(losses), "memory": peak_memory()}
        metrics |= {"seconds": time.perf_counter() - started, "load_seconds": loaded, "process_seconds": began}
        return [self.model.get()], len(self.train), {**metrics, **extra_metrics}

    def evaluate(self, parameters: list[NDArray[Any]], config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        """Judge this client's own pairs. Metrics per set: counts of hits, and pair similarities if asked for."""
        import torch

        from ease_flwr.core.retrieval import Counts, levels

        instruction = read_instruction(config)
        theta = parameters[0].astype(np.float32)  # candidates travel in half precision
        self.model.set(theta)
        metrics: dict[str, Any] = {}
        total = 0
        for name, chosen in self.data.evaluation(instruction.split, instruction.forget).items():
            i2t, t2i, similarity = self._judged(chosen, theta)
            counts = Counts.of(i2t, t2i)
            metrics[f"{name}.counts"] = [counts.images, counts.texts, *counts.i2t, *counts.t2i]
            metrics[f"{name}.gallery"] = len(chosen.gallery.pairs)
            total += counts.images
            if instruction.similarity:
                metrics[f"{name}.similarity"] = similarity.tolist()
        out = withdrawn(instruction.forget, self.name, self.data.train.labels)
        if instruction.level and out.any():
            (f, g), (public_f, public_g) = (self._embed_first(p, theta) for p in (self.data.train, self.world.unseen()))
            f, g = f[torch.from_numpy(out)], g[torch.from_numpy(out)]
            batch, rng = instruction.train.batch, np.random.default_rng(0)
            forget = levels(f, g, public_f, public_g, self.scale, batch, rng).mean().item()
            public = levels(public_f, public_g, f, g, self.scale, batch, rng).mean().item()
            metrics["forget.level"] = [float(out.sum()), forget, public]
        return 0.0, total, metrics

    # ---- the client's own means -----------------------------------------------------------------------------------

    @property
    def model(self) -> AdaptedModel:
        """The adapted model of this process; other clients of the process use the same one."""
        from ease_flwr.core import adapters

        e = self.experiment
        return adapters.load(e.model, e.lora, e.seed)

    def encode(self, pairs: Pairs) -> Encoded:
        """Pairs through the frozen trunk and the tokenizer, kept as long as the pairs are."""
        e, key = self.experiment, ""
        if e.data.cache:
            images = pairs.key or hashlib.sha256(np.ascontiguousarray(pairs.images).tobytes()).hexdigest()
            key = config.digest("trunk", e.model, config.weights_sha256(e.model), e.lora, e.data.cache_half, images)
        return encode(self.model, pairs, e.data, key)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unit-length embeddings of a batch of the training data, (b, d) each, with gradients."""
        images, tokens = self.train.images[batch.index], self.train.tokens[batch.index, batch.caption]
        return self.model.embed_images(images), self.model.embed_texts(tokens)

    @property
    def scale(self) -> Tensor:
        """Inverse temperature of InfoNCE; frozen."""
        scale: Tensor = self.model.clip.logit_scale.exp().cpu()
        return scale

    def _judged(self, chosen: EvaluationSet, theta: NDArray[np.float32]) -> tuple[Tensor, Tensor, Tensor]:
        """Ranks of the partners of image and of text queries, and the cosine of each pair; the adapters are set to theta."""
        import torch

        from ease_flwr.core.retrieval import ranks

        images, texts, owner = self._embed(chosen.gallery.pairs, theta)
        query = torch.from_numpy(chosen.query)
        i2t, t2i = ranks(images, texts, owner, torch.from_numpy(chosen.gallery.group), query)
        return i2t, t2i, (images[query] * texts[torch.searchsorted(owner, query)]).sum(1)

    def _free(self, tensors: tuple[int, ...]) -> None:
        """Let these adapter tensors be trained; none named: all."""
        for i, parameter in enumerate(self.model.parameters):
            parameter.requires_grad_(not tensors or i in tensors)

    def _descend(self, plan: config.TrainConfig, rng: np.random.Generator, proximal: float = 0.0) -> Iterator[float]:
        """The training loop: the loss of each step, after it. Whoever iterates may change the adapters in between, or stop."""
        import torch

        optimizer = torch.optim.AdamW(self.model.parameters, lr=plan.lr, weight_decay=0.0)
        centre = [p.detach().clone() for p in self.model.parameters] if proximal else []
        for batch in (b for _ in range(plan.epochs) for b in self._batches(rng, plan.batch)):
            loss = self.loss(batch)
            for parameter, there in zip(self.model.parameters, centre, strict=False):
                loss = loss + proximal / 2 * (parameter - there).square().sum().cpu()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters, plan.clip)
            optimizer.step()
            yield loss.item()

    def _embed(self, pairs: Pairs, theta: NDArray[np.float32]) -> tuple[Tensor, Tensor, Tensor]:
        """Image embeddings, embeddings of all captions, and the image of each caption; kept for the last few adapters."""
        from ease_flwr.core.adapters import sha256

        key = sha256(theta)
        memory = _embedded.setdefault(key, WeakKeyDictionary())
        _embedded.move_to_end(key)
        if len(_embedded) > MODELS_KEPT:
            _embedded.popitem(last=False)
        if pairs not in memory:
            memory[pairs] = embed(self.model, self.encode(pairs), pairs)
        return memory[pairs]

    def _embed_first(self, pairs: Pairs, theta: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Embeddings of pairs with their first captions, (n, d) and (n, 1, d)."""
        import torch

        images, texts, owner = self._embed(pairs, theta)
        return images, texts[torch.searchsorted(owner, torch.arange(len(images)))][:, None]

    def _batches(self, rng: np.random.Generator, size: int) -> list[Batch]:
        """One epoch in random order, each pair with one of its captions; a rest smaller than half a batch is dropped."""
        import torch

        n, captions = self.train.tokens.shape[:2]
        order = torch.from_numpy(rng.permutation(n))
        choice = torch.from_numpy(rng.integers(captions, size=n))
        starts = range(0, max(1, n - size // 2 + 1), size)
        return [Batch(order[i : i + size], choice[i : i + size]) for i in starts]

    def _seed(self, instruction: Instruction) -> int:
        e = self.experiment
        parts = (e.seed, e.evaluation.order_seed, self.name, instruction.phase, instruction.round)
        return int(config.digest(*parts)[:16], 16)

    def _lock(self, instruction: Instruction, extras: dict[str, NDArray[Any]]) -> ForgetLock | None:
        if not instruction.lock:
            return None
        from safetensors.torch import load

        from ease_flwr.core.lock import ForgetLock

        packed = extras.get("lock")
        if packed is None:
            packed = self.state.load("lock")
        if packed is None or hashlib.sha256(packed.tobytes()).hexdigest() != instruction.lock:
            raise ValueError("forget lock is missing here: it must be sent again")
        self.state.save("lock", packed)
        return ForgetLock.from_tensors(load(packed.tobytes())).aged(instruction.round - 1)


_encoded: WeakKeyDictionary[Pairs, tuple[Any, Encoded]] = WeakKeyDictionary()
_embedded: OrderedDict[str, WeakKeyDictionary[Pairs, tuple[Tensor, Tensor, Tensor]]] = OrderedDict()
MODELS_KEPT = 12
"""Models whose embeddings a process keeps: clients that share a process judge the same models and partly the same pairs."""


def encode(model: AdaptedModel, pairs: Pairs, data: config.DataConfig, key: str = "") -> Encoded:
    """Pairs through the frozen trunk and the tokenizer, kept as long as the pairs are. A caption list that is shorter
    than the longest one is filled by repeating it. data, key: where and under which name the trunk's output is kept."""
    import torch

    if pairs in _encoded and _encoded[pairs][0] is model:
        return _encoded[pairs][1]
    captions = max(len(c) for c in pairs.captions)
    texts = [c[i % len(c)] for c in pairs.captions for i in range(captions)]

    def through(start: int, stop: int) -> NDArray[Any]:
        with torch.no_grad():
            batches = (model.base.normalise(pairs.images[i : min(i + 128, stop)]) for i in range(start, stop, 128))
            out = torch.cat([model.trunk(batch.to(model.device)).cpu() for batch in batches])
        return out.bfloat16().view(torch.int16).numpy() if data.cache_half else out.numpy()  # NumPy knows no bfloat16

    images = torch.from_numpy(cache.kept(data.cache if key else "", key, len(pairs), through, data.cache_limit))
    images = images.view(torch.bfloat16) if data.cache_half else images
    result = Encoded(images, model.base.tokenize(texts).view(len(pairs), captions, -1))
    _encoded[pairs] = (model, result)
    return result


def embed(model: AdaptedModel, encoded: Encoded, pairs: Pairs, batch: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings without gradients: images (n, d), captions (m, d), and the image of each caption (m,), ascending.

    Equal token rows are embedded once: a hard gallery repeats its sentences.
    """
    import torch

    owner = torch.tensor([i for i, c in enumerate(pairs.captions) for _ in c])
    position = torch.tensor([j for c in pairs.captions for j in range(len(c))])
    tokens, inverse = torch.unique(encoded.tokens[owner, position], dim=0, return_inverse=True)
    with torch.no_grad():
        images = [model.embed_images(x) for x in encoded.images.split(batch)]
        texts = [model.embed_texts(x) for x in tokens.split(batch)]
    return torch.cat(images), torch.cat(texts)[inverse], owner
