"""Writes small data sets in every layout that is read, whole or broken on purpose."""

import csv
import io
import json
import re
import struct
import tarfile
import zlib
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


# ---- sets as their publishers lay them out -----------------------------------------------------------------------------------


def saved(picture: Image.Image, kind="PNG", **how) -> bytes:
    """The bytes of a picture's file."""
    out = io.BytesIO()
    picture.save(out, kind, **how)
    return out.getvalue()


def samples(says=None):
    """Twenty grey pictures, picture i of a split has value 10 i."""
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for i in range(count):
            content = saved(Image.new("RGB", (20, 16), (10 * i,) * 3), "JPEG")
            captions = [says(i)] if says else [f"{split} {i} one", f"{split} {i} two"]
            about = {"name": f"{split}-{i}.jpg", "captions": captions, "label": "abc"[i % 3], "split": split}
            yield {**about, "content": content}


def keep(sample, **names):
    """What a sample has of these, under the layout's names."""
    return {theirs: sample[ours] for ours, theirs in names.items() if ours in sample}


def karpathy(name, folder, label=False, coco=False):
    def write(root, pictures):
        images = []
        for p in pictures:
            row = keep(p, name="filename", split="split") | (keep(p, label="label") if label else {})
            if "captions" in p:
                said = p["captions"]
                row["sentences"] = [{"raw": c} for c in said] if isinstance(said, list) else said
            if coco:
                row["filepath"] = "val2014" if p["split"] == "test" else "train2014"
                row["split"] = "restval" if "-1" in str(p.get("name")) and p["split"] == "train" else p["split"]
            place(root / folder / row.get("filepath", ""), p)
            images.append(row)
        (root / name).write_text(json.dumps({"images": images}))

    return write


def textcaps(root, pictures):
    rows = {"train": [], "val": []}
    for p in pictures:
        if p["split"] == "val":
            continue
        place(root / "train_images", p)
        said = p["captions"] if isinstance(p.get("captions"), list) else [p.get("captions")]
        for c in said:
            row = {"caption_str": c, "image_classes": [p["label"]]} if "captions" in p else {}
            if "name" in p:
                row["image_id"] = p["name"].removesuffix(".jpg") if isinstance(p["name"], str) else p["name"]
            rows["val" if p["split"] == "test" else "train"].append(row)
    for split, data in rows.items():
        (root / f"TextCaps_0.1_{split}.json").write_text(json.dumps({"data": data}))


def plain_json(root, pictures):
    for p in pictures:
        place(root / "images", p)
    rows = [keep(p, name="image", captions="captions", label="label", split="split") for p in pictures]
    (root / "captions.json").write_text(json.dumps(rows))


def lines(root, pictures):
    with (root / "captions.csv").open("w", newline="") as f:
        table = csv.DictWriter(f, [c for c in ("image", "caption", "label", "split") if c != pictures[0].get("without")])
        table.writeheader()
        for p in pictures:
            place(root / "images", p)
            for c in p["captions"]:
                row = {"caption": c, **keep(p, name="image", label="label", split="split")}
                table.writerow({k: v for k, v in row.items() if k in table.fieldnames})


def webdataset(root, pictures):
    for shard in ("train-00000", "train-00001", "val-00000", "test-00000"):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for k, p in enumerate(pictures):
                if not shard.startswith(str(p["split"])) or (p["split"] == "train" and k % 2 != int(shard[-1])):
                    continue
                key = str(p.get("name")).removesuffix(".jpg")
                members = [(f"{key}.jpg", p["content"])] if "content" in p else []
                if p["split"] == "val":
                    said = "\n".join(map(str, p.get("captions", [])))
                    members.append((f"{key}.txt", said.encode()))
                else:
                    members.append((f"{key}.json", json.dumps(keep(p, captions="captions", label="label")).encode()))
                for name, content in members:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def place(folder, picture):
    """Write the file of a sample, unless it is not to be there or has no usable name."""
    name = picture.get("name")
    if "content" in picture and isinstance(name, str) and re.fullmatch(r"[\w.-]+", name):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture["content"])


WRITERS = {
    "karpathy": karpathy("dataset.json", "images", label=True),
    "flickr8k": karpathy("dataset_flickr8k.json", "Flicker8k_Dataset"),
    "flickr30k": karpathy("dataset_flickr30k.json", "flickr30k-images"),
    "coco": karpathy("dataset_coco.json", "", coco=True),
    "textcaps": textcaps,
    "json": plain_json,
    "csv": lines,
    "webdataset": webdataset,
}


def write_layout(layout, root, change=lambda pictures: None, says=None):
    """A small set of exactly this layout; change: makes its samples wrong."""
    root.mkdir(parents=True, exist_ok=True)
    pictures = list(samples(says))
    change(pictures)
    WRITERS[layout](root, pictures)


