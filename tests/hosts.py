"""A federation of hosts in this process: each has a folder of drawn pictures, a memory and a key of its own."""

import csv
import hashlib
import json
import re
from pathlib import Path

import numpy as np
from ease_flwr.clients.base import LoraClient
from flwr.app import Context, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from PIL import Image

from ease_flwr import data
from ease_flwr.config import DataConfig
from ease_flwr.data import folder as hosts_data
from ease_flwr.data.pairs import pair_id, picture_id
from ease_flwr.data.personas import load
from ease_flwr.hosts import connected, deploy
from ease_flwr.hosts.policy import POLICY, defaults
from tests.in_process_grid import submit
from tests.standing import Mortal

NAMES = ("north", "south", "west")
LATE = "east"
"""A host that joins later."""
WORLD = DataConfig(
    **{"names": (*NAMES, LATE), "clients": 4, "exclusive": 2, "exclusive_pairs": 3, "shared": 2, "sharers": 2, "strangers": 2},
    **{"exclusive_others": 2, "shared_pairs": 2, "scenes": 8, "test_scenes": 8, "unseen": 8},
)
SETTINGS = {
    **{"data.kind": "folder", "data.names": ",".join(NAMES), "data.image_size": 64, "forget.targets": "north"},
    **{"learn.rounds": 2, "learn.batch": 8, "learn.average": 1, "learn.epochs": 1, "strategy.rounds": 1},
    **{"evaluation.every": 0, "evaluation.reference": "none", "evaluation.equal": "false", "audit.level": "none"},
    **{"continuation.overlap": 0, "federation.quorum": 0.3, "federation.start_timeout": 1.5, "federation.deadline": 30},
}


def run_config(folder, **changes):
    """Of a run that learns, on hosts."""
    said = " ".join(f"{k}={v}" for k, v in (SETTINGS | changes).items())
    own = {"experiment": "demo", "strategy": "ease", "seed": 0, "run-dir": str(folder), "fresh": False, "set": said}
    return {**own, "data.root": "", "model.weights": "", "forget.targets": "", "until": "learn"}


class Host:
    """One host: pairs in its folder, by name, which tests may change."""

    def __init__(self, name, folder, key=""):
        self.name, self.root, self.home, self.key = (
            name,
            folder / name / "data",
            folder / name / "home",
            key or f"key of {name}",
        )
        self.online = True
        world = load(WORLD, 0)
        (self.root / "images").mkdir(parents=True)
        self.rows = []
        for split, pairs in (
            ("train", world.client(name).train),
            *((s, world.scene_tests[k].pairs) for s, k in (("val", "validation"), ("test", "test"))),
        ):
            for i, (image, captions, label) in enumerate(zip(pairs.images, pairs.captions, pairs.labels, strict=True)):
                self.rows.append((f"{split}-{i}.png", captions[0], label, split))
                Image.fromarray(image).save(self.root / "images" / self.rows[-1][0])
        self.write()

    @property
    def node(self):
        """Its node config, as `ease deploy node` writes it."""
        own = {"policy": str(self.home / POLICY)} if (self.home / POLICY).is_file() else {}
        return {"client-name": self.name, "data-root": str(self.root), "home": str(self.home), **own}

    def allow(self, **changes):
        """The owner writes a policy: what init writes, but for these."""
        self.home.mkdir(exist_ok=True)
        text = deploy.fill(POLICY, **defaults(["0" * 64]))
        for key, value in changes.items():
            said = value if isinstance(value, str) else json.dumps(value)
            text, count = re.subn(rf"(?m)^{key.replace('_', '-')} = (\[[^]]*\]|\S+)", f"{key.replace('_', '-')} = {said}", text)
            assert count == 1
        (self.home / POLICY).write_text(text)

    def write(self):
        """The index, as the rows stand."""
        with (self.root / "captions.csv").open("w", newline="") as f:
            csv.writer(f).writerows([("image", "caption", "label", "split"), *self.rows])

    @property
    def train(self):
        """Rows of training pairs."""
        return [r for r in self.rows if r[3] == "train"]

    def id(self, row):
        return pair_id((self.root / "images" / row[0]).read_bytes(), [" ".join(row[1].split())])

    @property
    def ids(self):
        """Of the training pairs by their labels: [(id, label)]."""
        return [(self.id(r), r[2]) for r in self.train]

    def remove(self, row):
        """The owner deletes a pair."""
        self.rows.remove(row)
        (self.root / "images" / row[0]).unlink()
        self.write()

    def reverse(self):
        """The owner sorts the table the other way round."""
        self.rows.reverse()
        self.write()

    def edit(self, row):
        """The owner corrects a caption."""
        self.rows[self.rows.index(row)] = (row[0], f"{row[1]} again", *row[2:])
        self.write()

    def lose(self):
        """The machine is set up anew."""
        (self.home / "withdrawn.json").unlink(missing_ok=True)

    def picture(self, row):
        return picture_id((self.root / "images" / row[0]).read_bytes())

    def rename(self, row, name):
        """The owner calls a picture something else."""
        (self.root / "images" / row[0]).rename(self.root / "images" / name)
        self.rows[self.rows.index(row)] = (name, *row[1:])
        self.write()


