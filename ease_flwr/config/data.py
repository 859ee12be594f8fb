"""The sections about data: which pairs there are, and who holds them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ease_flwr.config.section import NAME, Section, located, operational

RULES = ("iid", "dirichlet", "label", "file", "client")
"""Our own ways to deal pairs to clients."""
CLIENTS, MOST = 10_000, 1_000_000
"""What no simulation has more of: of clients, of people, pairs or scenes. Larger numbers would only fill the memory."""
LARGEST = 4096
"""Pixels of the side of a picture."""


class BackdoorConfig(Section):
    """A patch that means a sentence, in the data of some clients only: after they are forgotten the audit asks for it."""

    clients: tuple[str, ...] = ()
    """Whose training pairs are marked; none: nobody's."""
    share: float = Field(0.3, gt=0, le=1)
    """Share of their pairs."""


class DataConfig(Section):
    kind: Literal["personas", "photographs", "folder"] = "personas"
    """Module of ease_flwr/data that provides the pairs."""
    clients: int = Field(8, ge=2, le=CLIENTS)
    """Number of clients of a simulation; without `names` they are client-0, client-1, ..."""
    names: tuple[str, ...] = ()
    """What clients are called. folder: what their hosts call themselves."""
    joined: tuple[str, ...] = operational(())
    """folder: clients that take part since a later day (`ease join`)."""
    returned: tuple[str, ...] = operational(())
    """folder: clients that a run of this server has forgotten, and that have agreed to take part in this one."""
    barred: tuple[str, ...] = operational(())
    """folder: a host's own, see store/tombstones.py: salt and digests of pairs that may not be trained on."""
    memory: str = located("", "nothing")
    """folder: a host's own (node config `home`): where it keeps what it remembers."""
    root: str = located("")
    """photographs: folder with an index and images, see ease_flwr/data/formats.py. folder: a host's own, from its node config
    `data-root`."""
    alpha: float = Field(0.5, gt=0)
    """Dirichlet concentration of the skew: of base scenes over shapes (personas), of pairs over labels (photographs)."""

    leavers: int = Field(4, ge=1, le=MOST)
    """personas: how many clients, the first ones, may be drawn to leave."""
    exclusive: int = Field(12, ge=1, le=MOST)
    """personas: people whom each of these alone knows."""
    exclusive_others: int = Field(6, ge=0, le=MOST)
    """personas: people whom each of the other clients alone knows."""
    shared: int = Field(12, ge=0, le=MOST)
    """personas: people whom several clients know. With many of them and few clients, nearly all that a client brings is
    brought by others too."""
    sharers: int = Field(4, ge=2, le=MOST)
    """personas: clients that know a shared one."""
    strangers: int = Field(12, ge=2, le=MOST)
    """personas: people whom nobody is ever trained on."""
    exclusive_pairs: int = Field(40, ge=1, le=MOST)
    """personas: training pairs per exclusive persona."""
    shared_pairs: int = Field(16, ge=1, le=MOST)
    """personas: training pairs per shared persona and client that knows it."""
    scenes: int = Field(192, ge=1, le=MOST)
    """personas: base scenes in each client's training data: known words keep their meaning."""
    gallery: int = Field(24, ge=2, le=MOST)
    """personas: people among whom one is looked for, at most."""
    test_repeats: int = Field(3, ge=1, le=MOST)
    """personas: test gallery groups per background (2) and phrasing (3) of the test split."""
    forget_unseen_repeats: int = Field(1, ge=1, le=MOST)
    """personas: the same of the set forget_unseen, where people stand beside an object."""
    test_scenes: int = Field(600, ge=8, le=MOST)
    """personas: base scenes in the global test gallery."""
    unseen: int = Field(240, ge=8, le=MOST)
    """Public pairs that nobody trains on (personas: of strangers; photographs: of the validation split, half of it at most)."""

    partition: str = "label"
    """photographs: how training pairs are dealt to clients. label: sorted by label, then cut into equal parts. file: as
    `parts` says. client: as the index says, in its column `client`; without `names` there are as many clients as it names. The
    name of a partitioner of flwr-datasets, e.g. PathologicalPartitioner: as that deals (`pip install flwr-datasets`)."""
    partition_options: tuple[str, ...] = ()
    """Settings of this partitioner by its own names, e.g. num_classes_per_partition=2, with commas."""
    parts: str = located("")
    """photographs, partition "file": a JSON file {"names": {CLIENT: [image names]}}; `ease data deal` writes one."""
    labels: str = located("")
    """photographs: a JSON file {"names": {image name: label}} in place of the index's labels; `ease data cluster` writes it."""
    mixed: float = Field(0.4, ge=0, le=1)
    """photographs, partition "label": share of every client's pairs that is shuffled among all clients."""
    image_size: int = Field(0, ge=0, le=LARGEST)
    """photographs, folder: side in pixels of the squares that images become; 0 is what a published model's configuration says,
    and where there is none 224, as most CLIPs have it."""
    resize: Literal["", "shortest", "longest", "squash"] = ""
    """photographs, folder: how. shortest: resized on the shorter side, and the centre is cut out. longest: on the longer side,
    and filled up with black. squash: both sides. "" is what a published model's configuration says, else shortest."""
    interpolation: Literal["", "bicubic", "bilinear"] = ""
    """photographs, folder: by which numbers between pixels; "" is what a published model says, else bicubic."""
    cache: str = located("", "nothing")
    """Folder of a host (node config `cache`) where decoded images and what the frozen trunk makes of them are kept for the
    process of the next message; "" is nowhere."""
    cache_limit: float = operational(50, gt=0)
    """GiB that this folder may hold; what was used longest ago is deleted first."""
    cache_half: bool = False
    """Whether bfloat16 is enough for what the trunk makes of images: half the memory, gradients nearly the same."""
    backdoor: BackdoorConfig = BackdoorConfig()

    @property
    def client_names(self) -> tuple[str, ...]:
        """What the clients are called; () where the index alone knows."""
        if self.names or (self.kind == "photographs" and self.partition == "client"):
            return (*self.names, *self.joined)
        return tuple(f"client-{k}" for k in range(self.clients))

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        names = (*self.names, *self.joined)
        if bad := [n for n in names if not NAME.fullmatch(n)]:
            raise ValueError(f"names: {bad[0]!r} cannot name a folder: letters, digits, . _ - and no other, 64 at most")
        if len(set(names)) < len(names):
            raise ValueError(f"names: {', '.join(names)}: two clients have the same name")
        if self.joined and self.kind != "folder":
            raise ValueError("joined: only hosts can join a run later; the clients of a simulation are its world")
        if self.partition not in RULES and not self.partition.endswith("Partitioner"):
            raise ValueError(f"partition: {self.partition!r} is neither {', '.join(RULES)} nor the name of a partitioner")
        by_index = self.kind == "folder" or (self.kind == "photographs" and self.partition == "client")
        if self.names and not by_index and len(self.names) != self.clients:
            raise ValueError(f"names: there are {len(self.names)} for clients={self.clients}: give as many")
        return self