def third(**values):
    """The third sample is changed; None takes a value away."""

    def change(pictures):
        for key, value in values.items():
            pictures[2].pop(key) if value is None else pictures[2].update({key: value})

    return change


def every(key):
    def change(pictures):
        for p in pictures:
            p.pop(key)
        pictures[0]["without"] = {"name": "image", "captions": "caption"}[key]

    return change


def no_test(pictures):
    pictures[:] = [p for p in pictures if p["split"] != "test"]


def again(pictures):
    pictures.insert(3, {**pictures[2]})


def bomb():
    """A PNG that says it is 30,000 pixels wide and high."""
    content = bytearray(saved(Image.new("L", (1, 1))))
    content[16:24] = struct.pack(">II", 30000, 30000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def indexes(root):
    return [f for pattern in ("*.json", "*.csv", "*.tar") for f in root.glob(pattern)]


def each(act):
    return lambda root: [act(f) for f in indexes(root)]


def as_folder(file):
    file.unlink()
    file.mkdir()


def beside(root):
    other = "captions.csv" if not (root / "captions.csv").exists() else "captions.json"
    (root / other).write_text("[]")


NOT_AN_INDEX = r"not such an index|no image of split"
UNREADABLE = r"image cannot be read"

FAULTS = {  # what is wrong with samples before they are written, or with files afterwards: what the one line must say
    "no index": (None, each(lambda f: f.unlink()), r"no index there: expected"),
    "two indexes": (None, beside, r"more than one index"),
    "empty index": (None, each(lambda f: f.write_bytes(b"")), NOT_AN_INDEX),
    "index of bytes": (None, each(lambda f: f.write_bytes(bytes(range(128, 256)) * 9)), NOT_AN_INDEX),
    "index cut": (None, each(lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])), NOT_AN_INDEX + r"|has 2 cells"),
    "index is a folder": (None, each(as_folder), NOT_AN_INDEX),
    "index is a number": (None, each(lambda f: f.write_text("42")), NOT_AN_INDEX),
    "index of numbers": (
        None,
        each(lambda f: f.write_text('{"images": [3], "data": [3]}')),
        NOT_AN_INDEX + r"|\[0\] is 3, expected",
    ),
    "no names": (every("name"), None, r"\[0\] has no '(filename|image_id|image)'|columns are 'caption'|two images"),
    "name is a number": (third(name=7), None, r"\[[24]\] has (filename|image_id) 7, expected"),
    "name leads out": (third(name="../../secret.jpg"), None, r"expected one inside|is not there"),
    "name is absolute": (third(name="/etc/hostname"), None, r"expected one inside|is not there"),
    "name with a zero byte": (third(name="a\0b.jpg"), None, r"has filename 'a.x00b.jpg', expected|has zero bytes"),
    "name of nothing": (third(name=""), None, r"has filename '', expected|is not there"),
    "no captions key": (every("captions"), None, r"\[0\] has no '(sentences|caption_str|captions)'|has no caption"),
    "captions are no list": (third(captions=5), None, r"(sentences|captions|caption_str) 5, expected|no list"),
    "caption is a number": (third(captions=[5]), None, r"(raw|caption_str) 5, expected|no list"),
    "captions are blank": (third(captions=["", "  "]), None, r"has no caption"),
    "image is missing": (third(content=None), None, r"is not there|captions and no image"),
    "image is empty": (third(content=b""), None, UNREADABLE),
    "image is text": (third(content=b"not a picture"), None, UNREADABLE),
    "image is cut": (third(content=next(samples())["content"][:200]), None, UNREADABLE),
    "image is a bomb": (third(content=bomb()), None, UNREADABLE),
    "image is there twice": (again, None, r"named twice|two images|two copies"),
    "no test images": (no_test, None, r"no image of split 'test'|not such an index"),
    "split is a number": (third(split=3), None, r"not such an index|has split|is not there"),
}
HARMLESS = {  # a layout in which this is no fault, because it cannot be said there
    ("textcaps", "image is there twice"),  # lines of the same image belong together
    ("csv", "image is there twice"),
    ("textcaps", "split is a number"),
    ("webdataset", "split is a number"),
    ("csv", "split is a number"),  # a text file has no numbers
    ("csv", "name is a number"),
    ("csv", "caption is a number"),
    ("csv", "captions are no list"),
    ("csv", "no captions key"),
    ("webdataset", "name is a number"),  # names of members are not opened
    ("webdataset", "name leads out"),
    ("webdataset", "name is absolute"),
    ("webdataset", "name with a zero byte"),
    ("webdataset", "name of nothing"),
}
