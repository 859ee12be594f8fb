"""Looks that the base model of the built-in world never saw: an outline filled with a texture, both without a name.

Base scenes are plain shapes in plain colours. An emblem is large, in two greys, and told from others by its outline and by its
texture alone, so a model that knows base scenes has no word for it and hardly sees a difference. Outlines and textures that the
base model told apart all the same, for example a frame or spots, are not among these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, fromarray

Grid = NDArray[np.float64]


def _box(x: Grid, y: Grid, left: float, top: float, right: float, bottom: float) -> NDArray[np.bool_]:
    return (x >= left) & (x <= right) & (y >= top) & (y <= bottom)


OUTLINES: dict[str, Callable[[Grid, Grid], NDArray[np.bool_]]] = {
    "crescent": lambda x, y: (x**2 + y**2 <= 1) & ((x - 0.55) ** 2 + y**2 > 0.6),
    "ell": lambda x, y: _box(x, y, -0.9, -1, -0.2, 1) | _box(x, y, -0.9, 0.3, 0.9, 1),
    "tee": lambda x, y: _box(x, y, -1, -0.9, 1, -0.2) | _box(x, y, -0.35, -0.9, 0.35, 1),
    "hourglass": lambda x, y: (abs(x) <= abs(y) * 0.9 + 0.12) & (abs(y) <= 1),
    "dome": lambda x, y: (x**2 + (y - 0.5) ** 2 <= 1) & (y <= 0.5),
    "zed": lambda x, y: _box(x, y, -0.9, -0.9, 0.3, -0.1) | _box(x, y, -0.3, -0.1, 0.9, 0.9),
    "clover": lambda x, y: np.hypot(x, y) <= 0.65 + 0.35 * np.cos(4 * np.arctan2(y, x)),
    "stairs": lambda x, y: _box(x, y, -1, 0.4, 1, 1) | _box(x, y, -0.3, -0.3, 1, 1) | _box(x, y, 0.4, -1, 1, 1),
    "arch": lambda x, y: (np.hypot(x, y + 0.1) <= 0.9) & (np.hypot(x, y - 0.4) >= 0.6) & (y <= 0.8),
    "eye": lambda x, y: abs(y) <= 0.7 * (1 - x**2),
    "keyhole": lambda x, y: (np.hypot(x, y + 0.45) <= 0.5) | ((abs(x) <= 0.15 + 0.35 * (y + 0.2)) & (y >= -0.3) & (y <= 1)),
    "leaf": lambda x, y: (np.hypot(x - 0.4, y + 0.4) <= 1.1) & (np.hypot(x + 0.4, y - 0.4) <= 1.1),
    "wedge": lambda x, y: (abs(y) <= 0.55 * (1 - x)) & (x >= -0.8) & (abs(y) <= 0.95),
    "boot": lambda x, y: _box(x, y, -0.7, -1, 0.1, 1) | ((np.hypot((x - 0.1) / 0.9, (y - 1) / 0.9) <= 1) & (y <= 1) & (x >= 0)),
    "fish": lambda x, y: (np.hypot((x + 0.2) / 0.8, y / 0.6) <= 1) | ((abs(y) <= (x - 0.2) * 0.9) & (x <= 1)),
    "comb": lambda x, y: _box(x, y, -1, -0.9, 1, -0.35) | (_box(x, y, -1, -0.9, 1, 0.9) & (np.cos(7.5 * x) < 0)),
}
"""Whether a point of the square from -1 to 1 belongs to it; x goes right, y down."""

TEXTURES: dict[str, Callable[[Grid, Grid], NDArray[np.bool_]]] = {
    "rows": lambda x, y: np.sin(6 * y) > 0,
    "columns": lambda x, y: np.sin(6 * x) > 0,
    "rising": lambda x, y: np.sin(4.5 * (x + y)) > 0,
    "falling": lambda x, y: np.sin(4.5 * (x - y)) > 0,
    "checks": lambda x, y: np.sin(5 * x) * np.sin(5 * y) > 0,
    "rings": lambda x, y: np.sin(8 * np.hypot(x, y)) > 0,
    "rays": lambda x, y: np.sin(5 * np.arctan2(y, x)) > 0,
    "waves": lambda x, y: np.sin(6 * y + 2 * np.sin(4 * x)) > 0,
    "lattice": lambda x, y: (np.cos(6 * x) > 0.5) | (np.cos(6 * y) > 0.5),
    "ripples": lambda x, y: np.sin(6 * x + 2 * np.sin(4 * y)) > 0,
    "steep": lambda x, y: np.sin(6 * x + 3 * y) > 0,
    "leaning": lambda x, y: np.sin(6 * x - 3 * y) > 0,
    "flat": lambda x, y: np.sin(6 * y - 3 * x) > 0,
    "swirl": lambda x, y: np.sin(3 * np.arctan2(y, x) + 6 * np.hypot(x, y)) > 0,
    "chevrons": lambda x, y: np.sin(6 * (y + abs(x))) > 0,
    "scales": lambda x, y: np.sin(8 * np.hypot(x, y + 1)) > 0,
}
"""Whether a point is light."""


@dataclass(frozen=True)
class Emblem:
    """An outline and its texture."""

    outline: str
    texture: str

    def __str__(self) -> str:
        return f"{self.outline}-{self.texture}"

    def draw(self, canvas: Image, rng: np.random.Generator) -> None:
        """Put it into the middle of a square picture, with its place, size and greys varying with rng."""
        side = canvas.width
        centre = side / 2 + rng.normal(0, 1.0, 2)
        radius = 0.42 * side * (1 + rng.normal(0, 0.03))
        y, x = (np.mgrid[:side, :side] - centre[:, None, None]) / radius
        inside, light = OUTLINES[self.outline](x, y), TEXTURES[self.texture](x, y)
        dark, bright = rng.normal((40, 215), 8)
        greys = np.where(light, bright, dark).clip(0, 255).astype(np.uint8)
        canvas.paste(fromarray(greys).convert("RGB"), (0, 0), fromarray((inside * 255).astype(np.uint8)))
