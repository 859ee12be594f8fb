"""What a client's layers see: leading directions of the gradients of every factor A, for SFU, see strategies/sfu.py.

The gradient of A over a batch is (B^T dL/dy) x^T: its rows lie in the span of the module's inputs. No hook into the model is
needed, which attention layers of peft would not allow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ease_flwr.clients.contrastive import Contrastive

from ease_flwr.config import Section

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from ease_flwr.exchange.messages import Training


class Representations(Contrastive):
    """Train as usual, gather gradients on the way, and answer with directions in place of adapters."""

    class Options(Section):
        noise: float
        """Standard deviation of noise on the directions, relative to the strongest."""

    def begin(self, instruction: Training, extras: dict[str, NDArray[Any]]) -> None:
        self.options = self.Options(**instruction.options)
        self.random = torch.Generator().manual_seed(self._seed(instruction) % 2**63)
        self.gradients: list[list[Tensor]] = [[] for _ in self.model.parameters]

    def stepped(self) -> bool:
        for kept, parameter in zip(self.gradients, self.model.parameters, strict=True):
            if parameter.grad is not None:
                kept.append(parameter.grad.reshape(len(parameter), -1).clone())
        return True

    def finish(self, start: NDArray[np.float32]) -> dict[str, float]:
        """Put the directions, scaled by their strength, where the factors A are, and zeros elsewhere."""
        vector = np.zeros_like(start)
        for block, gradients in zip(self.model.blocks, self.gradients, strict=True):
            if "lora_A" in block.name and gradients:
                _, s, vt = torch.linalg.svd(torch.cat(gradients).cpu(), full_matrices=False)
                rows = torch.zeros(block.shape[0], vt.shape[1])
                count = min(len(s), len(rows))
                rows[:count] = s[:count, None] * vt[:count]
                rows += self.options.noise * s[0] * torch.randn(rows.shape, generator=self.random)
                vector[block.start : block.stop] = rows.reshape(-1).numpy()
        self.model.set(vector)
        return {}
