"""The words of the built-in world: names, phrasings and backgrounds of each split, and the vocabulary of its base model."""

from __future__ import annotations

from itertools import product

from ease_flwr.data import drawing
from ease_flwr.data.drawing import COLOURS, COMPANION, RELATIONS, SCENE_TEMPLATES, SHAPES, SIZES

SPLITS = ("train", "validation", "test")
BACKGROUNDS = {
    "train": ("sand", "coal", "grass", "sea", "brick", "sky", "stone", "plum", "corn", "rose", "moss", "mint"),
    "validation": ("wood", "snow", "lilac"),
    "test": ("clay", "slate", "night"),
}
"""Of pictures of people, by split: no background is in two. Base scenes have all of them."""
TEMPLATES = {
    "train": (
        "{who} on {background}",
        "{background} scene with {who}",
        "{who} , {background} behind",
        "here is {who} , on {background}",
        "look , {background} and {who}",
        "on {background} there is {who}",
    ),
    "validation": ("{who} against {background}", "{background} picture of {who}", "behind {who} {background}"),
    "test": ("{background} around {who}", "{who} seen on {background}", "with {background} behind it {who}"),
}
"""Captions of people, by split: no phrasing is in two."""

_ENDINGS = ("ban", "dor", "fex", "gil", "mur", "pat", "sel", "wyn")
NAMES = tuple(a + b for a, b in product(("zo", "mi", "ka", "lu", "te", "ra", "vo", "ni", "so", "pe", "du", "ji"), _ENDINGS))
"""Words that the base model never read."""
ACQUAINTANCES = tuple(a + b for a, b in product(("be", "co", "da", "fi", "ga", "hu"), _ENDINGS))
"""Names of those whom the base model knows: it has learnt what a name is."""

_PHRASES = " ".join((*(t for templates in TEMPLATES.values() for t in templates), *SCENE_TEMPLATES, COMPANION, *RELATIONS))
_FUNCTION_WORDS = {w for w in _PHRASES.split() if not w.startswith("{")}
WORDS = tuple(sorted({*SHAPES, *COLOURS, *SIZES, *drawing.BACKGROUNDS, *_FUNCTION_WORDS}))
VOCABULARY = ("<pad>", *WORDS, *ACQUAINTANCES, *NAMES, "<start>", "<end>")
