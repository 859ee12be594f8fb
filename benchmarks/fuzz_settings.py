"""Targets of benchmarks/fuzz.py: settings and requests as people type them."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.fuzz import Target
from ease_flwr import config


def settings(rng: random.Random, folder: Path) -> str:
    """A text for a label: it is the label."""
    text = "".join(rng.choice("a 0.:#=\"'\\ü中\n[]{}!&*%@`|>-") for _ in range(rng.randint(1, 8))).strip() or "x"
    found = config.load("personas_class", {"forget.targets": text.replace(",", "")})
    assert found.forget.targets == (text,), (text, found.forget.targets)
    return f"forget.targets={text!r}"


TARGETS: dict[str, Target] = {"settings": settings}
