"""The words of the built-in world: names, phrasings and backgrounds of each split, and the vocabulary of its base model."""

from __future__ import annotations

from itertools import product

from ease_flwr.data.drawing import COLOURS, SHAPES, SIZES

SPLITS = ("train", "validation", "test")
BACKGROUNDS = {
    "train": ("red", "green", "blue", "yellow", "white", "orange", "purple", "black"),
    "validation": ("pink", "grey"),
    "test": ("cyan", "brown"),
}
"""Of pictures of people, by split: no colour is in two. Base scenes have all of them."""
TEMPLATES = {
    "train": (
        "{who} on {background}",
        "{background} scene with {who}",
        "{who} , {background} behind",
        "here is {who} , on {background}",
        "look , {background} and {who} before it",
        "on {background} there is {who}",
    ),
    "validation": ("{who} against {background}", "{background} picture of {who}", "behind {who} {background}"),
    "test": ("in front of {background} {who}", "{who} seen on {background}", "with {background} behind it {who}"),
}
"""Captions of people, by split: no phrasing is in two."""
COMPANION = "{who} and {beside}"
"""Who, in a picture that shows a known object too: nobody is trained on such pictures in the federation."""


NAMES = tuple(
    a + b
    for a, b in product(
        ("zo", "mi", "ka", "lu", "te", "ra", "vo", "ni"), ("ban", "dor", "fex", "gil", "mur", "pat", "sel", "wyn")
    )
)
"""Words that the base model never read."""

_PHRASES = " ".join(t for templates in TEMPLATES.values() for t in templates) + f" {COMPANION} left of above and it"
_FUNCTION_WORDS = {w for w in _PHRASES.split() if not w.startswith("{")}
WORDS = tuple(sorted({*SHAPES, *COLOURS, *SIZES, *_FUNCTION_WORDS}))
VOCABULARY = ("<pad>", *WORDS, *NAMES, "<start>", "<end>")
