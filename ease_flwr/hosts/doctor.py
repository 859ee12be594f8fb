"""What a machine has that a run needs, and what to do where something is missing. Imports none of what it looks at."""

from __future__ import annotations

import math
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from packaging.requirements import Requirement

from ease_flwr.config import APP, ConfigError, code_hash
from ease_flwr.hosts import processes, surroundings
from ease_flwr.store.files import home, unwritable

SHOWN = ("flwr", "ray", "torch", "torchvision", "open_clip_torch", "peft")
"""Packages that are named wherever all is well with them, too."""
OURS = "ease_flwr"
PROGRAMS = ("flwr", "flower-superlink", "flower-superexec")
TRIED = ((3, 11), (3, 13))
"""The first and the last Python that this was tried with."""
MEMORY, DISK = 2.0, 1.0
"""GiB that a small run needs."""
FILES = 1024
"""Open files that Ray wants to be allowed."""
GPU = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
TORCH = "import torch; print(torch.cuda.device_count(), 'of CUDA,', 'MPS' if torch.backends.mps.is_available() else 'no MPS')"
SECONDS = 120.0
CONTAINER = Path("/sys/fs/cgroup")
"""Where a container has its limits (control groups, version 2)."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    ok: bool = True
    """Whether a run can start with it."""
    advice: str = ""
    """What to do, or where all is well a remark."""


def examine(gpu: bool = False) -> list[Finding]:
    """All findings.  gpu: ask torch for GPUs as well, which takes some ten seconds."""
    found = [Finding("system", f"{platform.system()} {platform.release()} {platform.machine()}"), _python()]
    found += [Finding(OURS, f"{_project()['version']}, code {code_hash()[:12]}"), *_packages(), *_programs(), *_machine()]
    found += [_gpu(), *([_torch()] if gpu else []), _port(), *_folders(), _files(), *_proxies(), *_others_ray()]
    return found


def _python() -> Finding:
    here = sys.version_info[:2]
    first, last = (".".join(map(str, v)) for v in TRIED)
    remark = "" if TRIED[0] <= here <= TRIED[1] else f"it was tried with {first} to {last}"
    return Finding("python", f"{platform.python_version()} in {sys.prefix}", here >= TRIED[0], remark)


def _packages() -> Iterator[Finding]:
    """The packages that a run stands on: is each there, and what all the others want?"""
    wishes = _wishes()
    for name in sorted(wishes, key=lambda n: (SHOWN.index(n) if n in SHOWN else len(SHOWN), n)):
        try:
            there = version(name)
        except PackageNotFoundError:
            who, wish = wishes[name][0]
            yield Finding(name, "is not installed", False, f'{who} wants it: pip install "{name}{wish.specifier}"')
            continue
        unmet = [(who, wish) for who, wish in wishes[name] if not wish.specifier.contains(there, prereleases=True)]
        for who, wish in unmet:
            yield Finding(name, there, False, f'{who} wants {wish.specifier}: pip install "{name}{wish.specifier}"')
        if name in SHOWN and not unmet:
            yield Finding(name, there)


def _project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((APP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def _wishes() -> dict[str, list[tuple[str, Requirement]]]:
    """By package, who wants which versions of it: this project, and the packages that it names itself."""
    wishes: dict[str, list[tuple[str, Requirement]]] = {}
    for wish in map(Requirement, _project()["dependencies"]):
        wishes.setdefault(wish.name, []).append((OURS, wish))
        try:
            theirs, named = requires(wish.name) or [], f"{wish.name} {version(wish.name)}"
        except PackageNotFoundError:
            continue
        for other in map(Requirement, theirs):
            if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in (*wish.extras, "")):
                wishes.setdefault(other.name, []).append((named, other))
    return wishes


def _programs() -> Iterator[Finding]:
    path = surroundings.environment()["PATH"]
    if missing := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        yield Finding(
            "programs", f"no {', '.join(missing)} beside {sys.executable}", False, "pip install --force-reinstall flwr"
        )


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, *period = _container("cpu.max")
    allowed = f", {quota / period[0]:g} in this container" if period else ""
    yield Finding("cores", f"{cores}{allowed}: so many clients at once, where each has one")
    (limit,) = _container("memory.max")
    free, total = (min(n, limit) / 2**30 for n in (psutil.virtual_memory().available, psutil.virtual_memory().total))
    advice = "" if free >= MEMORY else f"a small run needs {MEMORY:g} GiB: end other programs"
    yield Finding("memory", f"{free:.1f} of {total:.1f} GiB free", not advice, advice)


def _container(limit: str) -> list[float]:
    """Numbers of a limit of the container that this is in; infinity where there is none."""
    with suppress(OSError, ValueError):
        return [float(word) for word in (CONTAINER / limit).read_text(encoding="ascii").split()]
    return [math.inf]


def _gpu() -> Finding:
    try:
        done = subprocess.run(GPU, capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS, check=False)
    except FileNotFoundError:
        return Finding("GPU", "none that nvidia-smi knows; a run needs none")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("GPU", "not known", advice=f"nvidia-smi: {error}")
    if done.returncode:
        return Finding("GPU", "none", advice=f"nvidia-smi: {' '.join((done.stderr or done.stdout).split())[:200]}")
    return Finding("GPU", "; ".join(done.stdout.strip().splitlines()))


def _torch() -> Finding:
    command = [sys.executable, "-P", "-c", TORCH]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Finding("GPU by torch", f"no answer in {SECONDS:.0f} s", False, "can this machine import torch at all?")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Finding("GPU by torch", f"torch cannot be imported: {last}", False, "install it again")
    return Finding("GPU by torch", done.stdout.strip())


def _port() -> Finding:
    """Flower's processes talk to each other over loopback."""
    try:
        with socket.create_server(("127.0.0.1", processes.free_port())) as server:
            socket.create_connection(server.getsockname(), timeout=10).close()
    except OSError as error:
        return Finding("ports", "none of 127.0.0.1 can be used", False, f"{error}: a firewall, or no port is free")
    return Finding("ports", "127.0.0.1 has free ones, and can be reached")


