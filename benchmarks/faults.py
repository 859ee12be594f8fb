"""Things that go wrong in a deployed federation, done on purpose: what is seen, after how long, what is lost.

    python benchmarks/faults.py FOLDER [TRIAL ...]

starts a SuperLink and three SuperNodes with TLS and keys on this machine, runs a small experiment again and again, breaks one
thing each time, and writes FOLDER/faults.md. About twenty minutes on two cores.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from ease_flwr.hosts import deploy, processes
from ease_flwr.hosts.demo import DEMO, Federation, federation
from ease_flwr.hosts.link import Link, read_state

HOSTS = ["client-0", "client-1", "client-2"]
SETTINGS = {**DEMO, "learn.rounds": 3, "learn.epochs": 1, "strategy.rounds": 1, "continuation.rounds": 1}
SETTINGS |= {"federation.quorum": 0.6, "federation.deadline": 60, "federation.start_timeout": 120}


class Trial:
    """One run of the experiment on a running federation."""

    def __init__(self, federation: Federation, folder: Path, **changes: object) -> None:
        self.federation, self.folder = federation, folder
        self.link = Link(deploy.CONNECTION, federation.environment)
        settings = " ".join(f"{k}={v}" for k, v in {**SETTINGS, **changes}.items())
        self.config = {"experiment": "personas", "strategy": "ease", "fresh": True, "seed": 0, "set": settings}
        self.config["run-dir"] = str(folder)

    def start(self, resume: bool = False) -> None:
        if resume:
            (self.folder / "state.json").write_text('{"status": "submitted", "error": ""}')
        self.link.submit({**self.config, "resume": resume})

    def until(self, pattern: str, seconds: float = 240) -> float:
        """Wait until the log has a line like this; the seconds it took."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            log = self.folder / "log.txt"
            if log.is_file() and re.search(pattern, log.read_text(), re.MULTILINE):
                return time.monotonic() - began
            time.sleep(0.2)
        raise TimeoutError(f"{self.folder}: no line {pattern!r}")

    def end(self, seconds: float = 600) -> str:
        """Wait until the run has ended: finished, or why it failed."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            state = read_state(self.folder)
            if state["status"] in ("finished", "failed"):
                return state["status"] + (f": {state['error']}" if state["error"] else "")
            time.sleep(0.5)
        return "still " + read_state(self.folder)["status"]

    def hashes(self) -> dict[str, str]:
        return dict(json.loads((self.folder / "results.json").read_text())["adapters_sha256"])

    def said(self, word: str) -> str:
        return next((line for line in (self.folder / "log.txt").read_text().splitlines() if word in line), "nothing")


def below(process: object, word: str, seconds: float = 60) -> psutil.Process:
    """The youngest process that this one has started, by a word of its command."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found = []
        for child in psutil.Process(process.pid).children(recursive=True):  # type: ignore[attr-defined]
            try:
                if word in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        if found:
            return max(found, key=lambda p: p.create_time())
        time.sleep(0.05)
    raise TimeoutError(f"no {word} below {process}")


