"""What a client counts when it judges a model, from ranks and embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ease_flwr.exchange.judgement import KS, Hits, SetCounts

if TYPE_CHECKING:
    from torch import Tensor


def counts(i2t: Tensor, t2i: Tensor, gallery: int, similarity: Tensor | None = None) -> SetCounts:
    """Hits of image queries and text queries whose partners have these ranks, (n,) and (m,), in a gallery of so many pairs.

    similarity: cosine of each pair, (n,), to go along.
    """

    def hits(ranks: Tensor) -> Hits:
        first, fifth, tenth = (int((ranks <= k).sum()) for k in KS)
        return first, fifth, tenth

    cosines = () if similarity is None else tuple(similarity.tolist())
    return SetCounts(images=len(i2t), texts=len(t2i), i2t=hits(i2t), t2i=hits(t2i), gallery=gallery, similarity=cosines)
