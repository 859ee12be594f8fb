"""Bilateral knowledge excision (BKE): the forgetting client moves both towers away from its pairs, down to a target.

EASE, arXiv 2605.00733, component BKE; the loss is our reading of it. For forget pair i with snapshot embeddings f°, g°
at the request and current ones f, g:

    s = <f, g>    s_v = <f, g°>    s_t = <f°, g>    h_i = (s°_i + m_i) / 2
    L = w mean_i { [s - m_i]_+^2 + [s_v - h_i]_+^2 + [s_t - h_i]_+^2 } + w_l mean_i { [t_i - l_v]_+ + [t_i - l_t]_+ }

The half-way terms displace image and text tower each half of the way: with a whole way each, the pair would be pushed
twice as far as meant, and with one tower frozen its untouched partner pulls it back. l_v and l_t are the cross-entropies
of the partner among the batch and as many public pairs: similarities are fixed only up to a common shift, and what
retrieval sees is this margin.

Which pairs, and how far. With u and d the mean and standard deviation of the similarity of public pairs that nobody was
trained on, under the model at the request (what is normal for what a model does not know; of one pair d is 0): a pair that
is to be forgotten is *exclusive*, known from here alone, where an excision (`teacher`, an adapter vector) takes it a good
part of the way there, s°_i - s^E_i > evidence (s°_i - u). Without a teacher all pairs that are to be forgotten count as
exclusive. Other pairs stay: m_i = s°_i, their squares are two-sided ([.]^2 for [.]_+^2), for what is pushed away drags its
neighbours along, and they have no margin term. They are the client's shared pairs if it leaves, and as many of the pairs it
keeps if it stays.
`target` says where exclusive pairs go:

    excised    m_i = s^E_i, but between u - d and u; t_i is its cross-entropy under the teacher, but no more than that of the
               public pair of the same rank (as many drawn at random, both sorted): what the teacher still tells apart by
               chance stays told apart, as in a retrained model, and nothing is pushed below what is normal for unseen pairs.
               Without a teacher: m_i = u, t_i drawn from the public pairs
    unseen     m_i = u, t_i drawn from the public pairs
    zero-shot  m_i and t_i under the model before any learning
    non-pair   m_i the mean similarity of pictures with captions of other pairs, t_i that of a wrong partner

AdamW's step does not depend on the loss weight and a hinge does not brake it, so the step is shortened afterwards until the
exclusive pairs land on their targets from above (`finish`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from ease_flwr.clients.base import Batch
from ease_flwr.clients.forgetting import Forgetting
from torch.nn import functional as F

from ease_flwr.config import Section
from ease_flwr.model.retrieval import Embedded, partner_cross_entropy, partner_losses

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


LANDED = 0.9
"""Share of the way to their targets at which pairs of a client that stays have landed; the last tenth is made by pushing pairs
that are there already."""

SIDES = {"both": ("joint", "visual", "text"), "joint": ("joint",), "visual": ("visual",), "text": ("text",)}
"""Terms of the loss by the setting that names them."""


def bilateral_loss(
    now: Embedded, then: Embedded, target: Tensor, exclusive: Tensor, way: float = 0.5, sides: str = "both"
) -> Tensor:
    """Mean over pairs of the squared terms: hinges from above for exclusive pairs, two-sided for the others; a scalar.

    now, then: f and g, f° and g°, (b, d) each and unit-length.  target: (b,).  exclusive: (b,), boolean.  way: how far each
    tower goes by itself, .5 is half-way.  sides: "both" is all three terms, "joint", "visual" and "text" are one of them alone.
    """
    (f, g), (f0, g0) = now, then
    before = (f0 * g0).sum(1)
    single = before + way * (target - before)
    terms = {"joint": (f * g).sum(1) - target, "visual": (f * g0).sum(1) - single, "text": (f0 * g).sum(1) - single}
    chosen = torch.stack([terms[name] for name in SIDES[sides]])
    return (torch.where(exclusive, F.relu(chosen), chosen) ** 2).sum(0).mean()


class Bilateral(Forgetting):
    """What a forget client does. Arrays beside the adapters in its first message: `request` and, if there is one,
    `teacher`, adapter vectors."""

    class Options(Section):
        """What the server says about the loss; defaults and their reasons are in strategies/ease.py."""

        weight: float
        """w"""
        margin: float
        """w_l"""
        evidence: float
        target: Literal["excised", "unseen", "zero-shot", "non-pair"]
        way: float
        sides: Literal["both", "joint", "visual", "text"]

    remembers: ClassVar[tuple[str, ...]] = ("f0", "g0", "target", "margin")

    def choose(self) -> None:
        some = self.kept[torch.from_numpy(np.random.default_rng(0).permutation(len(self.kept))[: len(self.forget)])]
        self.stays = len(some) > 0
        places = torch.arange(len(self.forget) + len(some), device=self.model.device)
        self.requested = places < len(self.forget)
        self.train = self.forget + some

    def snapshot(self, extras: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
        """Embeddings at the request, m_i, and t_i where a pair is exclusive (NaN elsewhere)."""
        request, teacher = extras["request"], extras.get("teacher")
        f0, g0 = self.embed_all(request, self.train)
        f, g = self.embed_all(request, self.public)
        unseen, before = (f[:, None] * g).sum(2), (f0[:, None] * g0).sum(2)
        exclusive = self.requested[:, None].expand_as(before)
        loss = self._losses((f, g), (f0, g0))[:, 0]
        if teacher is not None:
            f1, g1 = self.embed_all(teacher, self.train)
            after = (f1[:, None] * g1).sum(2)
            exclusive = exclusive & (before - after > self.options.evidence * (before - unseen.mean()).clamp_min(0))
        drawn = loss[torch.from_numpy(self.mates.integers(len(loss), size=int(exclusive.sum())))]
        match self.options.target:
            case "excised" if teacher is not None:
                spread = unseen.std() if unseen.numel() > 1 else 0.0
                aim = after.clamp(unseen.mean() - spread, unseen.mean())
                known = self._losses((f1, g1), (f, g))[exclusive]
                drawn = torch.empty_like(drawn).scatter(0, known.argsort(), drawn.sort().values).minimum(known)
            case "zero-shot":
                f1, g1 = self.embed_all(self.model.initial, self.train)
                aim, drawn = (f1[:, None] * g1).sum(2), self._losses((f1, g1), (f, g))[exclusive]
            case "non-pair":
                aim = (f0[:, None] * g0.roll(1, 0)).sum(2).mean().expand_as(before)
                drawn = self._losses((f0, g0.roll(1, 0)), (f, g))[exclusive]
            case _:
                aim = unseen.mean().expand_as(before)
        margin = torch.full_like(before, torch.nan)
        margin[exclusive] = drawn
        return {"f0": f0, "g0": g0, "target": torch.where(exclusive, aim.minimum(before), before), "margin": margin}

    def _losses(self, pairs: Embedded, others: Embedded) -> Tensor:
        return partner_losses(pairs, others, self.scale, self.batch, self.mates)

    @property
    def exclusive(self) -> Tensor:
        """Which pairs are known from here alone, (n, captions)."""
        return ~self.before["margin"].isnan()

    def loss(self, batch: Batch) -> Tensor:
        i, c = batch.index, batch.caption
        f, g = self.embed(batch)
        exclusive = self.exclusive[i, c]
        o = self.options
        then = self.before
        before = then["f0"][i], then["g0"][i, c]
        similarity = bilateral_loss((f, g), before, then["target"][i, c], exclusive, o.way, o.sides)
        mates = torch.from_numpy(self.mates.integers(len(self.public), size=len(i)))
        with torch.no_grad():
            others_f = self.model.embed_images(self.public.images[mates])
            others_g = self.model.embed_texts(self.public.tokens[mates, 0])
        short = self.before["margin"][i, c].nan_to_num() - partner_cross_entropy(f, g, others_f, others_g, self.scale)
        hinge = (F.relu(short).sum(0) * exclusive).mean()
        return o.weight * similarity + o.margin * hinge

    def finish(self, start: NDArray[np.float32]) -> dict[str, float]:
        """Shorten the step by bisection until the exclusive pairs have landed on their targets; reports where they are.

        `exclusive` of the `pairs` to be forgotten are exclusive, by their first captions, and `share` of the step is left.
        `partner_loss` is the mean over the exclusive pairs, in nats, `goal` the mean of t_i; both are 0 where there are none.
        Where the client stays no teacher knows which pair should end where, and none may be left behind: there each pair counts
        up to its target only, and LANDED of the way is the goal.
        """
        found = {"exclusive": int(self.exclusive[:, 0].sum()), "pairs": len(self.forget)}
        if not found["exclusive"]:
            return {**found, "share": 1.0, "partner_loss": 0.0, "goal": 0.0}
        end, goal = self.model.get(), float(self.before["margin"][self.exclusive].mean()) * (LANDED if self.stays else 1.0)

        def loss(share: float) -> float:
            return self._partner_loss_at(start + np.float32(share) * (end - start))

        low, high = 0.0, 1.0
        if loss(1.0) <= goal:
            low = 1.0
        else:
            for _ in range(6):
                middle = (low + high) / 2
                low, high = (middle, high) if loss(middle) <= goal else (low, middle)
        return {**found, "share": low, "partner_loss": loss(low), "goal": goal}

    def _partner_loss_at(self, theta: NDArray[np.float32]) -> float:
        """Mean cross-entropy of the partner over the exclusive pairs, first captions, in batches drawn the same each time."""
        pairs, public = (self.embed_all(theta, p, most=1) for p in (self.train, self.public))
        losses = partner_losses(pairs, public, self.scale, self.batch, np.random.default_rng(0))
        if self.stays:
            losses = losses.minimum(self.before["margin"][:, :1])
        return float(losses[self.exclusive[:, :1]].mean())
