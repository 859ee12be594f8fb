"""A small set in the layout of one's own data: pictures in images/, and captions.csv with the columns label, split and client.

The pictures are those of the built-in world, so the base model that comes along understands them.
"""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image

from ease_flwr.config import DataConfig
from ease_flwr.data.personas import load
from ease_flwr.store.files import new_folder

WARDS = ("ward-a", "ward-b", "ward-c", "ward-d")
WORLD = DataConfig(
    names=WARDS,
    clients=len(WARDS),
    exclusive=6,
    exclusive_pairs=20,
    shared=6,
    sharers=2,
    shared_pairs=12,
    scenes=60,
    test_scenes=160,
)


def write(folder: Path, seed: int = 0) -> int:
    """Write the set into a new folder; returns how many pairs it has. Raises ConfigError where the folder is not empty."""
    new_folder(folder)
    world = load(WORLD, seed)
    parts = [("train", name, world.client(name).train) for name in world.clients]
    parts += [("val", "", world.scene_tests["validation"].pairs), ("test", "", world.scene_tests["test"].pairs)]
    (folder / "images").mkdir(parents=True)
    count = 0
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as f:
        table = csv.writer(f)
        table.writerow(["image", "caption", "label", "split", "client"])
        for split, client, pairs in parts:
            for i, (image, captions, label) in enumerate(zip(pairs.images, pairs.captions, pairs.labels, strict=True)):
                name = f"{client or split}-{i:04}.png"
                Image.fromarray(image).save(folder / "images" / name)
                table.writerows([name, caption, label, split, client] for caption in captions)
                count += 1
    return count
