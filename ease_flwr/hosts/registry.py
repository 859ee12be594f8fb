"""Which hosts the SuperLink knows: made to be those whose keys are in server/keys/, and none whose key is in keys/retired/.

Flower takes no key twice, so none is unregistered that was not retired or replaced. nodes.json says which node is whose.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from ease_flwr.config import ConfigError
from ease_flwr.hosts import certificates, surroundings
from ease_flwr.hosts.deploy import CONNECTION, connection
from ease_flwr.hosts.probe import probe, watcher
from ease_flwr.hosts.settings import LINK, Server, read
from ease_flwr.hosts.writing import put
from ease_flwr.store.files import locked

NODES = "nodes.json"
"""Fingerprint of a key -> name of its host, and the id of Flower's node ("" where it is not known)."""
START = 60.0
"""Seconds that the SuperLink may take to listen."""
Say = Callable[[str], object]


def register(folder: Path, superlink: str = CONNECTION, say: Say = print) -> None:
    """Let the SuperLink know the hosts of a server's folder. Raises ConfigError; what was done until then is done."""
    folder = folder.absolute()
    settings = read(Server, folder / LINK)
    if settings.insecure:
        say("made with --insecure: hosts have no keys, and none is registered")
        return
    _check_account(folder)
    (folder / "flwr").mkdir(exist_ok=True)
    with locked(folder / ".registering", wait=True):
        if superlink == CONNECTION:
            put(folder / "flwr" / "config.toml", connection(folder, settings))
        _wait(folder, settings)
        registry = Registry(folder, superlink, say)
        registry.unregister_retired()
        registry.register_new()
        say(f"registered: {', '.join(sorted(n['name'] for n in registry.nodes.values())) or 'no host'}")


class Registry:
    """Nodes of a SuperLink beside the keys in a folder."""

    def __init__(self, folder: Path, superlink: str, say: Say) -> None:
        self.folder, self.superlink, self.say = folder, superlink, say
        try:
            self.nodes: dict[str, dict[str, str]] = json.loads((folder / NODES).read_text(encoding="utf-8"))
        except FileNotFoundError:
            self.nodes = {}
        listed = self._flwr("list", superlink)["nodes"]
        self.standing = {n["node-id"] for n in listed if n["status"] not in ("unregistered", "deleted")}
        self.retired = set(_keys(folder / "keys" / "retired"))
        self.keys = {key: file for key, file in _keys(folder / "keys").items() if key not in self.retired}

    def unregister_retired(self) -> None:
        """End what was retired, and what another key of the same name has replaced."""
        names = {file.stem for file in self.keys.values()}
        for key, node in list(self.nodes.items()):
            replaced = key not in self.keys and node["name"] in names
            if key not in self.retired and not replaced:
                if key not in self.keys:
                    self.say(f"{node['name']}: no key in keys/, left registered: put its key into keys/retired/ to end that")
                continue
            if node["id"] in self.standing:
                self._flwr("unregister", node["id"], self.superlink)
                self.say(f"{node['name']}: unregistered, its old key is worth nothing now")
            elif not node["id"]:
                left = ", ".join(sorted(self.standing - {n["id"] for n in self.nodes.values()}))
                self.say(f"{node['name']}: its node is one of {left}: `flwr supernode unregister ID {self.superlink}` ends it")
            del self.nodes[key]
            self._keep()

    def register_new(self) -> None:
        """Register every key that the SuperLink does not know."""
        for key, file in sorted(self.keys.items(), key=lambda item: item[1].stem):
            node = self.nodes.get(key)
            if node and (node["id"] in self.standing or not node["id"]):
                continue
            found = self._flwr("register", str(file), self.superlink, "--name", file.stem, refused="already in use")
            if found:
                self.say(f"{file.stem}: registered")
                self.nodes[key] = {"name": file.stem, "id": str(found["node-id"])}
                self.standing.add(str(found["node-id"]))
            else:
                self.nodes[key] = {"name": file.stem, "id": self._stray(file.stem)}
            self._keep()

    def _stray(self, name: str) -> str:
        """The node of a key that Flower knows and we do not: registered by hand, or by a command that was killed."""
        strays = self.standing - {n["id"] for n in self.nodes.values()}
        if not strays:
            raise ConfigError(
                f"{name}: its key was unregistered once, and Flower takes no key twice: `ease deploy replace-key` makes another"
            )
        self.say(f"{name}: was registered already")
        return strays.pop() if len(strays) == 1 else ""

    def _keep(self) -> None:
        put(self.folder / NODES, json.dumps(self.nodes, indent=1) + "\n")

    def _flwr(self, *words: str, refused: str = "") -> dict[str, Any]:
        """What `flwr supernode` answers; {} where it refuses with these words. Raises ConfigError."""
        command = ["flwr", "supernode", *words, "--format", "json"]
        variables = surroundings.environment(self.folder / "flwr")
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        try:
            answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
            if answer["success"]:
                return answer
            said = str(answer.get("error-message", said))
        except (ValueError, KeyError):
            pass
        if refused and refused in said:
            return {}
        raise ConfigError(f"`flwr supernode {words[0]}` failed: {' '.join(said.split())[:300]}")


def _keys(folder: Path) -> dict[str, Path]:
    """Public halves in a folder by their fingerprints. Raises ConfigError."""
    found: dict[str, Path] = {}
    if strange := [f for f in folder.glob("*/") if f.name != "retired"]:
        raise ConfigError(f"{strange[0]}: a folder among the keys: carry the files themselves into {folder}, and remove it")
    for file in sorted(folder.glob("[!.]*.pub")):
        try:
            key = certificates.fingerprint(file.read_bytes())
        except ValueError:
            raise ConfigError(f"{file}: not a public key in OpenSSH format: carry it here again") from None
        if key in found:
            raise ConfigError(f"{file} and {found[key].name} are the same key: each host has a key of its own")
        found[key] = file
    return found


def _check_account(folder: Path) -> None:
    """What is written here is read and written by the SuperLink: the same account gives this command. Raises ConfigError."""
    at_work, me = watcher(folder), psutil.Process().username()
    if at_work and (account := at_work.username()) != me:
        raise ConfigError(f"the SuperLink runs as {account}, this command as {me}: give it as {account} (runuser -u {account})")


def _wait(folder: Path, settings: Server) -> None:
    limit = time.monotonic() + START
    trusted = (folder / "ca.crt").read_text()
    while why := probe(settings.here, trusted, folder / "ca.crt", "localhost").why:
        if time.monotonic() > limit:
            raise ConfigError(f"the SuperLink does not answer: {why}")
        time.sleep(0.5)
