"""What `ease data check` accepts a run decodes, with the same function; what it does not accept no run begins with."""

import json
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz_indexes import TARGETS
from ease_flwr import data
from ease_flwr.config import ConfigError, DataConfig, DataError
from ease_flwr.data import folder as hosts_data
from ease_flwr.data import formats, photographs, pictures
from ease_flwr.exchange.messages import Hello
from tests.hosts import Host
from tests.in_process_grid import InProcessGrid, submit
from tests.photographs import WRITERS, write_layout
from tests.small import RUN_CONFIG
from tests.test_owner import ask, told


@pytest.mark.parametrize("target", TARGETS)
def test_training_decodes_what_check_accepts(target):
    """The target asserts it, see benchmarks/fuzz_indexes.py: bring."""
    outcomes = set()

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, 2**32))
    def tried(seed):
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcomes.add(TARGETS[target](random.Random(seed), Path(folder)).split(":")[0])
            except ConfigError:
                outcomes.add("refused")

    tried()
    assert "refused" in outcomes


@pytest.mark.parametrize("layout", WRITERS)
def test_one_function_decodes(tmp_path, monkeypatch, layout):
    write_layout(layout, tmp_path / "set")
    real, sides = pictures.decoded, []
    monkeypatch.setattr(pictures, "decoded", lambda content, side, *how: (sides.append(side), real(content, side, *how))[1])
    found = formats.check(str(tmp_path / "set"))
    assert sides == [formats.SIDE] * found.counts["images"]
    config = DataConfig(kind="photographs", root=str(tmp_path / "set"), image_size=8, clients=2, partition="iid")
    world = photographs.load.__wrapped__(config, 0)
    sides.clear()
    _ = [world.client(c).train for c in world.clients], world.galleries, world.unseen()
    assert sides == [8] * found.counts["images"]


def test_what_was_decoded_is_remembered_until_it_changes(tmp_path, monkeypatch):
    write_layout("json", tmp_path / "set")
    read = []
    real = formats.Entry.image
    monkeypatch.setattr(formats.Entry, "image", lambda entry, *how: (read.append(entry.name), real(entry, *how))[1])

    def proved(home):
        read.clear()
        monkeypatch.setenv("EASE_FLWR_HOME", str(home))
        photographs.Photographs(DataConfig(), 0, formats.read_index(str(tmp_path / "set"))).prove(lambda line: None)
        return len(read)

    assert proved(tmp_path / "home") == 20
    assert proved(tmp_path / "home") == 0
    picture = tmp_path / "set" / "images" / "test-3.jpg"
    good = picture.read_bytes()
    picture.write_bytes(good[:-300])
    with pytest.raises(DataError, match=r"test-3.jpg: image cannot be read \(.*\), it is named in .*captions.json: \[19\]"):
        proved(tmp_path / "home")
    picture.write_bytes(good)
    assert proved(tmp_path / "home") == 20
    (tmp_path / "file").touch()
    assert proved(tmp_path / "file") == 20  # nothing can be remembered in a file


# ---- before anything is learnt ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", ["train-3.jpg", "val-1.jpg", "test-3.jpg"])
def test_a_simulation_does_not_begin_with_a_damaged_picture(tmp_path, monkeypatch, picture):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path / "home"))
    write_layout("json", tmp_path / "set")
    (tmp_path / "set" / "images" / picture).write_bytes(b"")
    told = f"data.kind=photographs data.clients=2 data.root={tmp_path / 'set'} forget.targets=client-1"
    run_config = {**RUN_CONFIG, "run-dir": str(tmp_path / "run"), "set": told}
    grid = InProcessGrid(2, run_config)
    with pytest.raises(DataError, match=rf"{picture}: image cannot be read \(it is empty"):
        submit(run_config, grid)
    assert not grid.sent


def test_a_host_with_a_damaged_picture_is_not_there(tmp_path, capsys):
    hosts_data.load.cache_clear()
    data.load.cache_clear()
    host = Host("north", tmp_path)
    host.allow()
    assert json.loads(ask(host, Hello()).content["answer"]["json"])["pairs"] == len(host.train)
    test = next(r[0] for r in host.rows if r[3] == "test")
    (host.root / "images" / test).write_bytes(b"")
    assert told(ask(host, Hello())).startswith("DataError (entries.py, line ")
    assert f"{test}: image cannot be read (it is empty" in capsys.readouterr().err  # its owner reads which
