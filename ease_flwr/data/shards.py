"""Shards of webdataset: KEY.jpg beside KEY.txt, a caption a line, or KEY.json, as its own and common download tools write them.

A key is the name of a member without its last ending. Where that makes no sample of it, and the name up to its first dot is one
(a.seg.png beside a.jpg), it is left out.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ease_flwr.data.entries import SPELLINGS, Index, Row, RowError, about, sentence
from ease_flwr.data.pictures import ENDINGS
from ease_flwr.data.tables import json_of, text_of

TEXT = 2**24
"""Bytes of a .txt or .json, at most."""
LINE = re.compile(r"[\r\n]+")
"""What ends a line of a .txt; other letters that end one for some are a part of it."""


@dataclass(frozen=True)
class Member:
    """A file in a shard. number: from 1."""

    number: int
    name: str
    start: int
    size: int

    @property
    def place(self) -> str:
        return f"member {self.number} ({self.name[:200]!a})"


@dataclass
class Sample:
    """The members of one key."""

    pictures: list[Member] = field(default_factory=list)
    texts: list[Member] = field(default_factory=list)
    parts: list[Member] = field(default_factory=list)
    """Its .json."""

    @property
    def members(self) -> list[Member]:
        return [*self.pictures, *self.texts, *self.parts]

    @property
    def whole(self) -> bool:
        return bool(self.pictures and (self.texts or self.parts))


def read_shard(file: Path, index: Index) -> None:
    """The members of a shard. Raises ValueError and tarfile.TarError where it is none, or was cut."""
    samples: dict[str, Sample] = {}
    left = len(index.left) + len(index.wrong)
    for key, ending, member in _members(file, index):
        sample = samples.setdefault(key, Sample())
        (sample.texts if ending == "txt" else sample.parts if ending == "json" else sample.pictures).append(member)
    if not samples and left == len(index.left) + len(index.wrong):
        index.left.append(Row(file, "all of it", "a shard without files", 0))
    named = split_of(file.stem)
    for key, sample in samples.items():
        folder, _, stem = key.rpartition("/")
        short = f"{folder}/{stem.partition('.')[0]}"
        if not sample.whole and short != key and short in samples and samples[short].whole:
            index.left += [Row(file, m.place, "another part of a sample that has its picture") for m in sample.members]
            continue
        with index.row(file, sample.members[0].place, len(sample.members)):
            _use(file, index, sample, named)


def split_of(name: str) -> str:
    """The split that the name of a shard says; "" where it says none, or several."""
    found = {SPELLINGS[word] for word in re.split(r"[^a-z]+", name.casefold()) if word in SPELLINGS}
    return found.pop() if len(found) == 1 else ""


def _members(file: Path, index: Index) -> Iterator[tuple[str, str, Member]]:
    """Files of a shard that may belong to a sample: key, ending, and where it is. Others are left out by name."""
    with file.open("rb") as f:
        if f.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
            raise ValueError("it is compressed, pictures are read from plain tar: unpack it")
    with tarfile.open(file, "r:") as shard:
        for number, info in enumerate(shard, 1):
            member = Member(number, info.name.removeprefix("./"), info.offset_data, info.size)
            folder, _, short = member.name.rpartition("/")
            stem, dot, ending = short.rpartition(".")
            ending = ending.lower() if dot else ""
            if info.isdir():
                continue
            if short.startswith(".") or "__MACOSX" in folder.split("/"):
                index.left.append(Row(file, member.place, "a hidden file"))
            elif ending not in (*ENDINGS, "txt", "json"):
                index.left.append(Row(file, member.place, "no picture, .txt or .json"))
            elif not info.isfile() or info.issparse():
                what = "a link" if info.islnk() or info.issym() else "no ordinary file"
                index.wrong.append(Row(file, member.place, f"is {what}: pack the files themselves"))
            else:
                yield f"{folder}/{stem}", ending, member
        end = shard.offset
    with file.open("rb") as f:  # tarfile takes a shard that was cut between two members for a whole one
        f.seek(end)
        if f.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError("the end is missing, it was cut")
        while block := f.read(2**20):
            if block.strip(b"\0"):
                raise ValueError("it goes on behind its end: are these several shards in one file?")


def _use(file: Path, index: Index, sample: Sample, split: str) -> None:
    """One entry. Raises RowError."""
    for members, what in ((sample.pictures, "images"), (sample.texts, ".txt files"), (sample.parts, ".json files")):
        if len(members) > 1:
            raise RowError(f"has two {what}, the other is {members[1].place}")
    if not sample.pictures:
        raise RowError("has captions and no image")
    (picture,) = sample.pictures
    texts = [_text(file, m) for m in sample.texts]
    said = next((_object(file, m) for m in sample.parts), {})
    more, one = said.get("captions"), said.get("caption")
    more = [] if more is None else more
    if not isinstance(more, list):
        raise RowError("has captions that are no list of sentences")
    if one is not None and one not in more:
        more = [*more, one]
    sentences = {sentence(c) for c in more if isinstance(c, str)}
    texts = [t for t in texts if sentence(t) not in sentences]  # one caption may have several lines in both
    captions = [c for t in texts for line in LINE.split(t) if (c := sentence(line))]
    captions += [c for c in more if not isinstance(c, str) or sentence(c) not in captions]
    of = about(said)
    of = of if of.split else of._replace(split=split)
    index.add(file, f"member {picture.number}", picture.name, captions, of, len(sample.members))
    index.entries[-1] = replace(index.entries[-1], file=file, start=picture.start, size=picture.size)


def _text(file: Path, member: Member) -> str:
    if member.size > TEXT:
        raise RowError(f"has {member.place} of {member.size} bytes, expected {TEXT} at most")
    with file.open("rb") as f:
        f.seek(member.start)
        try:
            return text_of(f.read(member.size))
        except ValueError as error:
            raise RowError(f"has {member.place}: {error}") from None


def _object(file: Path, member: Member) -> dict[str, object]:
    text = _text(file, member)
    try:
        said = json_of(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"has {member.place}, whose JSON cannot be read ({error})") from None
    if not isinstance(said, dict):
        raise RowError(f"has {member.place}, which is no JSON object")
    return said
