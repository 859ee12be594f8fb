"""What is set around us on a machine, and what our processes get of it: variables, proxies, a temporary folder."""

from __future__ import annotations

import ipaddress
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from ease_flwr.config import ConfigError
from ease_flwr.store.files import unwritable

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
TEXT = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}
"""What flwr says has letters that a terminal may not know: we read it, and write what the terminal can show."""
COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE")
"""Variables by which a notebook's kernel, or a CI, wants colours in what is not a terminal: flwr puts them into its JSON."""
OTHERS_RAY = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
"""Variables that send work to a Ray cluster, which may be there for other work: ours goes where it is told."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAST = ("no_proxy", "NO_PROXY")
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
PLAIN = re.compile(r"[A-Za-z0-9.*_-]+(:\d+)?")
"""A host that is asked past the proxy, as httpx can read it."""
LONGEST = "/ease-flwr-0123456789abcdef/ray/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store"
"""The longest path of a socket below a temporary folder: Ray's, in that of a family of processes."""
LIMIT = 103 if sys.platform == "darwin" else 107
"""Bytes that the system takes for such a path."""


def environment(home: Path | None = None, threads: int = 0) -> dict[str, str]:
    """Variables for flwr's commands: ours, the programs of this interpreter first, no telemetry, nothing installed, no Ray.

    home: FLWR_HOME, by default the user's.  threads: of each process, by default its own choice.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    own = {"FLWR_HOME": str(home)} if home else {}
    own |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    plain = {k: v for k, v in os.environ.items() if k not in COLOURS + OTHERS_RAY + PAST and k.lower() not in PROXIES}
    return {**plain, **proxies(os.environ), **QUIET, **TEXT, "PATH": path, **own}


def proxies(around: Mapping[str, str]) -> dict[str, str]:
    """Variables of proxies: this machine is asked past them, and those are left out that httpx, and so flwr, cannot read."""
    past = around.get("no_proxy") or around.get("NO_PROXY") or ""
    hosts = [h for part in past.split(",") if _is_host(h := part.strip())]
    allowed = ",".join(hosts if "*" in hosts else dict.fromkeys((*hosts, *LOOPBACK)))
    return {k: v for k, v in around.items() if k.lower() in PROXIES and not wrong(v)} | dict.fromkeys(PAST, allowed)


@contextmanager
def past_proxies() -> Iterator[None]:
    """The variables of proxies as `proxies` has them, in this process too, for as long as the block."""
    before = {k: v for k, v in os.environ.items() if k in PAST or k.lower() in PROXIES}
    try:
        for name in before:
            del os.environ[name]
        os.environ.update(proxies(before))
        yield
    finally:
        for name in {*before, *PAST}:
            os.environ.pop(name, None)
        os.environ.update(before)


def wrong(proxy: str) -> str:
    """Why the address of a proxy cannot be used; "" where it can, or is empty."""
    if not proxy:
        return ""
    import httpx

    try:
        scheme = httpx.Proxy(proxy if "://" in proxy else f"http://{proxy}").url.scheme
    except (ValueError, httpx.InvalidURL):
        return "it is not http://HOST:PORT"
    return "" if scheme.startswith("http") or find_spec("socksio") else "it needs `pip install httpx[socks]`"


def _is_host(name: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    with suppress(ValueError):
        return ipaddress.ip_network(name, strict=False).version == 4  # httpx takes no network of the other kind
    return bool(PLAIN.fullmatch(name))


def temporary() -> Path:
    """Where temporary files of runs lie: the user's folder for them, where the sockets in it have short enough paths.

    Raises ConfigError where there is none that can be written.
    """
    asked, tried = filter(None, (os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"))), []
    for folder in dict.fromkeys(map(os.path.abspath, (*asked, _systems(), "/tmp", "/var/tmp", "/dev/shm"))):
        if len(os.fsencode(folder + LONGEST)) > LIMIT:
            tried.append(f"{folder} is too long, sockets in it would have paths of more than {LIMIT} bytes")
            continue
        if not (why := unwritable(Path(folder))):
            return Path(folder)
        tried.append(why)
    raise ConfigError(f"no folder for temporary files: {'; '.join(tried)}: set TMPDIR to a short one that can be written")


def _systems() -> str:
    with suppress(OSError):
        return tempfile.gettempdir()
    return "/tmp"
