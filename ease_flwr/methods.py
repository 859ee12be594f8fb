"""What methods there are, read from their classes: `ease methods`."""

from __future__ import annotations

import inspect
import sys

from ease_flwr import clients, strategies
from ease_flwr.config import halves
from ease_flwr.strategies.base import Method

READS = {"": "nothing", "updates": "every client's updates", "rounds": "every client's updates, round by round"}


def able(scenario: str) -> list[str]:
    """Names of the strategies that can forget in a scenario."""
    return [n for n in halves.names("strategies") if scenario in strategies.load(n).scenarios]


def listing() -> str:
    """One line a method, as a table."""
    head = ("method", "forgets", "server keeps", "who is forgotten", "what it does")
    rows = [head, *(_row(name, strategies.load(name)) for name in halves.names("strategies"))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head) - 1)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows)


def _row(name: str, kind: type[Method]) -> tuple[str, ...]:
    does = (kind.__doc__ or "").strip().splitlines()[0]
    return name, " ".join(kind.scenarios), READS[kind.history], kind.forget_clients, does


def source(name: str) -> str:
    """Both halves of a method: its strategy, and the objectives that this asks of clients. Raises ConfigError."""
    kind = strategies.load(name)
    modules = [sys.modules[half.__module__] for half in (kind, *(clients.load(o) for o in kind.objectives))]
    files = ("/".join(m.__name__.split(".")[1:]) for m in modules)
    return "\n\n".join(f"# ---- {file}.py ----\n{inspect.getsource(m)}" for file, m in zip(files, modules, strict=True))
