"""Photographs from local disk: a small set of exactly that format, the partitions, and every way it can be broken."""

import contextlib
import io
import json
import os
import re
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from ease_flwr.cli import app
from ease_flwr.config import ConfigError, DataConfig, ForgetConfig, ForgetSet
from ease_flwr.data import formats, partition, photographs, published
from ease_flwr.store import cache
from tests.photographs import FAULTS, HARMLESS, WRITERS, samples, write_layout, write_photographs


def config(root, **changes):
    return DataConfig(kind="photographs", root=str(root), clients=3, image_size=8, unseen=8, **changes)


def union(scenario, *targets):
    return (ForgetSet(scenario=scenario, targets=targets),)


def test_reads_pairs_and_deals_every_one_once(tmp_path):
    write_photographs(tmp_path, train=31, val=6, test=9)
    world = photographs.load(config(tmp_path), 0)
    parts = [world.client(c).train for c in world.clients]
    assert [len(p) for p in parts] == [11, 10, 10]
    assert sorted(c[0] for p in parts for c in p.captions) == sorted(f"train {i} one" for i in range(31))
    assert all(len(c) == 2 for p in parts for c in p.captions)
    assert parts[0].images.shape == (11, 8, 8, 3)
    leaves = union("client", "client-1")
    both = [world.client("client-1").evaluation(split, leaves) for split in ("validation", "test")]
    assert [list(sets) for sets in both] == [["forget", "test"]] * 2
    assert sum(len(sets["forget"].query) for sets in both) == 10
    assert [len(sets["test"].query) for sets in both] == [1, 3]
    assert list(world.client("client-0").evaluation("validation", leaves)) == ["retain", "test"]
    assert len(world.unseen()) == 3
    assert {c[0] for c in world.returning(leaves, 4).captions} <= {c[0] for c in parts[1].captions}


def test_requests_for_labels_and_single_pairs(tmp_path):
    write_photographs(tmp_path, train=30, val=6, test=9)
    world = photographs.load(config(tmp_path, partition="iid"), 0)
    (drawn,) = world.resolve(ForgetConfig(scenario="sample", draw=2)).forget_sets()
    assert [t.split("/")[0] for t in drawn.targets] == [c for c in world.clients for _ in range(2)]
    for name in world.clients:
        both = [world.client(name).evaluation(split, (drawn,)) for split in ("validation", "test")]
        judged = [np.union1d(*(sets[s].query for sets in both)) for s in ("forget", "retain")]
        assert [len(queries) for queries in judged] == [2, 8]
    label = union("class", "a")
    both = [[world.client(c).evaluation(s, label)["forget"].query for s in ("validation", "test")] for c in world.clients]
    assert sum(len(np.union1d(*queries)) for queries in both) == 10
    assert len(world.returning(label, 50)) == 10
    with pytest.raises(ConfigError, match=r"no training pair has label \['d'\]; labels are a, b, c"):
        world.resolve(ForgetConfig(scenario="class", targets=("a", "d")))
    with pytest.raises(ConfigError, match=r"client-0/99: client-0 has 10 pairs, counted from 0"):
        world.client("client-0").evaluation("test", union("sample", "client-0/99"))


