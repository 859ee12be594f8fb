"""Retrieval from embeddings: ranks of partners, and how well pairs match."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F


def ranks(
    images: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor, group: torch.Tensor, query: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks of the partners, from 1, of the image queries (n,) and of all their captions in order (m,); every query is ranked
    inside its own group.

    images: (n, d) and texts: (m, d), unit length.  owner: (m,) the image of each caption; several captions of an image
    all count as hits ("any hit").  group: (n,) gallery of each image.  query: positions of the images to be judged; their
    captions are the text queries. A rank is 1 + the number of strictly better wrong candidates + half of the ties,
    rounded up, so that a model that gives everything the same score scores as chance and not as perfect.
    """
    owner, group, query = (x.to(images.device) for x in (owner, group, query))
    i2t, t2i = owner.new_zeros(len(images)), owner.new_zeros(len(texts))
    text_group = group[owner]
    for g in group[query].unique():
        rows = (group == g).nonzero().squeeze(1)
        columns = (text_group == g).nonzero().squeeze(1)
        similarity = images[rows] @ texts[columns].T
        own = owner[columns][None, :] == rows[:, None]
        judged_rows = torch.isin(rows, query)
        judged_columns = torch.isin(owner[columns], query)
        best = similarity.masked_fill(~own, -torch.inf).amax(1)[judged_rows]
        i2t[rows[judged_rows]] = _ranks(similarity[judged_rows], ~own[judged_rows], best)
        true = similarity.T[own.T][judged_columns]
        t2i[columns[judged_columns]] = _ranks(similarity.T[judged_columns], ~own.T[judged_columns], true)
    return i2t[query], t2i[torch.isin(owner, query)]


def _ranks(similarity: torch.Tensor, wrong: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    better = ((similarity > true[:, None]) & wrong).sum(1)
    ties = ((similarity == true[:, None]) & wrong).sum(1)
    return 1 + better + (ties + 1) // 2


def partner_cross_entropy(
    f: torch.Tensor, g: torch.Tensor, others_f: torch.Tensor, others_g: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of each pair's partner among its batch and `others`, image to text and text to image, (2, b), in nats.

    How well a pair matches, as retrieval sees it: similarities are fixed only up to a common shift. (n, d) unit-length
    embeddings; scale: inverse temperature.
    """
    target = torch.arange(len(f), device=f.device)
    image_to_text = F.cross_entropy(scale * f @ torch.cat([g, others_g]).T, target, reduction="none")
    text_to_image = F.cross_entropy(scale * g @ torch.cat([f, others_f]).T, target, reduction="none")
    return torch.stack([image_to_text, text_to_image])


Embedded = tuple[torch.Tensor, torch.Tensor]
"""Unit-length embeddings of pairs: images (n, d) and captions (n, captions, d)."""


def partner_losses(
    pairs: Embedded, others: Embedded, scale: torch.Tensor, batch: int, rng: np.random.Generator
) -> torch.Tensor:
    """partner_cross_entropy of pairs, mean of both directions, (n, captions), in nats; in random batches with as many of the
    others, first captions."""
    (f, g), (others_f, others_g) = pairs, others
    out = g.new_empty(g.shape[:2])
    for caption in range(g.shape[1]):
        for i in torch.from_numpy(rng.permutation(len(f))).split(batch):
            mates = torch.from_numpy(rng.integers(len(others_f), size=len(i)))
            beside = others_f[mates], others_g[mates, 0]
            out[i, caption] = partner_cross_entropy(f[i], g[i, caption], *beside, scale).mean(0)
    return out
