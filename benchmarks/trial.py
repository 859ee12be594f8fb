"""The machines of benchmarks/hosts.py as a federation: what is carried where, what runs there, what an operator types."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import wards
from benchmarks.machines import HOME, Machine, Network, Service, TrialError
from ease_flwr.config import APP

RUNS = f"{HOME}/server/runs"
ONE = f"{RUNS}/one"
"""The run of nearly all steps."""
REACH = """python -c 'import socket; socket.create_connection(("10.77.0.2", {}), 3)'"""
CALLS = """\
import http.client, ssl
for path in ("control/list-nodes", "control/start-run", "runtime/acquire-task", "fleet/register-node", "fleet/get-fab"):
    connection = http.client.HTTPSConnection("10.77.0.2", 9092, context=ssl.create_default_context(cafile="ca.crt"), timeout=9)
    connection.request("POST", f"/v1/{path}", headers={"Content-Type": "application/protobuf"})
    print(path, connection.getresponse().status)
"""
"""What somebody calls who has ca.crt and the address; flwr's own programs call the same."""
ANSWER_SECONDS = 600.0
"""Enough for a machine that does other things as well; nothing waits so long where all is well."""


class Trial:
    """The machines of a federation, and what runs on them."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.desk, self.server = network.add("desk"), network.add("server")
        self.hosts: dict[str, Machine] = {}
        self.units: dict[str, Service] = {}
        wards.environment(self.desk, wards.wheel(APP, network.folder / "wheel"))
        self.desk.copy(HOME / "venv", self.server, HOME / "venv")

    def ease(self, line: str, status: int = 0) -> str:
        """A command of `ease` on the server, typed by who looks after it."""
        return self.server.run(f". ./env.sh && ease {line}", f"{HOME}/server", status, "ease")

    def carry(self, there: str, machine: Machine, to: str) -> None:
        """From the federation's folder on the desk to a machine, for the account of its unit; what was there is replaced."""
        machine.run(f"rm -rf {to}")
        self.desk.copy(HOME / "federation" / there, machine, HOME / to)
        machine.run(f"! id ease || chown -R ease: {to}")

    def install(self, there: str, machine: Machine, **units: str) -> None:
        """A folder of the desk is installed on its machine by its own script, and its units are started, under these names."""
        name = Path(there).name
        self.carry(there, machine, f"carried/{name}")
        if name != "server":
            node = machine.at(HOME / "carried" / name / "node.toml")
            own = {'data-root = "/data"': f'data-root = "{HOME}/data"', 'device = ""': 'device = "cpu"'}
            own['base-model = ""'] = f'base-model = "{HOME}/own.json"'
            for before, after in own.items():
                node.write_text(node.read_text().replace(before, after))
        machine.run(f"sh carried/{name}/install.sh && rm -r carried")
        self.serve(machine, HOME / name, units)

    def serve(self, machine: Machine, folder: Path, units: dict[str, str]) -> None:
        """Start the units of a folder on its machine, under these names."""
        for name, unit in units.items():
            self.units[name] = Service(machine, folder / unit)
            self.units[name].start()

    def firewall(self) -> None:
        """Let in the hosts that ease.nft of the server names, and nobody else."""
        rules = f"{HOME}/server/ease.nft"
        self.server.run(f"nft -c -f {rules} && nft -f {rules}")

    def let_in(self, address: str) -> None:
        """Write an address into the rules of the server, and put them in force."""
        rules = self.server.at(HOME / "server" / "ease.nft")
        rules.write_text(rules.read_text().replace("elements = { ", f"elements = {{ {address}, ", 1))
        self.firewall()

    def host(self, name: str) -> None:
        """A machine becomes a host: program, data, base model, folder."""
        self.hosts[name] = machine = self.network.add(name)
        self.desk.copy(HOME / "venv", machine, HOME / "venv")
        wards.data(machine)
        wards.base(machine.at(HOME / "own.json"))
        machine.run(f"ease data check {HOME}/data")
        self.install(f"hosts/{name}", machine, **{name: "ease-supernode.service"})

    def until(self, there: Callable[[], bool], what: str, seconds: float = ANSWER_SECONDS) -> None:
        """Wait for something. Raises TrialError."""
        limit = time.monotonic() + seconds
        while not there():
            if time.monotonic() > limit:
                raise TrialError(f"after {seconds:.0f} s still not: {what}")
            time.sleep(2)

    def status(self, run: str = "") -> dict[str, Any]:
        """What `ease status --json` says, whether or not something needs a person; {} where the SuperLink does not answer."""
        line = f". ./env.sh && ease status {run} --superlink ease --json || [ $? = 1 ]"
        try:
            found: dict[str, Any] = json.loads(self.server.run(line, f"{HOME}/server", user="ease"))
        except TrialError:
            return {}
        return found

    def online(self, *names: str) -> None:
        """Wait until exactly these hosts are connected, by name."""

        def there() -> bool:
            return sorted(n["name"] for n in self.status().get("nodes", []) if n["online"]) == sorted(names)

        self.until(there, f"{', '.join(names)} are connected")

    def there(self) -> list[str]:
        """Hosts that are at work."""
        return [name for name in self.hosts if not self.units[name].stopped.is_set()]

    def restart(self, *names: str) -> None:
        """As `systemctl restart`."""
        for name in names:
            self.units[name].stop()
            self.units[name].start()

    def log(self, run: str = ONE) -> str:
        """What a run has said."""
        return self.server.at(Path(run) / "log.txt").read_text(encoding="utf-8")

    def said(self, pattern: str, run: str = ONE) -> str:
        """The last line of a run's log that is like this. Raises TrialError."""
        if not (lines := [line for line in self.log(run).splitlines() if re.search(pattern, line)]):
            raise TrialError(f"{run}: its log has no line {pattern!r}")
        return lines[-1]


def last(said: str) -> str:
    """The last line of what was said."""
    return next((line for line in reversed(said.splitlines()) if line.strip()), "")
