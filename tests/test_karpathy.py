"""Photographs from local disk: a small set of exactly that format, the partitions, and every way it can be broken."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ease_flwr.core.config import ConfigError, DataConfig, ForgetConfig
from ease_flwr.data import karpathy
from tests.photographs import write_photographs


def config(root, **changes):
    return DataConfig(kind="karpathy", root=str(root), clients=3, image_size=8, unseen=8, **changes)


def test_reads_pairs_and_deals_every_one_once(tmp_path):
    write_photographs(tmp_path, train=31, val=6, test=9)
    world = karpathy.load(config(tmp_path), 0)
    parts = [world.client(c).train for c in world.clients]
    assert [len(p) for p in parts] == [11, 10, 10]
    assert sorted(c[0] for p in parts for c in p.captions) == sorted(f"train {i} one" for i in range(31))
    assert all(len(c) == 2 for p in parts for c in p.captions)
    assert parts[0].images.shape == (11, 8, 8, 3)
    leaves = ForgetConfig(targets=("client-1",))
    sets = world.client("client-1").evaluation("test", leaves)
    assert {k: len(v.query) for k, v in sets.items()} == {"forget": 10, "test": 3}
    assert list(world.client("client-0").evaluation("validation", leaves)) == ["retain", "test"]
    assert len(world.unseen()) == 6
    assert {c[0] for c in world.overlap(leaves, 4).captions} <= {c[0] for c in parts[1].captions}


def test_requests_for_labels_and_single_pairs(tmp_path):
    write_photographs(tmp_path, train=30, val=6, test=9)
    world = karpathy.load(config(tmp_path, partition="iid"), 0)
    drawn = world.request(ForgetConfig(scenario="sample", draw=2))
    assert [t.split("/")[0] for t in drawn.targets] == [c for c in world.clients for _ in range(2)]
    for name in world.clients:
        sets = world.client(name).evaluation("test", drawn)
        assert (len(sets["forget"].query), len(sets["retain"].query)) == (2, 8)
    label = ForgetConfig(scenario="class", targets=("a",))
    sizes = [len(world.client(c).evaluation("test", label)["forget"].query) for c in world.clients]
    assert sum(sizes) == 10
    assert len(world.overlap(label, 50)) == 10
    with pytest.raises(ConfigError, match=r"no training pair has label \['d'\]; labels are a, b, c"):
        world.request(ForgetConfig(scenario="class", targets=("a", "d")))
    with pytest.raises(ConfigError, match=r"client-0/99: client-0 has 10 pairs, counted from 0"):
        world.client("client-0").evaluation("test", ForgetConfig(scenario="sample", targets=("client-0/99",)))


def test_images_are_resized_on_the_shorter_side_and_cropped_in_the_centre(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (karpathy.read_image(tmp_path / "wide.png", 10) == 255).all()


labels = st.lists(st.sampled_from("abcd"), min_size=40, max_size=80)


@settings(deadline=None, max_examples=30)
@given(labels, st.sampled_from(["iid", "label"]), st.integers(0, 5), st.integers(2, 8))
def test_partitions_are_equal_and_complete(labels, rule, seed, clients):
    parts = karpathy.partition(labels, DataConfig(partition=rule, clients=clients), seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 2
    again = karpathy.partition(labels, DataConfig(partition=rule, clients=clients), seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_label_partition_without_mixing_is_pure_and_dirichlet_is_skewed():
    labels = [letter for letter in "abcd" for _ in range(25)]
    pure = karpathy.partition(labels, DataConfig(partition="label", mixed=0, clients=4), 0)
    assert [{labels[i] for i in p} for p in pure] == [{"a"}, {"b"}, {"c"}, {"d"}]

    def skew(alpha):
        parts = karpathy.partition(labels, DataConfig(partition="dirichlet", alpha=alpha, clients=4), 1)
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(100))
        return np.mean([max(np.mean([labels[i] == x for i in p]) for x in "abcd") for p in parts])

    assert skew(0.3) > skew(100) + 0.1


def broken(tmp_path, change):
    write_photographs(tmp_path, train=12, val=4, test=4)
    index = json.loads((tmp_path / "dataset.json").read_text())
    change(index)
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError) as error:
        karpathy.load.__wrapped__(config(tmp_path), 0)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_broken_roots_say_what_is_expected_where(tmp_path):
    for root in ("", "relative/folder", str(tmp_path / "nowhere")):
        with pytest.raises(ConfigError, match=r"is not an absolute path of a folder: expected images/ and dataset.json"):
            karpathy.read_index(root)
    with pytest.raises(ConfigError, match=r"no index there: expected images/ and dataset.json"):
        karpathy.read_index(str(tmp_path))
    (tmp_path / "dataset.json").write_text('{"images": [')
    with pytest.raises(ConfigError, match=r"dataset.json: not such an index \(JSONDecodeError"):
        karpathy.read_index(str(tmp_path))


def test_broken_entries_are_named(tmp_path):
    assert "KeyError: 'sentences'" in broken(tmp_path / "a", lambda d: d["images"][3].pop("sentences"))
    empty = broken(tmp_path / "b", lambda d: d["images"][2].update(sentences=[{"raw": " "}]))
    assert "images[2] (train-2.png) has no caption" in empty
    outside = broken(tmp_path / "c", lambda d: d["images"][0].update(filename="../secret.png"))
    assert "images[0] has filename '../secret.png', expected one inside images/" in outside
    missing = broken(tmp_path / "d", lambda d: d["images"][0].update(filename="gone.png"))
    assert "gone.png is named in " in missing
    assert "dataset.json: images[0] but is not there" in missing
    no_test = broken(tmp_path / "e", lambda d: [i.update(split="train") for i in d["images"]])
    assert "no image of split 'val': found ['train']" in no_test


def test_unreadable_image_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(ConfigError, match=r"bad.png: image cannot be read"):
        karpathy.read_image(tmp_path / "bad.png", 8)
    with pytest.raises(ConfigError, match=r"5 training pairs are too few for 3 clients"):
        karpathy.partition(["a"] * 5, DataConfig(clients=3), 0)
