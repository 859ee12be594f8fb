"""Federations of every small shape, with a model that learns nothing: what is counted in them, and how that is written down."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from PIL import Image

from tests.in_process_grid import InProcessGrid, submit
from tests.small import RUN_CONFIG

SIDE = 8
CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 16, "head_width": 8, "patch_size": 4},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
SETTINGS: dict[str, Any] = {
    **{"data.image_size": SIDE, "data.unseen": 8, "lora.rank": 2, "lora.targets": "attn,c_fc"},
    **{"learn.rounds": 1, "learn.average": 1, "learn.batch": 4, "learn.epochs": 1, "strategy.rounds": 1},
    **{"continuation.rounds": 1, "evaluation.every": 0, "federation.start_timeout": 2, "federation.deadline": 30},
}


def tiny_model(folder: Path) -> Path:
    """Random weights of the smallest CLIP, with their configuration beside them."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    file = folder / "tiny.safetensors"
    if not file.is_file():
        file.with_suffix(".json").write_text(json.dumps(CONFIG))
        torch.manual_seed(0)
        model = open_clip.model.CLIP(**CONFIG)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    return file


@dataclass(frozen=True)
class Shape:
    """A federation and what it is asked.

    pairs, captions, labels: of each client its training pairs, of each picture its captions (pictures take turns), and how many
    labels go round (0: nothing has one).  val, test: pictures of these splits, of all clients together in a simulation.
    gone: of the scenario sample, so many pairs of the first client.  hosts: whether clients have folders of their own.
    """

    pairs: tuple[int, ...]
    captions: tuple[int, ...] = (1,)
    labels: int = 1
    scenario: str = "client"
    gone: int = 1
    level: str = "quick"
    reference: bool = True
    val: int = 2
    test: int = 2
    hosts: bool = True
    strategy: str = "ease"

    @property
    def names(self) -> list[str]:
        return [f"c{k}" for k in range(len(self.pairs))]

    @property
    def targets(self) -> list[str]:
        """What is to be forgotten."""
        if self.scenario == "client":
            return ["c0"]
        if self.scenario == "class":
            return ["l0"]
        return [f"c0/{_name('c0', 'train', i)}" for i in range(min(self.gone, self.pairs[0]))]

    @property
    def impossible(self) -> bool:
        """Whether a request names nothing, or leaves nobody anything."""
        kept = max(self.pairs) > 1 if self.labels > 1 else not self.labels
        return self.scenario == "class" and (not self.labels or not kept)

    def rows(self, client: str, split: str, count: int) -> list[dict[str, Any]]:
        """Of an index."""
        out = []
        for i in range(count):
            said = self.captions[i % len(self.captions)]
            label = f"l{i % self.labels}" if self.labels else ""
            name = _name(client, split, i)
            row = {"image": name, "captions": [f"{client} {split} {i} {k}" for k in range(said)], "label": label}
            out.append({**row, "split": split, "client": client})
        return out


def _name(client: str, split: str, i: int) -> str:
    return f"{client}-{split}-{i}.png"


def write(shape: Shape, root: Path) -> None:
    """The data of a shape: a folder for each host, or one for all."""
    if shape.hosts:
        for client, count in zip(shape.names, shape.pairs, strict=True):
            splits = {"train": count, "val": shape.val, "test": shape.test}
            _write(root / client, [r for s, n in splits.items() for r in shape.rows(client, s, n)])
        return
    rows = [r for c, n in zip(shape.names, shape.pairs, strict=True) for r in shape.rows(c, "train", n)]
    _write(root, rows + [r for s, n in (("val", shape.val), ("test", shape.test)) for r in shape.rows("c0", s, n)])


def _write(root: Path, rows: list[dict[str, Any]]) -> None:
    (root / "images").mkdir(parents=True)
    for row in rows:
        rng = np.random.default_rng(list(row["image"].encode()))
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(root / "images" / row["image"])
    (root / "captions.json").write_text(json.dumps(rows))


