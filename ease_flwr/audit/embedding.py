"""A model of a run as what one embeds pictures and captions with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ease_flwr.audit.export import adapters_of, merged
from ease_flwr.config import DataError
from ease_flwr.data.pictures import opened, read, shown
from ease_flwr.model import adapters, backbone
from ease_flwr.model.backbone import Backbone

BATCH = 64
"""Pictures or captions that go through a tower at once."""
Picture = Image.Image | str | Path | NDArray[np.uint8]


class Model:
    """An open_clip model with its adapters merged, in eval mode on the CPU.

    clip: the model itself, for what is not here.  base: its tokenizer, and how pictures are normalised.
    """

    def __init__(self, clip: nn.Module, base: Backbone) -> None:
        self.clip: Any = clip.eval().requires_grad_(False)
        self.base = base

    @classmethod
    def of_run(cls, run: Path, name: str) -> Model:
        """A model of a run. Raises ConfigError for an unknown name."""
        experiment, _, theta = adapters_of(run, name)
        plain = backbone.load(experiment.model)
        clip = copy.deepcopy(plain.model)
        clip.load_state_dict(merged(adapters.load(experiment.model, experiment.lora, experiment.seed), theta, plain.model))
        return cls(clip, plain)

    @torch.no_grad()
    def images(self, pictures: Sequence[Picture] | NDArray[np.uint8]) -> Tensor:
        """Embeddings of pictures, (n, d), unit-length. A picture is a file, of PIL, or uint8 (height, width, 3)."""
        batches = (pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH))
        found = [self.clip.encode_image(torch.cat([self.base.normalise(_pixels(p)) for p in batch])) for batch in batches]
        return F.normalize(torch.cat(found), dim=-1)

    @torch.no_grad()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of captions, (n, d), unit-length."""
        tokens = self.base.tokenize(list(captions))
        return F.normalize(torch.cat([self.clip.encode_text(batch) for batch in tokens.split(BATCH)]), dim=-1)

    def search(self, caption: str, pictures: Sequence[Picture] | NDArray[np.uint8], best: int = 5) -> list[int]:
        """Positions of the pictures that fit a caption best, the best first."""
        similarity = (self.images(pictures) @ self.texts([caption]).T)[:, 0]
        found: list[int] = similarity.argsort(descending=True)[:best].tolist()
        return found


def _pixels(picture: Picture) -> NDArray[np.uint8]:
    """(1, height, width, 3)"""
    if isinstance(picture, (str, Path)):
        try:
            picture = opened(read(Path(picture)))
        except DataError as error:
            raise DataError(f"{picture}: image cannot be read ({error})") from None
    if isinstance(picture, Image.Image):
        picture = np.array(shown(picture))
    return picture[None]
