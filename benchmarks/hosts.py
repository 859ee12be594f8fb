"""A federation of separate hosts, from `ease deploy init` to a verified receipt, as docs/deploy.md and docs/operations.md say it.

    python -m benchmarks.hosts FILE.json [STEP ...]

A server, hosts with data of their own, and a desk that holds the keys are namespaces of Linux (benchmarks/machines.py). They have
TLS and node keys, the program from a wheel, and no way out. Commands are typed as the pages have them. Needs root; about fifteen
minutes on two cores. The first five steps are always done. Exit status 1: a step failed; 77: no machines can be made here.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import wards
from benchmarks.machines import HOME, Failed, Machine, Network, Service, impossible
from ease_flwr.config import APP
from ease_flwr.config.request import now
from ease_flwr.hosts.processes import Family
from ease_flwr.store.files import write_json

SKIPPED = 77
"""Exit status where there can be no machines."""
RUNS = f"{HOME}/server/runs"
FIRST = wards.HOSTS[:-1]
SHELL = {"FLWR_HOME": f"{HOME}/server/flwr", "EASE_FLWR_HOME": RUNS, "OMP_NUM_THREADS": "1"}
"""What the pages have exported on the server."""
ANSWER_SECONDS = 120.0


class Trial:
    """The machines of a federation, and what runs on them."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.desk, self.server = network.add("desk"), network.add("server")
        self.hosts: dict[str, Machine] = {}
        self.units: dict[str, Service] = {}
        self.wheel = wards.wheel(APP, network.folder / "wheel")
        wards.environment(self.desk, self.wheel)
        self.install(self.server)

    def install(self, machine: Machine) -> None:
        """The program, as on the desk."""
        self.desk.copy(HOME / "venv", machine, HOME / "venv")

    def ease(self, line: str, status: int = 0) -> str:
        """A command of `ease` on the server."""
        return self.server.run(f"ease {line}", f"{HOME}/server", status, **SHELL)

    def serve(self, name: str, unit: str) -> None:
        """Install a unit and start it."""
        machine = self.server if name == "server" else self.hosts[name]
        self.units[name] = service = Service(machine, unit)
        service.variables.setdefault("OMP_NUM_THREADS", "1")
        service.start()

    def until(self, there: Callable[[], bool], what: str, seconds: float = ANSWER_SECONDS) -> None:
        """Wait for something. Raises Failed."""
        limit = time.monotonic() + seconds
        while not there():
            if time.monotonic() > limit:
                raise Failed(f"after {seconds:.0f} s still not: {what}")
            time.sleep(1)

    def status(self, run: str = "") -> dict[str, Any]:
        """What `ease status --json` says, whatever its exit status."""
        said = self.server.run(f"ease status {run} --superlink ease --json || [ $? = 1 ]", f"{HOME}/server", **SHELL)
        found: dict[str, Any] = json.loads(said)
        return found

    def online(self, *names: str) -> bool:
        """Whether exactly these hosts are connected, by name."""
        return sorted(n["name"] for n in self.status()["nodes"] if n["online"]) == sorted(names)


# ---- the steps ---------------------------------------------------------------------------------------------------------------


def init(t: Trial) -> str:
    """Certificates, keys, units and commands, on the desk."""
    address = t.server.address
    t.desk.run(f"ease deploy init federation --hosts {','.join(FIRST)} --address {address}")
    return t.desk.run("ls federation").replace("\n", " ")


def server(t: Trial) -> str:
    """The server gets its folder, and its unit is started."""
    for there in ("server", "ca/ca.crt", *(f"hosts/{h}/node.key.pub" for h in FIRST), "register.sh"):
        t.desk.copy(HOME / "federation" / there, t.server, HOME / there)
    config = t.server.at(HOME / "server" / "config.toml")
    config.write_text(config.read_text().replace(f"{HOME}/federation/", f"{HOME}/"))
    wards.base(t.server.at(wards.BASE))
    t.server.at(HOME / "server" / "wards.yaml").write_text(wards.EXPERIMENT)
    serve_with_path(t, "server", f"{HOME}/server/ease-superlink.service")
    time.sleep(15)
    return t.server.run(f"cd {HOME} && ./register.sh", **SHELL).strip().splitlines()[-1]


