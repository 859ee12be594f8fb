"""`ease data demo`: a set in the layout of one's own data, which is checked, learnt and forgotten as that is."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from ease_flwr import config, data
from ease_flwr.config import ConfigError
from ease_flwr.data import demo, formats
from tests.in_process_grid import InProcessGrid, submit
from tests.small import RUN_CONFIG, TINY


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "set"
    command = [sys.executable, "-m", "ease_flwr", "data", "demo", "set"]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("pairs in set: ease run demo --set data.root=set\n")
    return folder


def test_everything_in_it_is_read(root):
    found = formats.check(str(root))
    counts = found.counts
    assert (found.problems, found.left, found.totals["used"]) == ([], {}, found.totals["read"])
    rows = list(csv.DictReader((root / "captions.csv").read_text().splitlines()))
    assert counts["images"] == len({r["image"] for r in rows}) == len(os.listdir(root / "images"))
    assert Counter(r["split"] for r in rows) == {"train": counts["train"], "val": 80, "test": 160}
    assert {r["client"] for r in rows if r["split"] == "train"} == set(demo.WARDS)
    with pytest.raises(ConfigError, match="is not empty: choose another"):
        demo.write(root)


def test_its_pictures_are_those_of_the_world_that_drew_them(root):
    experiment = config.load("demo", {"data.root": str(root)})
    world, drawn = data.load(experiment.data, 0), data.load(demo.WORLD, 0)
    assert world.clients == drawn.clients == demo.WARDS
    read, ours = world.client("ward-c").train, drawn.client("ward-c").train
    assert (read.images == ours.images).all()
    assert read.captions == ours.captions
    assert read.labels == ours.labels


@pytest.mark.slow
def test_it_is_learnt_and_forgotten(root, home):
    few = {k: v for k, v in TINY.items() if not k.startswith("data.")} | {"data.root": root, "learn.rounds": 1}
    few |= {"strategy.rounds": 1, "continuation.rounds": 0}
    told = {"run-dir": str(home / "run"), "experiment": "demo", "set": " ".join(f"{k}={v}" for k, v in few.items())}
    submit(RUN_CONFIG | told, InProcessGrid(len(demo.WARDS), RUN_CONFIG | told))
    results = json.loads((home / "run" / "results.json").read_text())
    assert results["forget"]["targets"] == ["ward-a"]
    assert {"forget", "retain", "test"} <= set(results["models"]["unlearned"])
