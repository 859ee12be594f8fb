"""`ease deploy register`: the SuperLink knows the hosts whose keys are in keys/, whatever was given, killed or lost before."""

import json

import pytest

from ease_flwr.config import ConfigError
from ease_flwr.hosts import deploy, registry
from ease_flwr.hosts.settings import Deployment


class SuperLink:
    """Answers as `flwr supernode` does: a key is taken once and for all, a name as often as one likes."""

    def __init__(self):
        self.nodes, self.dies_after_registering = {}, False

    def __call__(self, asked, *words, refused=""):
        if words[0] == "list":
            return {"nodes": [{"node-id": node, "status": status} for node, (_, _, status) in self.nodes.items()]}
        if words[0] == "unregister":
            self.nodes[words[1]] = (*self.nodes[words[1]][:2], "unregistered")
            return {}
        file, name = words[1], words[words.index("--name") + 1]
        with open(file) as f:
            key = f.read()
        if key in {k for k, _, _ in self.nodes.values()}:
            assert refused == "already in use"
            return {}
        node = str(len(self.nodes) + 100)
        self.nodes[node] = (key, name, "registered")
        if self.dies_after_registering:
            raise KeyboardInterrupt
        return {"node-id": int(node)}

    def standing(self):
        return sorted(name for _, name, status in self.nodes.values() if status != "unregistered")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder of two hosts, a SuperLink, and `register` with what it says."""
    link, folder = SuperLink(), tmp_path / "federation"
    monkeypatch.setattr(registry.Registry, "_flwr", lambda *words, **options: link(*words, **options))
    monkeypatch.setattr(registry, "_wait", lambda *_: None)
    deploy.init(folder, Deployment(address="server", hosts=("a", "b")))

    def register():
        said = []
        registry.register(folder / "server", say=said.append)
        return said

    return folder, link, register


def test_twice_changes_nothing(world):
    folder, link, register = world
    assert register() == ["a: registered", "b: registered", "registered: a, b"]
    nodes = dict(link.nodes)
    assert register() == ["registered: a, b"]
    assert link.nodes == nodes
    assert sorted(n["name"] for n in json.loads((folder / "server" / "nodes.json").read_text()).values()) == ["a", "b"]
    connection = (folder / "server" / "flwr" / "config.toml").read_text()
    assert f'root-certificates = "{folder}/server/ca.crt"' in connection  # where the server's folder lies now


def test_what_was_added_replaced_and_removed_since(world):
    folder, link, register = world
    register()
    deploy.add_host(folder, "c")
    deploy.replace_key(folder, "a")
    deploy.remove_host(folder, "b")
    assert register() == [
        "a: unregistered, its old key is worth nothing now",
        "b: unregistered, its old key is worth nothing now",
        "a: registered",
        "c: registered",
        "registered: a, c",
    ]
    assert link.standing() == ["a", "c"]
    assert register() == ["registered: a, c"]


def test_a_retired_key_that_lies_in_keys_too_is_retired(world):
    folder, link, register = world
    register()
    gone = folder / "server" / "keys" / "b.pub"
    kept = gone.read_bytes()
    deploy.remove_host(folder, "b")
    gone.write_bytes(kept)  # only retired/ was carried to the server
    assert register() == ["b: unregistered, its old key is worth nothing now", "registered: a"]
    assert link.standing() == ["a"]


def test_a_key_that_is_not_there_any_more_is_left_registered(world):
    """Flower takes no key twice: a folder that was carried half must not end a host for good."""
    folder, link, register = world
    register()
    (folder / "server" / "keys" / "b.pub").unlink()
    assert register()[0] == "b: no key in keys/, left registered: put its key into keys/retired/ to end that"
    assert link.standing() == ["a", "b"]


def test_killed_between_registering_and_writing_it_down(world):
    _, link, register = world
    link.dies_after_registering = True
    with pytest.raises(KeyboardInterrupt):
        register()
    link.dies_after_registering = False
    assert register() == ["a: was registered already", "b: registered", "registered: a, b"]
    assert link.standing() == ["a", "b"]


def test_what_was_registered_by_hand_and_is_removed(world):
    folder, _, register = world
    register()
    (folder / "server" / "nodes.json").unlink()
    assert register() == ["a: was registered already", "b: was registered already", "registered: a, b"]
    deploy.remove_host(folder, "b")
    assert register()[0] == "b: its node is one of 100, 101: `flwr supernode unregister ID ease` ends it"


def test_a_new_database_of_the_superlink(world):
    _, link, register = world
    register()
    link.nodes.clear()
    assert register() == ["a: registered", "b: registered", "registered: a, b"]


def test_a_key_that_was_unregistered_by_hand_is_never_taken_again(world):
    _, link, register = world
    register()
    for node in ("100", "101"):
        link(None, "unregister", node)
    with pytest.raises(
        ConfigError, match=r"^a: its key was unregistered once, and Flower takes no key twice: `ease deploy rep"
    ):
        register()


def test_another_account_than_that_of_the_superlink_is_sent_away(world, monkeypatch):
    folder, link, register = world

    class Watcher:
        def username(self):
            return "ease"

    monkeypatch.setattr(registry, "watcher", lambda _: Watcher())
    with pytest.raises(
        ConfigError, match=r"^the SuperLink runs as ease, this command as \w+: give it as ease \(runuser -u ease\)$"
    ):
        register()
    assert not link.nodes
    assert not (folder / "server" / "nodes.json").exists()


def test_keys_that_were_carried_into_a_folder_of_their_own_are_not_overlooked(world):
    folder, link, register = world
    (folder / "server" / "keys" / "keys" / "retired").mkdir(parents=True)  # as `scp -r keys SERVER:.../keys/` does
    with pytest.raises(ConfigError, match=r"keys/keys: a folder among the keys: carry the files themselves into .*/keys, and"):
        register()
    assert not link.nodes


def test_keys_that_cannot_be_are_said(world, tmp_path):
    folder, _, register = world
    keys = folder / "server" / "keys"
    (keys / "c.pub").write_bytes((keys / "a.pub").read_bytes())
    with pytest.raises(ConfigError, match=r"c\.pub and a\.pub are the same key: each host has a key of its own"):
        register()
    (keys / "c.pub").write_text("nothing")
    with pytest.raises(ConfigError, match=r"c\.pub: not a public key in OpenSSH format: carry it here again"):
        register()
    deploy.init(tmp_path / "open", Deployment(address="localhost", hosts=("a",), insecure=True))
    said = []
    registry.register(tmp_path / "open" / "server", say=said.append)
    assert said == ["made with --insecure: hosts have no keys, and none is registered"]
