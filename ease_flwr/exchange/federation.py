"""The federation as the server sees it at one moment: who is in it, and where the exchanges of the phase at hand are kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ease_flwr.config import Experiment, Union, digest
from ease_flwr.exchange import roll_call
from ease_flwr.exchange.bounds import most_pairs
from ease_flwr.exchange.journal import Exchange, Journal
from ease_flwr.exchange.messages import Hello, as_told, message
from ease_flwr.exchange.roll_call import Counted, Roster
from ease_flwr.exchange.transport import FederationError, Transport
from ease_flwr.store.cost import Cost
from ease_flwr.store.tombstones import Told


@dataclass(frozen=True)
class Request:
    """What one client is asked. arrays: beside the adapters; `once` travels until the client has been notified."""

    instruction: object
    """One of the kinds in messages.py."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    once: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Federation:
    """Clients, the way to reach them, and the journal of their answers. A value: what changes is another federation."""

    transport: Transport
    experiment: Experiment
    roster: Roster
    say: Callable[..., None]
    """Told one line, and numbers by name that go with it."""
    journal: Journal = field(default_factory=Journal)
    optional: frozenset[str] = frozenset()
    """Clients that have left, or have asked to: they may answer, and nobody waits for them."""
    expected: int = 0
    """How many others there are, with those that are away."""

    @property
    def clients(self) -> tuple[str, ...]:
        """Those that take part, in the experiment's order."""
        return self.roster.clients

    @property
    def pairs(self) -> Mapping[str, int]:
        """Training pairs of each client, as it said at the roll call."""
        return self.roster.pairs

    @property
    def most(self) -> int:
        """So many pairs of one client count at most, see FederationConfig.weight_bound."""
        return most_pairs(self.pairs.values(), self.experiment.federation.weight_bound)

    def without(self, names: Collection[str]) -> Federation:
        """The federation once these clients are gone."""
        return replace(self, roster=self.roster.without(names))

    @property
    def judged_on(self) -> Mapping[str, int]:
        """Pairs of each client, where it is judged on these; in personas it is judged on others."""
        return {} if self.experiment.data.kind == "personas" else self.pairs

    def with_pairs(self, pairs: Mapping[str, int]) -> Federation:
        """The same, with other numbers of training pairs of these clients."""
        return replace(self, roster=replace(self.roster, pairs={**self.pairs, **pairs}))

    def kept_in(self, journal: Journal) -> Federation:
        """The same, with its exchanges kept in another journal."""
        return replace(self, journal=journal)

    def counted(self, forget: Union, served: int = 0, told: Callable[[str], Told | None] = lambda _: None) -> Counted:
        """See roll_call.counted. served: how many of these forget sets are done.  told: what a client is reminded of."""
        hellos = {n: Hello(forget=forget, served=served, told=told(n)) for n in self.clients}
        return roll_call.counted(self.transport, self.experiment, self.roster, hellos)

    def answering(self, names: Collection[str]) -> tuple[str, ...]:
        """Those of these clients that answer now, sorted; kept in the journal like every exchange."""
        if not names:
            return ()

        def exchange() -> Exchange:
            return Exchange({"answering": roll_call.answering(self.transport, self.experiment, self.roster, names)})

        return tuple(self.journal.once(digest("answering", sorted(names)), exchange).info["answering"])

    def send(
        self, arrays: Mapping[str, np.ndarray], requests: Mapping[str, Request], notified: Collection[str] = ()
    ) -> tuple[dict[str, object], Cost]:
        """Ask these clients; returns Flower's answers by name, where there is one, and the bytes that went out."""
        deadline = self.experiment.federation.deadline
        messages, nbytes = [], 0
        for name in sorted(requests):
            r = requests[name]
            sent = {**arrays, **r.arrays, **({} if name in notified else r.once)}
            if name in self.roster.nodes:
                nbytes += sum(a.nbytes for a in sent.values())
                messages.append(message(as_told(r.instruction, name), sent, self.roster.nodes[name], deadline))
        answers = self.transport.ask(messages, deadline)
        nodes = self.roster.nodes
        return {n: answers[nodes[n]] for n in requests if nodes.get(n) in answers}, Cost(downlink_bytes=nbytes)

    def check_quorum(self, answered: Collection[str], failures: Mapping[str, str]) -> None:
        """Raises FederationError where nobody has answered, or too few of those that must."""
        here, silent = (set(names) - self.optional for names in (answered, failures))
        asked = len(here | silent)
        if not answered or len(here) < self.experiment.federation.quorum * asked:
            why = "; ".join(f"{n}: {w}" for n, w in failures.items())
            raise FederationError(f"{len(here)} of {asked} clients answered, below the quorum: {why}")
