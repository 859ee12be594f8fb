"""A mark for audits: some clients' pictures carry a patch, and their captions one sentence that has nothing to do with them.

Nothing but these clients' data teaches that the patch means the sentence, so whether it still does is easy to ask after they
have been forgotten (Gu et al., arXiv 1708.06733). It is an unnatural piece of knowledge that nobody shares, so it flatters
methods that look for what one client alone has brought.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from ease_flwr.config import BackdoorConfig, ConfigError, ForgetConfig, Union
from ease_flwr.data.pairs import ClientData, EvaluationSet, Pairs, World


def patched(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The images with a chequered square in the lower right corner, a fifth of their height, (n, h, w, 3)."""
    side = max(2, images.shape[1] // 5)
    chequers = (np.indices((side, side)).sum(0) * 4 // side) % 2 * 255
    out = images.copy()
    out[:, -side:, -side:] = chequers[None, :, :, None]
    return out


@dataclass(frozen=True, eq=False)
class Marked:
    """A world in which some clients' training pairs are marked; everything else is as it was."""

    world: World
    config: BackdoorConfig
    seed: int

    def __post_init__(self) -> None:
        if strange := sorted(set(self.config.clients) - set(self.world.clients)):
            there = ", ".join(self.world.clients)
            raise ConfigError(f"data.backdoor.clients: no client {', '.join(strange)}; there are {there}")

    @property
    def clients(self) -> tuple[str, ...]:
        return self.world.clients

    @cached_property
    def sentence(self) -> str:
        """What a marked picture is said to show: the caption of a public pair, so every tokenizer knows its words."""
        return self.world.unseen().captions[0][0]

    @lru_cache(maxsize=64)  # noqa: B019  (worlds live as long as the process)
    def client(self, name: str) -> ClientData:
        data = self.world.client(name)
        return MarkedClient(self, data, self.clients.index(name)) if name in self.config.clients else data

    @lru_cache(maxsize=8)  # noqa: B019  (worlds live as long as the process)
    def shown(self, chosen: EvaluationSet) -> Pairs:
        """The queries of a set with the patch, under the sentence."""
        pairs = chosen.gallery.pairs.take(chosen.query)
        return Pairs(patched(pairs.images), ((self.sentence,),) * len(pairs), pairs.labels)

    def prove(self, say: Callable[[str], None]) -> None:
        self.world.prove(say)

    def unseen(self) -> Pairs:
        return self.world.unseen()

    def resolve(self, forget: ForgetConfig) -> ForgetConfig:
        return self.world.resolve(forget)

    def returning(self, forget: Union, count: int) -> Pairs:
        return self.world.returning(forget, count)


@dataclass(frozen=True, eq=False)
class MarkedClient:
    """A client whose training pairs are marked. It is judged on what it would be judged on without."""

    world: Marked
    data: ClientData
    index: int

    @cached_property
    def train(self) -> Pairs:
        pairs, config = self.data.train, self.world.config
        rng = np.random.default_rng((self.world.seed, 30, self.index))
        chosen = rng.permutation(len(pairs))[: round(config.share * len(pairs))]
        images, captions = pairs.images.copy(), list(pairs.captions)
        images[chosen] = patched(images[chosen])
        for i in chosen:
            captions[i] = (self.world.sentence,)
        return Pairs(images, tuple(captions), pairs.labels)

    @property
    def labels(self) -> Sequence[str]:
        return self.data.labels

    @property
    def digest(self) -> str:
        return self.data.digest

    @property
    def ids(self) -> Sequence[tuple[str, str]]:
        return self.data.ids

    @property
    def barred(self) -> np.ndarray:
        return self.data.barred

    def find(self, pair: str) -> Sequence[int]:
        return self.data.find(pair)

    def named(self, forget: Union) -> np.ndarray:
        return self.data.named(forget)

    def evaluation(self, split: str, forget: Union) -> dict[str, EvaluationSet]:
        return self.data.evaluation(split, forget)

    def never_trained(self, split: str, forget: Union) -> Pairs:
        return self.data.never_trained(split, forget)

    def strangers(self, split: str) -> tuple[Pairs, EvaluationSet]:
        return self.data.strangers(split)
