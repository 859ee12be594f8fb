"""Folders of pictures and captions made up at random, for the fuzz driver and tests/test_reading.py.

Each target writes a folder and brings it, see `bring`: what `ease data check` accepts is decoded as training does, and what it
does not accept is refused at the start of a run, in one line.
"""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ease_flwr.config import DataConfig, DataError
from ease_flwr.data import formats, photographs
from tests.photographs import WRITERS, saved, write_layout

SPLITS = ("train", "val", "test")
ODD: dict[str, tuple[Any, ...]] = {
    "split": ("Train ", "TRAINING", "restval", "dev", "Validation", "testing", "base", "tset", "", None, 3, True),
    "label": ("a,b", "", " a", None, 1, 1.0, True, -0.0, 1e300, float("nan"), [], {}, "é", "a\nb", "\ud800", "x" * 500, 10**30),
    "client": ("north", "", None, 0, 2.5, False, [], "a/b", "\x7f"),
    "caption": (
        "",
        " ",
        'say "hi"',
        "a;b,c\td",
        "two\nlines",
        "狗",
        "שלום",
        "x\u2028y",
        "e\u0301",
        "x" * 3000,
        5,
        None,
        "\udc80",
    ),
    "name": ("a b.png", "a.b.c.png", "./p0.png", "sub/p.png", "../p.png", "/p.png", "", "p\n.png", "x" * 300, 7, None, "ä.PNG"),
}
"""What people write where others write train, a, a dog, p0.png."""


