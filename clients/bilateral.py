"""Bilateral knowledge excision (BKE): the forgetting client moves both towers away from its pairs, down to a target.

EASE, arXiv 2605.00733, component BKE; the loss is our reading of it. For forget pair i with snapshot embeddings f°, g°
at the request and current ones f, g:

    s = <f, g>    s_v = <f, g°>    s_t = <f°, g>
    L = w mean_i { [s - m_i]_+^2 + [s_v - (s°_i + m_i)/2]_+^2 + [s_t - (s°_i + m_i)/2]_+^2 }

The middle and last term displace image and text tower each half of the way: with a whole way each, the pair would be
pushed twice as far as meant, and with one tower frozen its untouched partner pulls it back.

Targets. The excised model (`teacher`, an adapter vector) shows what a pair's similarity would be without the directions
that only this client moved. With u and d the mean and standard deviation of the similarity of public pairs that nobody was
trained on, under the model at the request (the level of what a model does not know), a pair is knowledge of this client
alone where the excision takes it a good part of the way there: s°_i - s^E_i > evidence (s°_i - u). Its target is
m_i = s^E_i, but between u - d and u. Other pairs are known elsewhere too and stay: m_i = s°_i,
and for them the terms are two-sided, [.]^2 instead of [.]_+^2, for what is pushed away drags its neighbours along.

AdamW's step does not depend on the loss weight and the hinge does not brake it, so the step is shortened afterwards until
the mean similarity of the exclusive pairs lands on the target from above (`finish`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from clients.base import Batch, LoraClient, embed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ease_flwr.core.messages import Instruction


def bilateral_loss(f: Tensor, g: Tensor, f0: Tensor, g0: Tensor, target: Tensor, exclusive: Tensor) -> Tensor:
    """Mean over pairs of three squared terms: hinges from above for exclusive pairs, two-sided for the others.

    Embeddings are (b, d) and unit-length, target is (b,), exclusive is (b,) and boolean; a scalar.
    """
    half_way = ((f0 * g0).sum(1) + target) / 2
    both = (f * g).sum(1) - target
    visual = (f * g0).sum(1) - half_way
    text = (f0 * g).sum(1) - half_way
    terms = torch.stack([both, visual, text])
    return (torch.where(exclusive, F.relu(terms), terms) ** 2).sum(0).mean()


class Bilateral(LoraClient):
    """The forgetting client. Arrays beside the adapters in its first message: `request` and `teacher`, adapter vectors."""

    def begin(self, instruction: Instruction, extras: dict[str, NDArray[Any]]) -> None:
        self.weight, self.evidence = instruction.options["weight"], instruction.options["evidence"]
        if "request" in extras:
            current = self.model.get()
            snapshot = self._snapshot(extras["request"], extras["teacher"])
            self.model.set(current)
            for name, value in snapshot.items():
                self.state.save(f"bilateral.{name}", value.numpy())
        self.f0, self.g0, self.target = (self._remembered(name) for name in ("f0", "g0", "target"))
        self.exclusive = self.target < (self.f0[:, None] * self.g0).sum(2) - 1e-4

    def _snapshot(self, request: NDArray[np.float32], teacher: NDArray[np.float32]) -> dict[str, Tensor]:
        f0, g0 = self._embed_all(request)
        images, texts, owner = embed(self.model, self.encode(self.world.unseen()), self.world.unseen())
        unseen = (images[owner] * texts).sum(1)
        f1, g1 = self._embed_all(teacher)
        before, after = (f0[:, None] * g0).sum(2), (f1[:, None] * g1).sum(2)
        exclusive = before - after > self.evidence * (before - unseen.mean()).clamp_min(0)
        target = after.clamp(unseen.mean() - unseen.std(), unseen.mean()).minimum(before)
        return {"f0": f0, "g0": g0, "target": torch.where(exclusive, target, before)}

    def _remembered(self, name: str) -> Tensor:
        value = self.state.load(f"bilateral.{name}")
        if value is None:
            raise ValueError("snapshot of the request is missing here: it must be sent again")
        return torch.from_numpy(value.copy())

    def loss(self, batch: Batch) -> Tensor:
        i, c = batch.index, batch.caption
        snapshot = self.f0[i], self.g0[i, c]
        return self.weight * bilateral_loss(*self.embed(batch), *snapshot, self.target[i, c], self.exclusive[i, c])

    def finish(self, start: NDArray[np.float32]) -> dict[str, float]:
        """Shorten the step by bisection until the exclusive pairs are not below their target; reports where they are."""
        metrics = {"exclusive": float(self.exclusive.float().mean()), "share": 1.0, "similarity": 0.0, "target": 0.0}
        if not self.exclusive.any():
            return metrics
        end, goal = self.model.get(), float(self.target[self.exclusive].mean())

        def reached(share: float) -> float:
            f, g = self._embed_all(start + np.float32(share) * (end - start))
            return float((f[:, None] * g).sum(2)[self.exclusive].mean())

        low, high = 0.0, 1.0
        if reached(1.0) >= goal:
            low = 1.0
        else:
            for _ in range(6):
                middle = (low + high) / 2
                low, high = (middle, high) if reached(middle) >= goal else (low, middle)
        return {**metrics, "share": low, "similarity": reached(low), "target": goal}

    def _embed_all(self, theta: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """(n, d) and (n, captions, d) embeddings of the training pairs under these adapters, which stay set."""
        self.model.set(theta)
        n, captions = self.train.tokens.shape[:2]
        clip = self.model.clip
        with torch.no_grad():
            f = torch.cat([clip.encode_image(x, normalize=True) for x in self.train.images.split(256)])
            g = torch.cat([clip.encode_text(x, normalize=True) for x in self.train.tokens.flatten(0, 1).split(256)])
        return f, g.view(n, captions, -1)
