"""What somebody gets who has ca.crt and the address alone (slow): Flower's own programs on loopback, with nginx before them."""

import shutil
import subprocess

import pytest

from ease_flwr.hosts import app, certificates, connected, demo, deploy, processes, settings, surroundings
from ease_flwr.hosts.link import Link
from tests.test_proxy import needs_nginx

RUN = {"experiment": "personas", "strategy": "ease", "fresh": True, "seed": 0, "until": "learn"}
SMALL = {
    **{"data.clients": 2, "data.exclusive": 2, "data.shared": 2, "data.sharers": 2, "data.strangers": 2, "data.scenes": 8},
    **{"data.exclusive_pairs": 8, "data.shared_pairs": 8, "data.test_repeats": 1, "data.test_scenes": 8, "learn.rounds": 1},
    **{"data.forget_unseen_repeats": 1, "learn.epochs": 1, "learn.batch": 8, "learn.average": 1, "evaluation.every": 0},
    **{"evaluation.reference": "none", "audit.level": "none", "federation.start_timeout": 90},
}


class Outsider:
    """Somebody who has ca.crt, the address that hosts call, and a key of his own; and what flwr says to him."""

    def __init__(self, home, address, trusted):
        (home / "flwr").mkdir(parents=True)
        self.home, self.address = home, address
        self.trusted = shutil.copy2(trusted, home / "ca.crt")
        (home / "own.key").write_bytes(certificates.node_key())
        (home / "own.key").chmod(0o600)
        (home / "own.key.pub").write_bytes(certificates.public_half((home / "own.key").read_bytes()))
        (home / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "it"\n[superlink.it]\naddress = "{address}"\nroot-certificates = "{self.trusted}"\n'
        )
        self.environment = surroundings.environment(home / "flwr", threads=1)

    def flwr(self, *words):
        """What flwr says."""
        done = subprocess.run(["flwr", *words, "--format", "json"], env=self.environment, capture_output=True, text=True)
        return done.stdout

    def node(self, family):
        """What a SuperNode of his says that calls there, until it ends."""
        command = ["flower-supernode", "--root-certificates", str(self.trusted), "--superlink", self.address]
        command += ["--auth-supernode-private-key", str(self.home / "own.key"), "--port", str(processes.free_port())]
        assert family.start(command, self.home / "out", self.environment, self.home).wait(60) == 1
        return (self.home / "out").read_text()


@pytest.mark.slow
@needs_nginx
def test_hosts_train_through_nginx_and_who_has_ca_crt_alone_gets_nothing(tmp_path, monkeypatch):
    with demo.federation(tmp_path / "federation", ("client-0", "client-1"), lambda _: None) as running:
        address = settings.read(settings.Host, tmp_path / "federation" / "hosts" / "client-0" / "node.toml").server
        assert running.reached == address
        monkeypatch.setenv("FLWR_HOME", str(running.server / "flwr"))
        other = Outsider(tmp_path / "outsider", address, tmp_path / "federation" / "server" / "ca.crt")

        def refused(*words):
            said = other.flwr(*words)
            assert '"success": false' in said, said
            assert "403 Forbidden" in said, said

        refused("supernode", "list", "it")
        refused("supernode", "register", str(other.home / "own.key.pub"), "it", "--name", "client-2")
        refused("ls", "it")
        refused("run", str(app.folder({"ease"})), "it")
        assert "Failed to activate SuperNode" in other.node(running.family)

        where, link = tmp_path / "run", Link(deploy.CONNECTION, running.environment)
        told = " ".join(f"{k}={v}" for k, v in SMALL.items())
        id = link.submit({**RUN, "set": told, "run-dir": str(where)})
        assert link.follow(id, where) == 0
        assert sorted(n.name for n in connected.nodes(deploy.CONNECTION)) == ["client-0", "client-1"]