@lru_cache(maxsize=1)
def pool() -> dict[str, bytes]:
    """Pictures of many kinds; some are damaged."""
    values = np.arange(96).reshape(8, 12)
    plain = Image.fromarray(np.stack([values * 2, values[::-1], values], -1).astype(np.uint8))
    deep = {k: Image.fromarray(v) for k, v in (("I;16", values.astype("<u2") * 600), ("F", values / np.float32(95)))}
    found = {mode: saved(plain.convert(mode), "TIFF") for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr")}
    found |= {mode: saved(picture, "TIFF") for mode, picture in deep.items()}
    found |= {kind: saved(plain, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "JPEG2000")}
    found["turned"] = saved(plain, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")
    found["strip"], found["point"] = (saved(Image.new("RGB", size), "PNG") for size in ((1, 900), (1, 1)))
    return found


def content(rng: random.Random, odd: float) -> bytes:
    """The bytes of a picture; damaged with this chance."""
    found = bytearray(rng.choice([*pool().values()]))
    if rng.random() >= odd:
        return bytes(found)
    for _ in range(rng.choice((0, 1, 3))):
        found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found[: rng.choice((0, 9, len(found) // 2, len(found) - 2, len(found)))])


def bring(root: Path, rows: int = -1) -> str:
    """Check a folder and begin a run with it. Raises DataError where both refuse it, AssertionError where they do not agree.

    rows: how many its index has, where that is known.
    """
    config = DataConfig(root=str(root), memory=str(root.parent / "memory"), image_size=16)
    refused: DataError | None = None
    try:
        found = formats.check(str(root))
        refusals, counts = found.problems, {s: found.counts[s] for s in SPLITS}
        if rows >= 0 and not any("not such an index" in p for p in refusals):
            assert found.totals["read"] == rows, (found, rows)
    except DataError as error:
        refusals, counts = [str(error)], {}
    try:
        world = photographs.Photographs(config, 0, formats.read_index(str(root)))
        world.prove(lambda line: None)
    except DataError as error:
        refused = error
    assert bool(refused) == bool(refusals), f"a run says {refused}, the check {refusals}"
    assert not any(letter in line for line in (str(refused), *refusals) for letter in "\r\n"), refusals
    if refused:
        raise refused
    read = {s: world.read(s, np.arange(len(entries))) for s, entries in world.splits.items() if s in SPLITS}
    assert {s: len(pairs) for s, pairs in read.items()} == counts
    assert all(c == " ".join(c.split()) and c for pairs in read.values() for said in pairs.captions for c in said)
    return f"accepted: {counts}"


def made_up(rng: random.Random, root: Path, odd: float) -> list[dict[str, Any]]:
    """Rows of an index whose pictures are written, odd in each of their parts with this chance."""
    (root / "images" / "sub").mkdir(parents=True)
    rows = []
    for i in range(rng.randrange(4, 9)):
        row = {"split": SPLITS[i % 3], "label": rng.choice("ab"), "client": "", "caption": f"picture {i}", "name": f"p{i}.png"}
        row |= {key: rng.choice(values) for key, values in ODD.items() if rng.random() < odd}
        name = row["name"] if isinstance(row["name"], str) else "p.png"
        if 0 < len(name) < 250 and not name.startswith(("/", "..")) and rng.random() >= odd / 2:
            (root / "images" / name).write_bytes(content(rng, odd / 2))
        rows.append(row)
    return rows


def rarely(rng: random.Random) -> float:
    """How often something is odd in one try."""
    return rng.choice((0, 0.03, 0.2))


def rows_of_json(rng: random.Random, folder: Path) -> str:
    """captions.json with odd values."""
    root, odd = folder / "set", rarely(rng)
    rows: list[Any] = [
        {"image": r.pop("name"), "captions": [r.pop("caption")] + ["", "more"] * (rng.random() < odd), **r}
        for r in made_up(rng, root, odd)
    ]
    if rng.random() < odd:
        rows.append(rng.choice((*rows, 3, [], None, {"image": "p0.png"}, {**rows[0], "split": "test"})))
    for row in rows:
        if isinstance(row, dict) and rng.random() < odd / 2:
            row.pop(rng.choice([*row]), None)
    (root / "captions.json").write_text(json.dumps(rows), encoding="utf-8")
    return bring(root, len(rows))


def lines_of_a_table(rng: random.Random, folder: Path) -> str:
    """captions.csv as spreadsheets and scripts write it."""
    root, odd = folder / "set", rarely(rng)
    rows = [{k: "" if v is None else str(v) for k, v in r.items()} for r in made_up(rng, root, odd)]
    rows += [{**rows[0], "caption": rng.choice((rows[0]["caption"], "more"))}] * rng.randrange(3)
    heads = [("image", "name"), ("caption", "caption"), ("label", "label"), ("split", "split"), ("client", "client")]
    rng.shuffle(heads)
    spelled = [rng.choice((head, head.title(), f" {head} ", head.upper())) for head, _ in heads]
    more = [""] * rng.choice((0, 0, 2))
    out = io.StringIO(newline="")
    end = rng.choice(("\n", "\r\n", "\r"))
    quoting = csv.QUOTE_ALL if end == "\r" else rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    table = csv.writer(out, quoting=quoting, delimiter=rng.choice(",;\t"), lineterminator=end)
    table.writerow([*spelled, *more])
    table.writerows([*(row[key] for _, key in heads), *more] for row in rows)
    text = out.getvalue()
    if rng.random() < odd:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(('"', ",", ";", "\n", "\0", "é")) + text[at + rng.randrange(2) :]
        rows_known = -1
    else:
        rows_known = len(rows)
    encoding = (
        rng.choice(("utf-8", "utf-8-sig", "utf-16")) if rng.random() >= odd else rng.choice(("utf-16-le", "cp1252", "utf-32"))
    )
    (root / "captions.csv").write_bytes(text.encode(encoding, "replace"))
    return bring(root, rows_known)


def members_of_a_shard(rng: random.Random, folder: Path) -> str:
    """A shard as tools and people pack it."""
    root, odd = folder / "set", rarely(rng)
    root.mkdir()
    members: list[tuple[str, bytes]] = []
    for i in range(rng.randrange(4, 9)):
        key = rng.choice((f"scan.{i:03}", f"{i}", f"./in/{i}", f"a b.{i}"))
        said = {"caption": f"picture {i}", "split": SPLITS[i % 3], "label": "a"}
        said |= {k: rng.choice(ODD[k]) for k in said if rng.random() < odd}
        ending = rng.choice(("jpg", "PNG", "tiff", "webp"))
        parts = [(f"{key}.{ending}", content(rng, odd / 2)), (f"{key}.json", json.dumps(said).encode())]
        if rng.random() < 0.5:
            parts.append((f"{key}.txt", rng.choice((f"picture {i}\n\nmore", "é")).encode(rng.choice(("utf-8", "utf-8-sig")))))
        if rng.random() < odd:
            parts.append(
                (rng.choice((f"{key}.seg.png", f"{key}.cls", f"{key}.JSON", f"._{i}.jpg", f"{key}.jpg", "alone.txt")), b"1")
            )
        members += [p for p in parts if rng.random() >= odd / 4]
    packed = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(root / "shard.tar", "w", format=packed) as tar:
        for name, inside in members:
            info = tarfile.TarInfo(name)
            info.size = len(inside)
            tar.addfile(info, io.BytesIO(inside))
    if rng.random() < odd:
        (root / "shard.tar").write_bytes((root / "shard.tar").read_bytes()[: rng.randrange(9000)])
        return bring(root)
    return bring(root, len(members))


def bytes_of_an_index(rng: random.Random, folder: Path) -> str:
    """An index of any layout in which some bytes are others, or are gone."""
    root, layout = folder / "set", rng.choice([*WRITERS])
    write_layout(layout, root)
    file = rng.choice([f for pattern in ("*.json", "*.csv", "*.tar") for f in sorted(root.glob(pattern))])
    found = bytearray(file.read_bytes())
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(found))
        if rng.random() < 0.5:
            found[at] = rng.randrange(256)
        else:
            del found[at : at + rng.choice((1, 1, 512))]
    file.write_bytes(found)
    return f"{layout}: {bring(root)}"


def bytes_of_pictures(rng: random.Random, folder: Path) -> str:
    """A good index whose pictures are damaged, of any kind."""
    root = folder / "set"
    rows = made_up(rng, root, 0)
    for row in rows:
        (root / "images" / row["name"]).write_bytes(content(rng, 0.3))
    table = [{"image": r["name"], "captions": [r["caption"]], "split": r["split"]} for r in rows]
    (root / "captions.json").write_text(json.dumps(table), encoding="utf-8")
    return bring(root, len(rows))


TARGETS: dict[str, Callable[[random.Random, Path], str]] = {
    "rows of JSON": rows_of_json,
    "lines of a table": lines_of_a_table,
    "members of a shard": members_of_a_shard,
    "bytes of an index": bytes_of_an_index,
    "bytes of pictures": bytes_of_pictures,
}
