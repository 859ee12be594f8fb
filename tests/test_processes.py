"""Whatever ends the owner of a family of processes, nothing of it is left; other families are left alone."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ease_flwr.config import APP
from ease_flwr.hosts import processes
from ease_flwr.hosts.processes import Family, Stopped

DEADLINE = 30
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

GRANDCHILD = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(600)
"""
CHILD = f"""
import subprocess, sys, time
for name, environment in (("marked", None), ("unmarked", {{}})):  # Ray's workers overwrite theirs
    command = [sys.executable, "-c", {GRANDCHILD!r}, sys.argv[1] + "/" + name]
    subprocess.Popen(command, env=environment, start_new_session=True)
time.sleep(600)
"""
OWNER = f"""
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, as pytest may be one, ignores it
from ease_flwr.hosts.processes import Family
here = Path(sys.argv[1])
with Family(lambda: "`ease resume RUN` goes on", grace=2) as family:
    (family.folder / "something").write_text("")
    family.start([sys.executable, "-c", {CHILD!r}, str(here)], here / "child.log")
    while not all((here / n).is_file() and (here / n).read_text() for n in ("marked", "unmarked")):
        time.sleep(0.02)
    (here / "partial").write_text(family.id + " " + str(family.folder))
    (here / "partial").rename(here / "ready")
    time.sleep(600)
"""


def until(condition, seconds=DEADLINE):
    """Wait for something, and say whether it came."""
    limit = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < limit:
        time.sleep(0.05)
    return found


class Owner:
    """A process that owns a family: a child, and two of its children who do not end when they are asked to."""

    def __init__(self, here):
        here.mkdir()
        self.here = here
        self.command = [sys.executable, "-c", OWNER, str(here)]

    def start(self):
        environment = {**os.environ, "PYTHONPATH": str(APP)}
        with (self.here / "said").open("w") as said:
            self.process = subprocess.Popen(self.command, stderr=said, env=environment)
        return self

    def ready(self):
        assert until((self.here / "ready").is_file), (self.here / "said").read_text()
        self.id, folder = (self.here / "ready").read_text().split()
        self.folder = Path(folder)
        self.relatives = [psutil.Process(int((self.here / n).read_text())) for n in ("marked", "unmarked")]
        assert set(self.relatives) <= processes.members(self.id)

    def gone(self):
        alive = [*processes.members(self.id), *filter(processes.is_alive, self.relatives)]
        return not alive and not self.folder.exists()


CASES = {
    "SIGINT": [signal.SIGINT],
    "SIGTERM": [signal.SIGTERM],
    "SIGHUP": [signal.SIGHUP],
    "SIGKILL": [signal.SIGKILL],
    "SIGTERM twice": [signal.SIGTERM, signal.SIGTERM],
    "SIGINT, then SIGTERM": [signal.SIGINT, signal.SIGTERM],
    "SIGTERM, then SIGKILL": [signal.SIGTERM, signal.SIGKILL],
}


@pytest.fixture(scope="module")
def owners(tmp_path_factory):
    """One for each case, all at work at once; then all are sent their signals."""
    folder = tmp_path_factory.mktemp("owners")
    owners = {case: Owner(folder / str(k)).start() for k, case in enumerate(CASES)}
    untouched = Owner(folder / "untouched").start()
    for owner in (*owners.values(), untouched):
        owner.ready()
    for k in range(2):
        for case, owner in owners.items():
            if k < len(CASES[case]):
                owner.process.send_signal(CASES[case][k])
        time.sleep(1)  # the second meets the clean-up after the first
    yield owners
    assert len(processes.members(untouched.id)) == 3  # whose neighbours were ended
    untouched.process.terminate()
    untouched.process.wait(DEADLINE)


@pytest.mark.parametrize("case", CASES)
def test_whatever_ends_the_owner_nothing_is_left(owners, case):
    owner, sent = owners[case], CASES[case]
    assert until(owner.gone), processes.members(owner.id)
    status = owner.process.wait(DEADLINE)
    said = (owner.here / "said").read_text()
    if signal.SIGKILL in sent:
        assert status == -signal.SIGKILL
    else:
        assert status == 128 + sent[0]
        assert said == f"ease: {sent[0].name}: 3 processes ended; `ease resume RUN` goes on\n"


def test_the_end_of_the_block_ends_all_and_only_its_own(tmp_path):
    before = [signal.getsignal(s) for s in processes.SIGNALS]
    with Family() as other:
        theirs = other.start(SLEEP, tmp_path / "log")
        with Family() as family:
            child = family.start(SLEEP, tmp_path / "log")
            assert [p.pid for p in family.members()] == [child.pid]
            assert family.folder.is_dir()
        assert child.poll() == -signal.SIGTERM
        assert not family.folder.exists()
        assert family._guard.returncode == 0
        with pytest.raises(RuntimeError, match="is not started: everything is being ended"):
            family.start(SLEEP, tmp_path / "log")
        assert theirs.poll() is None
        assert other.folder.is_dir()
    assert theirs.poll() == -signal.SIGTERM
    assert [signal.getsignal(s) for s in processes.SIGNALS] == before


def test_an_exception_ends_all_and_goes_on(tmp_path):
    family = Family()

    def fail():
        with family:
            family.start(SLEEP, tmp_path / "log")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not family.members()
    assert not family.folder.exists()


def test_a_signal_during_the_normal_end_is_obeyed_after_it(tmp_path, monkeypatch):
    ended = []

    def end(*family):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        ended.append(family)
        return 0

    monkeypatch.setattr(processes, "end", end)
    with pytest.raises(Stopped) as stopped, Family() as family:
        pass
    assert ended
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not family.folder.exists()


def test_what_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Family():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_families_within_families_end_with_the_outer_one(tmp_path):
    """As a comparison, whose cells are runs of their own."""
    inner = Owner(tmp_path / "inner")
    with Family(grace=2) as family:
        family.start(inner.command, tmp_path / "log", {**os.environ, "PYTHONPATH": str(APP)})
        inner.ready()
        assert processes.members(inner.id) < family.members()
    assert until(inner.gone)


def test_who_listens_at_a_port_may_be_another_process(tmp_path):
    program = "import socket, time; s = socket.create_server(('127.0.0.1', {})); time.sleep(600)"
    ours, theirs = processes.free_port(), processes.free_port()
    with socket.create_server(("127.0.0.1", theirs)), Family() as family:
        family.start([sys.executable, "-c", program.format(ours)], tmp_path / "log")
        assert until(lambda: family.listens(ours))
        assert processes.listens(theirs)
        assert not family.listens(theirs)


def test_who_reads_no_more_ends_all_and_is_told(tmp_path, capsys):
    def print_it():
        with Family(lambda: "`ease resume RUN` goes on") as family:
            family.start(SLEEP, tmp_path / "log")
            raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        print_it()
    assert capsys.readouterr().err == "ease: nobody reads what is said: 1 processes ended; `ease resume RUN` goes on\n"