def test_images_are_resized_on_the_shorter_side_and_cropped_in_the_centre(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (formats.Entry(tmp_path / "wide.png", ("",), "", "train", "", "").image(10) == 255).all()


labels = st.lists(st.sampled_from("abcd"), min_size=40, max_size=80)


@settings(deadline=None, max_examples=30)
@given(labels, st.sampled_from(["iid", "label"]), st.integers(0, 5), st.integers(2, 8))
def test_partitions_are_equal_and_complete(labels, rule, seed, clients):
    parts = partition.partition(labels, DataConfig(partition=rule, clients=clients), seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 2
    again = partition.partition(labels, DataConfig(partition=rule, clients=clients), seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_label_partition_without_mixing_is_pure_and_dirichlet_is_skewed():
    labels = [letter for letter in "abcd" for _ in range(25)]
    pure = partition.partition(labels, DataConfig(partition="label", mixed=0, clients=4), 0)
    assert [{labels[i] for i in p} for p in pure] == [{"a"}, {"b"}, {"c"}, {"d"}]

    def skew(alpha):
        parts = partition.partition(labels, DataConfig(partition="dirichlet", alpha=alpha, clients=4), 1)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(100))
        return np.mean([max(np.mean([labels[i] == x for i in p]) for x in "abcd") for p in parts])

    assert skew(0.3) > skew(100) + 0.1


def test_too_few_pairs_for_so_many_clients():
    with pytest.raises(ConfigError, match=r"5 training pairs are too few for 3 clients"):
        partition.partition(["a"] * 5, DataConfig(clients=3), 0)


# ---- what publishers do with the same pictures -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_says_the_same(tmp_path, layout):
    write_layout(layout, tmp_path)
    found = formats.read_index(str(tmp_path))
    sizes = {split: len(entries) for split, entries in found.items()}
    if layout == "textcaps":  # its val part is our test, a tenth of its train part our val
        assert sizes == {"train": 10, "val": 2, "test": 4}
    else:
        assert sizes == {"train": 12, "val": 4, "test": 4}
        assert {e.captions for e in found["train"]} == {(f"train {i} one", f"train {i} two") for i in range(12)}
        assert {e.label for e in found["train"]} == (
            {"a", "b", "c"} if layout not in ("flickr8k", "flickr30k", "coco") else {""}
        )
    white = next(e for entries in found.values() for e in entries if e.captions[0] == "train 3 one")
    assert (white.image(8) == white.image(8)[0, 0]).all()
    assert abs(int(white.image(8)[0, 0, 0]) - 30) < 3  # picture i of a split is grey of value 10 i
    seen = formats.check(str(tmp_path))
    assert (seen.counts["images"], seen.problems) == (20 if layout != "textcaps" else 16, [])
    assert seen.totals["read"] == seen.totals["used"] > 0


def test_shards_with_folders_inside(tmp_path):
    content = next(samples())["content"]
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for split in ("train", "val", "test"):
            about = json.dumps({"caption": f"one of {split}", "split": split}).encode()
            for name, inside in (("a.json", about), ("a.jpg", content), ("a.seg.png", b"")):
                info = tarfile.TarInfo(f"./{split}/{name}")
                info.size = len(inside)
                tar.addfile(info, io.BytesIO(inside))
    found = formats.read_index(str(tmp_path))
    assert {s: [(e.name, e.captions) for e in entries] for s, entries in found.items()} == {
        s: [(f"{s}/a.jpg", (f"one of {s}",))] for s in ("train", "val", "test")
    }


def test_published_sets_are_counted(tmp_path):
    write_layout("flickr30k", tmp_path)
    counts = formats.check(str(tmp_path)).counts
    said = published.incomplete(str(tmp_path), counts)
    assert said.startswith("dataset_flickr30k.json has as published 29000 train images (here 12), 1014 val images (here 4)")
    assert published.incomplete(str(tmp_path), {"train": 29000, "val": 1014, "test": 1000}) == ""


@pytest.mark.parametrize(("layout", "fault"), [(w, f) for w in WRITERS for f in FAULTS if (w, f) not in HARMLESS])
def test_broken_sets_are_named_in_one_line(tmp_path, layout, fault):
    wrong, damage, expected = FAULTS[fault]
    write_layout(layout, tmp_path, wrong or (lambda pictures: None))
    if damage:
        damage(tmp_path)
    with pytest.raises(ConfigError) as error:
        _ = [e.image(8) for entries in formats.read_index(str(tmp_path)).values() for e in entries]
    assert "\n" not in str(error.value)
    assert re.search(expected, str(error.value)), str(error.value)
    assert str(tmp_path) in str(error.value)


def test_broken_roots_say_what_is_expected_where(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere': there is no such folder: expected images/ and dataset.json"):
        formats.read_index(str(tmp_path / "nowhere"))
    for root in ("", "relative/folder"):
        with pytest.raises(ConfigError, match=r"is not an absolute path of a folder: expected images/ and dataset.json"):
            formats.read_index(root)
    with pytest.raises(ConfigError, match=r"no index there: expected images/ and dataset.json"):
        formats.read_index(str(tmp_path))


# ---- what is made of a set -----------------------------------------------------------------------------------------


def ease(*words):
    return CliRunner().invoke(app, ["data", *words])


def test_topics_and_a_deal_are_files(tmp_path):
    write_layout(
        "flickr30k", tmp_path / "set", says=lambda i: "large red star" if i % 2 else "small blue circle above white heart"
    )
    values = {"data.kind": "photographs", "data.root": tmp_path / "set", "data.clients": 2, "data.image_size": 8}
    options = [word for k, v in values.items() for word in ("--set", f"{k}={v}")]
    done = ease("cluster", "personas", "--to", str(tmp_path / "topics.json"), "--clusters", "2", *options)
    assert done.output.startswith("20 images, 2 topics in "), done.output
    most = ease("cluster", "personas", "--to", str(tmp_path / "most.json"), "--clusters", "3", *options)
    assert "20 images, 2 topics in " in most.output  # there are two captions
    assert "this is a folder, name a file" in ease("deal", "personas", "--to", str(tmp_path), *options).output
    options += ["--set", f"data.labels={tmp_path / 'topics.json'}", "--set", "data.mixed=0"]
    dealt = ease("deal", "personas", "--to", str(tmp_path / "deal.json"), *options)
    assert dealt.output.startswith("client-0 6, client-1 6 in "), dealt.output
    fewer = ease("deal", "flickr8k", "--to", str(tmp_path / "fewer.json"), *options)  # whose experiment forgets client-3
    assert fewer.output.startswith("client-0 6, client-1 6 in "), fewer.output
    parts = json.loads((tmp_path / "deal.json").read_text())["names"]
    assert sorted(int(name[6:-4]) % 2 for name in parts["client-0"]) in ([0] * 6, [1] * 6)
    chosen = DataConfig(**{k[5:]: v for k, v in values.items()} | {"root": str(tmp_path / "set")})
    chosen = chosen.model_copy(update={"partition": "file", "parts": str(tmp_path / "deal.json")})
    world = photographs.load.__wrapped__(chosen, 0)
    assert [e.name for e in (world.splits["train"][i] for i in world.parts[0])] == parts["client-0"]

    def dealt_as(names):
        (tmp_path / "deal.json").write_text(json.dumps({"names": names}))
        with pytest.raises(ConfigError) as error:
            _ = photographs.load.__wrapped__(chosen, 0).parts
        return str(error.value)

    assert "needs two images at least for each of client-0, client-1" in dealt_as({"client-0": parts["client-0"]})
    assert "names 'x', which is not in the train split" in dealt_as({**parts, "client-1": ["x", "y"]})
    assert "has images for 'client-2'; the clients are client-0, client-1" in dealt_as({**parts, "client-2": ["x", "y"]})
    assert "gives an image to two clients" in dealt_as({**parts, "client-1": parts["client-0"]})
    some = {client: names[:3] for client, names in parts.items()}
    (tmp_path / "deal.json").write_text(json.dumps({"names": some}))
    said = []
    photographs.load.__wrapped__(chosen, 0).prove(said.append)
    rest = [f"train-{i}.jpg" for i in range(12) if f"train-{i}.jpg" not in some["client-0"] + some["client-1"]]
    assert said[-1] == f"[data] 6 of 12 pictures of the train split are dealt to nobody: {', '.join(rest)}"
    twice = '{"names": {"client-0": ["x", "y"], "client-0": ["z", "w"]}}'
    (tmp_path / "deal.json").write_text(twice)
    with pytest.raises(ConfigError, match=r"deal.json is not what .*'client-0' stands twice in one object"):
        _ = photographs.load.__wrapped__(chosen, 0).parts
    (tmp_path / "deal.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"data.parts: .*deal.json is not what `ease data` writes"):
        _ = photographs.load.__wrapped__(chosen, 0).parts
    (tmp_path / "deal.json").unlink()
    with pytest.raises(ConfigError, match=r"^data.parts: .*deal.json: No such file or directory$"):
        _ = photographs.load.__wrapped__(chosen, 0).parts
    (tmp_path / "topics.json").write_text('{"names": {}}')
    photographs.load.cache_clear()
    to = ("deal", "personas", "--to", str(tmp_path / "x.json"))
    assert "has no label for train-0.jpg and 19 others" in ease(*to, *options).output
    assert "experiment personas has personas, not photographs" in ease(*to).output
    assert not (tmp_path / "x.json").exists()


def test_decoding_goes_on_where_it_was_ended_and_mends_what_is_damaged(tmp_path, monkeypatch):
    write_layout("webdataset", tmp_path / "set")
    monkeypatch.setattr(cache, "ROWS", 4)
    chosen = config(tmp_path / "set", cache=str(tmp_path / "cache"), partition="iid")
    read = []
    real = formats.Entry.image
    monkeypatch.setattr(formats.Entry, "image", lambda entry, *how: (read.append(entry.name), real(entry, *how))[1])

    def prepared(stop_after=99):
        read.clear()

        def say(line):
            if len(read) >= stop_after:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            photographs.load.__wrapped__(chosen, 0).prepare(say)
        return len(read)

    assert prepared(stop_after=9) == 12
    assert prepared() == 8  # the other eight of twenty pictures
    assert prepared() == 0
    largest = max((tmp_path / "cache").glob("*.npy"), key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)
    assert 0 < prepared() <= 4
    assert prepared() == 0
    largest.write_bytes(content[:-5])
    world = photographs.load.__wrapped__(chosen, 0)
    _ = [world.client(c).train for c in world.clients], world.galleries
    assert prepared() == 0


def test_a_cache_is_bounded_and_forgets_what_was_used_longest_ago(tmp_path):
    for i, key in enumerate("abcd"):
        place = cache.Place(str(tmp_path), key, limit=25_000 / 2**30)
        cache.kept(place, 10, lambda start, stop: np.zeros((stop - start, 1000), np.uint8))
        os.utime(tmp_path / f"{key}.npy", (i, i))
    assert sorted(p.stem for p in tmp_path.glob("*.npy")) == ["c", "d"]
