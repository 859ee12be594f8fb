"""Writes a small Karpathy-style data set: coloured pictures and two captions each."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_photographs(root: Path, **splits: int) -> None:
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = []
    for split, count in splits.items():
        for i in range(count):
            name = f"{split}-{i}.png"
            Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(root / "images" / name)
            sentences = [{"raw": f"{split} {i} one"}, {"raw": f"{split} {i} two"}]
            images.append({"filename": name, "split": split, "sentences": sentences, "label": "abc"[i % 3]})
    (root / "dataset.json").write_text(json.dumps({"images": images}))
