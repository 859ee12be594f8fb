"""Targets of benchmarks/fuzz.py: settings and requests as people type them, all the way to who reads them."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from flwr.common.config import parse_config_args

from benchmarks.fuzz import Target
from ease_flwr import config, data
from ease_flwr.audit.summary import read_results, read_run_config
from ease_flwr.cli.operator import _lines
from ease_flwr.config import ConfigError, Experiment, ForgetConfig, ForgetRequest, halves, told
from ease_flwr.config.section import leaves
from ease_flwr.config.typed import items
from ease_flwr.data.pairs import withdrawn
from ease_flwr.hosts.link import read_state
from ease_flwr.server import admission
from ease_flwr.store import purge, queue
from ease_flwr.store.queue import Step

FIELDS: dict[str, Any] = {name: field for name, field, _ in leaves(Experiment)}
TEXTS = (
    *("3", "on", "1.0", "C#", "a:", "null", "12:30", "2024-01-01", "#1", "!x", "%x", "'x", '"x', "*", "&a", "=", "|", "~"),
    *("010", "0x10", "1_0", "1e3", ".5", "-0", "+5", "nan", "inf", "1e999", "٣", "9" * 5000, "true", "-1", "0.5", "0", "1"),
    *("[a", '["a,b", " c"]', "{", "a=b", "a, b", ",", "名前", "\ud800", "~/x", "../x", "x" * 300),
)
LETTERS = "aZ09 .:,;=#'\"\\/[]{}!&*%@`|<>?-_+~$\t\n\r\x00\x7f\u2028üß中\U0001f600"
SCENARIOS = ("client", "class", "sample")


def text(rng: random.Random) -> str:
    """A text that somebody may type, or paste."""
    if rng.random() < 0.4:
        return rng.choice(TEXTS)
    if rng.random() < 0.3:
        return repr(rng.choice([rng.randint(-3, 40), rng.random(), rng.lognormvariate(0, 9)]))
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(0, 10)))


def assignment(rng: random.Random) -> str:
    """key=value: mostly a field, and what its type may take."""
    name, likely = rng.choice([n for n in FIELDS if n != "name"]), {int: "3", float: "0.5", bool: "true"}
    value = likely.get(FIELDS[name].annotation, text(rng)) if rng.random() < 0.7 else text(rng)
    if rng.random() < 0.1:
        name = rng.choice([text(rng), name[:-1], f"{name}.x", name.split(".")[-1], f"strategy.{text(rng)}"])
    return f"{name}={value}"


def settings(rng: random.Random, folder: Path) -> str:
    """Some --set on an experiment: what the server reads through Flower's run config is what was asked, by type."""
    name = rng.choice([*config.choices("experiment"), text(rng)])
    said = [assignment(rng) for _ in range(rng.randint(1, 3))]
    asked, values = config.asked(name, said, seed=rng.choice([0, 7, 2**63]))
    run = config.absolute(str(folder / (text(rng) if rng.random() < 0.5 else "run")), "run-dir")
    plain = {"experiment": name, "strategy": "ease", "run-dir": run, "fresh": False, "seed": asked.seed}
    document = config.encoded({**plain, "set": values, "own": ""})
    (folder / "run-config.toml").write_text(f'document = "{document}"\n')
    found, submitted = config.from_run_config(parse_config_args([str(folder / "run-config.toml")]))
    assert found == asked, said
    assert submitted.run_dir == run
    for key, typed in dict(item.split("=", 1) for item in said).items():  # of a key that is said twice the last counts
        _as_typed(found, key, typed)
    return f"{name} {said}"


def _as_typed(found: Experiment, name: str, typed: str) -> None:
    """What was typed for a field is there, by the type of the field."""
    value: Any = found
    for part in name.split("."):
        value = getattr(value, part, None)
    kind = FIELDS[name].annotation if name in FIELDS else None
    located = isinstance(FIELDS[name].json_schema_extra, dict) and FIELDS[name].json_schema_extra.get("path") if kind else False
    if kind is str and not located and name != "model.weights":
        assert value == typed or not isinstance(typed, str), name
    elif kind is float:
        assert math.isfinite(value), name
    elif kind == tuple[str, ...]:
        assert value == tuple(items(typed)), name


def requests(rng: random.Random, folder: Path) -> str:
    """A request as it is asked: it is on the queue as it was typed, and every client can say which of its pairs it means."""
    experiment = config.load("personas", {"data.clients": 3, "data.leavers": 2, "data.sharers": 2, "seed": 1})
    world = data.load(experiment.data, experiment.seed)
    scenario = rng.choice(SCENARIOS)
    targets = [_target(rng, scenario, world.clients) for _ in range(rng.randint(0, 2))]
    if rng.random() < 0.3:
        lines = rng.choice(["", "\ufeff"]) + rng.choice(["\n", "\r\n"]).join(targets)
        (folder / "ids.txt").write_bytes(lines.encode(errors="surrogatepass"))
        targets = _lines(folder / "ids.txt")
    wanted = config.validate(ForgetConfig, {"scenario": scenario, "targets": targets}, "request")
    (one,) = world.resolve(wanted).forget_sets()
    strategy = rng.choice([*halves.names("strategies"), text(rng)])
    said = [f"{rng.choice(['gsd.tau', text(rng)])}={text(rng)}" if rng.random() < 0.3 else "rounds=3"] * rng.randint(0, 1)
    request = ForgetRequest.of(one, strategy, config.settings(said), rng.choice(["", "", "first", text(rng)]))
    admission.check(request, experiment, world.clients, [], None)
    queue.write(folder, [Step(kind="learn")])
    assert queue.append(folder, Step(kind="forget", request=request))
    assert not queue.append(folder, Step(kind="forget", request=request))
    (there,) = queue.requests(queue.read(folder))
    assert there == request
    assert not targets or there.targets == tuple(targets)
    for name in world.clients:
        labels = world.client(name).train.labels
        withdrawn(told((there.forget_set,), name), name, labels)
    return f"{scenario} {targets} by {strategy}"


def _target(rng: random.Random, scenario: str, clients: tuple[str, ...]) -> str:
    """What a request may name: a client, pairs of one, a label, or anything."""
    if scenario == "class" or rng.random() < 0.2:
        return text(rng)
    position = rng.choice(["0", "1:3", "::2", ":", rng.choice(["::0", "999999", "9" * 30, text(rng)])])
    return rng.choice(clients) + (f"/{position}" if scenario == "sample" else "")


def run_folders(rng: random.Random, folder: Path) -> str:
    """A folder of any name, with anything in it, in place of a run: it is said to be none."""
    there = folder / (text(rng).replace("/", "-") or "x")
    name = rng.choice(["queue.json", "run_config.json", "results.json", "state.json", ""])
    try:
        there.mkdir()
        if name:
            said = rng.choice(["{}", "[]", "[{}]", "null", "{", "1", text(rng)])
            (there / name).write_text(said, encoding="utf-8", errors="surrogatepass")
    except (OSError, ValueError):
        raise ConfigError("no such folder can be made") from None
    refused: list[ConfigError] = []
    for reads in (queue.read, queue.read_set_aside, read_results, read_run_config, purge.residual, read_state):
        try:
            reads(there)
        except ConfigError as refusal:
            refused.append(refusal)
    if refused:
        raise refused[0]
    return f"{there.name!r} with {name}"


TARGETS: dict[str, Target] = {"settings": settings, "requests": requests, "run-folders": run_folders}
