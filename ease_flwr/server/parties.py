"""Who takes part in a request: pure functions of the request, of what the clients said, and of what was forgotten before."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ease_flwr.config import ConfigError, ForgetRequest, Union


@dataclass(frozen=True)
class RollCall:
    """What the clients said about the requests of a run."""

    pairs: Mapping[str, int]
    """Training pairs of each client that is there, in the experiment's order."""
    requests: tuple[ForgetRequest, ...]
    """All requests of the queue, in order."""
    counts: Mapping[str, tuple[int, ...]]
    """By client: how many of its pairs each request is the first to name."""
    smallest: Mapping[str, int] = field(default_factory=dict)
    """By client: how many of its pairs a result of training must be about, as its owner says; 1 of who is not named."""

    def concerned(self, client: str, request: ForgetRequest) -> int:
        """How many pairs of a client this request takes from those that earlier ones left."""
        return self.counts[client][self.position(request)]

    def kept(self, client: str, requests: Sequence[ForgetRequest]) -> int:
        """How many pairs of a client are left after these requests, which are the first of the queue."""
        return self.pairs[client] - sum(self.counts[client][: len(requests)])

    def limit(self, client: str) -> int:
        """How many pairs of a client a result of training must be about."""
        return self.smallest.get(client, 1)

    def trains(self, client: str, requests: Sequence[ForgetRequest]) -> bool:
        """Whether a client trains on what is left after these requests: its owner allows it, and there is something."""
        return self.kept(client, requests) >= self.limit(client)

    def idle(self, client: str, requests: Sequence[ForgetRequest]) -> bool:
        """Whether a client has something left after these requests, and its owner does not let it train on so little."""
        return 0 < self.kept(client, requests) < self.limit(client)

    def helps(self, client: str, request: ForgetRequest) -> bool:
        """Whether the owner of a client lets it train on what this request names, beside what it keeps if it keeps anything."""
        until = self.requests[: self.position(request) + 1]
        return self.concerned(client, request) >= self.limit(client) and not self.idle(client, until)

    def owner_says(self, client: str) -> str:
        """Why a client with few pairs does nothing."""
        return f"results leave {client} only if they are about {self.limit(client)} pairs or more (smallest-set of its owner)"

    def position(self, request: ForgetRequest) -> int:
        """Where a request stands among all."""
        return next(i for i, r in enumerate(self.requests) if r.id == request.id)


@dataclass(frozen=True)
class Parties:
    """Who does what for one request, names in the experiment's order."""

    retained: tuple[str, ...]
    """Clients that keep something, and train on it."""
    forget_clients: tuple[str, ...]
    """Clients that hold what is to be forgotten, and are there to help."""
    absent: tuple[str, ...]
    """Clients that hold it and do not answer."""
    unable: tuple[str, ...]
    """Clients that hold it and are there, and may not help, as this is about too few of their pairs."""


def parties(request: ForgetRequest, roll_call: RollCall, departed: Collection[str], answering: Collection[str]) -> Parties:
    """Who takes part in this request.

    departed: clients that left by an earlier request, or do not answer any more.  answering: those of `asked` that answer now.
    """
    until = roll_call.requests[: roll_call.position(request) + 1]
    there = [n for n in roll_call.pairs if n not in departed]
    concerned = asked(request, roll_call, departed)
    absent = tuple(n for n in concerned if n not in answering)
    retained = tuple(n for n in there if n not in absent and roll_call.trains(n, until))
    helping = tuple(n for n in concerned if n in answering and roll_call.helps(n, request))
    return Parties(retained, helping, absent, tuple(n for n in concerned if n not in (*helping, *absent)))


def asked(request: ForgetRequest, roll_call: RollCall, departed: Collection[str]) -> tuple[str, ...]:
    """Clients that hold what this request is about; none that left before, none whose pairs earlier requests took."""
    return tuple(n for n in roll_call.pairs if n not in departed and roll_call.concerned(n, request) > 0)


def holders(roll_call: RollCall) -> frozenset[str]:
    """Clients that have or had pairs of any request."""
    return frozenset(n for n, counts in roll_call.counts.items() if any(counts))


def leaving(request: ForgetRequest, roll_call: RollCall) -> frozenset[str]:
    """Clients that have nothing left after this request, by whatever scenario."""
    until = roll_call.requests[: roll_call.position(request) + 1]
    named = frozenset(request.leaving)
    return named | {n for n in roll_call.pairs if roll_call.concerned(n, request) and not roll_call.kept(n, until)}


def left_out(roll_call: RollCall, requests: Sequence[ForgetRequest]) -> dict[str, Union]:
    """By client, the forget sets of these requests that name pairs of its own: it leaves them out, and learns of no others."""
    return {
        n: found
        for n in roll_call.pairs
        if (found := tuple(r.forget_set for r, count in zip(requests, roll_call.counts[n], strict=False) if count))
    }


def single(roll_call: RollCall, served: Collection[str]) -> list[str]:
    """What is to be said of who has one pair, and of requests about one pair of a client. served: ids of what is done."""
    why = "pairs are learnt from each other, so it teaches nothing"
    out = [f"{n} has one training pair: {why}" for n, count in roll_call.pairs.items() if count == 1]
    for request in (r for r in roll_call.requests if r.id not in served):
        if few := [n for n in roll_call.pairs if roll_call.concerned(n, request) == 1]:
            out.append(f"request {request.id} concerns one pair of {', '.join(few)}: the audit leaves out there what needs two")
    return out


def check(request: ForgetRequest, roll_call: RollCall) -> None:
    """Raises ConfigError where a request concerns nobody, or would leave nobody, or nobody who may train."""
    until = roll_call.requests[: roll_call.position(request) + 1]
    if request.scenario == "sample" and (silent := sorted(n for n in request.named if n not in roll_call.pairs)):
        raise ConfigError(
            f"{', '.join(silent)} does not answer, and nobody else knows what is named there: ask again when it does"
        )
    nobody = not any(roll_call.concerned(n, request) for n in roll_call.pairs)
    absent = [n for n in request.leaving if n not in roll_call.pairs]  # its host is gone: it leaves all the same
    if nobody and not absent:
        raise ConfigError(f"request {request.id}: no pair of the federation is left that it names")
    if not any(roll_call.kept(n, until) for n in roll_call.pairs):
        raise ConfigError(f"request {request.id}: it concerns every pair that the federation has left")
    if not any(roll_call.trains(n, until) for n in roll_call.pairs):
        why = "; ".join(roll_call.owner_says(n) for n in roll_call.pairs if roll_call.kept(n, until))
        raise ConfigError(f"request {request.id}: it leaves nobody enough pairs to train on: {why}")
