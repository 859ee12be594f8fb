"""Indexes as spreadsheets, scripts and download tools write them say what was meant."""

import csv
import io
import json
import shutil
import tarfile
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from ease_flwr.cli import app
from ease_flwr.config import DataConfig, DataError, ForgetConfig
from ease_flwr.data import formats, photographs
from ease_flwr.data.entries import RowError, about, word
from ease_flwr.data.shards import split_of
from ease_flwr.data.tables import json_of, text_of
from tests.photographs import write_layout

ROWS = [("a.png", 'a "dog", running; fast', "ä", "train"), ("b.png", "two\nlines", "3", "val"), ("c.png", "a cat", "", "test")]
MEANT = {("a.png", ('a "dog", running; fast',), "ä"), ("b.png", ("two lines",), "3"), ("c.png", ("a cat",), "")}


def write(root, text, encoding="utf-8"):
    (root / "images").mkdir(exist_ok=True)
    for name, *_ in ROWS:
        Image.new("RGB", (4, 4)).save(root / "images" / name)
    (root / "captions.csv").write_bytes(text.encode(encoding))


def table(rows, header=("image", "caption", "label", "split"), **how):
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL, **how).writerows([header, *rows])
    return out.getvalue()


def meant(root):
    found = formats.check(str(root))
    assert found.problems == []
    return {(e.name, e.captions, e.label) for entries in formats.read_index(str(root)).values() for e in entries}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_spreadsheets_say_the_same(tmp_path, encoding, separator, end):
    write(tmp_path, table(ROWS, delimiter=separator, lineterminator=end), encoding)
    assert meant(tmp_path) == MEANT


@pytest.mark.parametrize("header", [("Image", "CAPTION", "Label", "split "), (" image", " caption\u00a0", "label", "SPLIT")])
def test_headers_are_read_in_any_spelling(tmp_path, header):
    write(tmp_path, table(ROWS, header))
    assert meant(tmp_path) == MEANT


def test_columns_have_any_order_and_empty_ones_are_nothing(tmp_path):
    write(
        tmp_path,
        "sep=;\n\n"
        + table([(*reversed(r), "", "") for r in ROWS], ("split", "label", "caption", "image", "", ""), delimiter=";"),
    )
    assert meant(tmp_path) == MEANT


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    """A cell of two lines moves the numbers of those that follow."""
    write(tmp_path, table([*ROWS, ("d.png", "one", "", "test")]))
    (problem,) = formats.check(str(tmp_path)).problems
    assert problem.endswith("d.png is named in " + f"{tmp_path}/captions.csv: line 6 but is not there")


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_text_comes_back_in_every_encoding_that_is_read(text, encoding):
    assert text_of(("x" + text).encode(encoding)) == "x" + text


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers()), max_size=5), st.integers(0, 2))
def test_an_object_is_read_whole_or_not_at_all(pairs, depth):
    """json keeps the last value of a key alone."""
    text = "{" + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}"
    text = '[{"x": ' * depth + text + "}]" * depth
    if len(dict(pairs)) == len(pairs):
        assert json_of(text) == json.loads(text)
    else:
        with pytest.raises(ValueError, match=r"^'[abcd]' stands twice in one object$"):
            json_of(text)


def test_other_encodings_are_said_by_line_and_byte():
    with pytest.raises(
        ValueError, match=r"line 3 has the byte 0xe9, which is no UTF-8 \('é' in Windows-1252\): save it as UTF-8"
    ):
        text_of("image\na\ncafé\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"it has zero bytes, as UTF-16 without its mark has: save it as UTF-8"):
        text_of("image".encode("utf-16-be"))
    with pytest.raises(ValueError, match=r"it is a workbook of a spreadsheet, or another zip file: save it as text"):
        text_of(b"PK\3\4" + bytes(30))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("", ""),
        (" a ", "a"),
        (3, "3"),
        (1.0, "1.0"),
        (True, "true"),
        (False, "false"),
        (-0.5, "-0.5"),
        (10**400, "1" + "0" * 400),
    ],
)
def test_labels_of_any_type_are_text(value, text):
    assert word("label", value) == text
    assert about({"label": value}).label == text


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "NaN"), (["a"], '["a"]'), ({}, "{}"), ("a\tb", r"'a\tb'")])
def test_what_is_no_label_is_said(value, said):
    with pytest.raises(RowError) as error:
        word("label", value)
    assert str(error.value).startswith(f"has label {said}, expected ")


