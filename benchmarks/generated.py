"""A set of drawn scenes in Flickr30K's layout: for trials at paper scale where no real set is at hand.

python -m benchmarks.generated FOLDER [TRAIN VAL TEST]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

from ease_flwr.data.personas import scenes


def write(root: Path, train: int, val: int, test: int) -> None:
    """Images of 256 x 320 pixels with five captions each, as JPEG, and dataset_flickr30k.json."""
    folder = root / "flickr30k-images"
    folder.mkdir(parents=True)
    pairs = scenes(train + val + test, (0, 0))
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    images = []
    for i, (picture, (caption,), split) in enumerate(zip(pairs.images, pairs.captions, splits, strict=True)):
        name = f"{1000 + i}.jpg"
        Image.fromarray(picture).resize((320, 256), Image.Resampling.BICUBIC).save(folder / name, quality=90)
        said = [caption, f"a picture of {caption}", f"{caption} is shown", f"one sees {caption}", f"there is {caption}"]
        images.append({"filename": name, "imgid": i, "split": split, "sentences": [{"raw": s, "sentid": 0} for s in said]})
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))


if __name__ == "__main__":
    write(Path(sys.argv[1]), *(int(n) for n in sys.argv[2:] or (300, 40, 60)))
