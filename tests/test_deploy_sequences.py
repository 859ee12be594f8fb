"""Any sequence of commands on the folder of a federation, each killed between two writes now and then, and given again."""

import os
import re
import stat
from unittest.mock import patch

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given, settings
from hypothesis import strategies as st

from ease_flwr.config import ConfigError
from ease_flwr.hosts import certificates, deploy, rotation
from ease_flwr.hosts.settings import Deployment, opened

PRIVATE = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)
PLAN = Deployment(address="fl.example.org", hosts=("a", "b"))
NAMED = {"add-host": deploy.add_host, "replace-key": deploy.replace_key, "remove-host": deploy.remove_host}
PLAIN = {"rotate-ca": rotation.rotate, "finish": rotation.finish, "renew": rotation.renew}


@pytest.fixture(scope="module", autouse=True)
def no_disk():
    """A process that is killed leaves what it has written; the disk is not waited for."""
    with patch.object(os, "fsync", lambda _: None):
        yield


class Killed(BaseException):
    """As by kill -9: nothing that is written for it runs."""


class Death:
    """Kills at the n-th moment at which a file is half written, or whole and not yet in its place."""

    def __init__(self, moment):
        self.left = moment

    def __enter__(self):
        self.patches = [patch.object(os, name, self.first(getattr(os, name))) for name in ("fsync", "replace")]
        for p in self.patches:
            p.start()

    def __exit__(self, *_):
        for p in self.patches:
            p.stop()

    def first(self, act):
        def acting(*arguments, **options):
            if self.left == 0:
                raise Killed
            self.left -= 1
            return act(*arguments, **options)

        return acting


def verifies(server, trusted):
    """By a verifier of the web, for a name and an address of the certificate."""
    (leaf,) = x509.load_pem_x509_certificates(server)
    store = Store(x509.load_pem_x509_certificates(trusted))
    try:
        PolicyBuilder().store(store).build_server_verifier(x509.DNSName("fl.example.org")).verify(leaf, [])
    except VerificationError:
        return False
    return True


def secrets(folder):
    return {key for f in folder.rglob("*") if f.is_file() for key in PRIVATE.findall(f.read_bytes())}


class World:
    """A folder, the machines that its files were carried to, and what must be true of both."""

    def __init__(self, folder):
        self.folder = folder
        deploy.init(folder, PLAN)
        self.hosts, self.rotating = {"a", "b"}, False
        self.seen = secrets(folder)
        self.trusted = {}
        self.carry({"a", "b"}, server=True)
        self.check()

    def carry(self, hosts=(), server=False):
        for host in hosts:
            self.trusted[host] = (self.folder / "hosts" / host / "ca.crt").read_bytes()
        if server:
            self.certificate = (self.folder / "server" / "server.pem").read_bytes()

    def refuses(self, command, name):
        known = name in self.hosts
        return {
            "add-host": known,
            "replace-key": not known,
            "remove-host": not known or len(self.hosts) == 1,
            "finish": not self.rotating,
        }.get(command, False)

    def give(self, command, name, moment):
        """Give a command, and again where it was killed; says whether it was."""
        act = NAMED[command] if command in NAMED else lambda folder, _: PLAIN[command](folder)
        if self.refuses(command, name):
            with pytest.raises(ConfigError):
                act(self.folder, name)
            self.check()
            return False
        killed = False
        try:
            with Death(moment):
                said = act(self.folder, name)
        except Killed:
            killed = True
            assert self.seen <= secrets(self.folder)
            said = act(self.folder, name)
        assert said.startswith("1. ")
        if command == "add-host":
            self.hosts = self.hosts | {name}
        if command == "remove-host":
            self.hosts = self.hosts - {name}
            del self.trusted[name]
        self.rotating = command == "rotate-ca" or (self.rotating and command != "finish")
        self.carry({name} if command == "add-host" else self.hosts if command == "rotate-ca" else ())
        self.carry(server=command in ("finish", "renew"))
        self.check()
        return killed

    def check(self):
        folder = self.folder
        server = (folder / "server" / "server.pem").read_bytes()
        assert set(opened(folder).hosts) == self.hosts
        assert {f.name for f in (folder / "hosts").iterdir()} == self.hosts
        assert {f.stem for f in (folder / "server" / "keys").glob("*.pub")} == self.hosts
        assert certificates.fits(server, (folder / "server" / "server.key").read_bytes())
        retired = {f.read_bytes() for f in (folder / "server" / "keys" / "retired").glob("*.pub")}
        for host in self.hosts:
            public = (folder / "server" / "keys" / f"{host}.pub").read_bytes()
            assert certificates.public_half((folder / "hosts" / host / "node.key").read_bytes()) == public
            assert (folder / "hosts" / host / "node.key.pub").read_bytes() == public
            assert public not in retired
            assert verifies(server, (folder / "hosts" / host / "ca.crt").read_bytes())
            assert verifies(self.certificate, self.trusted[host])  # nobody is cut off
        assert verifies(server, (folder / "server" / "ca.crt").read_bytes())
        for file in (f for f in folder.rglob("*") if f.is_file()):
            content = file.read_bytes()
            assert not file.name.endswith(".partial")
            assert not PRIVATE.search(content) or stat.S_IMODE(file.stat().st_mode) == 0o600
            assert str(folder).encode() not in content
        assert self.seen <= secrets(folder)  # nothing secret is ever overwritten
        self.seen = secrets(folder)


COMMAND = st.tuples(st.sampled_from([*NAMED, *PLAIN]), st.sampled_from("abc"), st.integers(0, 30))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(commands=st.lists(COMMAND, min_size=1, max_size=8))
def test_after_every_command_all_fits_together(commands, tmp_path_factory):
    world = World(tmp_path_factory.mktemp("sequence") / "federation")
    for command, name, moment in commands:
        world.give(command, name, moment)


@pytest.mark.parametrize("command", [*NAMED, *PLAIN])
def test_each_command_can_be_killed_at_every_moment(command, tmp_path):
    for moment in range(40):
        world = World(tmp_path / str(moment))
        if command == "finish":
            world.give("rotate-ca", "", 99)
        if not world.give(command, "c" if command == "add-host" else "a", moment):
            break
    assert 2 <= moment < 39


def test_init_can_be_killed_at_every_moment(tmp_path):
    folder = tmp_path / "federation"
    for moment in range(200):
        try:
            with Death(moment):
                deploy.init(folder, PLAN)
            break
        except Killed:
            assert not folder.exists() or not any(folder.iterdir())
    assert 20 < moment < 199
    assert set(opened(folder).hosts) == {"a", "b"}
    assert not list(tmp_path.glob(".*"))
