"""A federation of separate hosts, from `ease deploy init` to a verified receipt, as the pages for operators say it.

    python -m benchmarks.hosts RESULT.json [STEP ...]

A server, hosts with data of their own, and a desk that holds the keys are namespaces of Linux (benchmarks/machines.py). They
have TLS and node keys, nginx before the SuperLink, the program from a wheel, and no way out. Commands are typed as
docs/deploy.md and docs/operations.md have them. Needs root; about twenty minutes on two cores. init, server, hosts and learn
are always done. What was said on the machines is kept in RESULT.logs/. Exit status 1: a step failed; 77: no machines can be
made here.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import wards
from benchmarks.machines import HOME, Network, TrialError, impossible
from benchmarks.trial import CALLS, ONE, REACH, RUNS, Trial, last
from ease_flwr.config.request import now
from ease_flwr.hosts.processes import Family
from ease_flwr.store.files import write_json

SKIPPED = 77
"""Exit status where there can be no machines."""
FIRST = wards.HOSTS[:-1]
SERVED = {"server": "ease-superlink.service", "proxy": "ease-proxy.service"}


# ---- the steps ---------------------------------------------------------------------------------------------------------------


def init(t: Trial) -> str:
    """Certificates, keys, units and installers, on the desk."""
    known = ",".join(t.network.address(3 + k) for k in range(len(FIRST)))  # after the desk and the server
    t.desk.run(f"ease deploy init federation --hosts {','.join(FIRST)} --address {t.server.address} --allow {known}")
    return t.desk.run("ls federation").replace("\n", " ")


def server(t: Trial) -> str:
    """The server gets its folder and its unit; the hosts are registered."""
    wards.base(t.server.at(wards.BASE))
    t.install("server", t.server, **SERVED)
    t.server.at(HOME / "server" / "wards.yaml").write_text(wards.EXPERIMENT)
    t.firewall()
    return last(t.ease(f"deploy register {HOME}/server"))


def hosts(t: Trial) -> str:
    """Three hosts, each with its own folder, data and base model."""
    for name in FIRST:
        t.host(name)
    t.online(*FIRST)
    for name, machine in (("server", t.server), *t.hosts.items()):
        machine.run(f"ease deploy health {HOME}/{name}")
    t.desk.run(REACH.format(9092), status=1)  # the firewall does not know it
    return ", ".join(f"{h} {wards.LAYOUTS[h]}" for h in FIRST)


def learn(t: Trial) -> str:
    """It learns."""
    t.ease(f"run wards.yaml --until learn --superlink ease --run-dir {ONE}")
    return t.said(r"learn 2/2.*loss")


def outsider(t: Trial) -> str:
    """A machine that has ca.crt and the address, and that the firewall lets in: it runs nothing anywhere, and sees nobody."""
    other = t.network.add("outsider")
    t.desk.copy(HOME / "venv", other, HOME / "venv")
    t.carry("hosts/host-1/ca.crt", other, "ca.crt")
    t.let_in(other.address)
    other.run(REACH.format(9092))
    other.run(REACH.format(9093), status=1)  # the SuperLink is on loopback
    other.at(HOME / "calls.py").write_text(CALLS)
    answers = dict(line.split() for line in other.run("python calls.py").splitlines())
    if answers.pop("fleet/get-fab") != "401" or set(answers.values()) != {"403"}:
        raise TrialError(f"nginx lets an outsider in: {answers}")
    connection = f'[superlink.it]\naddress = "{t.server.address}:9092"\nroot-certificates = "{HOME}/ca.crt"\n'
    other.run("mkdir flwr && ssh-keygen -q -t ecdsa -b 384 -N '' -f own")
    other.at(HOME / "flwr" / "config.toml").write_text(connection)
    other.run("ease app app")
    for line in ("supernode list it", "supernode register own.pub it --name host-9", "ls it", "run app it"):
        said = other.run(f"FLWR_HOME={HOME}/flwr flwr {line} --format json")
        if "403 Forbidden" not in said:
            raise TrialError(f"flwr {line} from outside: {said}")
    node = f"flower-supernode --root-certificates ca.crt --superlink {t.server.address}:9092"
    other.run(f"FLWR_HOME={HOME}/flwr {node} --auth-supernode-private-key own", status=1)
    t.online(*t.there())
    return ", ".join(f"{path} {status}" for path, status in answers.items())


def label(t: Trial) -> str:
    """A label that one host alone has is withdrawn."""
    t.ease(f"forget {ONE} --label {wards.alone('host-2')} --superlink ease")
    return t.said(r"forget\S* 1/1.*loss")


def probe(t: Trial) -> str:
    """The owner of a host does not allow a probe of the audit: the audit goes on without that host, and says so."""
    policy = t.hosts["host-1"].at(HOME / "host-1" / "policy.toml")
    before = policy.read_text()
    policy.write_text(before.replace('    "membership",\n', ""))
    said = t.ease(f"audit {ONE} --level quick --quorum 0.5 --superlink ease")
    policy.write_text(before)
    if not (found := re.search(r"host host-1 refuses: probes: not 'membership'", said)):
        raise TrialError(f"host-1 does not allow the probe, and the audit does not say so:\n{said}")
    if "refused" not in (noted := t.hosts["host-1"].run(f"ease host log {HOME}/host-1")):
        raise TrialError(f"the owner of host-1 does not see what was refused:\n{noted}")
    return found[0]


def offline(t: Trial) -> str:
    """A host is switched off; its client is forgotten without it."""
    t.units["host-3"].stop()
    t.online("host-1", "host-2")
    t.ease(f"status {ONE} --superlink ease", status=1)
    t.ease(f"forget {ONE} --client host-3 --superlink ease")
    t.ease(f"status {ONE} --superlink ease")
    return t.said(r"forget\S* 1/1.*loss")


def join(t: Trial) -> str:
    """A fourth host comes to a run that has learnt."""
    t.desk.run("ease deploy add-host federation host-4")
    t.carry("server/keys/host-4.pub", t.server, "server/keys/host-4.pub")
    t.let_in(t.network.address(len(t.network.machines) + 1))
    t.ease(f"deploy register {HOME}/server")
    t.host("host-4")
    t.online("host-1", "host-2", "host-4")
    t.ease(f"join {ONE} host-4 --superlink ease")
    t.ease(f"continue {ONE} --rounds 1 --superlink ease")
    return t.said(r"continuation\S* 1/1.*loss")


def refused(t: Trial) -> str:
    """Single pairs are withdrawn by what they are; a new run on the same hosts does without them, and says so."""
    listed = t.hosts["host-1"].run(f"ease data ids {HOME}/data --client host-1 --match host-1-train-1")
    ids = [line for line in listed.splitlines() if line.startswith("host-1/")][:4]
    t.server.at(HOME / "server" / "ids.txt").write_text("\n".join(ids) + "\n")
    t.ease(f"forget {ONE} --ids ids.txt --superlink ease")
    names = f"--set data.names={','.join(t.there())} --set forget.targets={t.there()[-1]}"
    said = t.ease(f"run wards.yaml --until learn {names} --superlink ease --run-dir {RUNS}/two")
    if not (found := re.search(r"^.*host-1.*(left out|withdrawn).*$", said, re.MULTILINE)):
        raise TrialError(f"{len(ids)} pairs of host-1 were withdrawn, the new run does not say that they are left out:\n{said}")
    return found[0]


def rotate(t: Trial) -> str:
    """A new certificate authority, in two steps."""
    t.desk.run("ease deploy rotate-ca federation")
    for name in t.there():
        t.carry(f"hosts/{name}/ca.crt", t.hosts[name], f"{name}/ca.crt")
        t.restart(name)
    t.carry("server/ca.crt", t.server, "server/ca.crt")
    t.desk.run("ease deploy rotate-ca federation --finish")
    for file in ("server.pem", "ca.crt"):
        t.carry(f"server/{file}", t.server, f"server/{file}")
    t.restart("server", "proxy")
    t.online(*t.there())
    return ", ".join(f"{Path(c['file']).name} {c['days']} days" for c in t.status()["certificates"])


def replace(t: Trial) -> str:
    """The key of a host was lost: it gets another."""
    t.units["host-1"].stop()
    t.hosts["host-1"].run("rm host-1/node.key")
    t.desk.run("ease deploy replace-key federation host-1")
    t.carry("server/keys", t.server, "server/keys")
    t.ease(f"deploy register {HOME}/server")
    t.carry("hosts/host-1/node.key", t.hosts["host-1"], "host-1/node.key")
    t.units["host-1"].start()
    t.online(*t.there())
    return ", ".join(f"{n['name']} {n['key'][:8]}" for n in t.status()["nodes"])


def upgrade(t: Trial) -> str:
    """Other code on all sides: the server first, then each host. No phase is at hand. Hosts run it when their owners say so."""
    built = wards.wheel(wards.next_version(t.network.folder / "next"), t.network.folder / "next-wheel")
    said = []
    for name in ("server", *t.there()):
        machine = t.server if name == "server" else t.hosts[name]
        shutil.copy2(built, machine.at(HOME / built.name))
        where = f"--server {HOME}/server" if name == "server" else ""
        said.append(machine.run(f"ease deploy upgrade {built.name} {where} --pip=--no-index"))
        t.restart(name)
    t.online(*t.there())
    if len({line.splitlines()[0] for line in said}) != 1:
        raise TrialError(f"not all have the same code: {said}")
    refused = t.ease(f"audit {ONE} --level quick --superlink ease", status=1)
    if "runs only code that its owner has pinned" not in refused:
        raise TrialError(f"hosts run code that nobody has accepted:\n{refused}")
    for name in t.there():
        changed = t.hosts[name].run(f"ease host review {HOME}/{name}")
        if "ease_flwr/__init__.py" not in changed:
            raise TrialError(f"{name}: what has changed is not shown:\n{changed}")
        t.hosts[name].run(f"ease host accept {HOME}/{name} installed")
    return said[0].splitlines()[0]


def killed(t: Trial) -> str:
    """The server is killed in mid-phase, and comes back; what was asked is done."""
    begun = t.server.family.start(
        t.server.inside(
            ["sh", "-c", f". ./env.sh && exec ease continue {ONE} --rounds 2 --superlink ease"], {}, f"{HOME}/server", "ease"
        ),
        t.server.log("killed"),
    )
    t.until(lambda: bool(re.search(r"continuation\S* 1/2.*loss", t.log(ONE))), "the first of two rounds is done")
    t.units["server"].kill()
    begun.wait()  # it says that the run ended unexpectedly
    t.online(*t.there())
    t.ease(f"resume {ONE} --superlink ease")
    return t.said(r"goes on after")


def receipt(t: Trial) -> str:
    """What derives from what was forgotten is deleted, the rest is signed and verified."""
    t.ease(f"purge {ONE}")
    t.ease(f"receipt keygen && ease receipt {ONE}")
    return last(t.ease(f"verify {ONE} --key {RUNS}/receipt-key.pub"))


def moved(t: Trial) -> str:
    """The server burns down; another machine with its address goes on from a backup."""
    t.server.run("ease deploy backup server backup.tar")
    for name in SERVED:
        t.units[name].stop()
    t.network.cut(t.server)
    before, t.server = t.server, t.network.add("server-2", t.server.address)
    for there in ("venv", "base.json", "backup.tar"):
        before.copy(HOME / there, t.server, HOME / there)
    t.server.run("ease deploy restore backup.tar server && sh server/install.sh")
    t.firewall()
    t.serve(t.server, HOME / "server", SERVED)
    t.online(*t.there())
    return last(t.ease(f"verify {ONE} --key {RUNS}/receipt-key.pub"))


ALWAYS = (init, server, hosts, learn)
LATER = (outsider, label, probe, offline, join, refused, rotate, replace, upgrade, killed, receipt, moved)
STEPS: dict[str, Callable[[Trial], str]] = {step.__name__: step for step in (*ALWAYS, *LATER)}


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
            try:
                trial = Trial(Network(family.folder, family))
                todo = [name for name in STEPS if not wanted or name in wanted or STEPS[name] in ALWAYS]
                result["passed"] = all(done(trial, name, result["steps"]) for name in todo)
            finally:
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
    except (TrialError, OSError, ValueError, KeyError, AssertionError) as error:
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
