"""Image-caption sets on local disk, as their publishers lay them out: an index in, entries out. docs/data.md has the sources.

In `data.root` there is one of
    dataset*.json       Karpathy's: {"images": [{"filename", "split", "sentences": [{"raw"}, ...], "filepath"?, "label"?}, ...]}
                        (dataset_flickr8k.json, dataset_flickr30k.json, dataset_coco.json; split restval counts as train)
    TextCaps_*_train.json and TextCaps_*_val.json
                        {"data": [{"image_id", "caption_str", "image_classes"?}, ...]}, a line a caption; val becomes test
    captions.json       [{"image", "captions": [...], "label"?, "split"?, "client"?}, ...]
    captions.csv        with a header: image, caption, and perhaps label, split and client; a line a caption
    *.tar               shards of webdataset: KEY.jpg (jpeg, png, webp) beside KEY.txt, a caption a line, or KEY.json with
                        "captions" or "caption", "label"?, "split"?, "client"?
and a folder of images: images/, flickr30k-images/, flickr30k_images/, Flicker8k_Dataset/, Images/, train_images/, or the root
itself. Splits used are train, val and test; others are ignored. Where none is named, the hash of an image's name puts a tenth
each into val and test. Only the index is read here; images are opened when somebody needs them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ease_flwr.config import DataError
from ease_flwr.model.fitting import fitted

SPLITS = ("train", "val", "test")
FOLDERS = ("images", "flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "Images", "train_images")
PICTURES = {"jpg", "jpeg", "png", "webp"}
EXPECTED = "expected images/ and dataset.json (Karpathy), captions.json, captions.csv, TextCaps_*.json or shards (*.tar) in it"


@dataclass(frozen=True)
class Entry:
    """One image of an index. name: as it stands there.  where: its place there, for messages.  client: whose it is there.

    start, size: the bytes of `file` that are the image; size -1 is all of them.
    """

    file: Path
    captions: tuple[str, ...]
    label: str
    split: str
    name: str
    where: str
    client: str = ""
    start: int = 0
    size: int = -1

    def problem(self, root: Path) -> str:
        """What is wrong with it, without opening it; "" if nothing is."""
        if root not in self.file.parents or ".." in self.file.parts:
            return f"{self.where} has filename {self.name!r}, expected one inside {root}"
        if not self.captions:
            return f"{self.where} ({self.name}) has no caption"
        return "" if self.file.is_file() else f"{self.file} is named in {self.where} but is not there"

    def image(self, side: int, resize: str = "", interpolation: str = "") -> np.ndarray:
        """uint8 (side, side, 3), see DataConfig for how. Raises DataError at an unreadable file."""
        content = io.BytesIO(self.content())
        try:
            with Image.open(content) as opened:
                image = opened.convert("RGB")
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.place}: image cannot be read ({error})") from None
        return np.asarray(fitted(image, side, resize, interpolation))

    def content(self) -> bytes:
        """The picture as it lies there. Raises DataError where it cannot be read."""
        try:
            with self.file.open("rb") as f:
                f.seek(self.start)
                return f.read(self.size)
        except OSError as error:
            raise DataError(f"{self.place}: image cannot be read ({error})") from None

    @property
    def place(self) -> str:
        """Its file, and of a shard its name in it."""
        return f"{self.file} ({self.name})" if self.size >= 0 else str(self.file)

    @property
    def identity(self) -> list[Any]:
        """What tells whether it is the same image as before, without reading it."""
        found = self.file.stat()
        return [self.name, self.start, self.size, found.st_size, found.st_mtime_ns]


def read_entries(root: str) -> list[Entry]:
    """The index of a folder as it stands there. Raises DataError with one line at a missing or broken root."""
    folder = Path(root)
    if not root or not folder.is_absolute() or not folder.is_dir():
        raise DataError(f"data.root={root!r} is not an absolute path of a folder: {EXPECTED}")
    there = {kind: files for kind in READERS if (files := sorted(folder.glob(kind)))}
    if len(there) != 1:
        named = "no index" if not there else f"more than one index ({', '.join(there)})"
        raise DataError(f"data.root={root}: {named} there: {EXPECTED}")
    ((kind, files),) = there.items()
    entries: list[Entry] = []
    for file in files:
        try:
            entries += READERS[kind](file)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, csv.Error, tarfile.TarError, OSError) as error:
            raise DataError(f"{file}: not such an index ({type(error).__name__}: {error}): {EXPECTED}") from None
    return entries


def read_index(root: str) -> dict[str, list[Entry]]:
    """The entries of an index by split. Raises DataError with one line at the first thing that is wrong."""
    splits: dict[str, list[Entry]] = {}
    seen: set[str] = set()
    for entry in read_entries(root):
        if problem := entry.problem(Path(root)) or _twice(entry, seen):
            raise DataError(problem)
        splits.setdefault(entry.split, []).append(entry)
    for split in SPLITS:
        if not splits.get(split):
            raise DataError(f"data.root={root} has no image of split {split!r}: found {sorted(splits)}")
    return splits


def check(root: str) -> tuple[dict[str, int], list[str]]:
    """Counts of a folder, and everything that is wrong with it: missing and unreadable images, empty captions, double names.

    Raises DataError where the index itself cannot be read.
    """
    entries = read_entries(root)
    problems: list[str] = []
    seen: set[str] = set()
    for entry in entries:
        problem = entry.problem(Path(root)) or _twice(entry, seen)
        if not problem:
            try:
                entry.image(32)
            except DataError as error:
                problem = str(error)
        problems += [problem] if problem else []
    labels = {e.label for e in entries} - {""}
    counts = {"images": len(entries), "captions": sum(len(e.captions) for e in entries), "labels": len(labels)}
    splits = {split: sum(e.split == split for e in entries) for split in SPLITS}
    problems += [f"{root}: no image of split {split!r}" for split, count in splits.items() if not count]
    return counts | splits, problems


def drawn_split(name: str) -> str:
    """train, val or test for an image whose index does not say; always the same for the same name."""
    tenth = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 10
    return {8: "val", 9: "test"}.get(tenth, "train")


def _twice(entry: Entry, seen: set[str]) -> str:
    image = entry.name if entry.size >= 0 else str(entry.file)  # shards have one space of names
    if image in seen:
        return f"{entry.where}: {entry.name} is named twice"
    seen.add(image)
    return ""


class About(NamedTuple):
    """What an index says about an image beside its captions. folder: below the folder of images, or beside it."""

    label: Any = ""
    split: Any = ""
    folder: Any = ""
    client: Any = ""


def _about(said: Mapping[str, Any], **more: Any) -> About:
    """From a row, or a part of JSON."""
    return About(**{k: said[k] for k in ("label", "split", "client") if said.get(k) is not None} | more)


def _entry(file: Path, where: str, name: Any, captions: Any, about: About) -> Entry:
    """One checked line of an index. Raises TypeError and ValueError."""
    label, split, folder, client = about
    if not isinstance(name, str) or not name or "\0" in name:
        raise TypeError(f"{where} has filename {name!r}")
    if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise TypeError(f"{where} has captions that are no list of sentences")
    if not isinstance(split, str) or not isinstance(folder, str):
        raise TypeError(f"{where} has split {split!r} and folder {folder!r}")
    if not isinstance(label, str | int):
        raise TypeError(f"{where} has label {label!r}")
    if not isinstance(client, str | int):
        raise TypeError(f"{where} has client {client!r}")
    said = tuple(" ".join(c.split()) for c in captions if c.strip())
    base = next((file.parent / f for f in FOLDERS if (file.parent / f).is_dir()), file.parent)
    if folder and not (base / folder).is_dir():
        base = file.parent
    split = {"restval": "train"}.get(split, split) or drawn_split(name)
    return Entry(base / folder / name, said, str(label), split, name, f"{file}: {where}", str(client))


def _karpathy(file: Path) -> Iterator[Entry]:
    for i, image in enumerate(json.loads(file.read_text(encoding="utf-8"))["images"]):
        captions = [s["raw"] for s in image["sentences"]]
        about = _about(image, split=image["split"], folder=image.get("filepath", ""))
        yield _entry(file, f"images[{i}]", image["filename"], captions, about)


def _textcaps(file: Path) -> Iterator[Entry]:
    rows = enumerate(json.loads(file.read_text(encoding="utf-8"))["data"])
    split = "test" if file.stem.endswith("val") else ""
    said = (
        (f"data[{i}]", row["image_id"] + ".jpg", row["caption_str"], About(str((row.get("image_classes") or [""])[0]), split))
        for i, row in rows
    )
    for entry in _gathered(file, said):
        yield entry if split or entry.split != "test" else replace(entry, split="train")


def _json(file: Path) -> Iterator[Entry]:
    for i, image in enumerate(json.loads(file.read_text(encoding="utf-8"))):
        yield _entry(file, f"[{i}]", image["image"], image["captions"], _about(image))


def _csv(file: Path) -> Iterator[Entry]:
    with file.open(encoding="utf-8", newline="") as f:
        rows = csv.DictReader(f, strict=True)
        yield from _gathered(file, ((f"line {rows.line_num}", r["image"], r["caption"] or "", _about(r)) for r in rows))


def _gathered(file: Path, rows: Iterable[tuple[str, str, str, About]]) -> Iterator[Entry]:
    """Entries from lines of one caption each: (where, name, caption, more)."""
    found: dict[str, tuple[str, list[str], About]] = {}
    for where, name, caption, about in rows:
        first, captions, known = found.setdefault(name, (where, [], about))
        captions.append(caption)
        if any(a and b and a != b for a, b in zip(known, about, strict=True)):
            raise ValueError(f"{where} has another label, split or client for {name} than {first}")
    for name, (where, captions, about) in found.items():
        yield _entry(file, where, name, captions, about)


def _shard(file: Path) -> Iterator[Entry]:
    about: dict[str, dict[str, Any]] = {}
    end = 0
    with tarfile.open(file, "r:") as shard:
        for member in shard:
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            folder, _, name = member.name.removeprefix("./").rpartition("/")
            stem, _, ending = name.partition(".")
            key = f"{folder}/{stem}"
            if not member.isfile() or ending.lower() not in (*PICTURES, "txt", "json"):
                continue
            sample = about.setdefault(key, {"captions": []})
            if ending.lower() in PICTURES:
                if "at" in sample:
                    raise ValueError(f"{key} has two images")
                sample["at"] = member.name.removeprefix("./"), member.offset_data, member.size
                continue
            content = shard.extractfile(member)
            text = content.read().decode("utf-8") if content else ""
            if ending == "txt":
                sample["captions"] += text.splitlines()
            else:
                said = json.loads(text)
                captions = said["captions"] if "captions" in said else [said["caption"]]
                if not isinstance(captions, list):
                    raise TypeError(f"{key} has captions that are no list of sentences")
                sample["captions"] += captions
                sample |= {k: said[k] for k in ("label", "split", "client") if k in said}
    with file.open("rb") as f:  # tarfile takes a shard that was cut between two members for a whole one
        f.seek(end)
        if f.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError("the end is missing, it was cut")
    named = next((s for s in SPLITS if file.name.startswith(s)), "")
    for key, sample in about.items():
        if "at" not in sample:
            raise ValueError(f"{key} has captions and no image")
        name, start, size = sample["at"]
        entry = _entry(file, name, name, sample["captions"], _about(sample, split=sample.get("split") or named))
        yield replace(entry, file=file, start=start, size=size)


READERS: dict[str, Callable[[Path], Iterable[Entry]]] = {
    "dataset*.json": _karpathy,
    "TextCaps_*.json": _textcaps,
    "captions.json": _json,
    "captions.csv": _csv,
    "*.tar": _shard,
}