def _folders() -> Iterator[Finding]:
    try:
        runs = home()
        if why := unwritable(runs):
            raise ConfigError(why)
        there = next(p for p in (runs, *runs.parents) if p.is_dir())
        free = shutil.disk_usage(there).free / 2**30
        advice = "" if free >= DISK else f"a run needs {DISK:g} GiB: make room, or set EASE_FLWR_HOME"
        yield Finding("runs", f"{runs}, {free:.1f} GiB free", not advice, advice)
    except ConfigError as error:
        yield Finding("runs", str(error), False, "set EASE_FLWR_HOME to a folder that can be written")
    try:
        yield Finding("temporary files", str(surroundings.temporary()))
    except ConfigError as error:
        yield Finding("temporary files", str(error), False, "set TMPDIR")
    flower = Path(os.environ.get("FLWR_HOME") or "~/.flwr")
    with suppress(RuntimeError):  # of a user without a home
        flower = flower.expanduser()
    why = unwritable(flower)
    yield Finding("Flower's folder", why or str(flower), advice="for --superlink and `flwr run`: set FLWR_HOME" if why else "")


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    advice = "" if unlimited or hard >= FILES else f"Ray needs {FILES}: `ulimit -n`, or LimitNOFILE of the service"
    return Finding("open files", f"{soft}, at most {'any number' if unlimited else hard}", not advice, advice)


def _proxies() -> Iterator[Finding]:
    used = surroundings.proxies(os.environ)
    for name in sorted(n for n in os.environ if n.lower() in surroundings.PROXIES and os.environ[n]):
        why = surroundings.wrong(os.environ[name])
        host = urlsplit(used[name] if "://" in used[name] else f"//{used[name]}").hostname if name in used else "?"
        remark = f"it is not handed on: {why}" if why else "this machine itself is asked past it"
        yield Finding(name, f"proxy {host}", advice=remark)  # not as it stands there: it may have a password


def _others_ray() -> Iterator[Finding]:
    for name in surroundings.OTHERS_RAY:
        if name in os.environ:
            yield Finding(name, "is set", advice="a run does not use it, it has a Ray of its own (docs/ray.md)")
