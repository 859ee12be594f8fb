"""Messages out, answers in: the one place that talks to Flower's Grid."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

GRACE = 5.0
"""Seconds to wait beyond a deadline for Flower's own word that a message is lost."""
GONE = ("ActorDied", "ActorUnavailable")
"""Ray's words for a process of the simulation, or its machine, that is gone: it answers nothing for the rest of the run."""
LINE = 300
"""Characters of what a client says that leave it, and that are shown."""
PAUSE = 0.05
"""Seconds between two looks for answers."""


class FederationError(RuntimeError):
    """Too few clients, or clients that do not fit: one line that says who, why and what to do."""


@dataclass(frozen=True)
class Node:
    """What the SuperLink knows of a node."""

    name: str = ""
    """Under which it was registered; "" in a simulation, and without keys."""
    key: str = ""
    """sha256 of its public key, or ""."""

    @classmethod
    def of(cls, name: str, public_key: bytes) -> Node:
        """From Flower's words."""
        return cls(name, hashlib.sha256(public_key).hexdigest() if public_key else "")


@dataclass(frozen=True)
class Transport:
    """Sends messages to nodes and waits for their answers."""

    grid: Grid
    grace: float = GRACE
    pause: float = PAUSE

    def nodes(self) -> dict[int, Node]:
        """The nodes that are connected, by id."""
        return {n.node_id: Node.of(n.name, n.public_key) for n in sorted(self.grid.get_nodes(), key=lambda n: n.node_id)}

    def ask(self, messages: list[Message], deadline: float) -> dict[int, Message]:
        """Send, wait until all have answered or the deadline (seconds) is over, and map answers to nodes by message id.

        Raises FederationError where a process of the simulation died: it answers nothing for the rest of the run.
        """
        if not messages:
            return {}
        ids = list(self.grid.push_messages(messages))
        waiting = dict(zip(ids, (m.metadata.dst_node_id for m in messages), strict=True))
        answers: dict[int, Message] = {}
        limit = time.monotonic() + deadline + self.grace
        while waiting and time.monotonic() < limit:
            for reply in self.grid.pull_messages(list(waiting)):
                if (node := waiting.pop(reply.metadata.reply_to_message_id, None)) is not None:
                    answers[node] = reply
                if reply.has_error() and any(word in (reply.error.reason or "") for word in GONE):
                    raise FederationError(f"a process of the simulation died, perhaps of memory: {reason(reply)[:300]}")
            if waiting:
                time.sleep(self.pause)
        return answers


RAISED = 2
"""Flower's code of an error that the app of a client raised."""
EXPIRED = 3
"""Flower's code of a message that nobody has taken or answered in time; its own text about that is long."""
WORDS = {
    0: "client process died",
    1: "client app did not load",
    RAISED: "client raised",
    EXPIRED: "no answer before the deadline",
    4: "answer lost",
    5: "node is gone",
    7: "app not valid",
    8: "client process stopped",
}
"""Flower's error codes in plain words."""


def reason(reply: Message | None) -> str:
    """Why an answer is missing."""
    if reply is None or reply.error.code == EXPIRED:
        return WORDS[EXPIRED]
    return f"{WORDS.get(reply.error.code, f'error {reply.error.code}')}: {printable(reply.error.reason or '')}"


def by_reason(why: Mapping[str, str]) -> list[str]:
    """A line a reason, with all whom it concerns before it. why: by name."""
    names: dict[str, list[str]] = {}
    for name, said in why.items():
        names.setdefault(said, []).append(name)
    return [f"{', '.join(of)}: {said}" for said, of in names.items()]


def printable(said: str) -> str:
    """What a client has said, as one line of at most LINE characters that no terminal obeys."""
    return plain(" ".join(said[: 4 * LINE].split()), LINE)


def plain(text: object, most: int = 0) -> str:
    """One line without anything that moves a terminal's cursor or hides what follows; most: characters, 0 is all."""
    said = "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in str(text))
    return f"{said[: most - 1]}…" if most and len(said) > most else said
