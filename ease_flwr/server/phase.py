"""A phase is done once: it is read where it is finished, taken from the cache where its settings decide it, or computed.

While it is computed every exchange is kept in the journal, so that a run that is killed goes on as if nothing had happened.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ease_flwr.config import ConfigError, code_hash, digest, union
from ease_flwr.exchange.federation import Federation
from ease_flwr.exchange.journal import Journal
from ease_flwr.exchange.roll_call import Roster
from ease_flwr.server.parties import RollCall
from ease_flwr.server.progress import Reporter
from ease_flwr.server.state import FederationState, Server
from ease_flwr.store import phases
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
        by = "" if code == code_hash() else f", by other code ({code[:12]})"
        run.event(f"[{name}] as it was done: {found.cost.rounds} rounds{by}")
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
    if key:
        shutil.rmtree(phases.cached(key), ignore_errors=True)
        phases.link(partial, phases.cached(key))
    folder.parent.mkdir(exist_ok=True)
    partial.replace(folder)
    shutil.rmtree(kept_in, ignore_errors=True)
    return phases.read(folder)


def begun(server: Server, state: FederationState, name: str) -> Server:
    """The server as a phase sees it: with the clients that take part in it, and the requests that were known when it began.

    A phase that was begun before goes on with those that it began with: it asks the same questions again.
    """
    run, call, here = server.run, server.roll_call, server.here(state)
    if run.layout.done(name):
        return server
    now = {"requests": [r.id for r in call.requests], "clients": {n: [call.pairs[n], *call.counts[n]] for n in here.clients}}
    then = run.mark(name, now)
    if then == now:
        return server
    requests = tuple(r for r in call.requests if r.id in then["requests"])
    pairs = {n: said[0] for n, said in then["clients"].items()}
    counts = {n: tuple(said[1:]) for n, said in then["clients"].items()}
    roster = Roster(tuple(pairs), here.roster.nodes, pairs)
    return replace(server, federation=replace(here, roster=roster), roll_call=RollCall(pairs, requests, counts))


def give_up(server: Server, name: str) -> None:
    """Forget the answers of a phase that cannot be finished now: it asks anew when it is tried again."""
    shutil.rmtree(server.run.layout.journal(name), ignore_errors=True)
    server.run.layout.mark.unlink(missing_ok=True)


def _from_cache(server: Server, state: FederationState, name: str, key: str) -> PhaseResult | None:
    """The phase as another run has computed it; what it has forgotten is called by this run's names."""
    kept, folder = phases.cached(key), server.run.layout.phase(name)
    if not (kept / "phase.json").is_file():
        return None
    try:
        found = phases.read(kept)
    except ConfigError as error:
        server.run.event(f"[{name}] computed again, the cache is broken: {error}")
        return None
    server.run.event(f"[{name}] from the cache: {found.cost.rounds} rounds ({kept})")
    phases.link(kept, folder)
    phases.write_file(folder, {**phases.read_file(folder), "forgotten": list(state.forgotten)})
    return phases.read(folder)


def cache_key(*parts: object) -> str:
    """A key of everything that decides a phase."""
    return digest(*parts)[:32]