def hosts(t: Trial) -> str:
    """Three hosts, each with its own folder, data and base model."""
    for name in FIRST:
        new_host(t, name)
    t.until(lambda: t.online(*FIRST), "three hosts are connected")
    return ", ".join(f"{h} {wards.LAYOUTS[h]}" for h in FIRST)


def new_host(t: Trial, name: str) -> None:
    """A machine becomes a host: program, folder, data, base model, unit."""
    t.hosts[name] = machine = t.network.add(name)
    t.install(machine)
    t.desk.copy(HOME / "federation" / "hosts" / name, machine, HOME / name)
    wards.data(machine)
    wards.base(machine.at(HOME / name / "base.json"))
    unit = machine.at(HOME / name / "ease-supernode.service")
    edited = f'data-root="{HOME}/data" base-model="{HOME}/{name}/base.json" device="cpu"'
    unit.write_text(unit.read_text().replace('data-root="/data"', edited))
    machine.run(f"ease data check {HOME}/data")
    serve_with_path(t, name, f"{HOME}/{name}/ease-supernode.service")


def serve_with_path(t: Trial, name: str, unit: str) -> None:
    """Units say no PATH yet, so a SuperNode would not find its programs."""
    file = (t.server if name == "server" else t.hosts[name]).at(unit)
    if "PATH=" not in file.read_text():
        file.write_text(file.read_text().replace("[Service]", f"[Service]\nEnvironment=PATH={HOME}/venv/bin:/usr/bin:/bin"))
    t.serve(name, unit)


def learn(t: Trial) -> str:
    """It learns."""
    return last(t.ease(f"run wards.yaml --until learn --superlink ease --run-dir {RUNS}/one"))


def label(t: Trial) -> str:
    """A label that one host alone has is withdrawn."""
    return last(t.ease(f"forget {RUNS}/one --label {wards.alone('host-2')} --superlink ease"))


STEPS: dict[str, Callable[[Trial], str]] = {step.__name__: step for step in (init, server, hosts, learn, label)}
ALWAYS = ("init", "server", "hosts", "learn")


def last(said: str) -> str:
    """The last line of what was said."""
    return next((line for line in reversed(said.splitlines()) if line.strip()), "")


def main(file: Path, wanted: list[str]) -> int:
    """Do these steps, all without any; write and return how it went."""
    if unknown := [s for s in wanted if s not in STEPS]:
        print(f"no step {unknown[0]!r}: there are {', '.join(STEPS)}", file=sys.stderr)
        return 2
    result: dict[str, Any] = {"date": now(), "skipped": impossible(), "passed": False, "steps": []}
    if result["skipped"]:
        print(f"skipped: {result['skipped']}")
        write_json(file, result)
        return SKIPPED
    made = not HOME.exists()
    HOME.mkdir(parents=True, exist_ok=True)
    try:
        with Family() as family:
            trial = Trial(Network(family.folder, family))
            todo = [name for name in STEPS if not wanted or name in wanted or name in ALWAYS]
            result["passed"] = all(done(trial, name, result["steps"]) for name in todo)
            logs(family.folder, file.with_suffix(".logs"))
    finally:
        if made:
            HOME.rmdir()
        write_json(file, result)
    return 0 if result["passed"] else 1


def done(trial: Trial, name: str, steps: list[dict[str, Any]]) -> bool:
    """Do a step, and print one line about it; False where it failed."""
    began, ok = time.monotonic(), True
    try:
        said = STEPS[name](trial)
    except (Failed, OSError, ValueError, KeyError, AssertionError) as error:
        ok, said = False, f"{type(error).__name__}: {error}"
    steps.append({"step": name, "passed": ok, "seconds": round(time.monotonic() - began, 1), "said": said})
    print(f"{'ok    ' if ok else 'FAILED'} {name:10} {steps[-1]['seconds']:6.1f} s  {said}", flush=True)
    return ok


def logs(folder: Path, to: Path) -> None:
    """Keep what was said on the machines, and the runs' own logs."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    for log in (*folder.glob("*.log"), *folder.glob("server/server/runs/*/log.txt")):
        shutil.copy2(log, to / f"{log.parent.name}-{log.name}" if log.name == "log.txt" else to / log.name)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), sys.argv[2:]))
