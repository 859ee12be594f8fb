"""Retrieval recall from embeddings: what a client counts on its own pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

KS = (1, 5, 10)


@dataclass(frozen=True)
class Counts:
    """Hits of `images` image queries and `texts` text queries, for k = 1, 5, 10. Sums over clients are counts again."""

    images: int
    texts: int
    i2t: tuple[int, ...]
    t2i: tuple[int, ...]

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.images + other.images,
            self.texts + other.texts,
            tuple(a + b for a, b in zip(self.i2t, other.i2t, strict=True)),
            tuple(a + b for a, b in zip(self.t2i, other.t2i, strict=True)),
        )

    def percent(self) -> dict[str, object]:
        """Recall in percent: {"i2t": {"r1", "r5", "r10"}, "t2i": {...}, "r1": mean of both directions}."""
        i2t = {f"r{k}": 100 * h / self.images for k, h in zip(KS, self.i2t, strict=True)}
        t2i = {f"r{k}": 100 * h / self.texts for k, h in zip(KS, self.t2i, strict=True)}
        return {"i2t": i2t, "t2i": t2i, "r1": (i2t["r1"] + t2i["r1"]) / 2}


def count_hits(
    images: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor, group: torch.Tensor, query: torch.Tensor
) -> Counts:
    """Hits at k, both ways, with every query ranked inside its own group.

    images: (n, d) and texts: (m, d), unit length.  owner: (m,) the image of each caption; several captions of an image
    all count as hits ("any hit").  group: (n,) gallery of each image.  query: positions of the images to be judged; their
    captions are the text queries. A rank is 1 + the number of strictly better wrong candidates + half of the ties,
    rounded up, so that a model that gives everything the same score scores as chance and not as perfect.
    """
    i2t, t2i = [0] * len(KS), [0] * len(KS)
    texts_judged = 0
    text_group = group[owner]
    for g in group[query].unique():
        rows = (group == g).nonzero().squeeze(1)
        columns = (text_group == g).nonzero().squeeze(1)
        similarity = images[rows] @ texts[columns].T
        own = owner[columns][None, :] == rows[:, None]
        judged_rows = torch.isin(rows, query)
        judged_columns = torch.isin(owner[columns], query)
        texts_judged += int(judged_columns.sum())
        best = similarity.masked_fill(~own, -torch.inf).amax(1)[judged_rows]
        rank_i2t = _ranks(similarity[judged_rows], ~own[judged_rows], best)
        true = similarity.T[own.T][judged_columns]
        rank_t2i = _ranks(similarity.T[judged_columns], ~own.T[judged_columns], true)
        for j, k in enumerate(KS):
            i2t[j] += int((rank_i2t <= k).sum())
            t2i[j] += int((rank_t2i <= k).sum())
    return Counts(len(query), texts_judged, tuple(i2t), tuple(t2i))


def _ranks(similarity: torch.Tensor, wrong: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    better = ((similarity > true[:, None]) & wrong).sum(1)
    ties = ((similarity == true[:, None]) & wrong).sum(1)
    return 1 + better + (ties + 1) // 2