def main(folder: Path, chosen: list[str]) -> None:
    rows: list[tuple[str, str, str, str]] = []
    draw = random.Random(0)

    def note(fault: str, seen: str, after: str, lost: str) -> None:
        rows.append((fault, seen, after, lost))
        print(" | ".join(rows[-1]), flush=True)
        lines = [
            "| fault | what is seen | after | what is lost |",
            "|---|---|---|---|",
            *(f"| {' | '.join(r)} |" for r in rows),
        ]
        (folder / "faults.md").write_text("\n".join(lines) + "\n")

    with federation(folder / f"federation-{int(time.time())}", HOSTS) as running:
        whole = Trial(running, folder / "whole")
        if not (whole.folder / "results.json").is_file():
            whole.start()
            assert whole.end() == "finished", whole.end()
        expected = whole.hashes()

        def client_fault(name: str, fault: str, act: Callable[[], Callable[[], None] | None]) -> None:
            """Break client-2 while it trains in the second round; the others go on, above the quorum."""
            trial = Trial(running, folder / name)
            trial.start()
            trial.until(r"^\[learn 1/3\]")
            time.sleep(10)
            mend, began = act(), time.monotonic()
            trial.until(r"^(client-2 failed|.learn 2/3)")
            after = time.monotonic() - began
            seen = trial.said("client-2 failed").partition(": ")[2][:110] or "nothing: Flower starts the process again"
            if mend:
                mend()
            ended = trial.end()
            left_out = "left out" in (trial.folder / "log.txt").read_text()
            same = ended == "finished" and trial.hashes() == expected
            lost = "its update of that round" if left_out else verdict(same)
            note(fault, seen, f"{after:.0f} s", f"{lost}; run {ended[:80]}")

        def node_process(word: str) -> psutil.Process:
            return below(running.nodes["client-2"], word)

        def kill_client() -> None:
            node_process("flwr-clientapp").kill()

        def stop_client() -> Callable[[], None]:
            process = node_process("flwr-clientapp")
            process.send_signal(signal.SIGSTOP)
            return process.kill

        def kill_superexec() -> Callable[[], None]:
            node_process("superexec").kill()
            return restart

        def restart() -> None:
            for process in processes.tree(running.nodes["client-2"].pid):
                process.kill()
            running.nodes["client-2"].wait()
            limit = time.monotonic() + 200
            while time.monotonic() < limit:  # as systemd does: the SuperLink refuses it until it has missed the old one
                running.start_node("client-2")
                time.sleep(15)
                if running.nodes["client-2"].poll() is None:
                    return

        def kill_node() -> Callable[[], None]:
            for process in processes.tree(running.nodes["client-2"].pid):
                process.kill()
            return restart

        def end_node() -> Callable[[], None]:
            running.nodes["client-2"].terminate()
            return restart

        def serverapp(name: str) -> None:
            trial = Trial(running, folder / name)
            trial.start()
            trial.until(r"^\[learn 1/3\]")
            time.sleep(draw.uniform(0, 25))
            began = time.monotonic()
            below(running.link, "flwr-serverapp").kill()
            last = (trial.folder / "log.txt").read_text().splitlines()[-1][:40]
            time.sleep(2)
            trial.start(resume=True)
            ended = trial.end()
            same = ended == "finished" and trial.hashes() == expected
            seen = f"after `{last}`: the run ends without a word; resumed, it is {ended[:60]}"
            note("ServerApp kill -9, then `ease resume`", seen, f"{time.monotonic() - began:.0f} s to the end", verdict(same))

        def superlink() -> None:
            trial = Trial(running, folder / "superlink")
            trial.start()
            trial.until(r"^\[learn 2/3\]")
            began = time.monotonic()
            for process in processes.tree(running.link.pid):
                process.kill()
            running.link.wait()
            running.start_link()
            time.sleep(45)  # hosts find it again
            trial.start(resume=True)
            ended = trial.end()
            same = ended == "finished" and trial.hashes() == expected
            note(
                "SuperLink kill -9, restarted, `ease resume`",
                ended[:110],
                f"{time.monotonic() - began:.0f} s to the end",
                verdict(same),
            )

        def verdict(same: bool) -> str:
            return "nothing: adapters bitwise as without" if same else "NOT as without"

        hit = "client process kill -9 (out of memory, `os._exit`)"
        trials: dict[str, Callable[[], None]] = {
            "serverapp-1": lambda: serverapp("serverapp-1"),
            "serverapp-2": lambda: serverapp("serverapp-2"),
            "client-kill": lambda: client_fault("client-kill", hit, kill_client),
            "client-slow": lambda: client_fault("client-slow", "client slower than the deadline (60 s)", stop_client),
            "superexec": lambda: client_fault("superexec", "SuperExec of a host kill -9", kill_superexec),
            "node-term": lambda: client_fault("node-term", "SuperNode ended and started again", end_node),
            "node-kill": lambda: client_fault("node-kill", "SuperNode kill -9, restarted by its unit", kill_node),
            "superlink": superlink,
        }
        for name in chosen or trials:
            trials[name]()


if __name__ == "__main__":
    target = Path(sys.argv[1]).absolute()
    os.environ.setdefault("EASE_FLWR_HOME", str(target / "home"))
    main(target, sys.argv[2:])
