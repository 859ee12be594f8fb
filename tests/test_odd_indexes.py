"""Indexes that came from another machine, with letters that nobody sees, and beside files that are no index."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from ease_flwr.cli import app
from ease_flwr.config import UNSEEN, DataConfig, DataError, ForgetConfig
from ease_flwr.data import formats, photographs
from ease_flwr.data.entries import sentence, word
from tests.test_tables import MEANT, ROWS, meant, table, write


def test_names_may_be_paths_as_windows_writes_them(tmp_path):
    write(tmp_path, table([(f"images\\{name}", *row) for name, *row in ROWS]))
    assert meant(tmp_path) == {(f"images\\{name}", *more) for name, *more in MEANT}
    assert formats.check(str(tmp_path)).left == {}
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / "images\\a.png")  # here it is a letter like others
    assert meant(tmp_path) == {(f"images\\{name}", *more) for name, *more in MEANT}


def test_a_path_of_windows_leads_out_of_no_folder(tmp_path):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", table([("..\\a.png", "x", "", "train"), *ROWS]))
    (tmp_path / "a.png").write_bytes((tmp_path / "set" / "images" / "a.png").read_bytes())
    problems = formats.check(str(tmp_path / "set")).problems
    assert any("has filename '..\\\\a.png', expected one inside" in p for p in problems), problems


@pytest.mark.parametrize("name", ["dataset_description.json", "dataset_dict.json", "dataset_infos.json"])
def test_what_describes_a_set_is_no_index(tmp_path, name):
    write(tmp_path, table(ROWS))
    (tmp_path / name).write_text('{"Name": "a study"}')
    assert meant(tmp_path) == MEANT
    assert formats.check(str(tmp_path)).left == {"a file that is not read": [name]}


UNSEEN_TEXT = st.text(st.sampled_from(UNSEEN), max_size=4)


@given(UNSEEN_TEXT, st.sampled_from(["cat", "é", "C#", "क्ष\u200dण", "👩\u200d👧"]), UNSEEN_TEXT)
def test_labels_are_one_whatever_nobody_sees_around_them(before, label, behind):
    said = ForgetConfig(scenario="class", targets=(before + label + behind,))
    assert said.forget_sets()[0].targets == (word("label", label),) == (word("label", before + label + behind),)
    assert sentence(before + label + behind)
    assert sentence(before + behind) == ""


def test_a_class_is_withdrawn_with_all_its_pairs(tmp_path):
    """Marks of direction come with what is copied; a label that has one would stay when its class is withdrawn."""
    rows = [("d.png", "two", "cat\u200e", "train"), ("e.png", "x", "", "train"), ("f.png", "x", "", "train")]
    write(tmp_path, table([("a.png", "one", "cat", "train"), *rows, *ROWS[1:]]))
    for name, *_ in rows:
        (tmp_path / "images" / name).write_bytes((tmp_path / "images" / "a.png").read_bytes())
    world = photographs.load(DataConfig(root=str(tmp_path), clients=2, partition="iid"), 0)
    request = world.resolve(ForgetConfig(scenario="class", targets=("cat",)))
    assert sum(world.client(name).named(tuple(request.forget_sets())).sum() for name in world.clients) == 2


def test_a_caption_of_which_nothing_is_seen_is_none(tmp_path):
    write(tmp_path, table([("a.png", "\u200b\ufeff", "", "train"), *ROWS[1:]]))
    (problem,) = formats.check(str(tmp_path)).problems
    assert "(a.png) has no caption" in problem


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_labels_and_parts_in_files_know_names_in_either_spelling(tmp_path, form, other):
    """What a Mac lists and what a spreadsheet says."""
    names = [f"{letter}.png" for letter in "éüöñ"]
    rows = [(unicodedata.normalize(form, name), "x", "", "train") for name in names]
    write(tmp_path, table([*rows, *ROWS[1:]]))
    for name in names:
        (tmp_path / "images" / name).write_bytes((tmp_path / "images" / "a.png").read_bytes())
    listed = [unicodedata.normalize(other, name) for name in names]
    labels = {name: name[0] for name in [*listed, "b.png", "c.png"]}
    (tmp_path / "labels").write_text(json.dumps({"names": labels}))
    (tmp_path / "parts").write_text(json.dumps({"names": {"client-0": listed[:2], "client-1": listed[2:]}}))
    said = {"root": str(tmp_path), "clients": 2, "labels": str(tmp_path / "labels"), "parts": str(tmp_path / "parts")}
    world = photographs.load(DataConfig(**said, partition="file"), 0)
    assert [part.tolist() for part in world.parts] == [[0, 1], [2, 3]]
    assert all(e.label for e in world.splits["train"])
    (tmp_path / "labels").write_text(json.dumps({"names": labels | {name: "other" for name, *_ in rows}}))
    with pytest.raises(DataError, match=r"^data.labels: .* has an image twice, in spellings that look alike"):
        photographs.labelled(world.splits, said["labels"])


@pytest.mark.parametrize("typed", ["NFC", "NFD"])
@pytest.mark.parametrize("kept", ["NFC", "NFD"])
@pytest.mark.parametrize(("option", "word"), [("--label", "Müller"), ("--picture", "é.png"), ("--match", "GRÜN")])
def test_ids_are_found_in_whichever_spelling_they_are_looked_for(option, word, typed, kept, tmp_path):
    """Terminals and file systems write a letter with its accent as one or as two; they look alike."""
    rows = "image,caption,label,split\né.png,grün,Müller,train\n" + "".join(
        f"{s}.png,red,b,{s}\n" for s in ("train", "val", "test")
    )
    for name in ("é", "train", "val", "test"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{unicodedata.normalize(kept, name)}.png")
    (tmp_path / "captions.csv").write_text(unicodedata.normalize(kept, rows), encoding="utf-8")
    done = CliRunner().invoke(
        app, ["data", "ids", str(tmp_path), "--client", "x", option, unicodedata.normalize(typed, word), "--names"]
    )
    assert done.exit_code == 0, done.output
    assert unicodedata.normalize("NFC", done.stdout).splitlines()[0].endswith("  # é.png")
    assert len([line for line in done.stdout.splitlines() if line.startswith("x/id:")]) == 1
