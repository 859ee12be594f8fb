"""A phase is done once: it is read where it is finished, taken from the cache where its settings decide it, or computed.

While it is computed every exchange is kept in the journal, so that a run that is killed goes on as if nothing had happened.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ease_flwr.config import ConfigError, ForgetRequest, Section, code_hash, digest, union
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.journal import Journal
from ease_flwr.exchange.roll_call import Roster
from ease_flwr.server.parties import RollCall
from ease_flwr.server.progress import Reporter
from ease_flwr.server.state import FederationState, Server
from ease_flwr.store import phases
from ease_flwr.store.layout import RunLayout
from ease_flwr.store.phases import PhaseResult

Compute = Callable[[Federation, Reporter, Path], PhaseResult]
"""Does a phase: with these clients, telling this reporter, and a folder for its history."""


def once(server: Server, state: FederationState, name: str, offset: int, compute: Compute, key: str = "") -> PhaseResult:
    """The phase of this name.

    offset: rounds that its adapters had before.  key: in the cache; "" where it must not be there.
    """
    run, folder = server.run, server.run.layout.phase(name)
    if run.layout.done(name):
        found = phases.read(folder)
        code = phases.read_file(folder)["code"]
        by = "" if code == code_hash() else f", by code {code[:12]} (this is {code_hash()[:12]})"
        run.event(f"[{name}] was done before, {found.cost.rounds} rounds{by}")
        return found
    if key and not run.fresh and (taken := _from_cache(server, state, name, key)):
        return taken
    partial, kept_in = run.layout.partial(name), run.layout.journal(name)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    journal = Journal(kept_in)
    if journal.kept:
        run.event(f"[{name}] goes on after {journal.kept} exchanges")
    federation = server.here(state).kept_in(journal)

    def event(line: str, **values: Any) -> None:
        (run.repeat if journal.replaying else run.event)(line, **values)

    reporter = Reporter(federation, event, name, union(server.roll_call.requests), offset)
    result = compute(federation, reporter, partial / "history")
    key = "" if result.failures else key  # what a failure has changed, the settings did not decide
    phases.write(partial, result, key)
    if key and (why := phases.publish(partial, key)):
        run.event(f"[{name}] is not kept for other runs: {why}")
    folder.parent.mkdir(exist_ok=True)
    partial.replace(folder)
    shutil.rmtree(kept_in, ignore_errors=True)
    return phases.read(folder)


def begun(server: Server, state: FederationState, name: str, request: str = "") -> Server:
    """The server as a phase sees it: the clients that take part in it, and the requests on the queue when it began.

    A phase that was interrupted goes on with the same clients and the same requests, so that it asks the same questions and
    finds their answers in the journal. It begins anew where a client's data have changed, or how few pairs its owner lets
    a result be about, or where it was begun for another request.

    request: id of the one that it serves, "" where it serves none.
    """
    run, call, here = server.run, server.roll_call, server.here(state)
    if run.layout.done(name):
        return server
    now = Known(
        request=request,
        requests=call.requests,
        pairs={n: call.pairs[n] for n in here.clients},
        counts={n: _by_id(call, n) for n in here.clients},
        smallest={n: call.limit(n) for n in here.clients},
    )
    then = _known(run.mark(name, now.model_dump(mode="json")))
    about = (request, *state.forgotten)
    changed = [n for n in here.clients if then and n in then.pairs and now.of(n, about) != then.of(n, about)]
    if then is None or then.request != request or changed:
        if run.layout.journal(name).is_dir():
            different = f"data of {', '.join(changed)} have changed, or what is allowed there"
            why = different if changed else "it was begun for another request"
            run.event(f"[{name}] begins anew: {why}")
        give_up(server, name)
        run.mark(name, now.model_dump(mode="json"))
        return server
    counts = {n: tuple(said[r.id] for r in then.requests) for n, said in then.counts.items()}
    roster = Roster(tuple(then.pairs), here.roster.nodes, then.pairs, then.smallest)
    call = RollCall(then.pairs, then.requests, counts, then.smallest)
    return replace(server, federation=replace(here, roster=roster), roll_call=call)


class Known(Section):
    """What was known when a phase began."""

    request: str
    """Id of the one that it serves, or ""."""
    requests: tuple[ForgetRequest, ...]
    """On the queue."""
    pairs: dict[str, int]
    """Training pairs of each client that takes part."""
    counts: dict[str, dict[str, int]]
    """By client and id of a request: how many of them it takes."""

    smallest: Mapping[str, int] = {}
    """By client: how many of them a result of training must be about; 1 of who is not named."""

    def of(self, client: str, requests: Collection[str]) -> tuple[int, int, list[int | None]]:
        """Pairs of a client, how many a result must be about, and how many these requests take; None of one that was not asked
        about."""
        return self.pairs[client], self.smallest.get(client, 1), [self.counts[client].get(id) for id in requests]


def _known(mark: Any) -> Known | None:
    """From the mark of a phase; None where an earlier version has written it."""
    try:
        return Known.model_validate_json(json.dumps(mark))
    except ValidationError:
        return None


def at_hand(folder: Path) -> str:
    """Id of the request that is being served in a run, "" where there is none."""
    try:
        mark = json.loads(RunLayout(folder).mark.read_text(encoding="utf-8"))
        known = _known(mark["known"])
        return known.request if known and not RunLayout(folder).done(mark["phase"]) else ""
    except (OSError, ValueError, KeyError):
        return ""


def _by_id(call: RollCall, client: str) -> dict[str, int]:
    return {r.id: count for r, count in zip(call.requests, call.counts[client], strict=True)}


def give_up(server: Server, name: str) -> None:
    """Forget the answers of a phase that cannot be finished now: it asks anew when it is tried again."""
    shutil.rmtree(server.run.layout.journal(name), ignore_errors=True)
    server.run.layout.mark.unlink(missing_ok=True)


def _from_cache(server: Server, state: FederationState, name: str, key: str) -> PhaseResult | None:
    """The phase as another run has computed it; what it has forgotten is called by this run's names."""
    partial, folder = server.run.layout.partial(name), server.run.layout.phase(name)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if not phases.take(key, partial):
            return None
    except ConfigError as error:
        server.run.event(f"[{name}] computed again, the cache is broken: {error}")
        return None
    phases.write_file(partial, {**phases.read_file(partial), "forgotten": list(state.forgotten)})
    folder.parent.mkdir(exist_ok=True)
    partial.replace(folder)
    found = phases.read(folder)
    server.run.event(f"[{name}] from the cache: {found.cost.rounds} rounds ({phases.cached(key)})")
    return found


def cache_key(*parts: object) -> str:
    """A key of everything that decides a phase."""
    return digest(*parts)[:32]
