"""Whether a request can be served at all: asked before it joins the queue, and again before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ease_flwr import strategies
from ease_flwr.config import POSITION, ConfigError, DataConfig, Experiment, ForgetRequest, Section, among
from ease_flwr.store import phases
from ease_flwr.store.files import home
from ease_flwr.store.tombstones import NAME, Gone, Tombstones


def check(
    request: ForgetRequest, experiment: Experiment, clients: Sequence[str], before: Sequence[ForgetRequest], run: Path | None
) -> Section:
    """The settings of its method. before: requests of the queue that come first.  run: where it has learnt, if it has.

    Raises ConfigError: one line that says why this request cannot be served.
    """
    method = strategies.load(request.strategy)
    params = method.check(request.strategy, serving(request, experiment), request.scenario)
    for client, pair in request.pairs:
        position = POSITION.fullmatch(pair) is not None
        if position and experiment.data.kind == "folder":
            raise ConfigError(
                f"{client}/{pair}: positions move when data change: name pairs of hosts by their content, "
                "as `ease data ids` lists them there"
            )
        if not position and experiment.data.kind == "personas":
            raise ConfigError(f"{client}/{pair}: drawn pairs have no names: give CLIENT/POSITION or CLIENT/START:STOP:STEP")
    if unknown := sorted(request.named - set(clients)):
        raise ConfigError(f"no client {', '.join(unknown)}; {among(unknown[0], clients)}")
    gone = {client: r.id for r in before for client in r.leaving}
    if again := sorted(request.named & set(gone)):
        raise ConfigError(f"{again[0]} is forgotten already, by request {gone[again[0]]}: ask for the others alone")
    if len(gone) + len(request.leaving) >= len(clients):
        raise ConfigError("all clients would have left, nobody would be there to keep anything")
    if method.history == "rounds" and gone:
        raise ConfigError(
            f"strategy {request.strategy} follows every round of the learn phase, and {sorted(gone)[0]} has left since: "
            "use a strategy that does not (`ease methods`)"
        )
    if method.history == "rounds" and experiment.data.joined:
        raise ConfigError(
            f"strategy {request.strategy} follows every round of the learn phase, and {experiment.data.joined[0]} has joined "
            "since: use a strategy that does not (`ease methods`)"
        )
    if method.history and (missing := sorted(_purged_updates(run) - set(gone))):
        raise ConfigError(
            f"strategy {request.strategy} reads the updates of the learn phase, and those of {missing[0]} were purged: "
            "use a strategy that does not (`ease methods`)"
        )
    if method.history == "rounds" and _purged_updates(run):
        raise ConfigError(f"strategy {request.strategy} follows every round of the learn phase, and some were purged")
    return params


def check_names(names: Collection[str], data: DataConfig) -> None:
    """Raises ConfigError where one of these hosts was forgotten, and nobody has said that it may come back."""
    if data.kind != "folder":
        return
    gone = Tombstones(home()).read().clients
    if there := sorted(set(gone) & set(names) - set(data.returned)):
        raise ConfigError(back(there[0], gone[there[0]]))


def back(name: str, gone: Gone) -> str:
    """What is said of a client that was forgotten and comes back."""
    return (
        f"{name} was forgotten on {gone.at[:10]}, by request {gone.request}: leave it out, or, where it has agreed to it, "
        f"say data.returned={name} in a new run; its host leaves out what it has withdrawn as long as {NAME} names it"
    )


def serving(request: ForgetRequest, experiment: Experiment) -> Experiment:
    """The experiment with the settings that the request has for its method."""
    return experiment.model_copy(update={"strategy": request.settings})


def check_all(requests: Sequence[ForgetRequest], experiment: Experiment, clients: Sequence[str], run: Path | None) -> None:
    """Check requests that come one after the other. Raises ConfigError for the first that cannot be served."""
    for i, request in enumerate(requests):
        check(request, experiment, clients, requests[:i], run)


def _purged_updates(run: Path | None) -> set[str]:
    """Clients whose updates were purged from the history."""
    folders = [p.parent for p in run.glob("phases/*/phase.json")] if run else []
    gone = [name for folder in folders for name in phases.read_file(folder).get("purged", [])]
    return {name.split("/")[1] for name in gone if name.startswith("history/")}
