"""Lipschitz regularisation of both encoders on what is to be forgotten, see strategies/lip.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ease_flwr.clients.base import Batch
from ease_flwr.clients.forgetting import Forgetting

from ease_flwr.config import Section

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ease_flwr.exchange.messages import Training


class Lip(Forgetting):
    """Make both encoders insensitive to noise around the forgotten inputs."""

    class Options(Section):
        sigma: float

    remembers: ClassVar[tuple[str, ...]] = ()

    def begin(self, instruction: Training, extras: dict[str, NDArray[Any]]) -> None:
        super().begin(instruction, extras)
        self.random = torch.Generator().manual_seed(self._seed(instruction) % 2**63)
        self.words = next(m for n, m in self.model.clip.named_modules() if n.endswith("token_embedding"))

    def loss(self, batch: Batch) -> Tensor:
        images, tokens = self.model.to_device(self.train.images[batch.index]), self.train.tokens[batch.index, batch.caption]
        f, g = self.embed(batch)
        noise = self._noise(images)
        visual = (self.model.embed_images(images + noise) - f).square().sum(1) / noise.flatten(1).square().sum(1)
        moved: list[Tensor] = []

        def disturb(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
            moved.append(self._noise(output))
            return output + moved[0]

        with self.words.register_forward_hook(disturb):
            noisy = self.model.embed_texts(tokens)
        textual = (noisy - g).square().sum(1) / moved[0].flatten(1).square().sum(1)
        return visual.sqrt().mean() + textual.sqrt().mean()

    def _noise(self, x: Tensor) -> Tensor:
        """Gaussian noise as large as sigma times the spread of x."""
        noise = self.model.to_device(torch.randn(x.shape, generator=self.random))
        return self.options.sigma * x.detach().std() * noise
