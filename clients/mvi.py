"""Multimodal variational inference and contrastive semantic editing, see strategies/mvi.py.

Longer than a page because it has a model of its own: `Factors`, which is fitted by the forget client and never leaves it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from ease_flwr.clients.base import Batch
from ease_flwr.clients.forgetting import Forgetting
from torch import nn
from torch.nn import functional as F

from ease_flwr.config import Section

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Gaussian = tuple["Tensor", "Tensor"]
"""Mean and log-variance, (n, k) each."""


def product_of_experts(experts: list[Gaussian], present: Tensor) -> Gaussian:
    """The normalised product of Gaussian experts and a standard normal prior: precisions add up, means are weighted by them.

    experts: m of (n, k).  present: (n, m) in 0..1, a missing modality is a missing expert. Without any it is the prior.
    """
    precisions = torch.stack([v.neg().exp() for _, v in experts], 1) * present[:, :, None]
    total = 1 + precisions.sum(1)
    return (torch.stack([m for m, _ in experts], 1) * precisions).sum(1) / total, -total.log()


def divergence(q: Gaussian) -> Tensor:
    """Mean KL divergence from the standard normal, a scalar."""
    mean, log_variance = q
    return (log_variance.exp() + mean**2 - 1 - log_variance).sum(1).mean() / 2


def cross_covariance(a: Tensor, b: Tensor) -> Tensor:
    """Sum of squared covariances between the columns of (n, k) and (n, l): zero if they are uncorrelated."""
    return ((a - a.mean(0)).T @ (b - b.mean(0)) / len(a)).square().sum()


class Factors(nn.Module):
    """z_c, what image and text agree on, and z_v, z_t, what is one modality's own; of embeddings of dimension d."""

    def __init__(self, d: int, k: int) -> None:
        super().__init__()

        def net(inside: int, outside: int) -> nn.Module:
            return nn.Sequential(nn.Linear(inside, 2 * d), nn.GELU(), nn.Linear(2 * d, outside))

        self.agree = nn.ModuleList([net(d, 2 * k), net(d, 2 * k)])
        self.own = nn.ModuleList([net(d, 2 * k), net(d, 2 * k)])
        self.decoders = nn.ModuleList([net(2 * k, d), net(2 * k, d)])

    def consistent(self, f: Tensor, g: Tensor, present: Tensor) -> Gaussian:
        """q(z_c | what is present of both)."""
        experts = [_gaussian(net(x)) for net, x in zip(self.agree, (f, g), strict=True)]
        return product_of_experts(experts, present)

    def specific(self, f: Tensor, g: Tensor) -> list[Gaussian]:
        """q(z_v | f) and q(z_t | g)."""
        return [_gaussian(net(x)) for net, x in zip(self.own, (f, g), strict=True)]

    def decode(self, z_c: Tensor, z_v: Tensor, z_t: Tensor) -> list[Tensor]:
        """Unit-length embeddings of image and text."""
        both = zip(self.decoders, (z_v, z_t), strict=True)
        return [F.normalize(net(torch.cat([z_c, z], 1)), dim=1) for net, z in both]


def _gaussian(x: Tensor) -> Gaussian:
    mean, log_variance = x.chunk(2, dim=1)
    return mean, log_variance.clamp(-8, 4)


def fit(
    pairs: tuple[Tensor, Tensor], k: int, steps: int, beta: float, decouple: float, seed: int
) -> tuple[Factors, list[float]]:
    """Fit Factors on unit-length embeddings f and g, (n, d) each; returns them and the decoupling penalty before and after.

    The loss is the negative ELBO with cosine reconstruction, beta KL, and `decouple` times the cross-covariance of z_c with z_v
    and z_t. In half of the cases one modality is missing, one or the other.
    """
    f, g = pairs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Factors(f.shape[1], k).to(f.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        penalties = []
        for _ in range(steps):
            draw = torch.rand(len(f))
            present = torch.stack([draw >= 0.25, (draw < 0.25) | (draw >= 0.5)], 1).float().to(f.device)
            q_c, (q_v, q_t) = model.consistent(f, g, present), model.specific(f, g)
            z_c, z_v, z_t = (m + (v / 2).exp() * torch.randn(m.shape).to(f.device) for m, v in (q_c, q_v, q_t))
            again = model.decode(z_c, z_v, z_t)
            missed = sum((1 - (a * x).sum(1)).mean() for a, x in zip(again, (f, g), strict=True))
            penalty = cross_covariance(q_c[0], q_v[0]) + cross_covariance(q_c[0], q_t[0])
            penalties.append(penalty.detach())
            loss = missed + beta * sum(divergence(q) for q in (q_c, q_v, q_t)) + decouple * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.requires_grad_(False), [penalties[0].item(), penalties[-1].item()]


def edited(model: Factors, f: Tensor, g: Tensor, counterfactual: Tensor) -> list[Tensor]:
    """Targets of pairs (n, d): their own z_v and z_t decoded with another z_c (n, k)."""
    (z_v, _), (z_t, _) = model.specific(f, g)
    return model.decode(counterfactual, z_v, z_t)


def editing_loss(now: Tensor, target: Tensor, negatives: list[Tensor], temperature: float) -> Tensor:
    """InfoNCE of (b, d) embeddings: each to its target, with these rows of the same pair as hard negatives; a scalar."""
    logits = torch.stack([(now * x).sum(1) for x in (target, *negatives)], 1) / temperature
    return -logits.log_softmax(1)[:, 0].mean()


class Mvi(Forgetting):
    """Edit the association out of forgotten pairs: pictures and words stay, their agreement is replaced."""

    class Options(Section):
        latent: float
        steps: float
        beta: float
        decouple: float
        counterfactual: Literal["prior", "other"]
        temperature: float
        locality: float

    remembers: ClassVar[tuple[str, ...]] = (*Forgetting.remembers, "f1", "g1")

    def snapshot(self, extras: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
        """Embeddings at the request, and the edited targets f1 (n, d) and g1 (n, captions, d)."""
        known, o = super().snapshot(extras), self.options
        f, g = torch.cat([known["f0"], known["others_f0"]]), torch.cat([known["g0"][:, 0], known["others_g0"][:, 0]])
        model, _ = fit((f, g), int(o.latent), int(o.steps), o.beta, o.decouple, int(self.mates.integers(2**31)))
        f1, g1 = torch.empty_like(known["f0"]), torch.empty_like(known["g0"])
        other = self.draw(len(f1))
        there = model.consistent(known["others_f0"][other], known["others_g0"][other, 0], f1.new_ones(len(f1), 2))[0]
        instead = torch.zeros_like(there) if o.counterfactual == "prior" else there
        for c in range(g1.shape[1]):
            f1, g1[:, c] = edited(model, known["f0"], known["g0"][:, c], instead)
        return {**known, "f1": f1, "g1": g1}

    def loss(self, batch: Batch) -> Tensor:
        i, c, o, then = batch.index, batch.caption, self.options, self.before
        f, g = self.embed(batch)
        f0, g0 = then["f0"][i], then["g0"][i, c]
        visual = editing_loss(f, then["f1"][i], [f0, g0], o.temperature)
        textual = editing_loss(g, then["g1"][i, c], [g0, f0], o.temperature)
        j = self.draw(len(i))
        others_f, others_g = self.embed_others(j)
        kept = (others_f * then["others_f0"][j]).sum(1) + (others_g * then["others_g0"][j, 0]).sum(1)
        return visual + textual + o.locality * (2 - kept).mean()
