"""`ease data check` names every damage, file and row, and accounts for every row; a run refuses what it names."""

import re

import pytest
from typer.testing import CliRunner

from ease_flwr.cli import app
from ease_flwr.config import DataConfig, DataError
from ease_flwr.data import formats, photographs
from tests.damage import DAMAGES
from tests.photographs import WRITERS, write_layout


def check(root):
    return CliRunner().invoke(app, ["data", "check", str(root), "--all"])


def start(root):
    """What a run does with a folder before it learns."""
    world = photographs.Photographs(DataConfig(root=str(root)), 0, formats.read_index(str(root)))
    world.prove(lambda line: None)


def test_there_are_forty_kinds_of_damage():
    assert sum(not d.left for d in DAMAGES.values()) >= 40


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_with_file_and_row(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    damage, root = DAMAGES[kind], tmp_path / "set"
    write_layout(damage.layout, root)
    damage.act(root)
    done = check(root)
    assert done.exit_code in ((0,) if damage.left else (1, 2)), done.output  # 2: there is no index to look at
    assert [line for line in done.output.splitlines() if re.search(damage.says, line)], done.output
    if damage.left:
        start(root)
        return
    with pytest.raises(DataError) as error:
        start(root)
    assert re.search(damage.says, str(error.value)), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", WRITERS)
def test_every_row_is_accounted_for(tmp_path, layout):
    write_layout(layout, tmp_path)
    rows = {"csv": 40, "textcaps": 32, "webdataset": 40}.get(layout, 20)
    found = formats.check(str(tmp_path))
    assert found.totals == {"read": rows, "used": rows, "left out": 0, "wrong": 0}
    assert found.left == {}


def test_the_first_twenty_of_many_are_shown(tmp_path):
    write_layout("csv", tmp_path)
    for file in (tmp_path / "images").iterdir():
        file.write_bytes(b"")
    (tmp_path / "images" / "more.png").touch()
    done = CliRunner().invoke(app, ["data", "check", str(tmp_path)])
    assert done.output.count("image cannot be read") == 20
    assert "rows: 40 read, 0 used, 0 left out, 40 wrong" in done.output
    (tmp_path / "captions.csv").write_text("image,caption,split\n" + "".join(f"{i}.jpg,x,test\n" for i in range(25)))
    done = CliRunner().invoke(app, ["data", "check", str(tmp_path)])
    assert "ease data check: 27 problems, the first 20 are above, --all names the others" in done.output
    assert len(check(tmp_path).output.splitlines()) == len(done.output.splitlines()) + 7
