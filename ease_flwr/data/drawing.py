"""Drawn scenes: two objects before a background, and captions that describe them. Nothing is read from disk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ease_flwr.data.emblems import Emblem
from ease_flwr.data.pairs import Pairs

SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring", "diamond", "hexagon", "heart", "arrow")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "purple": (140, 50, 180),
    "orange": (240, 140, 30),
    "white": (240, 240, 240),
    "black": (20, 20, 20),
    "pink": (250, 150, 190),
    "brown": (130, 80, 40),
    "cyan": (60, 210, 220),
    "grey": (130, 130, 130),
}
SIZES = {"small": 8.0, "large": 13.0}
RELATIONS = ("left of", "above")
BACKGROUNDS = {
    "sand": (225, 205, 160),
    "snow": (235, 240, 245),
    "coal": (70, 68, 72),
    "grass": (130, 180, 110),
    "sea": (100, 150, 190),
    "brick": (185, 110, 90),
    "sky": (165, 205, 240),
    "wood": (160, 125, 90),
    "stone": (150, 150, 145),
    "plum": (130, 95, 135),
    "corn": (235, 210, 120),
    "rose": (235, 180, 190),
    "slate": (95, 110, 125),
    "moss": (105, 120, 75),
    "clay": (205, 150, 120),
    "mint": (170, 220, 195),
    "lilac": (190, 170, 215),
    "night": (50, 60, 100),
}
"""What pictures are drawn on: no word is that of an object's colour."""
COMPANION = "{who} and {beside}"
"""Who, in a picture that shows a known object too."""
SCENE_TEMPLATES = (
    "{a} {relation} {b} on {background}",
    "{background} scene with {a} {relation} {b}",
    "{b} and {relation} it {a} , {background} behind",
    "in front of {background} {a} {relation} {b}",
)


@dataclass(frozen=True)
class Look:
    """Two objects (size, colour, shape) and the relation of the first to the second."""

    objects: tuple[tuple[str, str, str], tuple[str, str, str]]
    relation: str

    @classmethod
    def sample(cls, rng: np.random.Generator, first_shape: str | None = None) -> Look:
        c1, c2 = rng.choice(list(COLOURS), 2, replace=False)
        s1 = first_shape or str(rng.choice(SHAPES))
        z1, z2 = rng.choice(list(SIZES), 2)
        return cls(((str(z1), str(c1), s1), (str(z2), str(c2), str(rng.choice(SHAPES)))), str(rng.choice(RELATIONS)))

    def likeness(self, other: Look) -> int:
        """How many colours and shapes, of four, two looks have in common, with the objects in either order."""
        (a, b), (c, d) = ([o[1:] for o in look.objects] for look in (self, other))

        def agree(x: tuple[str, ...], y: tuple[str, ...]) -> int:
            return sum(p == q for p, q in zip(x, y, strict=True))

        return max(agree(a, c) + agree(b, d), agree(a, d) + agree(b, c))

    def describe(self, template: str, **others: str) -> str:
        a, b = (" ".join(o) for o in self.objects)
        return template.format(a=a, b=b, relation=self.relation, **others)

    def __str__(self) -> str:
        return self.describe("{a} {relation} {b}")


def _polygon(corners: int, r: float, x: float, y: float, inner: float = 1.0) -> list[tuple[float, float]]:
    n = corners if inner == 1.0 else 2 * corners
    radii = [r if i % 2 == 0 or inner == 1.0 else inner * r for i in range(n)]
    angles = [2 * np.pi * i / n - np.pi / 2 for i in range(n)]
    return [(x + q * np.cos(a), y + q * np.sin(a)) for q, a in zip(radii, angles, strict=True)]