class HostGrid(Mortal):
    """Nodes of the hosts that are online."""

    def __init__(self, hosts, run_config, tamper=None, lives=0):
        super().__init__(lives, 0, run_config, 0, tamper)
        self.hosts = {100 + k: h for k, h in enumerate(hosts) if h.online}
        for node, host in self.hosts.items():
            self.contexts[node] = Context(
                run_id=1, node_id=node, node_config=host.node, state=RecordDict(), run_config=dict(run_config)
            )

    def get_nodes(self):
        return [NodeInfo(node_id=n, name=h.name, public_key=h.key.encode()) for n, h in self.hosts.items()]


class Federation:
    """Hosts, runs on them, and which pairs were trained on: (run, host, id), in order."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.hosts = {n: Host(n, folder) for n in (*NAMES, LATE)}
        self.hosts[LATE].online = False
        self.trained = []
        self.pictures = set()
        """(host, id of the picture): what was trained on, whatever its captions were."""
        chosen = LoraClient._choose_learnt

        def noted(client, instruction):
            chosen(client, instruction)
            there = rows(client.encode(client.data.train))
            ids = dict(zip(there, client.data.ids, strict=True))
            self.trained += [(self.at_work, client.name, ids[row][0]) for row in rows(client.train)]
            self.pictures |= {(client.name, ids[row][1]) for row in rows(client.train)}

        monkeypatch.setattr(LoraClient, "_choose_learnt", noted)
        monkeypatch.setattr(connected, "nodes", lambda superlink: [])
        self.at_work, self.lives = "", 0

    def submit(self, run_config, tamper=None, lives=0):
        """One process of the server. lives: it dies when messages are sent for so many-th time; 0 never."""
        hosts_data.load.cache_clear()
        data.load.cache_clear()
        self.at_work = Path(run_config["run-dir"]).name
        self.grid = HostGrid(self.hosts.values(), run_config, tamper, lives)
        submit(run_config, self.grid)

    def submitted(self, run_config, experiment, folder, where):
        """In place of the launcher's."""
        lives, self.lives = self.lives, 0
        self.submit(run_config, lives=lives)
        return 0

    def learn(self, name, **changes):
        """A run that has learnt; its folder."""
        folder = self.folder / name
        self.submit(run_config(folder, **changes))
        return folder


def rows(encoded):
    """What a client trains on, pair by pair: pictures and tokens as they are."""
    return [
        np.asarray(image).tobytes() + np.asarray(tokens).tobytes()
        for image, tokens in zip(encoded.images[:], encoded.tokens[:], strict=True)
    ]


def fingerprint(host):
    """As the server knows a host's key."""
    return hashlib.sha256(host.key.encode()).hexdigest()


def log(run):
    return (run / "log.txt").read_text()


def remembered(host):
    """What a host's memory says."""
    return json.loads((host.home / "withdrawn.json").read_text())
