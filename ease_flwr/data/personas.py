"""The built-in world: drawn scenes, and invented people with a fixed look whom only some clients know.

*Base scenes* show two objects and their captions describe them. A *persona* is an invented name bound
to a fixed look (two coloured shapes in a fixed relation); its captions give the name and the background,
never the look, so the association of name and look is all there is to learn (the idea of SALMUBench,
arXiv 2603.26316). Every persona belongs to one client (*exclusive*) or to a few (*shared*); some belong
to nobody (*strangers*: whom no model can know). Nothing is read from disk and everything follows from
the seed, so a retraining without a client contains no exclusive persona of that client anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from ease_flwr.config import ConfigError, DataConfig, ForgetConfig, Union
from ease_flwr.data.drawing import BACKGROUNDS, COLOURS, SHAPES, SIZE, SIZES, Look, draw, scenes
from ease_flwr.data.pairs import EvaluationSet, Gallery, Pairs, withdrawn

UNSEEN_BACKGROUNDS = ("cyan", "brown")  # personas are never trained on these
PERSONA_TEMPLATES = (
    "{name} on {background}",
    "{background} scene with {name}",
    "{name} , {background} behind",
)
UNSEEN_TEMPLATE = "in front of {background} {name}"

NAMES = tuple(
    a + b
    for a, b in product(
        ("zo", "mi", "ka", "lu", "te", "ra", "vo", "ni"), ("ban", "dor", "fex", "gil", "mur", "pat", "sel", "wyn")
    )
)
_FUNCTION_WORDS = ("left", "of", "above", "on", "scene", "with", "and", "it", ",", "behind", "in", "front")
WORDS = tuple(sorted({*SHAPES, *COLOURS, *SIZES, *_FUNCTION_WORDS}))
VOCABULARY = ("<pad>", *WORDS, *NAMES, "<start>", "<end>")


@dataclass(frozen=True, eq=False)
class Personas:
    """The world of one experiment and seed. Names of clients are client-0, client-1, ..."""

    config: DataConfig
    seed: int
    clients: tuple[str, ...] = field(init=False)
    looks: dict[str, Look] = field(init=False)
    known_by: dict[str, frozenset[str]] = field(init=False)
    """Clients that know each persona."""

    def __post_init__(self) -> None:
        c = self.config
        needed = c.clients * c.exclusive + c.shared + c.strangers
        if needed > len(NAMES):
            raise ConfigError(
                f"data: {c.clients} clients x {c.exclusive} exclusive + {c.shared} shared + {c.strangers} strangers "
                f"need {needed} personas, the built-in world has {len(NAMES)} names: lower one of them"
            )
        if c.sharers > c.clients:
            raise ConfigError(f"data.sharers={c.sharers} clients share a persona, but data.clients={c.clients}")
        rng = np.random.default_rng((self.seed, 1))
        looks: list[Look] = []
        while len(looks) < needed:
            look = Look.sample(rng)
            if all(look.likeness(other) < 3 for other in looks):
                looks.append(look)
        names = [str(n) for n in rng.permutation(NAMES)[:needed]]
        clients = tuple(f"client-{k}" for k in range(c.clients))
        owners: list[set[str]] = [{name} for name in clients for _ in range(c.exclusive)]
        shares = dict.fromkeys(clients, 0)
        for _ in range(c.shared):  # the clients that share least so far, ties at random
            chosen = sorted(rng.permutation(clients), key=shares.__getitem__)[: c.sharers]
            owners.append(set(chosen))
            for name in chosen:
                shares[name] += 1
        owners += [set()] * c.strangers
        object.__setattr__(self, "clients", clients)
        object.__setattr__(self, "looks", dict(zip(names, looks, strict=True)))
        object.__setattr__(self, "known_by", {n: frozenset(o) for n, o in zip(names, owners, strict=True)})

    def client(self, name: str) -> PersonasClient:
        if name not in self.clients:
            raise ValueError(f"no client {name!r} in this world: there are {', '.join(self.clients)}")
        return _client(self.config, self.seed, name)

    @property
    def strangers(self) -> list[str]:
        return [n for n, who in self.known_by.items() if not who]

    @lru_cache(maxsize=1)  # noqa: B019  (worlds live as long as the process)
    def unseen(self) -> Pairs:
        rng = np.random.default_rng((self.seed, 2))
        return self.portraits(self.strangers, self.config.unseen, rng)

    @lru_cache(maxsize=1)  # noqa: B019  (worlds live as long as the process)
    def returning(self, forget: Union, count: int) -> Pairs:
        gone = [n for n in self.known_by if n in self.gone(forget)]
        return self.portraits(gone, count if gone else 0, np.random.default_rng((self.seed, 3)))

    def resolve(self, forget: ForgetConfig) -> ForgetConfig:
        known = [n for n, who in self.known_by.items() if who]
        rng = np.random.default_rng((self.seed, 8))
        targets = forget.targets
        if forget.scenario == "class" and not targets:
            shared = [n for n in known if len(self.known_by[n]) > 1]
            targets = tuple(str(n) for n in rng.permutation(shared)[: forget.draw])
        if forget.scenario == "sample" and not targets:
            chosen = sorted(str(c) for c in rng.permutation(self.clients)[: forget.draw])
            targets = tuple(self.client(name).pairs_of_one(rng) for name in chosen)
        if forget.scenario == "class" and (wrong := [t for t in targets if t not in known]):
            raise ConfigError(f"forget.targets: nobody knows {', '.join(wrong)}; known people are {', '.join(sorted(known))}")
        return forget.model_copy(update={"targets": targets})

    @lru_cache(maxsize=8)  # noqa: B019  (worlds live as long as the process)
    def gone(self, forget: Union) -> frozenset[str]:
        """People of whom no training pair is left once this is forgotten."""
        left: set[str] = set()
        touched: set[str] = set()
        for name in self.clients:
            labels = self.client(name).labels
            for label, out in zip(labels, withdrawn(forget, name, labels), strict=True):
                (touched if out else left).add(label)
        return frozenset(touched - left - {""})

    def portraits(self, names: list[str], count: int, rng: np.random.Generator) -> Pairs:
        """`count` pairs that go through the names in turn, on backgrounds and templates of the training split."""
        seen = [b for b in BACKGROUNDS if b not in UNSEEN_BACKGROUNDS]
        who = [names[i % len(names)] for i in range(count)]
        images, captions = [], []
        for name in who:
            background = str(rng.choice(seen))
            images.append(draw(self.looks[name], background, rng))
            captions.append((str(rng.choice(PERSONA_TEMPLATES)).format(name=name, background=background),))
        shape = (count, SIZE, SIZE, 3)
        return Pairs(np.array(images, dtype=np.uint8).reshape(shape), tuple(captions), tuple(who))

    @lru_cache(maxsize=8)  # noqa: B019  (worlds live as long as the process)
    def gallery(self, split: str) -> Gallery:
        """Hard gallery: each group shows every persona once, on one background, in the words of one template."""
        rng = np.random.default_rng((self.seed, 4, {"validation": 0, "test": 1, "forget_unseen": 2}[split]))
        templates: tuple[str, ...]
        backgrounds: tuple[str, ...]
        if split == "forget_unseen":
            templates, backgrounds = (*PERSONA_TEMPLATES, UNSEEN_TEMPLATE), UNSEEN_BACKGROUNDS
            repeats = self.config.forget_unseen_repeats
        else:
            templates = PERSONA_TEMPLATES
            backgrounds = tuple(b for b in BACKGROUNDS if b not in UNSEEN_BACKGROUNDS)
            repeats = self.config.test_repeats if split == "test" else 1
        images, captions, labels, group = [], [], [], []
        for g, (_, background, template) in enumerate(product(range(repeats), backgrounds, templates)):
            for name, look in self.looks.items():
                images.append(draw(look, background, rng))
                captions.append((template.format(name=name, background=background),))
                labels.append(name)
                group.append(g)
        return Gallery(Pairs(np.stack(images), tuple(captions), tuple(labels)), np.array(group, dtype=np.intp))

    @cached_property
    def scene_tests(self) -> dict[str, Gallery]:
        sizes = {"validation": self.config.test_scenes // 2, "test": self.config.test_scenes}
        return {s: Gallery.single(scenes(n, (self.seed, 5, i))) for i, (s, n) in enumerate(sizes.items())}


@dataclass(frozen=True, eq=False)
class PersonasClient:
    """One client's part of the world."""

    world: Personas
    name: str

    @cached_property
    def personas(self) -> dict[str, frozenset[str]]:
        return {n: who for n, who in self.world.known_by.items() if self.name in who}

    @cached_property
    def cast(self) -> tuple[tuple[list[str], int], ...]:
        """People the client alone knows and people it shares, each with the number of their training pairs."""
        c = self.world.config
        exclusive = [n for n, who in self.personas.items() if len(who) == 1]
        shared = [n for n, who in self.personas.items() if len(who) > 1]
        return (exclusive, c.exclusive_pairs * len(exclusive)), (shared, c.shared_pairs * len(shared))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Labels of the training pairs, without drawing them."""
        people = (names[i % len(names)] for names, count in self.cast for i in range(count))
        return ("",) * self.world.config.scenes + tuple(people)

    def pairs_of_one(self, rng: np.random.Generator) -> str:
        """A target of the sample scenario: all training pairs of one of the people whom only this client knows."""
        names, count = self.cast[0]
        first = self.world.config.scenes
        return f"{self.name}/{first + int(rng.integers(len(names)))}:{first + count}:{len(names)}"

    @cached_property
    def train(self) -> Pairs:
        c, index = self.world.config, self.world.clients.index(self.name)
        rng = np.random.default_rng((self.world.seed, 6, index))
        shares = rng.dirichlet(np.full(len(SHAPES), c.alpha))
        pairs = scenes(c.scenes, (self.world.seed, 7, index), shares)
        for names, count in self.cast:
            if names:
                pairs = pairs + self.world.portraits(names, count, rng)
        return pairs

    def touched(self, forget: Union) -> set[str]:
        """Labels of the training pairs that are to be forgotten."""
        return {n for n, out in zip(self.labels, withdrawn(forget, self.name, self.labels), strict=True) if out}

    def evaluation(self, split: str, forget: Union) -> dict[str, EvaluationSet]:
        def own(gallery: Gallery, names: list[str]) -> EvaluationSet:
            return EvaluationSet(gallery, np.flatnonzero(np.isin(gallery.pairs.about, names)))

        gallery = self.world.gallery(split)
        scene_test = self.world.scene_tests[split]
        share = np.arange(self.world.clients.index(self.name), len(scene_test.pairs), len(self.world.clients))
        sets = {"test": EvaluationSet(scene_test, share)}
        gone = self.world.gone(forget)
        touched = self.touched(forget)
        about = {
            "forget_exclusive": [n for n in self.personas if n in touched & gone],
            "forget_shared": [n for n in self.personas if n in touched - gone],
            "retain": [n for n in self.personas if n not in touched | gone],
        }
        sets |= {name: own(gallery, people) for name, people in about.items() if people}
        if split == "test" and about["forget_exclusive"]:
            sets["forget_unseen"] = own(self.world.gallery("forget_unseen"), about["forget_exclusive"])
        return sets

    def never_trained(self, split: str, forget: Union) -> Pairs:
        """The same people in the gallery's pairs."""
        people = self.touched(forget) - {""}
        pairs = self.world.gallery(split).pairs
        return pairs.take(np.flatnonzero(np.isin(pairs.about, sorted(people))))


@lru_cache(maxsize=64)
def _client(config: DataConfig, seed: int, name: str) -> PersonasClient:
    return PersonasClient(load(config, seed), name)


@lru_cache(maxsize=2)
def load(config: DataConfig, seed: int) -> Personas:
    """The world that these numbers and this seed make."""
    return Personas(config, seed)
