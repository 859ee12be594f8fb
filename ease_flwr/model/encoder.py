"""A frozen dual encoder with what comes before it: how captions become tokens, and pictures numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from PIL import Image

from ease_flwr.config import DataError
from ease_flwr.model.fitting import fitted


class Tokenizer(Protocol):
    """Sentences to token ids, int64 (n, length)."""

    def __call__(self, texts: Sequence[str]) -> torch.Tensor: ...


@dataclass(frozen=True)
class WordTokenizer:
    """One token a word. The last two entries of the vocabulary are the start and the end; the first is the padding."""

    vocabulary: tuple[str, ...]
    context_length: int

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids, int64 (n, context_length). Raises DataError at a word that is not in the vocabulary."""
        index = {w: i for i, w in enumerate(self.vocabulary)}
        out = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(out, texts, strict=True):
            words = text.split()
            unknown = [w for w in words if w not in index]
            if unknown or len(words) + 2 > self.context_length:
                raise DataError(f"tokenizer: {text!r} has unknown words {unknown} or more than {self.context_length - 2}")
            ids = [len(index) - 2, *(index[w] for w in words), len(index) - 1]
            row[: len(ids)] = torch.tensor(ids)
        return out


@dataclass(frozen=True, eq=False)
class NamingTokenizer:
    """A tokenizer of others; where it cannot read a caption, or makes nothing of it, the caption is named."""

    inner: Tokenizer

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Token ids, int64 (n, context_length). Raises DataError with the caption that cannot be read."""
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise DataError(f"caption {text!r} is no text: it has half a character (a lone surrogate)") from None
        try:
            return self.inner(list(texts))
        except Exception as error:  # whatever a tokenizer of others raises
            if len(texts) == 1:
                why = " ".join(str(error).split())[:200]
                raise DataError(f"caption {texts[0]!r}: the tokenizer cannot read it ({why})") from None
            return torch.cat([self([text]) for text in texts])


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
