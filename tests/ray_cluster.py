"""`python -m tests.ray_cluster FOLDER`: a simulation on a Ray cluster of two nodes, as docs/ray.md says it.

Each node is a network namespace with an address of its own and no way out. The second sees none of the first one's files below
FOLDER, and has another version of a file of the app. Needs root and `ip`. Prints a line for each thing that was shown.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

from ease_flwr.config import APP, code_hash
from ease_flwr.hosts import app, processes, surroundings
from tests.small import TINY, hashes

BRIDGE, ADDRESS = "ease-ray", "10.78.0.1:6379"
CHANGED = APP / "clients" / "contrastive.py"
SETTINGS = [word for key, value in {**TINY, "learn.rounds": 6}.items() for word in ("--set", f"{key}={value}")]
SHIPS = 'os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"]'
SECONDS = 300


def ip(*words):
    """`ip WORDS`, and what it says."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Node:
    """A machine: its place in the network, and what it does not see of this one."""

    def __init__(self, number, folder, hidden=()):
        self.name, self.address = f"{BRIDGE}-{number}", f"10.78.0.{number}"
        self.folder = folder / f"node-{number}"
        self.folder.mkdir()
        ip("netns", "add", self.name)
        ip("link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.name, "master", BRIDGE, "up")
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip("-n", self.name, "link", "set", device, "up")
        self.hidden = "".join(f"mount {what} && " for what in hidden)

    def there(self, *command):
        """The command, as it is run on this node."""
        return ["ip", "netns", "exec", self.name, "sh", "-c", f'{self.hidden}exec "$@"', "sh", *command]

    def ease(self, name, *words, code=(), wait=True):
        """`ease WORDS` on this node, with the code of these folders: a Popen, or its exit status and the last it has said."""
        path = os.pathsep.join([*map(str, code), *filter(None, [os.environ.get("PYTHONPATH")])])
        home = {"EASE_FLWR_HOME": str(self.folder / name), "TMPDIR": str(self.folder), "PYTHONPATH": path}
        command = self.there(sys.executable, "-m", "ease_flwr", *words)
        said = (self.folder / f"{name}.said").open("w")
        process = subprocess.Popen(command, env=os.environ | home, stdout=said, stderr=subprocess.STDOUT, cwd=self.folder)
        return self.ended(process, name) if wait else process

    def ended(self, process, name):
        status = process.wait(SECONDS)
        return status, (self.folder / f"{name}.said").read_text().strip().splitlines()[-1]

    def start_ray(self, family, *words):
        """`ray start` on this node, which says that it runs."""
        log = self.folder / "ray.said"
        common = ["--block", "--node-ip-address", self.address, "--num-cpus", "1", "--temp-dir", str(self.folder / "ray")]
        family.start(self.there("ray", "start", *words, *common), log, surroundings.environment(threads=1))
        until(lambda: "Ray runtime started" in log.read_text(), log)

    def processes(self):
        return [process for pid in ip("netns", "pids", self.name).split() for process in processes.tree(int(pid))[:1]]

    def actors(self):
        return [p for p in self.processes() if processes.command_of(p).startswith("ray::ClientAppActor")]


def until(there, log):
    limit = time.monotonic() + SECONDS
    while not there():
        if time.monotonic() > limit:
            sys.exit(f"waited for too long: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def trains(process, run):
    """Wait until a run has learnt for two rounds."""
    log = run / "log.txt"
    until(lambda: process.poll() is not None or (log.is_file() and "\n[learn 2/" in log.read_text()), log)


def shown(what, true):
    print(f"{'yes' if true else 'NO '} {what}", flush=True)
    if not true:
        sys.exit(f"not so: {what}")


def main(folder, family):
    first = Node(1, folder)
    other = folder / "other.py"
    other.write_text(CHANGED.read_text() + "\nraise RuntimeError('other code')\n")
    second = Node(2, folder, [f"-t tmpfs none {first.folder}", f"--bind {other} {CHANGED}"])
    asked = subprocess.run(
        second.there(sys.executable, "-c", "from ease_flwr.config import code_hash; print(code_hash())"),
        capture_output=True,
        text=True,
        cwd=folder,
    )
    shown("the second node has other code", asked.returncode == 0 and asked.stdout.strip() != code_hash())

    status, _ = first.ease("alone", "run", "--run-dir", str(first.folder / "run"), *SETTINGS)
    shown("a run on one node", status == 0)
    expected = hashes(first.folder / "run")

    status, said = second.ease("early", "run", *SETTINGS, "--ray", ADDRESS)
    shown(f"no cluster yet: {said}", status == 2 and "start the head" in said)
    first.start_ray(family, "--head", "--port", "6379", "--include-dashboard", "false", "--disable-usage-stats")
    status, said = second.ease("outside", "run", *SETTINGS, "--ray", ADDRESS)
    shown(f"from a machine that is no node: {said}", status == 2 and "no node of that cluster" in said)
    second.start_ray(family, "--address", ADDRESS)

    run = first.folder / "both"
    process = first.ease("both", "run", "--run-dir", str(run), *SETTINGS, "--ray", ADDRESS, wait=False)
    trains(process, run)
    shown("an actor on each node", [len(n.actors()) for n in (first, second)] == [1, 1])
    status, said = first.ended(process, "both")
    shown(f"on two nodes the same adapters as on one, by the code that was shipped ({said})", hashes(run) == expected)
    until(lambda: not first.actors() + second.actors(), first.folder / "both.said")
    shown("no actor is left", True)

    unshipped = first.folder / "unshipped"
    app.write(unshipped)
    half = unshipped / "ease_flwr" / "client_app.py"
    text = half.read_text()
    half.write_text(text.replace(SHIPS, "_"))
    status, said = first.ease("unshipped", "run", *SETTINGS, "--ray", ADDRESS, code=[unshipped])
    shown(f"not shipped: {said}", text.count(SHIPS) == 1 and status == 1 and "runs other code than the server" in said)

    run = first.folder / "killed"
    process = first.ease("killed", "run", "--run-dir", str(run), *SETTINGS, "--ray", ADDRESS, wait=False)
    trains(process, run)
    for p in second.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            p.kill()
    status, said = first.ended(process, "killed")
    shown(f"the second node killed: exit status {status}, {said[:150]}", status == 1 and "client process died" in said)
    status, said = first.ease("killed", "resume", str(run), "--ray", ADDRESS)
    shown(f"resumed on what is left, to the same adapters ({said})", status == 0 and hashes(run) == expected)


def clear():
    """No bridge and no namespace of ours."""
    for number in (1, 2):
        subprocess.run(["ip", "netns", "delete", f"{BRIDGE}-{number}"], capture_output=True, check=False)
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)


if __name__ == "__main__":
    if os.geteuid() or shutil.which("ip") is None:
        sys.exit("not run: two network namespaces need root and ip (iproute2)")
    clear()
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        with processes.Family() as family:
            main(Path(sys.argv[1]).absolute(), family)
    except subprocess.CalledProcessError as error:
        sys.exit(f"not run: {' '.join(error.cmd)}: {error.stderr.strip()}")
    finally:
        clear()
    print("two nodes: as on one machine, with the code that was shipped; one killed and resumed")
