"""A real federation: every host has a folder of its own, laid out as ease_flwr/data/formats.py says.

`data.names` are the clients; where a client's folder is, its host says (node config `data-root`). The server has no data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ease_flwr.config import POSITION, ConfigError, DataConfig, ForgetConfig, Union, digest
from ease_flwr.data.formats import read_index
from ease_flwr.data.pairs import Pairs
from ease_flwr.data.photographs import Photographs, PhotographsClient


@dataclass(frozen=True, eq=False)
class Hosts(Photographs):
    """What one host sees of the world: its own folder, under whatever name it is asked for."""

    @cached_property
    def clients(self) -> tuple[str, ...]:
        return self.config.client_names

    @cached_property
    def parts(self) -> list[np.ndarray]:
        return [np.arange(len(self.splits["train"]))] * len(self.clients)

    @lru_cache(maxsize=64)  # noqa: B019  (worlds live as long as the process)
    def client(self, name: str) -> HostClient:
        return HostClient(self, super().client(name).index)

    def test_share(self, index: int, count: int) -> np.ndarray:
        """All of its own."""
        return np.arange(count)

    @lru_cache(maxsize=1)  # noqa: B019  (worlds live as long as the process)
    def returning(self, forget: Union, count: int) -> Pairs:
        raise ConfigError("continuation.overlap: a real federation has its own returning pairs, none are drawn: set it to 0")

    def digest_of(self, index: np.ndarray) -> str:
        """Of these pairs and their labels, whatever their order."""
        labels = (self.splits["train"][i].label for i in index)
        return digest(sorted((i, label) for (i, _), label in zip(self.ids(index), labels, strict=True)))

    def resolve(self, forget: ForgetConfig) -> ForgetConfig:
        """As it is: only the hosts know their labels and how many pairs they have."""
        if not forget.targets:
            raise ConfigError("forget.targets: name what is to be forgotten; nothing can be drawn from data of others")
        return forget


@dataclass(frozen=True, eq=False)
class HostClient(PhotographsClient):
    """A host: its pairs are named by what they are, never by where they stand. Whoever could count through them would be told
    the ids of all, see clients/base.py: get_properties."""

    def named(self, forget: Union) -> np.ndarray:
        if found := [f"{name}/{pair}" for part in forget for name, pair in part.pairs if POSITION.fullmatch(pair)]:
            raise ConfigError(
                f"{found[0][:80]}: a host knows its pairs by their names and ids (`ease data ids`), not by positions"
            )
        return super().named(forget)


@lru_cache(maxsize=2)
def load(config: DataConfig, seed: int) -> Hosts:
    """Read the index of this host; without `data.root` (on the server) there is none. Raises ConfigError."""
    if len(config.names) < 2:
        raise ConfigError("data.names: name the clients, two at least, with commas")
    return Hosts(config, seed, read_index(config.root) if config.root else {})
