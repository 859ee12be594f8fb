"""Which Ray a simulation uses: one of its own, whatever is set around it, or the cluster that it was told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile

from ease_flwr.config import ConfigError
from ease_flwr.hosts import processes

LONGEST = "/ray/session_2026-01-31_23-59-59_999999_4194304/sockets/plasma_store"
"""The longest path of a socket below Ray's folder."""
LIMIT = 107
"""Bytes that the system takes for such a path."""
JOIN = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()))"
JOIN_SECONDS = 60.0


def variables(cluster: str = "") -> dict[str, str]:
    """Environment of a simulation on this cluster, or with a Ray of its own, whose folder is short enough for its sockets."""
    if cluster:
        return {"RAY_ADDRESS": cluster}
    folders = filter(None, (os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"))
    short = (f for f in folders if len(os.fsencode(f + LONGEST)) <= LIMIT and os.access(f, os.W_OK))
    return {"RAY_ADDRESS": "local", "RAY_TMPDIR": next(short, "/tmp")}


def nodes(cluster: str) -> int:
    """How many machines a cluster has. Raises ConfigError where this one cannot join it.

    Another process tries, as Ray ends one that it cannot serve.
    """
    host, _, port = cluster.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"--ray {cluster}: expected HOST:PORT of a Ray cluster's head, for example 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConfigError(f"--ray {cluster}: {error}: start the head there, `ray start --head --port {port}`") from None
    command, around = [sys.executable, "-P", "-c", JOIN, cluster], processes.environment()
    try:
        joined = subprocess.run(command, env=around, capture_output=True, text=True, timeout=JOIN_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"--ray {cluster}: who answers there is no Ray; its head says the address when it starts") from None
    if joined.returncode:
        why = (joined.stderr.strip().splitlines() or [f"exit status {joined.returncode}"])[-1]
        if "Failed to connect to socket" in joined.stderr:
            why = f"this machine is no node of that cluster: `ray start --address {cluster}` makes it one"
        raise ConfigError(f"--ray {cluster}: {why}")
    return int(joined.stdout.split()[-1])
