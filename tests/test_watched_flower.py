"""Flower's own programs under `ease deploy link` and `node`, with TLS and keys on loopback: nothing only looks alive."""

import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ease_flwr.hosts import deploy, probe, processes, registry, rotation
from tests.test_proxy import needs_nginx, nginx
from tests.test_watch import federation

__all__ = ["federation"]

QUICK = "from ease_flwr.hosts import watch; watch.EVERY, watch.PATIENCE, watch.RESTING = 1, 40, 8; "
SECONDS = 120


class Machine:
    """A folder, and `ease deploy link` or `node` on it with less patience than usual."""

    def __init__(self, folder, verb):
        self.folder, self.verb = folder, verb
        self.log = folder.parents[1] / f"{folder.name}.log"
        self.start()

    def start(self):
        code = f"{QUICK}from ease_flwr.cli import app; app(['deploy', {self.verb!r}, {str(self.folder)!r}])"
        with self.log.open("w") as out:
            self.process = subprocess.Popen([sys.executable, "-c", code], stdout=out, stderr=out)

    def well(self):
        """Wait until its health is well."""
        limit = time.monotonic() + SECONDS
        while not (found := probe.health(self.folder, 14))[0]:
            assert time.monotonic() < limit, f"{found[1]}\n{self.log.read_text()[-2000:]}"
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.5)
        return found[1]

    def online(self):
        """Wait until the SuperLink has taken it."""
        self.well()
        limit = time.monotonic() + SECONDS
        while "SuperNode ID" not in self.log.read_text():
            assert time.monotonic() < limit
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.2)

    def below(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def ends(self, status, line):
        """Wait for its end, by itself: with this status and this line, and nothing left."""
        below = self.below()
        assert self.process.wait(SECONDS) == status
        assert re.search(line, self.log.read_text().strip().splitlines()[-1]), self.log.read_text()[-2000:]
        psutil.wait_procs(below, 30)
        assert not any(map(processes.is_alive, below))

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.ends(128 + signal.SIGTERM, r"^ease: SIGTERM: \d+ processes ended$")


@pytest.mark.slow
@needs_nginx
def test_flowers_programs_are_watched(federation):
    with nginx(federation / "server") as proxy:
        watched(federation, proxy)


def watched(federation, proxy):
    """What happens to a SuperLink and two SuperNodes that come in by nginx."""
    said = []
    machines = [link := Machine(federation / "server", "link")]
    try:
        registry.register(federation / "server", say=said.append)
        assert said == ["a: registered", "b: registered", "registered: a, b"]
        machines += [a := Machine(federation / "hosts" / "a", "node"), b := Machine(federation / "hosts" / "b", "node")]
        assert "trusts 1 authority" in link.well()
        a.online()
        b.online()

        next(p for p in a.below() if probe.DOOR in processes.command_of(p)).kill()
        a.ends(1, r"^ease deploy node: python -m ease_flwr\.hosts\.door was killed by signal 9$")

        said.clear()
        deploy.replace_key(federation, "a")
        a.start()
        a.ends(1, r"^ease deploy node: flower-supernode has ended with status 1, see above\. Is this host's key registered")
        registry.register(federation / "server", say=said.append)
        registry.register(federation / "server", say=said.append)
        assert said == [
            "a: unregistered, its old key is worth nothing now",
            "a: registered",
            "registered: a, b",
            "registered: a, b",
        ]
        a.start()
        a.online()

        theirs = federation / "hosts" / "b" / "ca.crt"
        before = theirs.read_bytes()
        rotation.rotate(federation)
        theirs.write_bytes(before)  # a gets the new ca.crt in time, b does not
        a.stop()
        a.start()
        a.online()
        assert "trusts 2 authorities" in a.well()
        rotation.finish(federation)
        theirs.write_bytes(before)
        link.stop()
        link.start()
        proxy.send_signal(signal.SIGHUP)  # it reads the new certificate
        link.well()
        b.ends(1, rf"^ease deploy node: 127\.0\.0\.1:\d+: the server's certificate is not signed by CA {theirs}: get the new")
        assert a.process.poll() is None
        a.well()
        a.stop()
    finally:
        for machine in machines:
            if machine.process.poll() is None:
                machine.process.terminate()
                machine.process.wait(60)
