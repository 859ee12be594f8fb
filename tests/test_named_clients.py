"""Clients of a simulation have names of their own: by `data.names`, or by a column of the index."""

import csv
import json

import pytest

from ease_flwr import config, data
from ease_flwr.config import ConfigError
from ease_flwr.data import formats
from tests.photographs import write_photographs
from tests.small import TINY
from tests.test_run import play

WARDS = ("ward-a", "ward-b", "ward-c")


@pytest.mark.slow
def test_a_run_whose_clients_have_names(home):
    settings = {**TINY, "data.names": ",".join(WARDS), "forget.targets": "ward-b", "continuation.rounds": 0}
    results = play(home / "run", set=" ".join(f"{k}={v}" for k, v in settings.items()))
    assert results["forget"]["targets"] == ["ward-b"]
    phases = sorted(p.name for p in (home / "run" / "phases" / "learn" / "history").iterdir())
    assert phases == list(WARDS)


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"data.names": "a,b,c"}, "names: there are 3 for clients=8: give as many"),
        ({"data.names": "a,b", "data.partition": "client"}, "names: there are 2 for clients=8: give as many"),
        ({"data.names": "a,a", "data.clients": 2}, "names: a, a: two clients have the same name"),
        ({"data.names": "a,b/c", "data.clients": 2}, "names: 'b/c' cannot name a folder"),
        ({"data.names": "a,b", "data.clients": 2}, "forget.targets: no client client-0; there are a, b"),
    ],
)
def test_names_that_do_not_fit(told, error):
    with pytest.raises(ConfigError, match=error):
        config.load("personas", told)


def world(root, **told):
    named = {"data.root": str(root), "data.partition": "client", "forget.targets": "ward-a", "model.weights": ""}
    return data.load(config.load("flickr8k", {**named, **told}).data, 0)


def as_table(root, client):
    """The set in `root` as captions.csv; client: of image number i of the train split."""
    images = json.loads((root / "dataset.json").read_text())["images"]
    (root / "dataset.json").unlink()
    with (root / "captions.csv").open("w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["image", "caption", "split", "client"])
        train = 0
        for p in images:
            whose = client(train) if p["split"] == "train" else ""
            train += p["split"] == "train"
            table.writerow([p["filename"], p["sentences"][0]["raw"], p["split"], whose])


def test_a_column_deals_the_pairs(tmp_path):
    write_photographs(tmp_path, train=7, val=2, test=2)
    as_table(tmp_path, lambda i: WARDS[i % 3])
    found = world(tmp_path)
    assert found.clients == WARDS
    assert [list(p) for p in found.parts] == [[0, 3, 6], [1, 4], [2, 5]]
    assert found.client("ward-b").train.captions == (("train 1 one",), ("train 4 one",))
    assert world(tmp_path, **{"data.names": "ward-c,ward-a,ward-b"}).clients == ("ward-c", "ward-a", "ward-b")


@pytest.mark.parametrize(
    ("client", "told", "error"),
    [
        (lambda i: "" if i == 4 else "ab"[i % 2], {}, r"line 6 \(train-4.png\) has no client: say in `client` whose it is"),
        (lambda i: "abc"[i % 3], {"data.names": "a,b"}, r"line 4 has client 'c'; named are a, b"),
        (lambda i: "a" if i else "b", {}, r"b has less than two pairs in the train split"),
        (lambda i: "a", {}, r"there are less than two clients in the train split"),
        (lambda i: "a/b" if i % 2 else "c", {}, r"'a/b' cannot name a folder"),
    ],
)
def test_a_column_that_does_not_fit(tmp_path, client, told, error):
    write_photographs(tmp_path, train=6, val=2, test=2)
    as_table(tmp_path, client)
    with pytest.raises(ConfigError, match=error):
        world(tmp_path, **told, **{"forget.targets": "a"})


@pytest.mark.parametrize("column", ["label", "split", "client"])
def test_lines_that_contradict_each_other_are_refused(tmp_path, column):
    """Whose picture it is must not depend on which line comes first."""
    write_photographs(tmp_path, train=6, val=2, test=2)
    (tmp_path / "dataset.json").unlink()
    lines = ["image,caption,label,split,client", "train-0.png,one,x,train,a", "train-0.png,two,,,"]
    said = {
        "label": "train-0.png,three,y,train,a",
        "split": "train-0.png,three,x,val,a",
        "client": "train-0.png,three,x,train,b",
    }
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    (entry,) = formats.read_entries(str(tmp_path))
    assert (entry.captions, entry.label, entry.split, entry.client) == (("one", "two"), "x", "train", "a")
    (tmp_path / "captions.csv").write_text("\n".join([*lines, said[column]]) + "\n")
    with pytest.raises(ConfigError, match=rf"line 4 has another {column} for train-0.png than line 2"):
        formats.read_entries(str(tmp_path))


def test_who_brings_a_backdoor_must_be_there(tmp_path):
    write_photographs(tmp_path, train=7, val=2, test=2)
    as_table(tmp_path, lambda i: WARDS[i % 3])
    with pytest.raises(ConfigError, match=r"data.backdoor.clients: no client q; there are ward-a, ward-b, ward-c"):
        world(tmp_path, **{"data.backdoor.clients": "q"})


def test_json_indexes_may_name_clients_too(tmp_path):
    write_photographs(tmp_path, train=4, val=2, test=2)
    said = json.loads((tmp_path / "dataset.json").read_text())
    for i, image in enumerate(said["images"]):
        image["client"] = 7 + i % 2
    (tmp_path / "dataset.json").write_text(json.dumps(said))
    assert world(tmp_path, **{"forget.targets": ["7"]}).clients == ("7", "8")


def test_a_client_that_the_column_does_not_name_cannot_leave(tmp_path, in_process):
    from ease_flwr import launcher
    from ease_flwr.hosts.simulation import Where

    write_photographs(tmp_path, train=6, val=2, test=2)
    as_table(tmp_path, lambda i: WARDS[i % 3])
    told = [f"data.root={tmp_path}", "data.partition=client", "forget.targets=client-0", "model.name=ViT-B-32"]
    with pytest.raises(ConfigError, match="client-0"):
        launcher.run(launcher.NewRun("flickr8k", folder=tmp_path / "run", assignments=told), Where())
    assert not (tmp_path / "run").exists()
