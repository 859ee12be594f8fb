"""What people's folders suffer: each kind damages a good one, and says what `ease data check` must name: file and row."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.photographs import bomb, saved


@dataclass(frozen=True)
class Damage:
    layout: str
    act: Callable[[Path], object]
    says: str
    """Pattern of the problem, or of what is left out."""
    left: bool = False
    """Whether it is left out by name, and the rest is used."""


# ---- how a file, a row, a line or a member is changed ------------------------------------------------------------------


def picture(name, change):
    """A picture of images/ in captions.json becomes what `change` makes of its bytes."""

    def act(root):
        file = root / "images" / name
        file.write_bytes(change(file.read_bytes()))

    return act


def becomes(name, how):
    def act(root):
        (root / "images" / name).unlink()
        how(root / "images" / name)

    return act


def rows(change, index="captions.json", key=None):
    """The rows of a JSON index are changed in place."""

    def act(root):
        said = json.loads((root / index).read_text())
        change(said[key] if key else said)
        (root / index).write_text(json.dumps(said))

    return act


def third(**values):
    def change(said):
        said[2].update(values)

    return rows(change)


def again(**values):
    return rows(lambda said: said.append({**said[2], **values}))


def table(change):
    """The lines of captions.csv become others."""

    def act(root):
        said = (root / "captions.csv").read_bytes().decode().splitlines()
        found = change(said)
        (root / "captions.csv").write_bytes(found if isinstance(found, bytes) else "\n".join([*found, ""]).encode())

    return act


def line(number, text):
    """A line of captions.csv, from 1, becomes another."""
    return table(lambda said: [*said[: number - 1], text, *said[number:]])


def members(change, shard="train-00000.tar"):
    """The members of a shard, names and bytes, become others; None is a link."""

    def act(root):
        with tarfile.open(root / shard) as tar:
            found = [(m.name, tar.extractfile(m).read()) for m in tar]
        with tarfile.open(root / shard, "w") as tar:
            for name, content in change(found):
                info = tarfile.TarInfo(name)
                if content is None:
                    info.type, info.linkname = tarfile.LNKTYPE, found[0][0]
                    tar.addfile(info)
                else:
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))

    return act


def second(content, shard="train-00000.tar"):
    """The second member of a shard becomes these bytes."""
    return members(lambda found: [found[0], (found[1][0], content), *found[2:]], shard)


def added(name, content):
    return members(lambda found: [*found, (name, content)])


def cut(shard, at):
    return lambda root: os.truncate(root / shard, at)


def copied(shard, to):
    return lambda root: (root / to).write_bytes((root / shard).read_bytes())


def joined(root):
    file = root / "train-00000.tar"
    file.write_bytes(file.read_bytes() + (root / "val-00000.tar").read_bytes())


NAN = saved(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")
PNG = saved(Image.new("RGB", (40, 40), "red"), "PNG")
BROKEN = PNG[:60] + bytes(20) + PNG[80:]
HTML = b"<html><body>404 Not Found</body></html>"
TEXTCAPS = {"data": [{"image_id": "x", "image_classes": []}] * 3}

DAMAGES = {
    # pictures, in every split
    "a picture of train is cut": Damage("json", picture("train-3.jpg", lambda b: b[:-300]), r"train-3.jpg: .*runcated.*\[3\]"),
    "a picture of val is cut": Damage("json", picture("val-1.jpg", lambda b: b[:-300]), r"val-1.jpg: .*runcated.*\[13\]"),
    "a picture of test is cut": Damage("json", picture("test-3.jpg", lambda b: b[:-300]), r"test-3.jpg: .*runcated.*\[19\]"),
    "a picture is empty": Damage("json", picture("train-3.jpg", lambda b: b""), r"train-3.jpg: .*\(it is empty; .*\[3\]"),
    "a picture is a page": Damage("json", picture("train-3.jpg", lambda b: HTML), r"train-3.jpg: .*it is no picture.*\[3\]"),
    "a picture is DICOM": Damage(
        "json", picture("val-1.jpg", lambda b: bytes(128) + b"DICM"), r"val-1.jpg: .*a DICOM file.*\[13\]"
    ),
    "a picture is HEIC": Damage(
        "json", picture("train-3.jpg", lambda b: b"\0\0\0\x18ftypheic"), r"a HEIC picture, export.*\[3\]"
    ),
    "a picture is a pointer": Damage(
        "json", picture("train-3.jpg", lambda b: b"version https://git-lfs.github.com/spec/v1"), r"Git LFS.*\[3\]"
    ),
    "a picture is a bomb": Damage("json", picture("test-3.jpg", lambda b: bomb()), r"test-3.jpg: .*80 million pixels.*\[19\]"),
    "a PNG is broken inside": Damage(
        "json", picture("train-3.jpg", lambda b: BROKEN), r"train-3.jpg: image cannot be read.*\[3\]"
    ),
    "a picture has no number": Damage("json", picture("train-3.jpg", lambda b: NAN), r"none of its pixels is a number.*\[3\]"),
    "a picture is missing": Damage(
        "json", becomes("train-3.jpg", lambda f: None), r"train-3.jpg is named in .*\[3\] but is not"
    ),
    "a picture is a folder": Damage("json", becomes("train-3.jpg", Path.mkdir), r"train-3.jpg is named in .*\[3\] but is not"),
    "a link leads nowhere": Damage(
        "json", becomes("val-1.jpg", lambda f: f.symlink_to("x")), r"is named in .*\[13\] but is not"
    ),
    "a name is too long": Damage("json", third(image="x" * 300), r"x is named in .*captions.json: \[2\] but is not there"),
    # rows of JSON
    "a label is a list": Damage(
        "json", third(label=["a"]), r"captions.json: \[2\] has label \[\"a\"\], expected text or a number"
    ),
    "a label is no number": Damage("json", third(label=float("nan")), r"\[2\] has label NaN, expected text or a number"),
    "a label has two lines": Damage("json", third(label="a\nb"), r"\[2\] has label 'a\\nb', expected one line"),
    "a split is a number": Damage("json", third(split=3), r"\[2\] has split 3, expected text, or null"),
    "a client is an object": Damage("json", third(client={}), r"\[2\] has client {}, expected text or a number"),
    "a picture is in two splits": Damage(
        "json", again(split="test"), r"\[20\]: train-2.jpg is named .*\[2\] \(split 'test' here"
    ),
    "a picture has two labels": Damage(
        "json", again(label="z"), r"\[20\]: train-2.jpg is named .*\[2\] \(label 'z' here, 'c' there"
    ),
    "captions are one text": Damage(
        "json", third(captions="one"), r"captions.json: \[2\] has captions \"one\", expected a list"
    ),
    "captions are blank": Damage("json", third(captions=[" ", ""]), r"captions.json: \[2\] \(train-2.jpg\) has no caption"),
    "a caption is a number": Damage("json", third(captions=[1]), r"captions.json: \[2\] has captions that are no list"),
    "a caption is half a letter": Damage("json", third(captions=["\ud83d"]), r"\[2\] has a caption with half a letter"),
    "a row is no object": Damage(
        "json", rows(lambda said: said.insert(2, 7)), r"captions.json: \[2\] is 7, expected an object"
    ),
    "a row names no picture": Damage("json", rows(lambda said: said[2].pop("image")), r"\[2\] has no 'image', but 'captions'"),
    "a name leads out": Damage("json", third(image="../../a.jpg"), r"\[2\] has filename '../../a.jpg', expected one inside"),
    "a name has two lines": Damage("json", third(image="a\nb.jpg"), r"captions.json: \[2\] has filename 'a\\nb.jpg'"),
    "the index is cut": Damage(
        "json", lambda root: os.truncate(root / "captions.json", 300), r"captions.json: not such an index"
    ),
    "the index nests": Damage(
        "json", lambda root: (root / "captions.json").write_text("[" * 10**5), r"captions.json: not such an i"
    ),
    "no picture of test": Damage("json", rows(lambda said: said.__delitem__(slice(16, 20))), r"no image of split 'test'"),
    "two kinds of index": Damage(
        "json", lambda root: (root / "captions.csv").touch(), r"\(captions.json, captions.csv\): keep one"
    ),
    # lines of a table
    "a comma without quotes": Damage("csv", line(4, "train-1.jpg,a dog, running,b,train"), r"line 4 has 5 cells, the header 4"),
    "a line is short": Damage("csv", line(4, "train-1.jpg,a dog"), r"captions.csv: line 4 has 2 cells, the header 4"),
    "a quote is left open": Damage(
        "csv", line(4, 'train-1.jpg,"a dog,b,train'), r"line 4: unexpected end of data: is a quotation"
    ),
    "a line names no picture": Damage("csv", line(4, ",a dog,b,train"), r"captions.csv: line 4 has filename ''"),
    "lines say two labels": Damage(
        "csv", line(3, "train-0.jpg,x,z,train"), r"line 3 has another label for train-0.jpg than line 2"
    ),
    "lines say two splits": Damage(
        "csv", line(3, "train-0.jpg,x,a,dev"), r"line 3 has another split for train-0.jpg than line 2"
    ),
    "a column is missing": Damage(
        "csv", line(1, "image,words,label,split"), r"columns are 'image', 'words', 'label', 'split', exp"
    ),
    "a column is there twice": Damage(
        "csv", line(1, "image,caption,caption,split"), r"two of its columns are called 'caption'"
    ),
    "a table in Windows-1252": Damage(
        "csv", table(lambda s: "\n".join([*s, "a,café"]).encode("cp1252")), r"line 42 has .*'é' in Win"
    ),
    "UTF-16 without its mark": Damage("csv", table(lambda s: "\n".join(s).encode("utf-16-le")), r"has zero bytes, as UTF-16"),
    "UTF-16 is cut": Damage("csv", table(lambda s: "\n".join(s).encode("utf-16")[:-1]), r"begins as UTF-16 and is damaged"),
    # shards
    "a shard is cut in a member": Damage("webdataset", cut("train-00000.tar", 5000), r"train-00000.tar: not such an index"),
    "a shard is cut at a member": Damage("webdataset", cut("train-00000.tar", 2560), r"train-00000.tar: .*it was cut"),
    "a shard is gzipped": Damage(
        "webdataset", lambda root: (root / "val-00000.tar").write_bytes(b"\x1f\x8b\x08"), r"val-00000.tar: .*compressed"
    ),
    "a shard goes on": Damage("webdataset", joined, r"train-00000.tar: .*it goes on behind its end"),
    "a shard is packed": Damage(
        "webdataset", copied("val-00000.tar", "val-00001.tar.gz"), r"not read.*val-00001.tar.gz", left=True
    ),
    "a shard is there twice": Damage(
        "webdataset", copied("val-00000.tar", "val-1.tar"), r"val-1.tar: member 1: val-0.jpg is named"
    ),
    "a text is no UTF-8": Damage(
        "webdataset", second(b"\xe9", "val-00000.tar"), r"member 2 \('val-0.txt'\): line 1 has the byte 0xe9"
    ),
    "a member is no JSON": Damage("webdataset", second(b"{"), r"member 2 \('train-0.json'\), whose JSON cannot be read"),
    "a member says a key twice": Damage(
        "webdataset", second(b'{"a": 1, "a": 2}'), r"member 2 \('train-0.json'\), whose .*'a' stands twice in one object"
    ),
    "a picture has no captions": Damage(
        "webdataset", added("x.jpg", PNG), r"train-00000.tar: member 13 \(x.jpg\) has no caption"
    ),
    "captions have no picture": Damage(
        "webdataset", added("x.json", b"{}"), r"member 13 \('x.json'\) has captions and no image"
    ),
    "a key has two pictures": Damage("webdataset", added("train-0.png", PNG), r"has two images, the other is member 13"),
    "a member is a link": Damage("webdataset", added("x.jpg", None), r"member 13 \('x.jpg'\) is a link: pack the files"),
    "a picture in a shard is cut": Damage(
        "webdataset",
        members(lambda f: [(f[0][0], f[0][1][:300]), *f[1:]], "test-00000.tar"),
        r"test-00000.tar: member 1 \(test-0.jpg\): image cannot be read",
    ),
    # published sets
    "several published indexes": Damage(
        "flickr8k", copied("dataset_flickr8k.json", "dataset_coco.json"), r"dataset_coco.json, dataset_fl"
    ),
    "a published row is broken": Damage(
        "coco", rows(lambda s: s[5].pop("sentences"), "dataset_coco.json", "images"), r"images\[5\] has no 'sentences'"
    ),
    "two versions of a part": Damage(
        "textcaps", copied("TextCaps_0.1_val.json", "TextCaps_0.2_val.json"), r"TextCaps_0.1_val.json, TextCaps"
    ),
    # left out by name
    "a split that no run uses": Damage("json", third(split="base"), r"split 'base', which no run uses.*: \[2\]", left=True),
    "a blank caption": Damage("json", third(captions=["one", " "]), r"a blank caption among others.*: \[2\]", left=True),
    "an empty line": Damage("csv", line(42, " ,, ,"), r"an empty line.*captions.csv: line 42", left=True),
    "a line twice": Damage(
        "csv", table(lambda said: [*said, said[1]]), r"the same line again.*captions.csv: line 42", left=True
    ),
    "a column of notes": Damage(
        "csv",
        table(lambda said: [said[0] + ",notes", *(s + ",x" for s in said[1:])]),
        r"of no use here.*line 1 \(notes",
        left=True,
    ),
    "a class beside a picture": Damage(
        "webdataset", added("train-0.cls", b"3"), r"no picture, .txt or .json.*member 13", left=True
    ),
    "a second part of a sample": Damage(
        "webdataset", added("train-0.seg.png", PNG), r"another part of a sample.*member 13", left=True
    ),
    "a Mac's notes in a shard": Damage("webdataset", added("._train-0.jpg", b"x"), r"a hidden file.*member 13", left=True),
    "a Mac's notes about a shard": Damage(
        "webdataset", lambda root: (root / "._val-00000.tar").write_bytes(b"x"), r"._val-00000.tar", left=True
    ),
    "a picture of nobody": Damage(
        "json", lambda root: (root / "images" / "x.png").write_bytes(PNG), r"that no row names.*x.png", left=True
    ),
    "a part without captions": Damage(
        "textcaps",
        lambda root: (root / "TextCaps_0.1_test.json").write_text(json.dumps(TEXTCAPS)),
        r"a part without captions.*data\[0\] to data\[2\]",
        left=True,
    ),
}