@pytest.mark.parametrize(
    ("split", "spelled"),
    [("train", ["Train", " TRAINING", "restval"]), ("val", ["dev", "Validation", "VALID"]), ("test", ["Testing", "test "])],
)
def test_splits_are_read_in_the_spellings_people_use(split, spelled):
    for text in spelled:
        assert about({"split": text}).split == split
        assert split_of(f"set_{text.strip()}-00000") == split
    assert about({"split": "tset"}).split == "tset"  # is left out by name
    assert split_of("valley-00000") == split_of("train-or-test") == split_of("00000") == ""


def test_a_label_may_be_said_once_for_a_picture(tmp_path):
    rows = [("a.png", "one", "", "train"), ("a.png", "two", "x", ""), ("b.png", "a", "", "val"), ("c.png", "a", "", "test")]
    write(tmp_path, table(rows))
    assert ("a.png", ("one", "two"), "x") in meant(tmp_path)


def test_labels_of_a_file_are_of_any_type_too(tmp_path):
    write(tmp_path, table(ROWS))
    splits = formats.read_index(str(tmp_path))
    (tmp_path / "labels.json").write_text(
        json.dumps({"names": {"a.png": 1.0, "b.png": None, "c.png": "x"}}), encoding="utf-8-sig"
    )
    found = photographs.labelled(splits, str(tmp_path / "labels.json"))
    assert [e.label for s in ("train", "val", "test") for e in found[s]] == ["1.0", "", "x"]
    (tmp_path / "labels.json").write_text(json.dumps({"names": {"a.png": [], "b.png": None, "c.png": "x"}}))
    with pytest.raises(DataError, match=r"labels.json: an image has label \[\], expected text or a number"):
        photographs.labelled(splits, str(tmp_path / "labels.json"))


@pytest.mark.parametrize("first", ["", "Unnamed: 0"])
def test_numbers_of_rows_as_pandas_writes_them_are_left_out(tmp_path, first):
    write(tmp_path, table([(i, *row) for i, row in enumerate(ROWS)], (first, "image", "caption", "label", "split")))
    assert meant(tmp_path) == MEANT
    assert list(formats.check(str(tmp_path)).left) == ["a column of no use here"]


def test_names_may_be_paths_from_where_the_index_is(tmp_path):
    write(tmp_path, table([(f"images/{name}", *row) for name, *row in ROWS]))
    assert meant(tmp_path) == {(f"images/{name}", *more) for name, *more in MEANT}
    assert formats.check(str(tmp_path)).left == {}


def test_a_folder_may_be_named_from_another(tmp_path):
    write(tmp_path, table(ROWS))
    assert meant(tmp_path / "images" / "..") == MEANT


def test_a_name_means_one_picture_whatever_its_folder_is(tmp_path):
    """Labels, parts and requests say names: of two pictures of one name, one would get what was meant for the other."""
    write_layout("coco", tmp_path)
    index = json.loads((tmp_path / "dataset_coco.json").read_text())
    index["images"].append({**index["images"][0], "filepath": "val2014"})
    (tmp_path / "dataset_coco.json").write_text(json.dumps(index))
    shutil.copy(tmp_path / "train2014" / "train-0.jpg", tmp_path / "val2014")
    (problem,) = formats.check(str(tmp_path)).problems
    assert "images[20]: train-0.jpg is named twice, also in " in problem


def test_a_picture_is_asked_for_as_it_is_called(tmp_path):
    write(tmp_path, table([("a[1].png", "one", "", "train"), *ROWS]))
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a[1].png")
    done = CliRunner().invoke(app, ["data", "ids", str(tmp_path), "--client", "x", "--picture", "a[1].png", "--names"])
    assert done.output.splitlines()[0].endswith("  # a[1].png")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("image", [0, 2])
def test_a_quotation_mark_that_is_left_open_swallows_no_row(tmp_path, separator, image):
    """It ends at the next one, rows later: those between were one caption, and nobody missed them."""
    rows = [["a.png", '"one', "train"], ["b.png", "two", "val"], ["c.png", 'three"', "test"], ["a.png", "x", "train"]]
    order = sorted(range(3), key=lambda i: (i != 1, i) if image else (i, i))  # the picture first or last
    write(tmp_path, "\n".join(separator.join(r[i] for i in order) for r in [["image", "caption", "split"], *rows]))
    found = formats.check(str(tmp_path))
    assert [
        p for p in found.problems if "line 2 goes on with another row, " in p and p.endswith("is a quotation mark left open?")
    ]


