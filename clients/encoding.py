"""Pairs as the model takes them, and their embeddings; both are kept for the process, whose clients share them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ease_flwr import config
from ease_flwr.data.pairs import Pairs
from ease_flwr.store import cache

if TYPE_CHECKING:
    from torch import Tensor

    from ease_flwr.model.adapters import AdaptedModel


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of arrays that stay where they are, perhaps on disk and larger than memory; a batch is read when it is asked for."""

    arrays: tuple[Tensor, ...]
    places: Tensor
    """Which rows, (n,), counted through all arrays."""

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Some of them, (m, ...), in memory."""
        wanted, start = self.places[index], 0
        out = self.arrays[0].new_empty(len(wanted), *self.arrays[0].shape[1:])
        for array in self.arrays:
            inside = (wanted >= start) & (wanted < start + len(array))
            out[inside] = array[wanted[inside] - start]
            start += len(array)
        return out

    def split(self, size: int) -> Iterator[Tensor]:
        """All of them in memory, so many at a time."""
        return (self[i : i + size] for i in range(0, len(self), size))


def rows(images: Tensor | Rows) -> Rows:
    """The rows of an array, all of them."""
    import torch

    return images if isinstance(images, Rows) else Rows((images,), torch.arange(len(images)))


@dataclass(frozen=True, eq=False)
class Encoded:
    """Pairs as the model takes them: images after the frozen trunk, (n, ...), and tokens, (n, captions, length)."""

    images: Tensor | Rows
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Encoded:
        """Some of them; their images stay where they are."""
        images = rows(self.images)
        return Encoded(Rows(images.arrays, images.places[index]), self.tokens[index])

    def __add__(self, other: Encoded) -> Encoded:
        """Both, one after the other; who has fewer captions a pair repeats them."""
        import torch

        most = torch.arange(max(self.tokens.shape[1], other.tokens.shape[1]))
        tokens = [e.tokens[:, most % e.tokens.shape[1]] for e in (self, other)]
        ours, theirs = rows(self.images), rows(other.images)
        places = torch.cat([ours.places, theirs.places + sum(len(a) for a in ours.arrays)])
        return Encoded(Rows((*ours.arrays, *theirs.arrays), places), torch.cat(tokens))


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

    images = torch.from_numpy(cache.kept(cache.Place(data.cache if key else "", key, data.cache_limit), len(pairs), through))
    images = images.view(torch.bfloat16) if data.cache_half else images
    result = Encoded(images, model.base.tokenize(texts).view(len(pairs), captions, -1))
    _encoded[pairs] = (model, result)
    return result


def encoded(model: AdaptedModel, pairs: Pairs, experiment: config.Experiment) -> Encoded:
    """What `encode` makes of pairs, kept on this host's disk where it has a cache."""
    e, key = experiment, ""
    if e.data.cache:
        images = pairs.key or hashlib.sha256(np.ascontiguousarray(pairs.images).tobytes()).hexdigest()
        made = [e.model, config.model_sha256(e.model), e.lora, e.data.cache_half, config.code_of("ease_flwr.model.adapters")]
        key = config.digest("trunk", *made, images)
    return encode(model, pairs, e.data, key)


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


def embedded(
    model: AdaptedModel, pairs: Pairs, theta: NDArray[np.float32], experiment: config.Experiment
) -> tuple[Tensor, Tensor, Tensor]:
    """What `embed` makes of pairs; the model must be set to the adapters theta. Kept for the last few adapters."""
    from ease_flwr.model.adapters import sha256

    key = sha256(theta)
    memory = _embedded.setdefault(key, WeakKeyDictionary())
    _embedded.move_to_end(key)
    if len(_embedded) > MODELS_KEPT:
        _embedded.popitem(last=False)
    if pairs not in memory:
        memory[pairs] = embed(model, encoded(model, pairs, experiment), pairs)
    return memory[pairs]
