"""What an index says, row by row: a row is used in an entry, left out for a reason, or wrong. None is dropped in silence."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ease_flwr.config import UNSEEN, DataError, canonical
from ease_flwr.data import pictures

SPLITS = ("train", "val", "test")
SPELLINGS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""How people write the splits, in small letters."""
FOLDERS = ("images", "flickr30k-images", "flickr30k_images", "Flicker8k_Dataset", "Images", "train_images")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""What is no part of a name: it would break lines, or cannot be written."""


class RowError(ValueError):
    """What is wrong with a row, to be read behind its place: "has no image"."""


class Row(NamedTuple):
    """Rows of an index, or members of a shard, that are not used."""

    file: Path
    place: str
    """Where in the file; "" is all of it."""
    why: str
    rows: int = 1

    def __str__(self) -> str:
        return f"{self.file}: {self.place} {self.why}" if self.place else f"{self.file}: {self.why}"


class About(NamedTuple):
    """What an index says about an image beside its captions. folder: below the folder of images, or beside it."""

    label: str = ""
    split: str = ""
    client: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Entry:
    """One image of an index. name: as it stands there.  where: its place there, for messages.  client: whose it is there.

    start, size: the bytes of `file` that are the image; size -1 is all of them.  rows: how many rows of the index it is.
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
    rows: int = 1

    def problem(self, root: Path) -> str:
        """What is wrong with it, without opening it; "" if nothing is."""
        if root not in self.file.parents or ".." in self.file.relative_to(root).parts:
            return f"{self.where} has filename {self.name!r}, expected one inside {root}"
        if not self.captions:
            return f"{self.where} ({self.name}) has no caption"
        there = os.path.isfile(self.file)  # unlike Path.is_file it survives names that are too long
        return "" if there else f"{self.file} is named in {self.where} but is not there"

    def image(self, side: int, resize: str = "", interpolation: str = "") -> np.ndarray:
        """uint8 (side, side, 3), see DataConfig for how. Raises DataError at an unreadable file."""
        try:
            return pictures.decoded(pictures.read(self.file, self.start, self.size), side, resize, interpolation)
        except DataError as error:
            raise DataError(self._unreadable(error)) from None

    def content(self) -> bytes:
        """The picture as it lies there. Raises DataError where it cannot be read."""
        try:
            return pictures.read(self.file, self.start, self.size)
        except DataError as error:
            raise DataError(self._unreadable(error)) from None

    def _unreadable(self, why: DataError) -> str:
        if self.size >= 0:
            return f"{self.where} ({self.name}): image cannot be read ({why})"
        return f"{self.file}: image cannot be read ({why}), it is named in {self.where}"

    @property
    def identity(self) -> list[Any]:
        """What tells whether it is the same image as before, without reading it."""
        found = self.file.stat()
        return [self.name, self.start, self.size, found.st_size, found.st_mtime_ns]


