"""Retrieval from embeddings: what a client counts on its own pairs, and the sums over clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

KS = (1, 5, 10)
SETS = ("forget_exclusive", "forget_shared", "forget", "retain", "test", "holdout", "neighbours")


@dataclass(frozen=True)
class Counts:
    """Hits of `images` image queries and `texts` text queries, for k = 1, 5, 10. Sums over clients are counts again."""

    images: int
    texts: int
    i2t: tuple[int, ...]
    t2i: tuple[int, ...]

    @classmethod
    def of(cls, i2t: torch.Tensor, t2i: torch.Tensor) -> Counts:
        """Of the ranks of image queries (n,) and text queries (m,)."""
        return cls(len(i2t), len(t2i), *(tuple(int((r <= k).sum()) for k in KS) for r in (i2t, t2i)))

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.images + other.images,
            self.texts + other.texts,
            tuple(a + b for a, b in zip(self.i2t, other.i2t, strict=True)),
            tuple(a + b for a, b in zip(self.t2i, other.t2i, strict=True)),
        )

    def percent(self) -> dict[str, Any]:
        """Recall in percent: {"i2t": {"r1", "r5", "r10"}, "t2i": {...}, "r1": mean of both directions}."""
        i2t = {f"r{k}": 100 * h / self.images for k, h in zip(KS, self.i2t, strict=True)}
        t2i = {f"r{k}": 100 * h / self.texts for k, h in zip(KS, self.t2i, strict=True)}
        return {"i2t": i2t, "t2i": t2i, "r1": (i2t["r1"] + t2i["r1"]) / 2}


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
    i2t, t2i = torch.zeros(len(images), dtype=torch.long), torch.zeros(len(texts), dtype=torch.long)
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


def count_hits(
    images: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor, group: torch.Tensor, query: torch.Tensor
) -> Counts:
    """Hits at k, both ways; see `ranks`."""
    return Counts.of(*ranks(images, texts, owner, group, query))


def _ranks(similarity: torch.Tensor, wrong: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    better = ((similarity > true[:, None]) & wrong).sum(1)
    ties = ((similarity == true[:, None]) & wrong).sum(1)
    return 1 + better + (ties + 1) // 2


def partner_cross_entropy(
    f: torch.Tensor, g: torch.Tensor, others_f: torch.Tensor, others_g: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of each pair's partner among its batch and `others`, image to text and text to image, (2, b).

    How well a pair matches, as retrieval sees it: similarities are fixed only up to a common shift. (n, d) unit-length
    embeddings; scale: inverse temperature.
    """
    target = torch.arange(len(f))
    image_to_text = F.cross_entropy(scale * f @ torch.cat([g, others_g]).T, target, reduction="none")
    text_to_image = F.cross_entropy(scale * g @ torch.cat([f, others_f]).T, target, reduction="none")
    return torch.stack([image_to_text, text_to_image])


def levels(
    f: torch.Tensor,
    g: torch.Tensor,
    others_f: torch.Tensor,
    others_g: torch.Tensor,
    scale: torch.Tensor,
    batch: int,
    rng: np.random.Generator,
) -> torch.Tensor:
    """partner_cross_entropy of pairs f (n, d) and g (n, captions, d), mean of both directions, (n, captions), in random
    batches with as many of the others, first captions."""
    out = torch.empty(g.shape[:2])
    for caption in range(g.shape[1]):
        for i in torch.from_numpy(rng.permutation(len(f))).split(batch):
            mates = torch.from_numpy(rng.integers(len(others_f), size=len(i)))
            others = others_f[mates], others_g[mates, 0]
            out[i, caption] = partner_cross_entropy(f[i], g[i, caption], *others, scale).mean(0)
    return out


@dataclass
class Judgement:
    """One model, all clients together.

    sets: name -> {"n", "gallery", "i2t", "t2i", "r1"}.  similarity: name -> cosine of each pair.  clients: client -> set ->
    R@1.  level, unseen: mean partner cross-entropy of the pairs to be forgotten and of public ones, where it was asked for.
    """

    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    similarity: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    clients: dict[str, dict[str, float]] = field(default_factory=dict)
    level: float = float("nan")
    unseen: float = float("nan")

    def r1(self, name: str) -> float:
        return float(self.sets[name]["r1"])


def pool(answers: Mapping[str, Mapping[str, Any]], model: str) -> Judgement:
    """Sum what clients said about a model, see Federation.evaluate. "forget" is the union of its two parts if they exist."""
    counts: dict[str, Counts] = {}
    galleries: dict[str, int] = {}
    found = Judgement()
    held: list[list[float]] = []
    for client, said in sorted(answers.items()):
        for key, value in said.items():
            about, _, kind = key.rpartition(".")
            if not about.startswith(f"{model}/"):
                continue
            name = about.removeprefix(f"{model}/")
            if kind == "gallery":
                galleries[name] = int(value)
            elif kind == "similarity":
                found.similarity[name] = np.append(found.similarity.get(name, np.zeros(0)), value)
            elif kind == "level":
                held.append(list(value))
            elif kind == "counts":
                images, texts, *hits = value
                new = Counts(images, texts, tuple(hits[:3]), tuple(hits[3:]))
                counts[name] = counts[name] + new if name in counts else new
                found.clients.setdefault(client, {})[name] = new.percent()["r1"]
    parts = [s for s in ("forget_exclusive", "forget_shared") if s in counts]
    if parts:
        counts["forget"] = sum((counts[s] for s in parts[1:]), counts[parts[0]])
        galleries["forget"] = galleries[parts[0]]
        if all(s in found.similarity for s in parts):
            found.similarity["forget"] = np.concatenate([found.similarity[s] for s in parts])
    found.sets = {s: {"n": counts[s].images, "gallery": galleries[s], **counts[s].percent()} for s in SETS if s in counts}
    if held:
        pairs = np.array(held)  # columns: number of pairs, their level, the public pairs' level
        found.level, found.unseen = (float(np.average(pairs[:, i], weights=pairs[:, 0])) for i in (1, 2))
    return found