class Nodes(InProcessGrid):
    """Hosts with folders of their own, or the clients of a simulation; it hears what they judge."""

    def __init__(self, shape: Shape, root: Path, weights: Path, run_config: dict[str, Any]) -> None:
        super().__init__(len(shape.pairs), run_config, tamper=self.heard)
        self.judged: dict[str, Any] = {}
        self.examined: dict[str, Any] = {}
        """By client, what it answered last: in a judgement and in an audit."""
        for k, name in enumerate(shape.names if shape.hosts else ()):
            own = {"client-name": name, "data-root": str(root / name), "home": str(root / f"{name}-home")}
            own |= {"base-model": str(weights)}
            self.contexts[100 + k] = Context(
                run_id=1, node_id=100 + k, node_config=own, state=RecordDict(), run_config=dict(run_config)
            )

    def heard(self, client: str, reply: Message) -> Message:
        if not reply.has_error() and "answer" in reply.content:
            said = json.loads(str(reply.content.config_records["answer"]["json"]))
            if isinstance(said, dict) and all(isinstance(of, dict) and "sets" in of for of in said.values()):
                kept = self.examined if any("samples" in of for of in said.values()) else self.judged
                kept[client] = said
        return reply


@dataclass(frozen=True)
class Played:
    """A finished run, and what its clients said."""

    run: Path
    nodes: Nodes


def play(shape: Shape, folder: Path, weights: Path, **more: Any) -> Played:
    """Learn, forget, continue, audit, as a run does. The folder must be new: worlds are kept by the path of their data."""
    write(shape, folder / "data")
    said = SETTINGS | {
        **{"data.kind": "folder" if shape.hosts else "photographs", "data.names": ",".join(shape.names)},
        **({} if shape.hosts else {"data.partition": "client"}),
        **{"forget.scenario": shape.scenario, "forget.targets": ",".join(shape.targets), "audit.level": shape.level},
        **{"continuation.overlap": 0 if shape.hosts else 2, "evaluation.reference": "retrain" if shape.reference else "none"},
        **{"evaluation.equal": "true" if shape.reference else "false"},
        **({"evaluation.references": 2} if shape.reference and shape.level == "full" else {}),
        **more,
    }
    run_config = {
        **RUN_CONFIG,
        **{"experiment": "demo", "strategy": shape.strategy, "run-dir": str(folder / "run"), "fresh": True},
        **{"data.root": "" if shape.hosts else str(folder / "data"), "set": " ".join(f"{k}={v}" for k, v in said.items())},
        "model.weights": str(weights),
    }
    nodes = Nodes(shape, folder / "data", weights, run_config)
    submit(run_config, nodes)
    return Played(folder / "run", nodes)


# ---- what must hold of every number ----------------------------------------------------------------------------------------

PERCENT = ("r1", "r5", "r10", "people", "backdoor", "relearn", "cross", "swap")
SHARES = ("membership", "probe", "ks")
NO_INTERVAL = ("cka", "ks")
ASKED = {"quick": ["membership.cosine", "membership.logistic"], "full": ["relearn.1", "relearn.40", "probe"]}
ASKED["full"] += ASKED["quick"]
BESIDE = {"quick": ["cka.forget", "cka.public", "swap.visual", "correlation.forget", "people.forget"], "full": ["cross.text"]}
BESIDE["full"] += BESIDE["quick"]


