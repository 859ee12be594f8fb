"""The owner of a host, who is not there when the server asks: checks each message by policy.toml, and writes the log."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from flwr.app import Message

from ease_flwr.config import ConfigError, ForgetSet, decoded
from ease_flwr.exchange.messages import read_instruction
from ease_flwr.exchange.transport import plain
from ease_flwr.hosts import owners_log
from ease_flwr.hosts.owners_log import SHORT
from ease_flwr.hosts.policy import Policy, RefusedError, read_policy
from ease_flwr.store.files import locked


def now() -> datetime:
    """The time here, with its zone."""
    return datetime.now().astimezone()


class Owner:
    """One message, as the owner of a host sees it."""

    def __init__(self, node: Mapping[str, Any], clock: Callable[[], datetime] = now) -> None:
        self.name, self.home, self.file = str(node["client-name"]), Path(str(node["home"])), Path(str(node["policy"]))
        self.clock = clock
        self.message = secrets.token_hex(8)

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Owner | None:
        """Of a host that `ease deploy node` has started; None in a simulation."""
        return cls(node) if node.get("policy") else None

    @property
    def policy(self) -> Policy:
        """As it stands there now. Raises RefusedError."""
        try:
            return read_policy(self.file)
        except ConfigError as error:
            print(f"ease_flwr: {error}", file=sys.stderr, flush=True)
            raise self.refusal("its policy.toml cannot be used, its log says why") from None

    def refusal(self, rule: str) -> RefusedError:
        """What the server is told."""
        return RefusedError(f"host {self.name} refuses: {rule}")

    def asked(self, message: Message, run_config: Mapping[str, Any]) -> None:
        """Note a message, and check what it asks. Raises RefusedError, and ValueError where it holds no instruction."""
        when, verb = self.clock(), message.metadata.message_type.partition(".")[0]
        with contextlib.suppress(ConfigError):  # noted anyhow, and refused by who reads the rest of it
            run_config = decoded(run_config)
        run = {"run": str(message.metadata.run_id), "run_dir": plain(run_config.get("run-dir", ""), SHORT)}
        (self.home / owners_log.LOG).mkdir(mode=0o700, exist_ok=True)
        with locked(self.home / owners_log.LOG / ".lock", wait=True):
            done = owners_log.done(self.home, when)
            try:
                job = read_instruction(dict(message.content["config"]))
            except (KeyError, ValueError):
                self._write(when, asked="?", **run)
                raise
            self._write(when, asked=job.kind, **run, **_about(job))
        if rule := self.policy.check(verb, job, done, when):
            raise self.refusal(rule)

    def concerns(self, *pairs: int, counts: bool = False) -> None:
        """Check how many pairs results are about, see Policy.about. Raises RefusedError."""
        if rule := self.policy.about(*pairs, counts=counts):
            raise self.refusal(rule)

    def sends(self, reply: Message) -> None:
        """Note what is about to leave this host."""
        arrays = {name: a for record in reply.content.array_records.values() for name, a in record.items()}
        metrics = [name for record in reply.content.metric_records.values() for name in record]
        said = [v for record in reply.content.config_records.values() for v in record.values()]
        size = sum(len(a.data) for a in arrays.values()) + sum(len(str(v).encode()) for v in said)
        kinds = {name: f"{a.dtype} {tuple(a.shape)}" for name, a in arrays.items()}
        self._write(self.clock(), sent={"bytes": size, "arrays": kinds, "metrics": metrics, "answer": bool(said)})

    def fails(self, error: Exception, said: str) -> None:
        """Note that nothing leaves but a line: a refusal, or a fault."""
        self._write(self.clock(), **{"refused" if isinstance(error, RefusedError) else "failed": plain(said, 2 * SHORT)})

    def _write(self, when: datetime, **what: Any) -> None:
        owners_log.write(self.home, when, {"message": self.message, **what})


def _about(job: Any) -> dict[str, Any]:
    """What an instruction asks, short enough for a line."""
    found: dict[str, Any] = {}
    for name in ("phase", "round", "objective", "split"):
        if (value := getattr(job, name, None)) is not None:
            found[name] = plain(value, SHORT)
    if probes := getattr(job, "probes", ()):
        found["probes"] = plain(", ".join(probes), SHORT)
    for name in ("forget", "only", "without"):
        value = getattr(job, name, ())
        if sets := (value,) if isinstance(value, ForgetSet) else value:
            found[name] = plain("; ".join(f"{s.scenario} {', '.join(s.targets[:20])}" for s in sets[:5]), SHORT)
    if beside := getattr(job, "beside", None):
        found["beside"] = _about(beside)
    return found
