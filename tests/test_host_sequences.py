"""Laws over random sequences on hosts that leave, go away, come back, join, and change their data."""

import shutil
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ease_flwr import launcher
from ease_flwr.config import ConfigError, ForgetConfig
from ease_flwr.exchange.transport import FederationError
from ease_flwr.hosts.simulation import Where
from ease_flwr.launcher import Asked
from ease_flwr.store import queue
from tests.hosts import LATE, NAMES, Federation
from tests.standing import Death

ALL = (*NAMES, LATE)
pytestmark = pytest.mark.usefixtures("still")


@dataclass(frozen=True)
class Op:
    """What happens: something is asked, or a host or its data change."""

    kind: str
    host: int = 0
    which: int = 0
    strategy: str = "finetune"
    crash: int = 0
    """The exchange at which the process dies; 0 never. It is resumed."""


def ops(kinds, strategies=("finetune",), crashes=(0,)):
    strategy, crash = st.sampled_from(strategies), st.sampled_from(crashes)
    return st.builds(Op, st.sampled_from(kinds), st.integers(0, 3), st.integers(0, 20), strategy, crash)


sequences = st.lists(
    st.one_of(
        ops(("leave", "label", "pair", "name"), ("finetune", "ease", "npo"), (0, 0, 2, 3, 4)),
        ops(("away", "back", "reverse", "remove", "edit", "lose")),
        ops(("continue", "join", "other run", "in another run", "withdraw")),
    ),
    min_size=3,
    max_size=8,
)


class Story:
    """A run on hosts, and an oracle: which pairs nobody may train on any more, told from what the hosts have, one by one."""

    def __init__(self, folder, monkeypatch):
        self.hosts = Federation(folder, monkeypatch)
        monkeypatch.setattr(launcher, "submit", self.hosts.submitted)
        self.run = self.hosts.learn("run")
        self.withdrawn: set[tuple[str, str]] = set()
        self.departed: set[str] = set()
        self.done: set[str] = set()
        self.others = 0

    def do(self, op):
        host = self.hosts.hosts[ALL[op.host]]
        self.hosts.trained.clear()
        self.hosts.pictures.clear()
        self.hosts.lives = op.crash
        before = queue.read(self.run)
        asked = self.asked(op, host)
        why = ""
        try:
            try:
                self.act(op, host, asked)
            except Death:
                launcher.resume(self.run, Where("ease"))
        except (ConfigError, FederationError) as error:
            why = str(error)
        self.hosts.lives = 0
        assert "\n" not in why
        if asked:
            self.check_request(asked, before)
        assert not self.hosts.pictures & self.withdrawn, "somebody trains on what was withdrawn"
        assert not {name for run, name, _ in self.hosts.trained if run == "run"} & self.departed, "who has left trains"
        assert not {name for name, _ in self.hosts.pictures if not self.hosts.hosts[name].online}

    def asked(self, op, host):
        """What a request asks; None for other operations."""
        ids = host.ids
        match op.kind:
            case "leave":
                return ForgetConfig(targets=(host.name,))
            case "label":
                labels = sorted({label for h in self.hosts.hosts.values() for _, label in h.ids} - {""})
                return ForgetConfig(scenario="class", targets=(labels[op.which % len(labels)],))
            case "pair":
                return ForgetConfig(scenario="sample", targets=(f"{host.name}/{ids[op.which % len(ids)][0]}",))
            case "name":
                rows = host.train
                return ForgetConfig(scenario="sample", targets=(f"{host.name}/{rows[op.which % len(rows)][0]}",))
        return None

    def act(self, op, host, asked):
        if asked:
            launcher.forget(self.run, Asked(asked, op.strategy, ("rounds=1",)), Where("ease"))
        elif op.kind in ("away", "back"):
            host.online = op.kind == "back"
        elif op.kind == "reverse":
            host.reverse()
        elif op.kind == "remove" and len(host.train) > 3:
            host.remove(host.train[op.which % len(host.train)])
        elif op.kind == "edit":
            host.edit(host.train[op.which % len(host.train)])
        elif op.kind == "lose":
            host.lose()
        elif op.kind == "in another run" and self.others:
            self.in_another(host, host.train[op.which % len(host.train)])
        elif op.kind == "continue":
            launcher.continue_training(self.run, 1, Where("ease"))
        elif op.kind == "join":
            launcher.join(self.run, host.name)
        elif op.kind == "withdraw" and (waiting := queue.left_to_do(self.run)):
            named = dict(zip(queue.names(queue.read(self.run)), queue.read(self.run), strict=True))
            requests = [named[n].request for n in waiting if named[n].request]
            if requests:
                launcher.withdraw(self.run, requests[op.which % len(requests)].id)
        elif op.kind == "other run":
            names = [n for n in ALL if n not in self.departed]
            if len(names) > 1:
                self.others += 1
                self.hosts.learn(f"other-{self.others}", **{"data.names": ",".join(names), "forget.targets": names[0]})

    def check_request(self, asked, before):
        """A request is done, waits for hosts, or is set aside with its reason: it is never lost."""
        (one,) = asked.forget_sets()
        same = [r for r in queue.requests(queue.read(self.run)) if r.asks == one.asks]
        aside = [s for s in queue.read_set_aside(self.run) if s.request.asks == one.asks]
        assert all(s.why for s in aside)
        for _, request in queue.served(self.run):
            self.departed |= set(request.leaving)
            new = request.id not in self.done
            self.done.add(request.id)
            for host in self.hosts.hosts.values() if new else ():
                for row in host.train:
                    single = {f"{host.name}/{host.id(row)}", f"{host.name}/{row[0]}"} & set(request.targets)
                    named = {"client": host.name in request.targets and host.online, "class": row[2] in request.targets}
                    if named.get(request.scenario, single):
                        self.withdrawn.add((host.name, host.picture(row)))
        assert same or aside or queue.read(self.run) == before

    def in_another(self, host, row):
        """What one run has forgotten another one that has learnt it can still forget."""
        other = self.hosts.folder / f"other-{self.others}"
        wanted = ForgetConfig(scenario="sample", targets=(f"{host.name}/{host.id(row)}",))
        launcher.forget(other, Asked(wanted, "finetune", ("rounds=1",)), Where("ease"))
        assert queue.served(other)[-1][1].targets == wanted.targets
        self.withdrawn.add((host.name, host.picture(row)))

    def end(self):
        """Once all are there again, everything that waits is done or set aside, and a run goes on."""
        for name in NAMES:
            self.hosts.hosts[name].online = True
        with suppress(ConfigError):  # of a request that is set aside now
            launcher.resume(self.run, Where("ease"))
        assert not queue.left_to_do(self.run)


