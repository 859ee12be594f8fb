"""Which Ray a simulation uses: one of its own, whatever is set around it, or the cluster that it was told."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from ease_flwr.config import ConfigError
from ease_flwr.hosts import surroundings

JOIN = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()))"
JOIN_SECONDS = 60.0


def variables(cluster: str, folder: Path) -> dict[str, str]:
    """Environment of a simulation on this cluster; where there is none, with a Ray of its own, whose files are in `folder`."""
    if cluster:
        return {"RAY_ADDRESS": cluster}
    # Ray's workers would be at niceness 15: beside other work no client would answer a roll call in time.
    return {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(folder), "RAY_worker_niceness": "0"}


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
    command, around = [sys.executable, "-P", "-c", JOIN, cluster], surroundings.environment()
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
