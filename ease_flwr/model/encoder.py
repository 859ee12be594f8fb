"""A frozen dual encoder with what comes before it, and how pictures become numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from PIL import Image

from ease_flwr.model.fitting import fitted
from ease_flwr.model.tokens import Tokenizer


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen dual encoder in eval mode, with what it needs before it."""

    model: CLIP
    tokenize: Tokenizer
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    architecture: dict[str, Any]
    """What open_clip builds the model from."""
    resize: str = "shortest"
    """How a picture of another shape becomes a square, see fitting.py."""
    interpolation: str = "bicubic"
    said: dict[str, Any] = field(default_factory=dict)
    """What the model was published with of how pictures are prepared; settings may say otherwise."""

    def normalise(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 (n, h, w, 3) -> float32 (n, 3, image_size, image_size), resized if it must be, normalised."""
        if images.shape[1:3] != (self.image_size, self.image_size):
            how = (self.image_size, self.resize, self.interpolation)
            images = np.stack([np.asarray(fitted(Image.fromarray(i), *how)) for i in images])
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(255)
        return (x - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]
