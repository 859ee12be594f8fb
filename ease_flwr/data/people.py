"""Who there is in the built-in world: what people are called, how they look and who knows them.

There are three kinds, by what the base model has never met:

    word    a new name for a known look, two coloured shapes: the text tower has to learn it
    look    known words, those for a scene, for a new look, an emblem: the image tower has to learn it. Other clients use the
            same words for emblems of their own, so the text tower cannot tell whose is meant
    both    a new name for a new look: both have to learn it

Emblems of a client that may leave are made of outlines and textures that no other emblem has. Otherwise the image tower would
tell them apart by what it learns of other clients' emblems, and nothing of *both* would have to be learnt there.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice, product

import numpy as np

from ease_flwr.config import ConfigError, DataConfig
from ease_flwr.data.drawing import Look, unlike
from ease_flwr.data.emblems import OUTLINES, TEXTURES, Emblem
from ease_flwr.data.wording import NAMES

KINDS = ("word", "look", "both")


@dataclass(frozen=True)
class Persona:
    """Somebody invented."""

    kind: str
    called: str
    """The words that captions have for them."""
    look: Look | Emblem
    known_by: frozenset[str]
    """Clients that know them."""


def people(config: DataConfig, seed: int, clients: tuple[str, ...]) -> dict[str, Persona]:
    """Everybody, by name. Raises ConfigError where there are not as many names, emblems or clients as the settings want."""
    c, rng = config, np.random.default_rng((seed, 1))
    known = [*_known(c, clients, rng)]
    kinds = [kind for kind, _ in known]
    if (named := len(kinds) - kinds.count("look")) > len(NAMES):
        raise ConfigError(
            f"data: {c.clients} clients with {c.exclusive} or {c.exclusive_others} exclusive, {c.shared} shared and "
            f"{c.strangers} strangers need {named} names, the built-in world has {len(NAMES)}: lower one of them"
        )
    looks = iter(unlike(len(kinds) - kinds.count("both"), rng))
    emblems = _emblems(c, known, rng)
    names = (str(n) for n in rng.permutation(NAMES))
    sets = -(-min(c.leavers, len(clients)) // groups(c, len(kinds)))
    words: defaultdict[tuple[int, int], str] = defaultdict(lambda: str(next(looks)))
    described: Counter[str] = Counter()
    found = {}
    for kind, who in known:
        owner = _owner(who)
        look = next(looks) if kind == "word" else next(emblems[owner])
        if kind == "look":
            called = words[clients.index(owner) % sets if owner else -1, described[owner]]
            described[owner] += 1
        else:
            called = next(names)
        found[str(look) if kind == "look" else called] = Persona(kind, called, look, who)
    return found


def groups(config: DataConfig, count: int) -> int:
    """Of how many groups one background and phrasing of a gallery has, with so many people."""
    return -(-count // config.gallery)


def _owner(known_by: frozenset[str]) -> str:
    """The only client that knows somebody, or ""."""
    return next(iter(known_by)) if len(known_by) == 1 else ""


def _known(c: DataConfig, clients: tuple[str, ...], rng: np.random.Generator) -> Iterator[tuple[str, frozenset[str]]]:
    """Kind of each persona and who knows it. Kinds take turns; a client that is not drawn to leave has new names alone."""
    if c.sharers > c.clients:
        raise ConfigError(f"data.sharers={c.sharers} clients share a persona, but data.clients={c.clients}")
    for k, name in enumerate(clients):
        kinds = islice(cycle(KINDS), c.exclusive) if k < c.leavers else ("word",) * c.exclusive_others
        for kind in kinds:
            yield kind, frozenset({name})
    shares = dict.fromkeys(clients, 0)
    for kind in islice(cycle(KINDS), c.shared):  # the clients that share least so far, ties at random
        chosen = sorted(rng.permutation(clients), key=shares.__getitem__)[: c.sharers]
        for name in chosen:
            shares[name] += 1
        yield kind, frozenset(str(n) for n in chosen)
    for kind in islice(cycle(KINDS), c.strangers):
        yield kind, frozenset()


def _emblems(c: DataConfig, known: list[tuple[str, frozenset[str]]], rng: np.random.Generator) -> dict[str, Iterator[Emblem]]:
    """Emblems of each client's exclusive people, and of all others (""). No two of these groups have an outline or a texture in
    common."""
    wanted = Counter(_owner(who) for kind, who in known if kind != "word")
    sides = {owner: math.isqrt(n - 1) + 1 for owner, n in wanted.items()}
    if (needed := sum(sides.values())) > (there := min(len(OUTLINES), len(TEXTURES))):
        raise ConfigError(
            f"data: emblems of {min(c.leavers, c.clients)} clients that may leave with {c.exclusive} exclusive, of {c.shared} "
            f"shared and {c.strangers} strangers need {needed} outlines and textures, the built-in world has {there}: "
            "lower one of them"
        )
    outlines, textures = (iter(rng.permutation([*of])) for of in (OUTLINES, TEXTURES))
    blocks = {owner: [*product(islice(outlines, side), islice(textures, side))] for owner, side in sides.items()}
    return {owner: iter([Emblem(str(o), str(t)) for o, t in rng.permutation(block)]) for owner, block in blocks.items()}
