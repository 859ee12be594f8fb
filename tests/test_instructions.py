"""Generated instructions and run configs, sent to a host: none reads, writes or sends what the host's policy forbids."""

import copy
import hashlib
import json
import re
import sys
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from ease_flwr.clients.base import LoraClient
from flwr.app import Context, RecordDict
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ease_flwr import client_app, data
from ease_flwr.client_app import app
from ease_flwr.config import APP, ForgetSet, TrainConfig, from_run_config
from ease_flwr.data import folder as hosts_data
from ease_flwr.exchange.messages import Audit, Evaluate, Forget, Hello, Learn, Returning, message
from ease_flwr.hosts import owners_log
from ease_flwr.model import adapters
from tests.hosts import WORLD, Host, run_config
from tests.in_process_grid import TaskIdentity

OBJECTIVES, PROBES, REQUESTS = ("contrastive", "ascent"), ("membership", "alignment"), 40
"""What the owner allows."""
READING = {"open": (0,), "os.listdir": (0,), "os.scandir": (0,)}
WRITING = dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"), (0,))
WRITING |= dict.fromkeys(("os.rename", "os.symlink", "os.link"), (0, 1))
FILES = READING | WRITING
"""Events of Python about files, and which of their arguments are paths."""
KINDS = [{"data.kind": kind, "data.clients": "3", "data.partition": "iid"} for kind in ("photographs", "personas")]
KINDS[1] |= {f"data.{key}": str(getattr(WORLD, key)) for key in WORLD.model_fields_set - {"names", "clients"}}
"""Run configs that would have the data of simulations, with the names of the hosts."""
SYSTEM = tuple(
    map(Path, ("/proc", "/sys", "/dev", "/usr", "/lib", "/etc/localtime", sys.prefix, sys.base_prefix, APP, *sys.path[1:]))
)
seen: list[tuple[str, Path, bool]] | None = None
trained: list[int] = []
"""Pairs of each set that a training was about."""
descend = LoraClient._descend


def counting(client, *plan):
    """In place of the training loop: notes what it works with, and goes on."""
    trained.extend(len(getattr(client, name)) for name in ("train", "kept") if hasattr(client, name))
    return descend(client, *plan)


def hook(event, args):
    if seen is None or event not in FILES:
        return
    writes = event in WRITING or (event == "open" and (args[2] or 0) & 0o3)
    for k in FILES[event]:
        if isinstance(args[k], str | bytes) or hasattr(args[k], "__fspath__"):
            path = Path(args[k].decode() if isinstance(args[k], bytes) else args[k])
            seen.append((event, path.absolute(), bool(writes)))


@contextmanager
def watched():
    """What is done with files in the block: (event, path, whether it writes)."""
    global seen
    if not getattr(hook, "there", False):
        sys.addaudithook(hook)
        hook.there = True
    seen = []
    try:
        yield seen
    finally:
        seen = None


class World:
    """A host with a policy, and a place that is none of its own, where a server would like it to look."""

    def __init__(self, folder):
        assert TaskIdentity.run_id == 1
        self.host = Host("north", folder)
        self.smallest, self.scores, self.open = 4, True, True
        self.other = Host("south", folder / "elsewhere")  # data of somebody else on the same machine
        self.elsewhere = folder / "elsewhere"
        for name in ("shadow", "base.json", "parts.json", "x.safetensors", "withdrawn.json"):
            (self.elsewhere / name).write_text("root:x:SECRET")
        self.before = self.digest()
        self.yesterday = 0
        """Messages of other days."""
        experiment = from_run_config(run_config("/x"))[0]
        self.theta = adapters.load(experiment.model, experiment.lora, 0).initial

    def allow(self, smallest, scores, open):
        """The owner's other decisions."""
        self.smallest, self.scores, self.open = smallest, scores, open
        hour = datetime.now().hour
        later = "" if open else f"{(hour + 2) % 24:02}:00-{(hour + 3) % 24:02}:00"
        more = {"smallest_set": smallest, "scores": scores, "requests": REQUESTS, "hours": json.dumps(later)}
        self.host.allow(objectives=OBJECTIVES, probes=PROBES, **more)

    def digest(self):
        """Of all files that nobody may change."""
        files = sorted(p for place in (self.elsewhere, self.host.root) for p in place.rglob("*") if p.is_file())
        return hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()

    def strange(self, done):
        """What was done with files and may not be."""
        own = [self.host.home]
        return [
            (event, str(path))
            for event, path, writes in done
            if not any(path.is_relative_to(p) for p in own)
            and (writes or not any(path.is_relative_to(p) for p in (*SYSTEM, self.host.root)))
            and path != Path("/dev/null")
            and "__pycache__" not in path.parts
        ]

    @property
    def words(self):
        """What only the data say: captions and names of files."""
        return [part for row in self.host.rows for part in (row[0], row[1])] + ["SECRET", "root:x"]


