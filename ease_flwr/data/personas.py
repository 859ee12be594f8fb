"""The built-in world: drawn scenes, and invented people whom only some clients know.

*Base scenes* show two objects and their captions describe them. A *persona* is a name bound to a look. Its captions give the
name and the background, never the look, so the association of name and look is all there is to learn (the idea of SALMUBench,
arXiv 2603.26316). The kinds of persona, and what makes one tower carry a kind, stand in people.py.

Every persona belongs to one client (*exclusive*) or to a few (*shared*); some belong to nobody (*strangers*: whom no model can
know). Training, validation and test pairs have backgrounds and phrasings of their own. Nothing is read from disk and everything
follows from the seed, so a retraining without a client contains no exclusive persona of that client anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from ease_flwr.config import ConfigError, DataConfig, ForgetConfig, Union
from ease_flwr.data.drawing import COMPANION, SHAPES, SIZE, companion, draw, scenes
from ease_flwr.data.pairs import EvaluationSet, Gallery, Pairs, withdrawn
from ease_flwr.data.people import KINDS, Persona, groups, people
from ease_flwr.data.wording import BACKGROUNDS, TEMPLATES


@dataclass(frozen=True, eq=False)
class Personas:
    """The world of one experiment and seed."""

    config: DataConfig
    seed: int

    @cached_property
    def clients(self) -> tuple[str, ...]:
        return self.config.client_names

    @cached_property
    def people(self) -> dict[str, Persona]:
        """Everybody, by name."""
        return people(self.config, self.seed, self.clients)

    def client(self, name: str) -> PersonasClient:
        if name not in self.clients:
            raise ValueError(f"no client {name!r} in this world: there are {', '.join(self.clients)}")
        return _client(self.config, self.seed, name)

    @property
    def strangers(self) -> list[str]:
        return [n for n, p in self.people.items() if not p.known_by]

    def prove(self, say: Callable[[str], None]) -> None:
        """Nothing can be damaged: all pairs are drawn."""

    @lru_cache(maxsize=1)  # noqa: B019  (worlds live as long as the process)
    def unseen(self) -> Pairs:
        rng = np.random.default_rng((self.seed, 2))
        return self.portraits(self.strangers, self.config.unseen, rng)

    @lru_cache(maxsize=1)  # noqa: B019  (worlds live as long as the process)
    def returning(self, forget: Union, count: int) -> Pairs:
        gone = [n for n in self.people if n in self.gone(forget)]
        return self.portraits(gone, count if gone else 0, np.random.default_rng((self.seed, 3)))

    def resolve(self, forget: ForgetConfig) -> ForgetConfig:
        known = {n: p.known_by for n, p in self.people.items() if p.known_by}
        rng = np.random.default_rng((self.seed, 8))
        targets = forget.targets
        if forget.scenario == "class" and not targets:
            shared = [n for n, who in known.items() if len(who) > 1]
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
            client = self.client(name)
            for label, out in zip(client.labels, client.named(forget), strict=True):
                (touched if out else left).add(label)
        return frozenset(touched - left - {""})

    def portraits(self, names: list[str], count: int, rng: np.random.Generator) -> Pairs:
        """`count` training pairs that go through the names in turn."""
        who = [names[i % len(names)] for i in range(count)]
        images, captions = [], []
        for name in who:
            background, template = (str(rng.choice(of["train"])) for of in (BACKGROUNDS, TEMPLATES))
            images.append(draw(self.people[name].look, background, rng))
            captions.append((template.format(who=self.people[name].called, background=background),))
        shape = (count, SIZE, SIZE, 3)
        return Pairs(np.array(images, dtype=np.uint8).reshape(shape), tuple(captions), tuple(who))

    @lru_cache(maxsize=8)  # noqa: B019  (worlds live as long as the process)
    def gallery(self, name: str) -> Gallery:
        """Hard gallery, "validation", "test" or "forget_unseen". A group shows some people on one background, in the words of
        one template; no two of them are called the same. Everybody is in one group of each background and template. In
        forget_unseen there is a known object beside them, the same for a whole group."""
        rng = np.random.default_rng((self.seed, 4, {"validation": 0, "test": 1, "forget_unseen": 2}[name]))
        split = "validation" if name == "validation" else "test"
        repeats = {"validation": 1, "test": self.config.test_repeats, "forget_unseen": self.config.forget_unseen_repeats}
        parts = groups(self.config, len(self.people))
        images: list[np.ndarray] = []
        captions: list[tuple[str, ...]] = []
        labels: list[str] = []
        group: list[int] = []
        for _, background, template in product(range(repeats[name]), BACKGROUNDS[split], TEMPLATES[split]):
            order, first = self._dealt(rng), group[-1] + 1 if group else 0
            for part in range(parts):
                beside = companion(rng) if name == "forget_unseen" else None
                for who in order[part::parts]:
                    person = self.people[who]
                    images.append(draw(person.look, background, rng, beside))
                    called = COMPANION.format(who=person.called, beside=" ".join(beside)) if beside else person.called
                    captions.append((template.format(who=called, background=background),))
                    labels.append(who)
                    group.append(first + part)
        return Gallery(Pairs(np.stack(images), tuple(captions), tuple(labels)), np.array(group, dtype=np.intp))

    def _dealt(self, rng: np.random.Generator) -> list[str]:
        """Everybody in random order, people of the same words one after the other."""
        place = {called: rng.random() for called in sorted({p.called for p in self.people.values()})}
        shuffled = [str(n) for n in rng.permutation([*self.people])]
        return sorted(shuffled, key=lambda n: place[self.people[n].called])

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
        return {n: p.known_by for n, p in self.world.people.items() if self.name in p.known_by}

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
        return ("",) * self.first + tuple(people)

    @property
    def digest(self) -> str:
        return ""

    @property
    def ids(self) -> tuple[tuple[str, str], ...]:
        return ()

    @property
    def barred(self) -> np.ndarray:
        return np.zeros(len(self.labels), dtype=np.bool_)

    def find(self, pair: str) -> tuple[int, ...]:
        """Drawn pairs have no names."""
        return ()

    def named(self, forget: Union) -> np.ndarray:
        return withdrawn(forget, self.name, self.labels)

    @property
    def first(self) -> int:
        """Position of the first pair about a persona."""
        return self.world.config.scenes

    def pairs_of_one(self, rng: np.random.Generator) -> str:
        """A target of the sample scenario: all training pairs of one of the people whom only this client knows."""
        names, count = self.cast[0]
        first = self.first
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
        return {n for n, out in zip(self.labels, self.named(forget), strict=True) if out}

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
        for kind in KINDS:
            about[f"forget_{kind}"] = [n for n in about["forget_exclusive"] if self.world.people[n].kind == kind]
        sets |= {name: own(gallery, people) for name, people in about.items() if people}
        if split == "test" and about["forget_exclusive"]:
            sets["forget_unseen"] = own(self.world.gallery("forget_unseen"), about["forget_exclusive"])
        return sets

    def never_trained(self, split: str, forget: Union) -> Pairs:
        """The same people in the gallery's pairs."""
        people = self.touched(forget) - {""}
        pairs = self.world.gallery(split).pairs
        return pairs.take(np.flatnonzero(np.isin(pairs.about, sorted(people))))

    def strangers(self, split: str) -> tuple[Pairs, EvaluationSet]:
        """People whom nobody knows: their public pairs, and those of the gallery that everybody is in."""
        gallery = self.world.gallery(split)
        return self.world.unseen(), EvaluationSet(gallery, np.flatnonzero(np.isin(gallery.pairs.about, self.world.strangers)))


@lru_cache(maxsize=64)
def _client(config: DataConfig, seed: int, name: str) -> PersonasClient:
    return PersonasClient(load(config, seed), name)


@lru_cache(maxsize=2)
def load(config: DataConfig, seed: int) -> Personas:
    """The world that these numbers and this seed make."""
    return Personas(config, seed)
