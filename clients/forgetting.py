"""What objectives on pairs that are to be forgotten share: those pairs, others that stay, and both as they were before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from ease_flwr.clients.base import LoraClient
from ease_flwr.clients.encoding import Encoded

from ease_flwr.config import Section
from ease_flwr.exchange.messages import Forget

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ease_flwr.exchange.messages import Training


class Forgetting(LoraClient):
    """Batches are drawn from what is to be forgotten. Arrays beside the adapters in a forget client's first message:
    `request`, the adapter vector at the request, and what else the objective's `snapshot` wants; what is made of them is
    remembered."""

    class Options(Section):
        """What the server says about the loss; defaults are in the strategy."""

    remembers: ClassVar[tuple[str, ...]] = ("f0", "g0", "others_f0", "others_g0")
    """Names of what `snapshot` returns."""

    options: Any

    def begin(self, instruction: Training, extras: dict[str, NDArray[Any]]) -> None:
        if not isinstance(instruction, Forget):
            raise ValueError(f"{instruction.objective} forgets: send it a Forget, not a {type(instruction).__name__}")
        self.options, self.batch = self.Options(**instruction.options), instruction.train.batch
        self.extras = extras
        self.public = self.encode(self.world.unseen())
        self.mates = np.random.default_rng(self._seed(instruction) + 1)
        self.others = self.kept if len(self.kept) else self.public
        """Pairs that stay as they are: the client's own, or public ones if it leaves with all it has."""
        self.choose()
        if "request" in extras:
            current = self.model.get()
            for name, value in self.snapshot(extras).items():
                self.state.save(f"{type(self).__name__}.{name}", value.cpu().numpy())
            self.model.set(current)
        self.before = {name: self._remembered(name) for name in self.remembers}

    def choose(self) -> None:
        """May change which pairs are trained on: `train`."""

    def snapshot(self, extras: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
        """What is remembered of the request: embeddings of forgotten and of other pairs, (n, d) and (n, captions, d)."""
        f0, g0 = self.embed_all(extras["request"], self.train)
        others_f0, others_g0 = self.embed_all(extras["request"], self.others)
        return {"f0": f0, "g0": g0, "others_f0": others_f0, "others_g0": others_g0}

    def draw(self, count: int, once: bool = False) -> Tensor:
        """Positions of `count` of the others, drawn at random. once: each that is drawn, in order, once."""
        drawn = self.mates.integers(len(self.others), size=count)
        return torch.from_numpy(np.unique(drawn) if once else drawn)

    def embed_others(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of others and their first captions, (b, d) each, with gradients."""
        return self.model.embed_images(self.others.images[index]), self.model.embed_texts(self.others.tokens[index, 0])

    def embed_all(self, theta: NDArray[np.float32], pairs: Encoded, most: int | None = None) -> tuple[Tensor, Tensor]:
        """(n, d) and (n, captions, d) embeddings of pairs and their first `most` captions; the adapters stay set."""
        self.model.set(theta)
        tokens = pairs.tokens[:, :most]
        with torch.no_grad():
            f = torch.cat([self.model.embed_images(x) for x in pairs.images.split(256)])
            g = torch.cat([self.model.embed_texts(x) for x in tokens.flatten(0, 1).split(256)])
        return f, g.view(*tokens.shape[:2], -1)

    def _remembered(self, name: str) -> Tensor:
        value = self.state.load(f"{type(self).__name__}.{name}")
        if value is None:
            raise ValueError("snapshot of the request is missing here: it must be sent again")
        return torch.from_numpy(value.copy()).to(self.model.device)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance of rows of (b, d), a scalar."""
    return (a - b).square().sum(1).mean()