def targets(host):
    single = st.sampled_from([f"north/{i}" for i, _ in host.ids] + ["north/0", "north/0:3", "south/0", "north/gone.png"])
    return st.one_of(
        st.builds(lambda t: ForgetSet(scenario="client", targets=t), st.sampled_from([("north",), ("south",), ()])),
        st.builds(
            lambda t: ForgetSet(scenario="class", targets=tuple(t)),
            st.lists(st.sampled_from([*sorted({r[2] for r in host.train} - {""}), "nobody"]), max_size=3),
        ),
        st.builds(lambda t: ForgetSet(scenario="sample", targets=tuple(t)), st.lists(single, max_size=6)),
        st.builds(
            lambda k: ForgetSet(scenario="sample", targets=tuple(f"north/{i}" for i, _ in host.ids[k:])), st.integers(1, 6)
        ),
    )


def instructions(host):
    union = st.lists(targets(host), max_size=2).map(tuple)
    objective = st.sampled_from([*OBJECTIVES * 4, "npo", "audit", "../x", "base", "__init__"])
    plan = st.builds(lambda b: TrainConfig(rounds=1, epochs=1, batch=b), st.sampled_from([2, 3, 4, 8, 8, 8]))
    evaluate = st.builds(Evaluate, forget=union, split=st.sampled_from(["validation", "test"]), similarity=st.booleans())
    common = {"phase": st.sampled_from(["learn", "forget", "x" * 50]), "round": st.integers(1, 3), "train": plan}
    common |= {"objective": objective, "without": union, "before": st.none() | evaluate, "half": st.booleans()}
    options = st.sampled_from([{}, {"bound": 0.0}, {"bound": 1.0, "x": 1.0}])
    returning = st.builds(Returning, about=union, count=st.integers(1, 3))
    forget = st.builds(Forget, forget=targets(host), options=options, **common)
    probe = st.sampled_from([*PROBES, *PROBES, "relearning", "evaluate", "__class__", "_learn"])
    return st.one_of(
        st.builds(Hello, forget=union, served=st.integers(0, 2)),
        evaluate,
        forget,
        st.builds(Learn, only=union, beside=st.none() | forget, **common),
        st.builds(Learn, only=union, **common),
        st.builds(Learn, returning=returning, **common),
        st.builds(
            Audit,
            forget=union,
            split=st.sampled_from(["validation", "test"]),
            probes=st.lists(probe, max_size=2).map(tuple),
            train=plan,
        ),
    )


def run_configs(elsewhere):
    def place(name):
        return f"{elsewhere}/{name}"

    changes = {
        "data.root": ["", "/", str(elsewhere), place("south/data")],
        "data.cache": ["", place("cache"), str(elsewhere)],
        "data.memory": ["", str(elsewhere)],
        "data.labels": ["", "", "", place("parts.json")],
        "data.parts": ["", "", "", place("parts.json")],
        "data.barred": ["", "a,b"],
        "model.weights": ["", "", "", "/etc/shadow", place("base.json"), place("x.safetensors"), "../x", "openai", "six.py"],
        "data.image_size": ["64"],
    }
    one = st.sampled_from([(key, value) for key, values in changes.items() for value in values if value])
    kinds = st.sampled_from([{}, {}, {}, *KINDS])
    return st.builds(lambda some, kind: dict(some) | kind, st.lists(one, max_size=2), kinds)


def ask(world, job, verb, changes):
    """A host's answer, as a new process gives it."""
    config = run_config(str(world.elsewhere / "run"), **changes)
    context = Context(run_id=1, node_id=100, node_config=world.host.node, state=RecordDict(), run_config=config)
    names = ("now", "retrain") if isinstance(job, Audit | Evaluate) else ("adapters",)
    arrays = {name: world.theta.astype(np.float16) if getattr(job, "half", False) else world.theta for name in names}
    sent = message(job, {} if isinstance(job, Hello) else arrays, 100, 10.0)
    sent.metadata.__dict__["_message_type"] = verb or sent.metadata.message_type
    sent.metadata._message_id = "message-1"
    return app(copy.deepcopy(sent), context)


