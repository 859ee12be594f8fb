"""What a phase costs, and how the server counts it."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Cost:
    """Bytes are those of the arrays; seconds are wall time of the exchanges.

    server_seconds: of the server's own mathematics.  server_memory, client_memory: the most bytes that the server's process,
    and that of any client, had in memory until then.
    """

    rounds: int = 0
    client_steps: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    seconds: float = 0.0
    server_seconds: float = 0.0
    server_memory: int = 0
    client_memory: int = 0

    def __add__(self, other: Cost) -> Cost:
        """Both together: sums, and the larger memory."""
        both = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(Cost)}
        return Cost(**{k: max(v) if k.endswith("memory") else sum(v) for k, v in both.items()})


class Meter:
    """Adds up what is spent while a phase runs."""

    def __init__(self) -> None:
        self.spent = Cost()

    def add(self, cost: Cost) -> None:
        """Count this as well."""
        self.spent = self.spent + cost

    @contextmanager
    def on_server(self) -> Iterator[None]:
        """Count what is done in the `with` block, but for what is added in it, as the server's own work."""
        started, before = time.monotonic(), self.spent
        yield
        counted = self.spent.seconds - before.seconds + self.spent.server_seconds - before.server_seconds
        own = time.monotonic() - started - counted
        self.add(Cost(server_seconds=own, server_memory=peak_memory()))


def peak_memory() -> int:
    """The most bytes of memory this process has had so far (getrusage counts kilobytes on Linux, bytes on macOS)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
