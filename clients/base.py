"""LoraClient: a Flower NumPyClient with the one training loop of the project. An objective overrides `loss`.

torch and open_clip are imported when a client first trains or evaluates, so that a roll call is answered at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import psutil
from ease_flwr.clients.encoding import Encoded, embedded, encoded
from ease_flwr.clients.judging import counts
from ease_flwr.clients.locking import Held, received
from flwr.client import NumPyClient
from numpy.typing import NDArray

from ease_flwr import config
from ease_flwr.config import ConfigError, DataError, Union
from ease_flwr.data.pairs import ClientData, EvaluationSet, Pairs, World, unknown, with_queries
from ease_flwr.exchange.answers import LABELS, as_json
from ease_flwr.exchange.judgement import Evaluation
from ease_flwr.exchange.messages import Evaluate, Forget, Learn, Training, read_instruction, seed_name
from ease_flwr.store.cost import peak_memory

if TYPE_CHECKING:
    from torch import Tensor

    from ease_flwr.model.adapters import AdaptedModel

UNREADABLE = "its data cannot be read, its log says why"
"""What a roll call hears of a mistake that may quote data."""


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
    """One client. Parameters are lists of arrays, the adapter vector first; config carries an instruction as JSON."""

    train: Encoded
    """Pairs that are trained on."""
    forget: Encoded
    """In a Forget: the pairs that are being forgotten."""
    kept: Encoded
    """In a Forget: the pairs that stay. What was forgotten before is in neither."""
    masks: tuple[NDArray[np.bool_], NDArray[np.bool_]]
    """In a Forget: which of the client's training pairs `forget` and `kept` are, (n,) each."""

    def __init__(self, experiment: config.Experiment, name: str, world: World, state: State) -> None:
        self.experiment = experiment
        self.name = name
        self.world = world
        self.state = state

    @property
    def data(self) -> ClientData:
        return self.world.client(self.name)

    # ---- what an objective may override -------------------------------------------------------------------------

    def begin(self, instruction: Training, extras: dict[str, NDArray[Any]]) -> None:
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

    def get_properties(self, config: dict[str, Any]) -> dict[str, Any]:
        """Answer to a Hello, the fields of Present about data: `name`, `pairs`, `data`, `barred`, and of each forget
        set how many pairs it is the first to name (`forget`), why it does not fit here (`refused`, "" where it does), what in
        it names no pair (`unknown`), and the ids of single pairs that it names (`ids`)."""
        named, data = self.named(()), self.data
        forget, refused, strange, ids = list[int](), list[str](), list[list[str]](), list[list[str]]()
        for part in read_instruction(config).forget:
            try:
                first, why = self.named((part,)) & ~named, ""
            except ConfigError as error:
                first, why = self.named(()), UNREADABLE if isinstance(error, DataError) else str(error)
            named |= first
            forget.append(int(first.sum()))
            refused.append(why)
            strange.append(unknown(part, self.name, data.labels, data.find))
            single = self.named((part,)) if part.scenario == "sample" and data.ids and not why else self.named(())
            ids.append([i for n in np.flatnonzero(single).tolist() for i in data.ids[n]])
        barred = int((data.barred & ~named).sum())
        about = {"pairs": len(named) - barred, "data": data.digest, "barred": barred, "ids": ids}
        return {"name": self.name, **about, "forget": forget, "refused": refused, "unknown": strange}

    def fit(self, parameters: list[NDArray[Any]], config: dict[str, Any]) -> tuple[list[NDArray[Any]], int, dict[str, Any]]:
        """Train the adapters as a Learn or a Forget says; `extras` in config names the arrays after the first.

        Returns the adapters, the number of pairs, and metrics. Raises ValueError where there is nothing to train on.
        """
        import torch

        began = time.time() - psutil.Process().create_time()
        started = time.perf_counter()
        instruction: Learn | Forget = read_instruction(config)
        theta, extras = parameters[0], dict(zip(config.get("extras", []), parameters[1:], strict=True))
        self.model.set(theta)
        held, tensors, proximal = None, tuple[int, ...](), 0.0
        more: dict[str, Any] = {}
        if isinstance(instruction, Forget):
            self._choose_forgotten(instruction)
            if instruction.forget.scenario == "class":
                more[LABELS] = len(set(self.data.train.about[self.masks[0]].tolist()))
        else:
            self._choose_learnt(instruction)
            held, tensors, proximal = self._held(instruction, extras), instruction.tensors, instruction.proximal
        self._free(tensors)
        rng = np.random.default_rng(self._seed(instruction))
        self.begin(instruction, extras)
        plan, losses, loaded = instruction.train, [], time.perf_counter() - started
        for loss in self._descend(plan, rng, proximal):
            if held:
                held.stepped()
            losses.append(loss)
            if not self.stepped():
                break
        extra_metrics = self.finish(theta) | (held.metrics() if held else {})
        metrics = {"loss": torch.stack(losses).double().mean().item(), "steps": len(losses), "memory": peak_memory()}
        metrics |= {"seconds": time.perf_counter() - started, "load_seconds": loaded, "process_seconds": began}
        return [self.model.get()], len(self.train), {**metrics, **more, **extra_metrics}

    def evaluate(self, parameters: list[NDArray[Any]], config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        """Judge this client's own pairs as an Evaluate says. Returns 0, the number of image queries, and an Evaluation as JSON
        under `answer`."""
        instruction: Evaluate = read_instruction(config)
        theta = parameters[0]
        self.model.set(theta)
        sets, there = {}, self.data.evaluation(instruction.split, instruction.forget)
        for name, chosen in with_queries(there).items():
            i2t, t2i, similarity = self.judged(chosen, theta)
            sets[name] = counts(i2t, t2i, len(chosen.gallery.pairs), similarity if instruction.similarity else None)
        found = Evaluation.model_validate({"sets": sets})
        return 0.0, sum(s.images for s in sets.values()), {"answer": as_json(found)}

    # ---- which pairs ---------------------------------------------------------------------------------------------

    def named(self, forget: Union) -> NDArray[np.bool_]:
        """Which of this client's training pairs any of these forget sets names, (n,). Raises ConfigError."""
        return self.data.named(forget)

    def _choose_learnt(self, instruction: Learn) -> None:
        """`train`: the pairs that stay, or those that are named alone, and returning ones. Raises ValueError at none."""
        import torch

        only, pairs = instruction.only, self.encode(self.data.train)
        earlier = tuple(part for part in instruction.without if part not in only)
        chosen = ~self.named(earlier) & (self.named(only) if only else ~self.data.barred)
        self.train = pairs if chosen.all() else pairs[torch.from_numpy(chosen)]
        if returning := instruction.returning:
            fresh = self.world.returning(returning.about, returning.count)
            self.train = self.train + self.encode(fresh) if len(fresh) else self.train
        if not len(self.train):
            raise ValueError(f"{self._where(instruction)}: no pair is left to learn from: ask only clients that have some")

    def _choose_forgotten(self, instruction: Forget) -> None:
        """`forget` and `kept`; the first is trained on. Raises ValueError where nothing is to be forgotten."""
        import torch

        named, earlier = self.named((instruction.forget,)), self.named(instruction.without)
        self.masks = named & ~earlier, ~named & ~earlier & ~self.data.barred
        if not self.masks[0].any():
            raise ValueError(f"{self._where(instruction)}: no pair is left to be forgotten: ask only clients that have some")
        pairs = self.encode(self.data.train)
        self.forget, self.kept = (pairs[torch.from_numpy(mask)] for mask in self.masks)
        self.train = self.forget

    def _where(self, instruction: Training) -> str:
        return f"{self.name}, {instruction.phase} round {instruction.round}"

    # ---- the client's own means -----------------------------------------------------------------------------------

    @property
    def model(self) -> AdaptedModel:
        """The adapted model of this process; other clients of the process use the same one."""
        from ease_flwr.model import adapters

        e = self.experiment
        return adapters.load(e.model, e.lora, e.seed)

    def encode(self, pairs: Pairs) -> Encoded:
        """Pairs through the frozen trunk and the tokenizer, kept as long as the pairs are."""
        return encoded(self.model, pairs, self.experiment)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unit-length embeddings of a batch of the training data, (b, d) each, with gradients."""
        images, tokens = self.train.images[batch.index], self.train.tokens[batch.index, batch.caption]
        return self.model.embed_images(images), self.model.embed_texts(tokens)

    @property
    def scale(self) -> Tensor:
        """Inverse temperature of InfoNCE; frozen."""
        return self.model.scale

    def embedded(self, pairs: Pairs, theta: NDArray[np.float32]) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of images (n, d) and of all captions (m, d), and the image of each caption (m,), without gradients; the
        model must be set to theta. Kept for the last few adapters."""
        return embedded(self.model, pairs, theta, self.experiment)

    def embedded_first(self, pairs: Pairs, theta: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """The same of pairs with their first captions, (n, d) and (n, 1, d)."""
        import torch

        images, texts, owner = self.embedded(pairs, theta)
        return images, texts[torch.searchsorted(owner, torch.arange(len(images)))][:, None]

    def judged(
        self, chosen: EvaluationSet, theta: NDArray[np.float32], text: NDArray[np.float32] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ranks of the partners of image and of text queries, and the cosine of each pair; the adapters are set to theta.

        text: adapters whose text tower is judged, with the image tower of theta.
        """
        import torch

        from ease_flwr.model.retrieval import ranks

        images, texts, owner = self.embedded(chosen.gallery.pairs, theta)
        if text is not None:
            self.model.set(text)
            texts = self.embedded(chosen.gallery.pairs, text)[1]
        query = torch.from_numpy(chosen.query)
        i2t, t2i = ranks(images, texts, owner, torch.from_numpy(chosen.gallery.group), query)
        return i2t, t2i, (images[query] * texts[torch.searchsorted(owner, query)]).sum(1)

    def _free(self, tensors: tuple[int, ...]) -> None:
        """Let these adapter tensors be trained; none named: all."""
        for i, parameter in enumerate(self.model.parameters):
            parameter.requires_grad_(not tensors or i in tensors)

    def _descend(self, plan: config.TrainConfig, rng: np.random.Generator, proximal: float = 0.0) -> Iterator[Tensor]:
        """The training loop: the loss of each step, after it. Whoever iterates may change the adapters in between, or stop.

        The host never waits for the device here: it prepares the next batch while this one is computed.
        """
        import torch

        optimizer = torch.optim.AdamW(self.model.parameters, lr=plan.lr, weight_decay=0.0, fused=True)
        centre = [p.detach().clone() for p in self.model.parameters] if proximal else []
        for batch in (b for _ in range(plan.epochs) for b in self._batches(rng, plan.batch)):
            loss = self.loss(batch)
            for parameter, there in zip(self.model.parameters, centre, strict=False):
                loss = loss + proximal / 2 * (parameter - there).square().sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters, plan.clip)
            optimizer.step()
            yield loss.detach()

    def _batches(self, rng: np.random.Generator, size: int) -> list[Batch]:
        """One epoch in random order, each pair with one of its captions; a rest smaller than half a batch is dropped."""
        import torch

        n, captions = self.train.tokens.shape[:2]
        order = torch.from_numpy(rng.permutation(n))
        choice = torch.from_numpy(rng.integers(captions, size=n))
        starts = range(0, max(1, n - size // 2 + 1), size)
        return [Batch(order[i : i + size], choice[i : i + size]) for i in starts]

    def _seed(self, instruction: Training) -> int:
        e, again = self.experiment, [instruction.order] if instruction.order else []
        parts = (e.seed, e.evaluation.order_seed, self.name, seed_name(instruction.phase), instruction.round, *again)
        return int(config.digest(*parts)[:16], 16)

    def _held(self, instruction: Learn, extras: dict[str, NDArray[Any]]) -> Held | None:
        """The model's adapters, as they are now, under the lock of an instruction."""
        if not instruction.lock:
            return None
        lock = received(instruction.lock, extras, self.state).aged(instruction.round - 1)
        return Held(lock.on(self.model.device), self.model.theta, instruction.train.lr)