def law(folder, sequence):
    with pytest.MonkeyPatch.context() as monkeypatch:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        monkeypatch.setenv("EASE_FLWR_HOME", str(folder / "home"))
        story = Story(folder, monkeypatch)
        for op in sequence:
            story.do(op)
        story.end()


AWAY_THEN_BACK = [Op("away", 1), Op("label", 0, 3), Op("back", 1), Op("continue"), Op("other run")]
LEAVES_WHILE_AWAY = [
    Op("away", 2),
    Op("leave", 2, strategy="ease"),
    Op("back", 2),
    Op("continue"),
    Op("pair", 0, 4),
    Op("other run"),
]
HELPLESS = [Op("away", 1), Op("pair", 1, 2, "npo"), Op("back", 1), Op("pair", 1, 2, "npo"), Op("reverse", 1), Op("other run")]
EDITED = [Op("pair", 1, 3), Op("edit", 1, 3), Op("continue"), Op("lose", 1), Op("other run"), Op("in another run", 1, 3)]
BY_NAME = [Op("name", 0, 2), Op("lose", 0), Op("edit", 0, 2), Op("other run"), Op("label", 0, 1, crash=3), Op("other run")]
JOINS = [Op("back", 3), Op("join", 3), Op("continue"), Op("leave", 3, strategy="ease"), Op("continue"), Op("other run")]
BELOW_QUORUM = [Op("away", 0), Op("away", 1), Op("away", 2), Op("leave", 1), Op("withdraw"), Op("leave", 0, strategy="ease")]


@pytest.mark.slow
@pytest.mark.parametrize("sequence", [AWAY_THEN_BACK, LEAVES_WHILE_AWAY, HELPLESS, EDITED, BY_NAME, JOINS, BELOW_QUORUM])
def test_hosts_that_come_and_go(home, sequence):
    law(home / "story", sequence)


@pytest.mark.slow
@settings(max_examples=12, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(sequence=sequences)
def test_random_sequences_on_hosts(home, sequence):
    law(home / "random", sequence)


@pytest.mark.long
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(sequence=sequences)
def test_many_random_sequences_on_hosts(home, sequence):
    law(home / "many", sequence)