@dataclass
class Index:
    """All rows of a folder's index."""

    root: Path
    files: list[Path]
    """What is read of it."""
    entries: list[Entry] = field(default_factory=list)
    left: list[Row] = field(default_factory=list)
    """Left out."""
    wrong: list[Row] = field(default_factory=list)
    named: set[Path] = field(default_factory=set)
    """Pictures that any row names."""
    drawn: int = 0
    """Entries whose split is not said, but drawn."""

    @cached_property
    def base(self) -> Path:
        """The folder of images."""
        return next((self.root / f for f in FOLDERS if (self.root / f).is_dir()), self.root)

    def add(self, file: Path, place: str, name: Any, captions: list[Any], about: About, rows: int = 1) -> None:
        """Use a row, or several that are about one image. Raises RowError."""
        check_name(name)
        if not all(isinstance(c, str) for c in captions):
            raise RowError("has captions that are no list of sentences")
        if bad := next((c for c in captions if any("\ud800" <= letter <= "\udfff" for letter in c)), ""):
            raise RowError(f"has a caption with half a letter, {ascii(bad)[:80]}")
        said = tuple(filter(None, map(sentence, captions)))
        if said and len(said) < len(captions):
            self.left.append(Row(file, place, "a blank caption among others", 0))
        self.drawn += not about.split
        split = about.split or drawn_split(name)
        path = self.file(name, about.folder)
        self.named.add(path)
        self.entries.append(Entry(path, said, about.label, split, name, f"{file}: {place}", about.client, rows=rows))

    def file(self, name: str, folder: str = "") -> Path:
        """Where a picture is: below the folder of images, or beside it. Unicode has two spellings of letters such as é: a file
        may have the one and the index the other. Windows writes paths with backslashes."""
        path = Path(folder, name)
        if "\\" in name and not any(os.path.isfile(base / path) for base in (self.base, self.root)):
            path = Path(folder, name.replace("\\", "/"))
        base = self.root if not os.path.isdir(self.base / path.parent) and os.path.isdir(self.root / path.parent) else self.base
        forms = (base / path, *(base / unicodedata.normalize(form, str(path)) for form in ("NFC", "NFD")))
        return forms[0] if str(path).isascii() else next((file for file in forms if os.path.isfile(file)), forms[0])

    @contextmanager
    def row(self, file: Path, place: str, rows: int = 1) -> Iterator[None]:
        """A RowError in here is said of this row, or of so many rows; the others are read."""
        try:
            yield
        except RowError as error:
            self.wrong.append(Row(file, place, str(error), rows))

    def totals(self) -> dict[str, int]:
        """How many rows were read, used, left out and wrong; what is wrong with a file as a whole is no row."""
        left, wrong = (sum(r.rows for r in rows) for rows in (self.left, self.wrong))
        used = sum(e.rows for e in self.entries)
        return {"read": used + left + wrong, "used": used, "left out": left, "wrong": wrong}

    def reasons(self) -> dict[str, list[str]]:
        """Where rows were left out, by reason."""
        found: dict[str, list[str]] = {}
        for row in self.left:
            found.setdefault(row.why, []).append(f"{row.file.name}: {row.place}")
        return found


def sentence(caption: str) -> str:
    """A caption with single spaces; "" where nothing of it can be seen, as of a space without width."""
    return " ".join(caption.split()) if caption.strip(UNSEEN) else ""


def drawn_split(name: str) -> str:
    """train, val or test for an image whose index does not say; always the same for the same name."""
    tenth = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 10
    return {8: "val", 9: "test"}.get(tenth, "train")


def check_name(name: Any) -> None:
    """Raises RowError where this is no name of a picture."""
    if not isinstance(name, str) or not name or CONTROL.search(name):
        raise RowError(f"has filename {ascii(name)[:80]}, expected the name of a picture")


def about(said: Mapping[str, Any], folder: Any = None) -> About:
    """Label, split and client of a row, or of a part of JSON. Raises RowError."""
    label, split, client = (word(key, said.get(key)) for key in ("label", "split", "client"))
    return About(label, SPELLINGS.get(split.casefold(), split), client, word("folder", folder))


def word(key: str, value: Any) -> str:
    """A label, split, client or folder as text: null is none, a number or true is as JSON writes it; of two spellings that look
    alike one. Raises RowError."""
    if value is None or isinstance(value, str):
        text = value or ""
    elif key in ("split", "folder") or not isinstance(value, int | float) or value in (math.inf, -math.inf) or value != value:
        expected = "text, or null" if key in ("split", "folder") else "text or a number, or null where there is none"
        raise RowError(f"has {key} {json.dumps(value)[:80]}, expected {expected}")
    else:
        text = json.dumps(value)
    text = canonical(text) if key != "folder" else text.strip()
    if CONTROL.search(text):
        raise RowError(f"has {key} {ascii(text)[:80]}, expected one line of text")
    return text


def part(row: Any, key: str, kind: type = object) -> Any:
    """row[key] of JSON. Raises RowError where it is not there, or of another kind."""
    if not isinstance(row, dict):
        raise RowError(f"is {json.dumps(row)[:40]}, expected an object with {key!r}")
    if key not in row:
        raise RowError(f"has no {key!r}, but {', '.join(map(ascii, row))[:120] or 'nothing'}")
    if not isinstance(row[key], kind):
        raise RowError(f"has {key} {json.dumps(row[key])[:40]}, expected a {'list' if kind is list else 'text'}")
    return row[key]
