"""The built-in world: drawn scenes, and invented people with a fixed look whom only some clients know.

*Base scenes* show two objects and their captions describe them. A *persona* is an invented name bound
to a fixed look (two coloured shapes in a fixed relation); its captions give the name and the background,
never the look, so the association of name and look is all there is to learn (the idea of SALMUBench,
arXiv 2603.26316). Every persona belongs to one client (*exclusive*) or to a few (*shared*); some belong
to nobody (*strangers*: the level of unseen pairs). Nothing is read from disk and everything follows from
the seed, so a retraining without a client contains no exclusive persona of that client anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

from ease_flwr.core.config import ConfigError, DataConfig, ForgetConfig
from ease_flwr.data.pairs import EvaluationSet, Gallery, Pairs, withdrawn

SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring", "diamond", "hexagon", "heart", "arrow")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "purple": (140, 50, 180),
    "orange": (240, 140, 30),
    "white": (240, 240, 240),
    "black": (20, 20, 20),
    "pink": (250, 150, 190),
    "brown": (130, 80, 40),
    "cyan": (60, 210, 220),
    "grey": (130, 130, 130),
}
SIZES = {"small": 8.0, "large": 13.0}
RELATIONS = ("left of", "above")
BACKGROUNDS = tuple(COLOURS)
HELD_OUT_BACKGROUNDS = ("cyan", "brown")  # personas are never trained on these
SCENE_TEMPLATES = (
    "{a} {relation} {b} on {background}",
    "{background} scene with {a} {relation} {b}",
    "{b} and {relation} it {a} , {background} behind",
    "in front of {background} {a} {relation} {b}",
)
PERSONA_TEMPLATES = (
    "{name} on {background}",
    "{background} scene with {name}",
    "{name} , {background} behind",
)
HELD_OUT_TEMPLATE = "in front of {background} {name}"

NAMES = tuple(
    a + b
    for a, b in product(
        ("zo", "mi", "ka", "lu", "te", "ra", "vo", "ni"), ("ban", "dor", "fex", "gil", "mur", "pat", "sel", "wyn")
    )
)
_FUNCTION_WORDS = ("left", "of", "above", "on", "scene", "with", "and", "it", ",", "behind", "in", "front")
WORDS = tuple(sorted({*SHAPES, *COLOURS, *SIZES, *_FUNCTION_WORDS}))
VOCABULARY = ("<pad>", *WORDS, *NAMES, "<start>", "<end>")


@dataclass(frozen=True)
class Look:
    """Two objects (size, colour, shape) and the relation of the first to the second."""

    objects: tuple[tuple[str, str, str], tuple[str, str, str]]
    relation: str

    @classmethod
    def sample(cls, rng: np.random.Generator, first_shape: str | None = None) -> Look:
        c1, c2 = rng.choice(list(COLOURS), 2, replace=False)
        s1 = first_shape or str(rng.choice(SHAPES))
        z1, z2 = rng.choice(list(SIZES), 2)
        return cls(((str(z1), str(c1), s1), (str(z2), str(c2), str(rng.choice(SHAPES)))), str(rng.choice(RELATIONS)))

    def likeness(self, other: Look) -> int:
        """How many colours and shapes, of four, two looks have in common, with the objects in either order."""
        (a, b), (c, d) = ([o[1:] for o in look.objects] for look in (self, other))

        def agree(x: tuple[str, ...], y: tuple[str, ...]) -> int:
            return sum(p == q for p, q in zip(x, y, strict=True))

        return max(agree(a, c) + agree(b, d), agree(a, d) + agree(b, c))

    def describe(self, template: str, background: str) -> str:
        a, b = (" ".join(o) for o in self.objects)
        return template.format(a=a, b=b, relation=self.relation, background=background)


def _polygon(corners: int, r: float, x: float, y: float, inner: float = 1.0) -> list[tuple[float, float]]:
    n = corners if inner == 1.0 else 2 * corners
    radii = [r if i % 2 == 0 or inner == 1.0 else inner * r for i in range(n)]
    angles = [2 * np.pi * i / n - np.pi / 2 for i in range(n)]
    return [(x + q * np.cos(a), y + q * np.sin(a)) for q, a in zip(radii, angles, strict=True)]


def _draw(d: ImageDraw.ImageDraw, shape: str, colour: tuple[int, ...], r: float, x: float, y: float) -> None:
    box = (x - r, y - r, x + r, y + r)
    match shape:
        case "circle":
            d.ellipse(box, fill=colour)
        case "square":
            d.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=colour)
        case "triangle":
            d.polygon(_polygon(3, r, x, y), fill=colour)
        case "cross":
            d.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=colour)
            d.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=colour)
        case "star":
            d.polygon(_polygon(5, r, x, y, inner=0.45), fill=colour)
        case "ring":
            d.ellipse(box, outline=colour, width=max(2, int(0.4 * r)))
        case "diamond":
            d.polygon(_polygon(4, r, x, y), fill=colour)
        case "hexagon":
            d.polygon(_polygon(6, r, x, y), fill=colour)
        case "heart":
            d.ellipse((x - r, y - r, x + 0.1 * r, y + 0.2 * r), fill=colour)
            d.ellipse((x - 0.1 * r, y - r, x + r, y + 0.2 * r), fill=colour)
            d.polygon([(x - 0.95 * r, y - 0.2 * r), (x + 0.95 * r, y - 0.2 * r), (x, y + r)], fill=colour)
        case "arrow":
            dx = (-1, 0, 0, 1, 0, 0, -1)
            dy = (-0.3, -0.3, -0.9, 0, 0.9, 0.3, 0.3)
            d.polygon([(x + r * a, y + r * b) for a, b in zip(dx, dy, strict=True)], fill=colour)
        case _:
            raise ValueError(f"no shape {shape!r}: known are {', '.join(SHAPES)}")


def _noisy(
    rng: np.random.Generator, colour: tuple[int, int, int], spread: float, mix: float = 1.0, add: float = 0.0
) -> tuple[int, ...]:
    return tuple(int(np.clip(v * mix + add + rng.normal(0, spread), 0, 255)) for v in colour)


def draw(look: Look, background: str, rng: np.random.Generator) -> np.ndarray:
    """One picture of a look, uint8 (64, 64, 3): positions, sizes, colours and pixels vary with rng."""
    image = Image.new("RGB", (SIZE, SIZE), _noisy(rng, COLOURS[background], 6, mix=0.55, add=60))
    d = ImageDraw.Draw(image)
    along, across = rng.normal(0, 2, 2), rng.normal(0, 4, 2)
    for i, (size, colour, shape) in enumerate(look.objects):
        near, mid = (17, 47)[i] + along[i], SIZE / 2 + across[i]
        x, y = (near, mid) if look.relation == "left of" else (mid, near)
        _draw(d, shape, _noisy(rng, COLOURS[colour], 14), SIZES[size] * (1 + rng.normal(0, 0.08)), x, y)
    pixels = np.asarray(image, dtype=np.float32) + rng.normal(0, 5, (SIZE, SIZE, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def scenes(count: int, seed: tuple[int, ...], shape_shares: np.ndarray | None = None) -> Pairs:
    """`count` base scenes whose captions describe what is seen. shape_shares: probabilities of the first shape."""
    rng = np.random.default_rng(seed)
    images, captions = [], []
    for _ in range(count):
        look = Look.sample(rng, str(rng.choice(SHAPES, p=shape_shares)))
        background = str(rng.choice(BACKGROUNDS))
        images.append(draw(look, background, rng))
        captions.append((look.describe(str(rng.choice(SCENE_TEMPLATES)), background),))
    return Pairs(np.stack(images), tuple(captions), ("",) * count)


@dataclass(frozen=True, eq=False)
class Personas:
    """The world of one experiment and seed. Names of clients are client-0, client-1, ..."""

    config: DataConfig
    seed: int
    clients: tuple[str, ...] = field(init=False)
    looks: dict[str, Look] = field(init=False)
    holders: dict[str, frozenset[str]] = field(init=False)

    def __post_init__(self) -> None:
        c = self.config
        needed = c.clients * c.exclusive + c.shared + c.strangers
        if needed > len(NAMES):
            raise ConfigError(
                f"data: {c.clients} clients x {c.exclusive} exclusive + {c.shared} shared + {c.strangers} strangers "
                f"need {needed} personas, the built-in world has {len(NAMES)} names: lower one of them"
            )
        if c.holders > c.clients:
            raise ConfigError(f"data.holders={c.holders} clients share a persona, but data.clients={c.clients}")
        rng = np.random.default_rng((self.seed, 1))
        looks: list[Look] = []
        while len(looks) < needed:
            look = Look.sample(rng)
            if all(look.likeness(other) < 3 for other in looks):
                looks.append(look)
        names = [str(n) for n in rng.permutation(NAMES)[:needed]]
        clients = tuple(f"client-{k}" for k in range(c.clients))
        owners: list[set[str]] = [{name} for name in clients for _ in range(c.exclusive)]
        held = dict.fromkeys(clients, 0)
        for _ in range(c.shared):  # the clients that share least so far, ties at random
            chosen = sorted(rng.permutation(clients), key=held.__getitem__)[: c.holders]
            owners.append(set(chosen))
            for name in chosen:
                held[name] += 1
        owners += [set()] * c.strangers
        object.__setattr__(self, "clients", clients)
        object.__setattr__(self, "looks", dict(zip(names, looks, strict=True)))
        object.__setattr__(self, "holders", {n: frozenset(o) for n, o in zip(names, owners, strict=True)})

    def client(self, name: str) -> PersonasClient:
        if name not in self.clients:
            raise ValueError(f"no client {name!r} in this world: there are {', '.join(self.clients)}")
        return _client(self.config, self.seed, name)

    @property
    def strangers(self) -> list[str]:
        return [n for n, who in self.holders.items() if not who]

    @lru_cache(maxsize=1)  # noqa: B019  (worlds live as long as the process)
    def unseen(self) -> Pairs:
        rng = np.random.default_rng((self.seed, 2))
        return self.portraits(self.strangers, self.config.unseen, rng)

    @lru_cache(maxsize=1)  # noqa: B019  (worlds live as long as the process)
    def overlap(self, forget: ForgetConfig, count: int) -> Pairs:
        gone = [n for n in self.holders if n in self.gone(forget)]
        return self.portraits(gone, count if gone else 0, np.random.default_rng((self.seed, 3)))

    def request(self, forget: ForgetConfig) -> ForgetConfig:
        known = [n for n, who in self.holders.items() if who]
        rng = np.random.default_rng((self.seed, 8))
        targets = forget.targets
        if forget.scenario == "class" and not targets:
            shared = [n for n in known if len(self.holders[n]) > 1]
            targets = tuple(str(n) for n in rng.permutation(shared)[: forget.draw])
        if forget.scenario == "sample" and not targets:
            chosen = sorted(str(c) for c in rng.permutation(self.clients)[: forget.draw])
            targets = tuple(self.client(name).pairs_of_one(rng) for name in chosen)
        if forget.scenario == "class" and (wrong := [t for t in targets if t not in known]):
            raise ConfigError(f"forget.targets: nobody knows {', '.join(wrong)}; known people are {', '.join(sorted(known))}")
        return forget.model_copy(update={"targets": targets})

    @lru_cache(maxsize=8)  # noqa: B019  (worlds live as long as the process)
    def gone(self, forget: ForgetConfig) -> frozenset[str]:
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
        seen = [b for b in BACKGROUNDS if b not in HELD_OUT_BACKGROUNDS]
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
        rng = np.random.default_rng((self.seed, 4, {"validation": 0, "test": 1, "holdout": 2}[split]))
        templates: tuple[str, ...]
        backgrounds: tuple[str, ...]
        if split == "holdout":
            templates, backgrounds = (*PERSONA_TEMPLATES, HELD_OUT_TEMPLATE), HELD_OUT_BACKGROUNDS
            repeats = self.config.holdout_repeats
        else:
            templates = PERSONA_TEMPLATES
            backgrounds = tuple(b for b in BACKGROUNDS if b not in HELD_OUT_BACKGROUNDS)
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
        return {n: who for n, who in self.world.holders.items() if self.name in who}

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

    def touched(self, forget: ForgetConfig | None) -> set[str]:
        """Labels of the training pairs that are to be forgotten."""
        return {n for n, out in zip(self.labels, withdrawn(forget, self.name, self.labels), strict=True) if out}

    def evaluation(self, split: str, forget: ForgetConfig | None) -> dict[str, EvaluationSet]:
        def own(gallery: Gallery, names: list[str]) -> EvaluationSet:
            return EvaluationSet(gallery, np.flatnonzero(np.isin(gallery.pairs.about, names)))

        gallery = self.world.gallery(split)
        scene_test = self.world.scene_tests[split]
        share = np.arange(self.world.clients.index(self.name), len(scene_test.pairs), len(self.world.clients))
        sets = {"test": EvaluationSet(scene_test, share)}
        gone = self.world.gone(forget) if forget else frozenset()
        touched = self.touched(forget)
        about = {
            "forget_exclusive": [n for n in self.personas if n in touched & gone],
            "forget_shared": [n for n in self.personas if n in touched - gone],
            "retain": [n for n in self.personas if n not in touched | gone],
        }
        sets |= {name: own(gallery, people) for name, people in about.items() if people}
        if split == "test" and about["forget_exclusive"]:
            sets["holdout"] = own(self.world.gallery("holdout"), about["forget_exclusive"])
        return sets

    def never_trained(self, split: str, forget: ForgetConfig | None) -> Pairs:
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