SPELLED = [unicodedata.normalize(form, "caf\u00e9 \u30ac") for form in ("NFC", "NFD")]


@pytest.mark.parametrize("there", SPELLED)
@pytest.mark.parametrize("said", SPELLED)
@pytest.mark.parametrize("asked", SPELLED)
def test_spellings_that_look_alike_are_one(tmp_path, there, said, asked):
    """A Mac takes the name of a file apart, a keyboard puts it together."""
    write(tmp_path, "")
    for name in (there, "d", "e", "f"):
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{name}.png")
    rows = [(f"{said}.png", "one", said, "train"), ("a.png", "x", there, "train"), ("d.png", "x", "", "train")]
    rows += [("e.png", "x", "", "train"), ("b.png", "x", "", "val"), ("c.png", "x", "", "test")]
    write(tmp_path, table(rows))
    world = photographs.load(DataConfig(root=str(tmp_path), clients=2, partition="iid"), 0)
    clients = [world.client(name) for name in world.clients]
    assert sum(len(client.find(f"{asked}.png")) for client in clients) == 1
    request = world.resolve(ForgetConfig(scenario="class", targets=(asked,)))
    assert sum(client.named(tuple(request.forget_sets())).sum() for client in clients) == 2


# ---- shards ----------------------------------------------------------------------------------------------------------------


def shard(file, members):
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_keys_with_dots_and_texts_of_download_tools(tmp_path):
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "JPEG")
    said = {"caption": "a  dog", "url": "https://example.org", "status": "success", "label": None}
    for split in ("train", "val", "test"):
        members = {f"scan.{split}.000.JPG": out.getvalue(), f"scan.{split}.000.TXT": b"a dog\n\nit runs\n"}
        members |= {f"scan.{split}.000.json": json.dumps(said).encode(), f"scan.{split}.001.jpg": out.getvalue()}
        members |= {f"scan.{split}.001.json": json.dumps({**said, "caption": None, "captions": ["one"]}).encode()}
        members |= {f"scan.{split}.002.jpg": out.getvalue()}
        members |= {f"scan.{split}.002.json": json.dumps({"caption": "one", "captions": ["two", "three"]}).encode()}
        shard(tmp_path / f"{split}-00000.tar", members)
    found = formats.read_index(str(tmp_path))
    assert [e.captions for e in found["val"]] == [("a dog", "it runs"), ("one",), ("two", "three", "one")]
    assert formats.check(str(tmp_path)).totals == {"read": 21, "used": 21, "left out": 0, "wrong": 0}


@pytest.mark.parametrize(
    ("text", "caption", "captions"),
    [
        ("a dog\nruns  far", "a dog\nruns  far", ("a dog runs far",)),  # one alternative text of a web page
        ("a dog\r\nruns far\r\n", None, ("a dog", "runs far")),
        ("a dog\nruns", "it runs", ("a dog", "runs", "it runs")),
        ("a dog\u2028runs\x85far\x0c", None, ("a dog runs far",)),
    ],
)
def test_a_caption_of_several_lines_is_one_where_its_json_says_so(tmp_path, text, caption, captions):
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "JPEG")
    members = {"a.jpg": out.getvalue(), "a.txt": text.encode(), "a.json": json.dumps({"caption": caption}).encode()}
    shard(tmp_path / "train-00000.tar", members)
    assert [e.captions for e in formats.read_entries(str(tmp_path))] == [captions]


def test_a_shard_without_files_is_named(tmp_path):
    write_layout("webdataset", tmp_path)
    shard(tmp_path / "train-00002.tar", {})  # or one whose room was taken before it was fetched
    (tmp_path / "dataset_infos.json").write_text("{}")
    found = formats.check(str(tmp_path))
    assert found.left["a shard without files"] == ["train-00002.tar: all of it"]
    assert found.left["a file that is not read"] == ["dataset_infos.json"]  # of the hub that the set came from, no index
    assert found.problems == []


@pytest.mark.parametrize("names", [("dataset_flickr8k.json", "dataset_coco.json"), ("dataset.json", "captions.json", "x.tar")])
def test_of_several_indexes_all_are_said(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"more than one index \(.*\): keep one there, move the others away") as error:
        formats.read_index(str(tmp_path))
    assert all(name in str(error.value) for name in names)
