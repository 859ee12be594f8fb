"""Image-caption sets on local disk, as their publishers lay them out: an index in, entries out. docs/data.md has the sources.

In `data.root` there is one of
    dataset*.json       Karpathy's: {"images": [{"filename", "split", "sentences": [{"raw"}, ...], "filepath"?, "label"?}, ...]}
                        (dataset_flickr8k.json, dataset_flickr30k.json, dataset_coco.json; split restval counts as train)
    TextCaps_*_train.json and TextCaps_*_val.json
                        {"data": [{"image_id", "caption_str", "image_classes"?}, ...]}, a line a caption; val becomes test
    captions.json       [{"image", "captions": [...], "label"?, "split"?, "client"?}, ...]
    captions.csv        with a header: image, caption, and perhaps label, split and client; a line a caption (tables.py)
    *.tar               shards of webdataset: KEY.jpg beside KEY.txt, a caption a line, or KEY.json with
                        "captions", "caption" or both, "label"?, "split"?, "client"? (shards.py)
and a folder of images: images/, flickr30k-images/, flickr30k_images/, Flicker8k_Dataset/, Images/, train_images/, or the root
itself. Splits used are train, val and test, in the spellings of entries.py; others are left out. Where none is named, the hash
of an image's name puts a tenth each into val and test. Only the index is read here; images are opened when somebody needs them.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ease_flwr.config import DataError
from ease_flwr.data.entries import CONTROL, SPLITS, Entry, Index, Row, RowError, about, check_name, part
from ease_flwr.data.pictures import ENDINGS
from ease_flwr.data.shards import read_shard
from ease_flwr.data.tables import Line, gather, json_of, read_csv, text_of

SIDE = 32
"""Of pictures that are decoded to see whether they can be."""
NO_INDEXES = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "dataset-metadata.json",
    "dataset_description.json",
)
"""What the hubs of such sets leave beside an index, and what describes a study (BIDS)."""
EXPECTED = "expected images/ and dataset.json (Karpathy), captions.json, captions.csv, TextCaps_*.json or shards (*.tar) in it"


class Checked(NamedTuple):
    """What a look at every picture of a folder has found."""

    counts: dict[str, int]
    problems: list[str]
    totals: dict[str, int]
    """Rows of the index, see Index.totals."""
    left: dict[str, list[str]]
    """By reason: where a row was left out, and what lies in the folder that no row names."""
    drawn: int
    """Entries whose split the index does not say."""


def read(root: str) -> Index:
    """The index of a folder as it stands there, with what is wrong with its rows. Raises DataError where there is none."""
    folder = Path(root)
    if not folder.is_absolute():
        raise DataError(f"data.root={root!r} is not an absolute path of a folder: {EXPECTED}")
    if not os.path.isdir(folder):
        raise DataError(f"data.root={root!r}: there is no such folder: {EXPECTED}")
    index = Index(folder, _indexes(folder))
    for file in index.files:
        reader = next(reader for kind, reader in READERS.items() if file.match(kind))
        try:
            if not file.is_file():
                raise ValueError("it is no file")
            reader(file, index)
        except (ValueError, RecursionError, tarfile.TarError, OSError, EOFError) as error:
            kind = "" if type(error) in (ValueError, RowError) else f"{type(error).__name__}: "
            index.wrong.append(Row(file, "", f"not such an index ({kind}{' '.join(str(error).split())})", 0))
    return index


def read_entries(root: str) -> list[Entry]:
    """All entries of a folder. Raises DataError with one line at a missing or broken root, or row."""
    index = read(root)
    if index.wrong:
        raise DataError(str(index.wrong[0]))
    return index.entries


def read_index(root: str) -> dict[str, list[Entry]]:
    """The entries of an index by split. Raises DataError with one line at the first thing that is wrong."""
    splits: dict[str, list[Entry]] = {}
    seen: dict[str, Entry] = {}
    for entry in read_entries(root):
        if problem := entry.problem(Path(root)) or _twice(entry, seen):
            raise DataError(problem)
        splits.setdefault(entry.split, []).append(entry)
    for split in SPLITS:
        if not splits.get(split):
            raise DataError(f"data.root={root} has no image of split {split!r}: found {sorted(splits)}")
    return splits


def check(root: str) -> Checked:
    """Read every row of an index and decode every picture as training does; what is wrong, and what is not used.

    Raises DataError where there is no index.
    """
    index, seen = read(root), dict[str, Entry]()
    problems = [str(row) for row in index.wrong]
    whole = all(row.rows for row in index.wrong)
    entries, index.entries = index.entries, []
    closed = [entry.problem(index.root) or _twice(entry, seen) for entry in entries]
    with ThreadPoolExecutor() as pool:
        opened = list(pool.map(lambda problem, entry: problem or _unreadable(entry), closed, entries))
    for entry, problem in zip(entries, opened, strict=True):
        file, _, place = entry.where.rpartition(": ")
        if problem:
            problems.append(problem)
            index.wrong.append(Row(Path(file), place, problem, entry.rows))
        elif entry.split not in SPLITS:
            index.left.append(Row(Path(file), place, f"split {entry.split!r}, which no run uses", entry.rows))
        else:
            index.entries.append(entry)
    labels = {e.label for e in entries} - {""}
    counts = {"images": len(entries), "captions": sum(len(e.captions) for e in entries), "labels": len(labels)}
    splits = {split: sum(e.split == split for e in entries) for split in SPLITS}
    if whole:  # what is in a file that cannot be read nobody knows
        problems += [f"{root}: no image of split {split!r}" for split, count in splits.items() if not count]
    return Checked(counts | splits, problems, index.totals(), index.reasons() | _beside(index, whole), index.drawn)


def _unreadable(entry: Entry) -> str:
    try:
        entry.image(SIDE)
    except DataError as error:
        return str(error)
    return ""


def _indexes(folder: Path) -> list[Path]:
    """The files that are the index of a folder. Raises DataError where there is none, or several."""
    found = [f for f in sorted(folder.iterdir()) if not f.name.startswith(".") and f.name not in NO_INDEXES]
    there = {kind: files for kind in READERS if (files := [f for f in found if f.match(kind)])}
    if not there:
        raise DataError(f"data.root={folder}: no index there: {EXPECTED}")
    files = [file for kind in there.values() for file in kind]
    if len(there) > 1 or (len(files) > 1 and not _of_one_set(files)):
        named = ", ".join(f.name for f in files[:6]) + (", ..." if len(files) > 6 else "")
        raise DataError(f"data.root={folder}: more than one index ({named}): keep one there, move the others away")
    return files


def _of_one_set(files: list[Path]) -> bool:
    """Whether several files are one index: shards, and the parts of TextCaps."""
    return all(f.suffix == ".tar" for f in files) or (
        all(f.match("TextCaps_*") for f in files) and len({f.stem.rpartition("_")[2] for f in files}) == len(files)
    )


def _twice(entry: Entry, seen: dict[str, Entry]) -> str:
    names = {entry.name, str(entry.file) if entry.size < 0 else ""} - {""}  # a name means one picture, whatever its folder is
    before = next((seen[name] for name in names if name in seen), None)
    if before is None:
        seen |= dict.fromkeys(names, entry)
        return ""
    both = ((what, getattr(entry, what), getattr(before, what)) for what in ("split", "label", "client"))
    differs = [f"{what} {here!r} here, {there!r} there" for what, here, there in both if here != there]
    return f"{entry.where}: {entry.name} is named twice, also in {before.where}" + (
        f" ({', '.join(differs)})" if differs else ""
    )


def _beside(index: Index, whole: bool) -> dict[str, list[str]]:
    """Files of a folder that are no part of its index, by reason."""
    strange = [f for f in sorted(index.root.iterdir()) if f.is_file() and f not in index.named and f not in index.files]
    found = {"a file that is not read": [f.name for f in strange if f.suffix[1:].lower() not in ENDINGS]}
    if whole and index.files[0].suffix != ".tar":
        pictures = (Path(at) / name for at, _, names in os.walk(index.base) for name in names)
        rest = sorted(f for f in pictures if f.suffix[1:].lower() in ENDINGS and f not in index.named)
        found["a picture that no row names"] = [str(f.relative_to(index.root)) for f in rest]
    return {why: [ascii(n)[1:-1] if CONTROL.search(n) else n for n in names] for why, names in found.items() if names}


# ---- readers: rows of a file become entries of the index -------------------------------------------------------------


def _karpathy(file: Path, index: Index) -> None:
    for i, image in enumerate(part(_json(file), "images", list)):
        with index.row(file, f"images[{i}]"):
            captions = [part(s, "raw", str) for s in part(image, "sentences", list)]
            of = about({**image, "split": part(image, "split")}, image.get("filepath"))
            index.add(file, f"images[{i}]", part(image, "filename"), captions, of)


def _textcaps(file: Path, index: Index) -> None:
    rows, split = part(_json(file), "data", list), "test" if file.stem.endswith("val") else ""
    if file.stem.endswith("test") and not any(isinstance(row, dict) and "caption_str" in row for row in rows):
        index.left.append(Row(file, f"data[0] to data[{len(rows) - 1}]", "a part without captions", len(rows)))
        return
    before = len(index.entries)
    gather(file, index, _captions(file, index, rows, split))
    if not split:
        index.entries[before:] = [replace(e, split="train") if e.split == "test" else e for e in index.entries[before:]]


def _captions(file: Path, index: Index, rows: list[Any], split: str) -> Iterator[Line]:
    """Lines of TextCaps."""
    for i, row in enumerate(rows):
        with index.row(file, f"data[{i}]"):
            name, caption = part(row, "image_id", str) + ".jpg", part(row, "caption_str", str)
            classes = row.get("image_classes") or [None]
            check_name(name)
            of = about({"label": part({"image_classes": classes}, "image_classes", list)[0], "split": split})
            yield f"data[{i}]", name, caption, of


def _plain(file: Path, index: Index) -> None:
    rows = _json(file)
    if not isinstance(rows, list):
        raise ValueError("it is no list of rows")
    for i, row in enumerate(rows):
        with index.row(file, f"[{i}]"):
            index.add(file, f"[{i}]", part(row, "image"), part(row, "captions", list), about(row))


def _json(file: Path) -> Any:
    return json_of(text_of(file.read_bytes()))


READERS: dict[str, Callable[[Path, Index], None]] = {
    "dataset*.json": _karpathy,
    "TextCaps_*.json": _textcaps,
    "captions.json": _plain,
    "captions.csv": read_csv,
    "*.tar": read_shard,
}
