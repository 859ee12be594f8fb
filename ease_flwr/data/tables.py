"""Tables of one caption a line, as spreadsheets and scripts write them."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ease_flwr.data.entries import About, Index, Row, RowError, about, check_name, sentence
from ease_flwr.data.pictures import ENDINGS

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by how a file begins, UTF-32 before UTF-16."""
SEPARATORS = (",", ";", "\t")
COLUMNS = ("image", "caption", "label", "split", "client")
ROW = re.compile(rf"(^|[,;\t])[^,;\t]+\.({'|'.join(ENDINGS)})[\s\"]*([,;\t]|$)", re.IGNORECASE)
"""A line that names a picture in a cell of its own."""
Line = tuple[str, str, str, About]
"""One caption: its place, the name of the picture, the caption, and what else the line says."""


def json_of(text: str) -> Any:
    """What JSON says. Raises ValueError where it is none, or says a key twice: one of the two values would be dropped."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"{next(key for key in found if keys.count(key) > 1)!r} stands twice in one object")
        return found

    return json.loads(text, object_pairs_hook=once)


def text_of(content: bytes) -> str:
    """The text of a file. Raises ValueError with what was found and what is wanted."""
    if content.startswith(b"PK\3\4"):
        raise ValueError('it is a workbook of a spreadsheet, or another zip file: save it as text ("CSV UTF-8" in Excel)')
    encoding = next((e for mark, e in MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content:
        raise ValueError("it has zero bytes, as UTF-16 without its mark has: save it as UTF-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line, byte = content[: error.start].count(b"\n") + 1, content[error.start : error.start + 1]
        if encoding != "utf-8":
            raise ValueError(
                f"it begins as {encoding.upper()} and is damaged at byte {error.start}: save it as UTF-8"
            ) from None
        guess = byte.decode("cp1252", "replace")
        raise ValueError(
            f"line {line} has the byte 0x{byte.hex()}, which is no UTF-8 ({guess!r} in Windows-1252): save it as UTF-8 "
            '("CSV UTF-8" in Excel)'
        ) from None


def read_csv(file: Path, index: Index) -> None:
    """The lines of captions.csv. Raises ValueError where it is no such table."""
    text = text_of(file.read_bytes())
    skipped = 0
    if text[:4].casefold() == "sep=":  # Excel's word for the separator, in a line of its own
        text, skipped = text.partition("\n")[2], 1
    gather(file, index, _lines(file, index, _rows(text, skipped)))


@dataclass
class Gathered:
    """What the lines about one picture say together."""

    place: str
    captions: list[str] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)
    """Places of lines without a caption."""
    said: dict[str, tuple[str, str]] = field(default_factory=dict)
    """label, split, client and folder: the value, and the place of the line that says it."""
    contradicts: list[str] = field(default_factory=list)


def gather(file: Path, index: Index, lines: Iterable[Line]) -> None:
    """Entries from lines of one caption each. A picture of which two lines say different things is wrong."""
    found: dict[str, Gathered] = {}
    for place, name, caption, more in lines:
        known = found.setdefault(name, Gathered(place))
        for key, value in more._asdict().items():
            before, where = known.said.setdefault(key, (value, place)) if value else (value, place)
            if before != value:
                known.contradicts.append(f"{place} has another {key} for {name} than {where} ({value!r}, {before!r})")
        caption = sentence(caption)
        if not caption:
            known.blank.append(place)
        elif caption in known.captions:
            index.left.append(Row(file, place, "the same line again"))
        else:
            known.captions.append(caption)
    for name, of in found.items():
        if of.captions:
            index.left += [Row(file, place, "a blank caption among others") for place in of.blank]
        rows = len(of.captions) or len(of.blank)
        if of.contradicts:
            index.named.add(index.file(name))
            index.wrong.append(Row(file, "", "; ".join(of.contradicts), rows))
            continue
        with index.row(file, of.place, rows):
            index.add(file, of.place, name, of.captions, About(**{key: value for key, (value, _) in of.said.items()}), rows)


def _rows(text: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """The rows of a table, the header first, by the line that each begins in. Raises ValueError."""
    first = next((line for line in text[:10_000].splitlines() if line.strip()), "")
    separator = max(SEPARATORS, key=first.count)
    table = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    begins = 1
    while True:
        try:
            row = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"line {begins + skipped}: {error}: is a quotation mark left open?") from None
        yield begins + skipped, [cell.strip() for cell in row]
        begins = table.line_num + 1


def _lines(file: Path, index: Index, rows: Iterator[tuple[int, list[str]]]) -> Iterator[Line]:
    """The lines below the header. Raises ValueError where the header is no such one."""
    at, header = next(((at, [cell.casefold() for cell in cells]) for at, cells in rows if any(cells)), (0, []))
    last = _last(header)
    named = [cell for cell in header if cell]
    if not {"image", "caption"} <= set(named):
        raise ValueError(f"its columns are {', '.join(map(repr, named)) or 'none'}, expected image, caption and perhaps others")
    if twice := next((cell for cell in named if named.count(cell) > 1), ""):
        raise ValueError(f"two of its columns are called {twice!r}")
    more = ["the first, without a name"] * (not header[0]) + [cell for cell in named if cell not in COLUMNS]
    if more:  # pandas writes numbers of rows in a first column without a name
        index.left.append(Row(file, f"line {at} ({', '.join(more)[:80]})", "a column of no use here", 0))
    for number, cells in rows:
        place = f"line {number}"
        if not any(cells):
            index.left.append(Row(file, place, "an empty line"))
            continue
        cells = cells[: max(len(header), _last(cells))]
        with index.row(file, place):
            if not last <= len(cells) <= len(header):
                raise RowError(f"has {len(cells)} cells, the header {last}: is a separator in a text without quotes?")
            row = dict(zip(header, cells, strict=False))
            if lost := [cell for name, cell in list(zip(header, cells, strict=False))[1:] if cell and not name]:
                raise RowError(f"has {lost[0]!r} in a column without a name")
            if swallowed := next((line for cell in cells for line in cell.splitlines()[1:] if ROW.search(line)), ""):
                raise RowError(f"goes on with another row, {swallowed[:80]!r}: is a quotation mark left open?")
            check_name(row["image"])
            yield place, row["image"], row["caption"], about({k: row.get(k) or None for k in ("label", "split", "client")})


def _last(cells: list[str]) -> int:
    """How many cells there are up to the last that is not empty."""
    return max((i + 1 for i, cell in enumerate(cells) if cell), default=0)
