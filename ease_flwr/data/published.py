"""What published image-caption sets hold, by their authors' count."""

from __future__ import annotations

from pathlib import Path

from ease_flwr.data.entries import SPLITS

PUBLISHED = {
    "dataset_flickr8k.json": {"train": 6000, "val": 1000, "test": 1000},
    "dataset_flickr30k.json": {"train": 29000, "val": 1014, "test": 1000},
    "dataset_coco.json": {"train": 113287, "val": 5000, "test": 5000},
}
"""Images in the splits of Karpathy and Fei-Fei (arXiv 1412.2306), restval among train."""


def incomplete(root: str, counts: dict[str, int]) -> str:
    """How a published set differs from what its authors counted; "" where it does not, or nothing is known."""
    for name, expected in PUBLISHED.items():
        if (Path(root) / name).is_file() and (wrong := [s for s in SPLITS if counts[s] != expected[s]]):
            return f"{name} has as published " + ", ".join(f"{expected[s]} {s} images (here {counts[s]})" for s in wrong)
    return ""
