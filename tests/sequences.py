"""Random sequences of requests on one federation, and what must hold after every step of them.

A sequence is a list of operations: requests of the three scenarios by several methods, rounds of the continuation, purges. A
crash may come at any exchange, and hosts of clients that left are gone. The oracle is brute force over pairs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from ease_flwr import data, launcher
from ease_flwr.audit import envelope, receipt
from ease_flwr.config import ConfigError, ForgetConfig, ForgetSet, load
from ease_flwr.data.pairs import withdrawn
from ease_flwr.exchange.messages import Forget, Learn, read_instruction
from ease_flwr.hosts.simulation import Where
from ease_flwr.launcher import Asked
from ease_flwr.store import phases, purge, queue
from ease_flwr.store.files import home
from tests.in_process_grid import InProcessGrid, submit
from tests.small import RUN_CONFIG
from tests.standing import Death, Mortal

CLIENTS = 4
WORLD: dict[str, Any] = {
    **{
        "data.clients": CLIENTS,
        "data.exclusive": 2,
        "data.shared": 2,
        "data.sharers": 2,
        "data.strangers": 2,
        "data.scenes": 4,
    },
    **{"data.exclusive_pairs": 5, "data.shared_pairs": 5, "data.test_repeats": 1, "data.forget_unseen_repeats": 1},
    **{
        "data.test_scenes": 8,
        "data.unseen": 8,
        "learn.rounds": 2,
        "learn.average": 1,
        "learn.batch": 16,
        "strategy.rounds": 1,
        "federation.start_timeout": 3,
    },
    **{"continuation.overlap": 2, "evaluation.every": 0, "evaluation.equal": False, "audit.level": "none"},
}
NAMES = tuple(f"client-{k}" for k in range(CLIENTS))


@dataclass(frozen=True)
class Operation:
    """One thing that is asked of the run.

    crash: the exchange at which the process dies; 0 never.  silent: the first client that it concerns does not answer any more
    once its turn has come.
    """

    kind: str
    targets: tuple[int, ...] = ()
    strategy: str = "finetune"
    crash: int = 0
    silent: bool = False


WITHOUT_HELP = ("finetune", "ease", "federaser")
"""Methods that do without a forget client that does not answer, where a client leaves."""


def requests(kind, strategies, most):
    targets = st.lists(st.integers(0, most), min_size=1, max_size=2, unique=True).map(tuple)
    crash = st.sampled_from([0, 0, 1, 2, 3, 4, 5, 6])
    silent = st.sampled_from([False, False, True])
    return st.builds(Operation, st.just(kind), targets, st.sampled_from(strategies), crash, silent).map(_early)


def _early(op: Operation) -> Operation:
    """The same; where a client falls silent, the process dies before the request is served.

    Whoever answers a later roll call is there, and is asked to judge.
    """
    return replace(op, crash=min(op.crash, 3)) if op.silent else op


operations = st.lists(
    st.one_of(
        requests("client", ("finetune", "npo", "ease", "federaser"), CLIENTS - 1),
        requests("class", ("finetune", "npo", "ease"), 5),
        requests("sample", ("finetune", "npo", "multidelete"), 30),
        st.builds(Operation, st.just("continue"), crash=st.sampled_from([0, 0, 1, 2])),
        st.just(Operation("purge")),
    ),
    min_size=2,
    max_size=5,
)


@dataclass
class Federation:
    """A standing federation, and all that was ever derived from its data."""

    folder: Path
    crashing: bool = True
    adapters: list[tuple[frozenset[str], bytes]] = field(default_factory=list)
    """(requests that they have forgotten, some bytes of them)."""
    updates: dict[bytes, str] = field(default_factory=dict)
    """Some bytes of them -> whose they are."""

    def __post_init__(self) -> None:
        self.experiment = load("personas", WORLD)
        self.world = data.load(self.experiment.data, 0)
        self.labels = {n: self.world.client(n).train.labels for n in NAMES}
        self.people = sorted({label for labels in self.labels.values() for label in labels} - {""})
        self.run_config = {**RUN_CONFIG, "run-dir": str(self.folder), "set": " ".join(f"{k}={v}" for k, v in WORLD.items())}
        submit({**self.run_config, "until": "learn"}, clients=CLIENTS)
        self.sent: list[Any] = []
        self.silent = ""
        """The client that stops answering in this operation; in the next one it is there again."""

    def taken(self, sets: list[ForgetSet], client: str) -> Any:
        """Which pairs of a client these forget sets name, (n,)."""
        return withdrawn(tuple(sets), client, self.labels[client])

    @property
    def asked(self) -> list[ForgetSet]:
        """The requests on the queue, as forget sets."""
        return [r.forget_set for r in queue.requests(queue.read(self.folder))]

    def submitted(self, run_config, experiment, folder, where) -> int:
        """In place of the launcher's: one process, which may die; hosts of who has left are gone."""
        grid = Mortal(self.lives, CLIENTS, run_config) if self.lives else InProcessGrid(CLIENTS, run_config)
        grid.tamper = self.falling_silent()
        for _, request in queue.served(folder):
            for name in request.leaving:
                grid.contexts.pop(100 + NAMES.index(name), None)
        try:
            submit(run_config, grid)
        finally:
            self.sent += grid.sent
        return 0

    def falling_silent(self):
        """A tamper function: the silent client answers the roll call and the question about requests, and nothing else."""
        answered = []

        def tamper(name, reply):
            if name == self.silent:
                answered.append(name)
            return None if name == self.silent and len(answered) > 2 else reply

        return tamper

    def who_falls_silent(self, op: Operation) -> str:
        """The first client that a request concerns, if it is to fall silent and the method can do without.

        Nobody does where a target names nothing that is left: the request is set aside, and all are asked to judge.
        """
        forget = self.forget_of(op) if op.silent else None
        if forget is None or op.strategy not in (WITHOUT_HELP if op.kind == "client" else ("finetune",)):
            return ""
        each = [self.concerned(ForgetSet(scenario=forget.scenario, targets=(target,))) for target in forget.targets]
        new = ForgetSet(scenario=forget.scenario, targets=forget.targets)
        staying = [n for n in NAMES if not self.taken([*self.asked, new], n).all()]
        return self.concerned(new)[0] if all(each) and len(staying) > 1 else ""

    def concerned(self, new: ForgetSet) -> list[str]:
        """Clients that have pairs of a forget set that no request has named yet."""
        return [n for n in NAMES if (self.taken([new], n) & ~self.taken(self.asked, n)).any()]

    def do(self, op: Operation) -> None:
        """One operation, resumed if it dies; then everything that must hold is asserted."""
        before, queued = len(self.asked), (self.folder / "queue.json").read_bytes()
        self.lives, self.sent = (op.crash if self.crashing else 0), []
        self.silent = self.who_falls_silent(op)
        refused = ""
        try:
            try:
                self._do(op)
            except Death:
                self.lives = 0
                launcher.resume(self.folder, Where())
        except ConfigError as error:  # at once, or by the process that goes on after a crash
            refused = str(error)
        if refused:
            assert "\n" not in refused
            assert (self.folder / "queue.json").read_bytes() == queued, "a refused request left its trace on the queue"
            assert not self.sent or op.kind != "client", "refused after something had been asked"
            return
        self.check_messages(before)
        self.silent = ""
        self.remember()

    def _do(self, op: Operation) -> None:
        if op.kind == "continue":
            launcher.continue_training(self.folder, 1, Where())
        elif op.kind == "purge":
            self.check_purge(purge.purge(self.folder))
        else:
            launcher.forget(self.folder, Asked(self.forget_of(op), op.strategy, ("rounds=1",)), Where())

    def forget_of(self, op: Operation) -> ForgetConfig | None:
        """What a request asks; None for an operation that is none."""
        targets = {
            "client": lambda i: NAMES[i],
            "class": lambda i: self.people[i % len(self.people)],
            "sample": lambda i: f"{NAMES[i % CLIENTS]}/{i // 2}",
        }.get(op.kind)
        if targets is None:
            return None
        return ForgetConfig(scenario=op.kind, targets=tuple(dict.fromkeys(targets(i) for i in op.targets)))

    def check_messages(self, before: int) -> None:
        """Who was asked for what in this operation. before: requests on the queue until then."""
        old, now = self.asked[:before], self.asked
        departed = {n for n in NAMES if self.taken(old, n).all()}
        for message in self.sent:
            client = NAMES[message.metadata.dst_node_id - 100]
            job = read_instruction(dict(message.content["config"]))
            for part in (job, getattr(job, "beside", None)):
                if isinstance(part, Learn | Forget):
                    assert client not in departed, f"{client} has left and is asked to train"
                    assert client != self.silent, f"{client} does not answer and is asked to train"
                if isinstance(part, Forget):
                    fresh = self.taken(now, client) & ~self.taken(old, client)
                    assert fresh.any(), f"{client} has nothing to forget and is asked to"
                    mine = withdrawn((part.forget,), client, self.labels[client])
                    gone = withdrawn(part.without, client, self.labels[client])
                    assert np.array_equal(mine & ~gone, fresh)
                if isinstance(part, Learn):
                    gone = withdrawn(part.without, client, self.labels[client])
                    assert np.array_equal(gone, self.taken(now, client)), f"{client} trains on what was withdrawn"

    def remember(self) -> None:
        """All adapters and updates that are there now, with what they have forgotten, or whose they are."""
        for file in sorted(self.folder.glob("phases/*/phase.json")):
            found = phases.read(file.parent)
            if found.theta.size:
                self.adapters.append((frozenset(found.forgotten), found.theta.tobytes()[1000:1400]))
        for file in self.folder.glob("phases/learn/history/*/*.safetensors"):
            self.updates[file.read_bytes()[-400:]] = file.parent.name

    def check_purge(self, said: list[purge.Location]) -> None:
        """Nothing that knows a served request is left in the folder or the cache, but what is named as kept."""
        served = {r.id for _, r in queue.served(self.folder)}
        assert served <= {r.id for r in queue.requests(queue.read(self.folder))}
        assert all(x.reason for x in said if x.status == "kept")
        assert not [x for x in said if x.status == "unknown"]
        kept = [x.where for x in said if x.reason == purge.MIXED]
        without: dict[bytes, frozenset[str]] = {}
        for forgotten, chunk in self.adapters:  # the same adapters may come twice: what either has forgotten they do not know
            without[chunk] = without.get(chunk, frozenset()) | forgotten
        known = {chunk for chunk, forgotten in without.items() if served - forgotten}
        known |= {chunk for chunk, client in self.updates.items() if self.taken(self.asked, client).any()}
        files = [p for place in (self.folder, home() / "cache") for p in place.rglob("*") if p.is_file()]
        for file in files:
            if any(file.is_relative_to(self.folder / where) for where in kept):
                continue
            content = file.read_bytes()
            assert not [chunk for chunk in known if chunk in content], file
        assert not [x for x in purge.residual(self.folder) if x.status == "to be purged"]

    def finish(self, key: Path) -> dict[str, str]:
        """A receipt that verifies; the digests of the models."""
        if not key.is_file():
            envelope.keygen(key)
        if queue.served(self.folder):
            receipt.make(self.folder, key)
            receipt.verify(self.folder, key.with_suffix(".pub"))
            said = envelope.opened(self.folder / "receipt.json")["predicate"]
            assert [r["id"] for r in said["requests"]] == [r.id for r in queue.requests(queue.read(self.folder))]
        found: dict[str, str] = json.loads((self.folder / "results.json").read_text())["adapters_sha256"]
        return found