def may(world, job, verb, done):
    """Whether the owner allows it, by another way than hosts/policy.py. What it is about is looked at apart."""
    kinds = {"train": (Learn, Forget), "evaluate": (Evaluate, Audit), "query": (Hello,)}
    if verb and not isinstance(job, kinds[verb]):
        return False
    parts = [job, getattr(job, "beside", None), getattr(job, "before", None)]
    if not world.scores and any(isinstance(p, Audit) or getattr(p, "similarity", False) for p in parts):
        return False
    if isinstance(job, Learn | Forget | Evaluate | Audit) and (done >= REQUESTS or not world.open):
        return False
    trained = [p for p in parts if isinstance(p, Learn | Forget)]
    listed = all(p.objective in OBJECTIVES and p.train.batch >= 2 * world.smallest for p in trained)
    return listed and set(getattr(job, "probes", ())) <= set(PROBES)


def check(world, job, verb, changes):
    """One message: what was done with files, what came back, what the log says."""
    hosts_data.load.cache_clear()
    data.load.cache_clear()
    before = owners_log.joined(world.host.home)
    done = sum(m["asked"] in ("learn", "forget", "evaluate", "audit") and "refused" not in m for m in before[world.yesterday :])
    trained.clear()
    with watched() as files, pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoraClient, "_descend", counting)
        reply = ask(world, job, verb, changes)
    assert not world.strange(files)
    assert world.digest() == world.before
    noted = owners_log.joined(world.host.home)
    assert len(noted) == len(before) + 1
    if reply.has_error():
        text = reply.error.reason
        assert len(text) <= 300 and text.isprintable() and ("refused" in noted[-1] or "failed" in noted[-1])  # noqa: PT018
        told = json.dumps({**changes, "job": job.model_dump(mode="json")})
        assert not [w for w in world.words if w in text and w not in told]
        return "refused" if text.startswith("host north refuses: ") else "failed"
    assert may(world, job, verb, done)
    assert not set(changes) & {"data.labels", "data.parts"}
    kind = changes.get("data.kind", "folder")
    assert kind == "personas" or (kind == "folder" and not getattr(job, "returning", None))
    assert "sent" in noted[-1]
    assert not set(trained) & set(range(1, world.smallest))
    if not world.scores:
        said = [json.loads(record["json"]) for record in reply.content.config_records.values()]
        assert not set(re.findall(r"'images': (\d+)", str(said))) & set(map(str, range(1, world.smallest)))
    said = [str(v) for record in reply.content.config_records.values() for v in record.values()]
    assert not [w for w in world.words for text in said if w in text and w not in job.model_dump_json()]
    shapes = {a.shape for record in reply.content.array_records.values() for a in record.values()}
    assert shapes <= {world.theta.shape}
    return "done"


def checked(folder, examples):
    """How many messages were done, refused, and failed."""
    world = World(folder)
    found = {"done": 0, "refused": 0, "failed": 0}
    verb = st.sampled_from([*[""] * 9, "train", "evaluate", "query"])
    policies = st.sampled_from([(4, True, True), (4, True, True), (4, False, True), (1, True, True), (4, True, False)])

    @settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
        phases=[Phase.generate],
    )
    @given(policies, instructions(world.host), verb, run_configs(world.elsewhere))
    def each(policy, job, verb, changes):
        if sum(found.values()) % 100 == 99:  # another day, or the rest is refused
            for file in (world.host.home / "log").glob("20[!0]*.jsonl"):
                file.rename(file.with_name(f"2000-01-01-{sum(found.values()):05}.jsonl"))
            world.yesterday = len(owners_log.joined(world.host.home))
        world.allow(*policy)
        found[check(world, job, verb, changes)] += 1

    each()
    return found


def test_some_instructions_and_run_configs(tmp_path):
    found = checked(tmp_path, 60)
    assert min(found["done"], found["refused"]) >= 5, found


@pytest.mark.slow
def test_a_thousand_instructions_and_run_configs(tmp_path):
    found = checked(tmp_path, 1000)
    assert sum(found.values()) >= 1000
    assert min(found["done"], found["refused"]) > 100, found


def test_the_watch_sees_what_is_done_with_files(tmp_path, monkeypatch):
    """A host that does as the run config says is caught."""
    world = World(tmp_path)
    world.allow(4, True, True)
    monkeypatch.setattr(client_app, "on_host", lambda experiment, node: experiment)
    with watched() as files:
        ask(world, Hello(), "", {"data.root": str(world.elsewhere / "south" / "data")})
    assert world.strange(files)