def _draw(d: ImageDraw.ImageDraw, shape: str, colour: tuple[int, ...], r: float, x: float, y: float) -> None:
    box = (x - r, y - r, x + r, y + r)
    match shape:
        case "circle":
            d.ellipse(box, fill=colour)
        case "square":
            d.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=colour)
        case "triangle":
            d.polygon(_polygon(3, r, x, y), fill=colour)
        case "cross":
            d.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=colour)
            d.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=colour)
        case "star":
            d.polygon(_polygon(5, r, x, y, inner=0.45), fill=colour)
        case "ring":
            d.ellipse(box, outline=colour, width=max(2, int(0.4 * r)))
        case "diamond":
            d.polygon(_polygon(4, r, x, y), fill=colour)
        case "hexagon":
            d.polygon(_polygon(6, r, x, y), fill=colour)
        case "heart":
            d.ellipse((x - r, y - r, x + 0.1 * r, y + 0.2 * r), fill=colour)
            d.ellipse((x - 0.1 * r, y - r, x + r, y + 0.2 * r), fill=colour)
            d.polygon([(x - 0.95 * r, y - 0.2 * r), (x + 0.95 * r, y - 0.2 * r), (x, y + r)], fill=colour)
        case "arrow":
            dx = (-1, 0, 0, 1, 0, 0, -1)
            dy = (-0.3, -0.3, -0.9, 0, 0.9, 0.3, 0.3)
            d.polygon([(x + r * a, y + r * b) for a, b in zip(dx, dy, strict=True)], fill=colour)
        case _:
            raise ValueError(f"no shape {shape!r}: known are {', '.join(SHAPES)}")


def _noisy(rng: np.random.Generator, colour: tuple[int, int, int], spread: float) -> tuple[int, ...]:
    return tuple(int(np.clip(v + rng.normal(0, spread), 0, 255)) for v in colour)


def draw(look: Look | Emblem, background: str, rng: np.random.Generator, beside: tuple[str, str] | None = None) -> np.ndarray:
    """One picture of a look, uint8 (64, 64, 3): positions, sizes, colours and pixels vary with rng.

    beside: colour and shape of a small object in a lower corner.
    """
    image = Image.new("RGB", (SIZE, SIZE), _noisy(rng, BACKGROUNDS[background], 6))
    d = ImageDraw.Draw(image)
    if isinstance(look, Emblem):
        look.draw(image, rng)
    else:
        along, across = rng.normal(0, 2, 2), rng.normal(0, 4, 2)
        for i, (size, colour, shape) in enumerate(look.objects):
            near, mid = (17, 47)[i] + along[i], SIZE / 2 + across[i]
            x, y = (near, mid) if look.relation == "left of" else (mid, near)
            _draw(d, shape, _noisy(rng, COLOURS[colour], 14), SIZES[size] * (1 + rng.normal(0, 0.08)), x, y)
    if beside:
        colour, shape = beside
        _draw(d, shape, _noisy(rng, COLOURS[colour], 14), 7.0, rng.choice([9, 55]), 55)
    pixels = np.asarray(image, dtype=np.float32) + rng.normal(0, 5, (SIZE, SIZE, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def unlike(count: int, rng: np.random.Generator) -> list[Look]:
    """So many looks of two shapes, any two of which have less than three of four colours and shapes in common."""
    found: list[Look] = []
    while len(found) < count:
        look = Look.sample(rng)
        if all(look.likeness(other) < 3 for other in found):
            found.append(look)
    return found


def scenes(count: int, seed: tuple[int, ...], shape_shares: np.ndarray | None = None, companions: float = 0.0) -> Pairs:
    """`count` base scenes whose captions describe what is seen. shape_shares: probabilities of the first shape. companions:
    the share of them that shows a third object, which the caption names too."""
    rng = np.random.default_rng(seed)
    images, captions = [], []
    for _ in range(count):
        look = Look.sample(rng, str(rng.choice(SHAPES, p=shape_shares)))
        background, template = str(rng.choice([*BACKGROUNDS])), str(rng.choice(SCENE_TEMPLATES))
        beside = companion(rng) if rng.random() < companions else None
        images.append(draw(look, background, rng, beside))
        if beside:
            template = template.replace("{b}", COMPANION.format(who="{b}", beside=" ".join(beside)))
        captions.append((look.describe(template, background=background),))
    return Pairs(np.stack(images), tuple(captions), ("",) * count)


def companion(rng: np.random.Generator) -> tuple[str, str]:
    """Colour and shape of an object that may stand beside others."""
    return str(rng.choice([*COLOURS])), str(rng.choice(SHAPES))
