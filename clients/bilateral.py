"""Bilateral knowledge excision (BKE): the forgetting client moves both towers away from its pairs, down to a target.

EASE, arXiv 2605.00733, component BKE; the loss is our reading of it. For forget pair i with snapshot embeddings f°, g°
at the request and current ones f, g:

    s = <f, g>    s_v = <f, g°>    s_t = <f°, g>    h_i = (s°_i + m_i) / 2
    L = w mean_i { [s - m_i]_+^2 + [s_v - h_i]_+^2 + [s_t - h_i]_+^2 } + w_l mean_i { [t_i - l_v]_+ + [t_i - l_t]_+ }

The half-way terms displace image and text tower each half of the way: with a whole way each, the pair would be pushed
twice as far as meant, and with one tower frozen its untouched partner pulls it back. l_v and l_t are the cross-entropies
of the partner among the batch and as many public pairs: similarities are fixed only up to a common shift, and what
retrieval sees is this margin.

Targets. The excised model (`teacher`, an adapter vector) shows what a pair's similarity would be without the directions
that only this client moved. With u and d the mean and standard deviation of the similarity of public pairs that nobody was
trained on, under the model at the request (the level of what a model does not know), a pair is knowledge of this client
alone where the excision takes it a good part of the way there: s°_i - s^E_i > evidence (s°_i - u). Its target is
m_i = s^E_i, but between u - d and u, and t_i is its cross-entropy under the excised model, but no more than that of the
public pair of the same rank (as many drawn at random, both sorted): a pair that the excised model still tells apart by
chance stays told apart, as a retrained model does it, and none is pushed below what is normal for unseen pairs. Other pairs
are known elsewhere too and stay: m_i = s°_i, their squares are two-sided ([.]^2 for [.]_+^2), for what is pushed away drags
its neighbours along, and they have no margin term.

AdamW's step does not depend on the loss weight and a hinge does not brake it, so the step is shortened afterwards until the
exclusive pairs land on their level from above (`finish`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from clients.base import Batch, Encoded, LoraClient

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


def partner_cross_entropy(f: Tensor, g: Tensor, others_f: Tensor, others_g: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of each pair's partner among its batch and `others`, image to text and text to image, (2, b)."""
    target = torch.arange(len(f))
    image_to_text = F.cross_entropy(scale * f @ torch.cat([g, others_g]).T, target, reduction="none")
    text_to_image = F.cross_entropy(scale * g @ torch.cat([f, others_f]).T, target, reduction="none")
    return torch.stack([image_to_text, text_to_image])