def read(file: Path) -> Any:
    """JSON that knows no NaN and no infinity."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{file.name} has {constant}")

    return json.loads(file.read_text(), parse_constant=refuse)


def check(played: Played, shape: Shape) -> None:
    """Every number of a finished run, and every page about it."""
    from ease_flwr.audit import report, summary

    run = played.run
    results, audit = read(run / "results.json"), read(run / "audit.json")
    for model, sets in results["models"].items():
        assert {"forget", "retain", "test"} - set(sets) <= set(results["left_out"])
        for found in sets.values():
            assert found["n"] > 0
            assert found["gallery"] > 0
            both = [found[way][k] for way in ("i2t", "t2i") for k in ("r1", "r5", "r10")]
            assert all(0 <= r <= 100 for r in (*both, found["r1"])), (model, found)
    for key in (k for k in results if k.startswith("gaps")):
        assert all(g is None or abs(g) <= 100 for k, g in results[key].items() if k != "forget_normalised")
        assert (
            results[key].get("forget_normalised", 0) is not None or key != "gaps" or "forget_normalised" in results["left_out"]
        )
    for model, sets in results["models"].items():
        said = [of[model]["sets"] for of in played.nodes.judged.values()]
        assert {s: found["n"] for s, found in sets.items()} == _sums(said, lambda found: found["images"])
    numbers, left_out = audit["numbers"], audit["left_out"]
    for model, found in numbers.items():
        _counted(found, [of[model] for of in played.nodes.examined.values()])
    for found in numbers.values():
        for key, m in found.items():
            _number(key, m)
    of_unlearned = {name.partition(" (")[0]: why for name, why in left_out.items() if " (" not in name or "unlearned" in name}
    _named(numbers["unlearned"], of_unlearned, ASKED[shape.level] + (BESIDE[shape.level] if shape.reference else []))
    for row in audit["verdict"]:
        gap = row["value"] if row["what"].startswith("distance") else row["gap"]
        assert row["low"] is None or row["low"] <= gap <= row["high"], row
    for by_number in audit["strangers"]["models"].values():
        for key, m in by_number.items():
            _number(key, m)
    report.of_run(run, pictures=not shape.hosts)
    pages = {name: (run / name).read_text() for name in ("table.md", "audit.md", "report.html")}
    pages["summary"] = summary.summary([run, Path(shutil.copytree(run, run.with_name(f"{run.name}-again")))])
    for name, text in pages.items():
        assert not re.search(r"(?<![a-z])(nan|inf)(?![a-z])", text), name
    for name in (n for n in left_out if not n.startswith("interval of ")):
        assert name in pages["audit.md"]
        assert name in pages["report.html"]


def _sums(said: list[dict[str, Any]], count: Any) -> dict[str, Any]:
    """By set, the sum of what clients counted."""
    return {s: sum(count(of[s]) for of in said if s in of) for s in {s for of in said for s in of}}


def _counted(found: dict[str, dict[str, float]], said: list[dict[str, Any]]) -> None:
    """Every recall of an audit by hand: hits of all clients among queries of all clients, either way, and the mean of both."""
    for s, of in _sums([of["sets"] for of in said], lambda f: np.array([len(f["i2t"]), len(f["t2i"])])).items():
        hits = _sums([of["sets"] for of in said], lambda f: np.array([sum(r <= 1 for r in f[w]) for w in ("i2t", "t2i")]))[s]
        assert found[f"r1.{s}"]["value"] == pytest.approx(100 * (hits / of).mean(), abs=1e-5), s
    for stop, steps in enumerate((0, 1, 5, 15, 40)):
        members = [m for of in said for m in of["relearn"]]
        if members:
            hits = np.sum([[order[stop] for order in m["hits"]] for m in members], axis=0).mean(0)
            share = hits / np.sum([m["of"] for m in members], axis=0)
            assert found[f"relearn.{steps}"]["value"] == pytest.approx(100 * share.mean(), abs=1e-5), steps


def _number(key: str, m: dict[str, float]) -> None:
    kind = key.partition(".")[0]
    most = 100 if kind in PERCENT else 1 if kind in SHARES else math.inf
    if key != "relearn.area":
        assert (0 if most < math.inf else -math.inf) <= m["value"] <= most, (key, m)
        if "low" in m:
            assert m["low"] <= m["value"] <= m["high"] <= most, (key, m)
            assert m["low"] >= 0 or most == math.inf, (key, m)
    assert "gap_low" not in m or m["gap_low"] <= m["gap"] <= m["gap_high"], (key, m)


def _named(numbers: dict[str, dict[str, float]], left_out: dict[str, str], asked: list[str]) -> None:
    """What is asked is there, or its name is among what is left out, with a reason; every number without an interval too."""
    assert all(left_out.values())
    judged = any(key.startswith("r1.forget") for key in numbers)
    for name in asked:
        there = any(key == name or key.startswith(f"{name}.") for key in numbers)
        parts = name.split(".")
        said = [out for out in left_out if out in (name, parts[0])]
        assert there != bool(said) if judged else "r1.forget" in left_out, (name, numbers.keys(), left_out)
    for key, m in numbers.items():
        if key.partition(".")[0] not in NO_INTERVAL and key != "relearn.area":
            assert ("low" in m) != (f"interval of {key}" in left_out), key
