"""Partitioners of flwr-datasets by their names. What deals by our own rules is in test_data.py and test_named_clients.py."""

import json
import sys

import numpy as np
import pytest

from ease_flwr import config
from ease_flwr.config import ConfigError
from ease_flwr.data import formats, photographs
from tests.photographs import write_photographs


@pytest.fixture
def root(tmp_path):
    """24 training pairs with the labels a, b, c, a, b, c, ..., of clients 7 and 8 in turn."""
    write_photographs(tmp_path, train=24, val=3, test=3)
    said = json.loads((tmp_path / "dataset.json").read_text())
    for i, image in enumerate(said["images"]):
        image["client"] = str(7 + i % 2)
    (tmp_path / "dataset.json").write_text(json.dumps(said))
    return tmp_path


def parts(root, name, clients=3, seed=0, **options):
    told = {"data.partition_options": [f"{k}={v}" for k, v in options.items()]}
    told |= {"data.root": str(root), "data.partition": name, "data.clients": clients, "forget.targets": "client-0"}
    return photographs.load.__wrapped__(config.load("flickr8k", {**told, "model.name": "ViT-B-32"}).data, seed).parts


def test_pairs_are_dealt_as_flower_deals_them(root):
    pytest.importorskip("flwr_datasets", reason="flwr-datasets is not installed")
    labels = [e.label for e in formats.read_index(str(root))["train"]]
    one_each = parts(root, "PathologicalPartitioner", num_classes_per_partition=1, class_assignment_mode="deterministic")
    assert [{labels[i] for i in p} for p in one_each] == [{"a"}, {"b"}, {"c"}]
    assert sorted(np.concatenate(one_each)) == list(range(24))
    assert [list(p) for p in parts(root, "NaturalIdPartitioner", 2, partition_by="client")] == [
        list(range(0, 24, 2)),
        list(range(1, 24, 2)),
    ]
    skewed = [parts(root, "DirichletPartitioner", seed=s, alpha=1.0, min_partition_size=2) for s in (0, 0, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(*skewed[:2], strict=True))  # by the seed
    assert not all(np.array_equal(a, b) for a, b in zip(skewed[0], skewed[2], strict=False))


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("MagicPartitioner", {}, "has no such one: there are .*IidPartitioner"),
        ("DirichletPartitioner", {}, "missing 1 required positional argument: 'alpha'"),
        ("IidPartitioner", {"colour": "red"}, "unexpected keyword argument 'colour'"),
        (
            "NaturalIdPartitioner",
            {"partition_by": "client"},
            "3 clients need two pairs each that nobody else has; it dealt 12, 12",
        ),
    ],
)
def test_what_does_not_fit_is_said(root, name, options, error):
    pytest.importorskip("flwr_datasets", reason="flwr-datasets is not installed")
    with pytest.raises(ConfigError, match=rf"^data.partition={name}: .*{error}"):
        parts(root, name, **options)


def test_without_flwr_datasets_and_without_such_a_rule(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(
        ConfigError, match=r"^data.partition=IidPartitioner: .*: pip install flwr-datasets, or choose one of iid"
    ):
        parts(root, "IidPartitioner")
    with pytest.raises(ConfigError, match=r"partition: 'sorted' is neither iid, dirichlet, label, file, client nor the name"):
        parts(root, "sorted")