class Bilateral(LoraClient):
    """The forgetting client. Arrays beside the adapters in its first message: `request` and `teacher`, adapter vectors."""

    def begin(self, instruction: Instruction, extras: dict[str, NDArray[Any]]) -> None:
        self.options, self.batch = instruction.options, instruction.train.batch
        self.public = self.encode(self.world.unseen())
        self.mates = np.random.default_rng(self._seed(instruction) + 1)
        if "request" in extras:
            current = self.model.get()
            snapshot = self._snapshot(extras["request"], extras["teacher"])
            self.model.set(current)
            for name, value in snapshot.items():
                self.state.save(f"bilateral.{name}", value.numpy())
        names = ("f0", "g0", "target", "margin")
        self.f0, self.g0, self.target, self.margin = (self._remembered(name) for name in names)
        self.exclusive = self.target < (self.f0[:, None] * self.g0).sum(2) - 1e-4

    def _snapshot(self, request: NDArray[np.float32], teacher: NDArray[np.float32]) -> dict[str, Tensor]:
        f0, g0 = self._embed_all(request, self.train)
        f, g = self._embed_all(request, self.public)
        f1, g1 = self._embed_all(teacher, self.train)
        unseen, before, after = ((x[:, None] * y).sum(2) for x, y in ((f, g), (f0, g0), (f1, g1)))
        exclusive = before - after > self.options["evidence"] * (before - unseen.mean()).clamp_min(0)
        target = after.clamp(unseen.mean() - unseen.std(), unseen.mean()).minimum(before)
        level = self._margins(f, g, f0, g0)[:, 0]
        draw = level[torch.from_numpy(self.mates.integers(len(level), size=int(exclusive.sum())))]
        margin, known = torch.zeros_like(before), self._margins(f1, g1, f, g)[exclusive]
        margin[exclusive] = torch.empty_like(draw).scatter(0, known.argsort(), draw.sort().values).minimum(known)
        return {"f0": f0, "g0": g0, "target": torch.where(exclusive, target, before), "margin": margin}

    def _margins(self, f: Tensor, g: Tensor, others_f: Tensor, others_g: Tensor) -> Tensor:
        """Cross-entropy of the partner of every pair and caption, mean of both directions, (n, captions), in random
        batches with as many others, first captions."""
        out = torch.empty(g.shape[:2])
        for caption in range(g.shape[1]):
            for i in torch.from_numpy(self.mates.permutation(len(f))).split(self.batch):
                mates = torch.from_numpy(self.mates.integers(len(others_f), size=len(i)))
                others = others_f[mates], others_g[mates, 0]
                out[i, caption] = partner_cross_entropy(f[i], g[i, caption], *others, self.scale).mean(0)
        return out

    def _remembered(self, name: str) -> Tensor:
        value = self.state.load(f"bilateral.{name}")
        if value is None:
            raise ValueError("snapshot of the request is missing here: it must be sent again")
        return torch.from_numpy(value.copy())

    def loss(self, batch: Batch) -> Tensor:
        i, c = batch.index, batch.caption
        f, g = self.embed(batch)
        exclusive = self.exclusive[i, c]
        similarity = bilateral_loss(f, g, self.f0[i], self.g0[i, c], self.target[i, c], exclusive)
        mates = torch.from_numpy(self.mates.integers(len(self.public), size=len(i)))
        with torch.no_grad():
            others_f = self.model.clip.encode_image(self.public.images[mates], normalize=True)
            others_g = self.model.clip.encode_text(self.public.tokens[mates, 0], normalize=True)
        short = F.relu(self.margin[i, c] - partner_cross_entropy(f, g, others_f, others_g, self.scale)).sum(0)
        hinge = (short * exclusive).mean()
        return self.options["weight"] * similarity + self.options["margin"] * hinge

    def finish(self, start: NDArray[np.float32]) -> dict[str, float]:
        """Shorten the step by bisection until exclusive pairs match no worse than unseen pairs do; reports where they are.

        `level` is the mean cross-entropy of the partner of exclusive pairs, `goal` the mean of their targets t_i.
        """
        found = float(self.exclusive[:, 0].float().mean())
        if not found:
            return {"exclusive": 0.0, "share": 1.0, "level": 0.0, "goal": 0.0}
        end, goal = self.model.get(), float(self.margin[self.exclusive].mean())

        def level(share: float) -> float:
            return self._level(start + np.float32(share) * (end - start))

        low, high = 0.0, 1.0
        if level(1.0) <= goal:
            low = 1.0
        else:
            for _ in range(6):
                middle = (low + high) / 2
                low, high = (middle, high) if level(middle) <= goal else (low, middle)
        return {"exclusive": found, "share": low, "level": level(low), "goal": goal}

    def _level(self, theta: NDArray[np.float32]) -> float:
        """Mean cross-entropy of the partner over the exclusive pairs, first captions, in batches drawn the same each time."""
        f, g = self._embed_all(theta, self.train, most=1)
        others_f, others_g = self._embed_all(theta, self.public, most=1)
        rng = np.random.default_rng(0)
        levels = []
        for i in torch.from_numpy(rng.permutation(len(f))).split(self.batch):
            mates = torch.from_numpy(rng.integers(len(others_f), size=len(i)))
            level = partner_cross_entropy(f[i], g[i, 0], others_f[mates], others_g[mates, 0], self.scale).mean(0)
            levels.append(level[self.exclusive[i, 0]])
        return float(torch.cat(levels).mean())

    def _embed_all(self, theta: NDArray[np.float32], pairs: Encoded, most: int | None = None) -> tuple[Tensor, Tensor]:
        """(n, d) and (n, captions, d) embeddings of pairs and their first `most` captions; the adapters stay set."""
        self.model.set(theta)
        tokens = pairs.tokens[:, :most]
        clip = self.model.clip
        with torch.no_grad():
            f = torch.cat([clip.encode_image(x, normalize=True) for x in pairs.images.split(256)])
            g = torch.cat([clip.encode_text(x, normalize=True) for x in tokens.flatten(0, 1).split(256)])
        return f, g.view(*tokens.shape[:2], -1)
