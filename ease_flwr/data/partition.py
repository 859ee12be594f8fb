"""Which client gets which photographs of the train split."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np

from ease_flwr.config import NAME, DataConfig, DataError, canonical, settings
from ease_flwr.config.data import RULES
from ease_flwr.data.entries import Entry
from ease_flwr.data.tables import json_of, text_of

WHOLE = ("iid", "dirichlet", "label", "client")
"""Rules by which every pair is somebody's."""


def dealt(entries: list[Entry], clients: tuple[str, ...], config: DataConfig, seed: int) -> list[np.ndarray]:
    """Positions of each client's pairs by `data.partition`, in order. Raises DataError where it cannot be done."""
    if config.partition == "client":
        return by_column(entries, clients)
    if config.partition == "file":
        return by_file(entries, clients, config.parts)
    if config.partition in RULES:
        return partition([e.label for e in entries], config, seed)
    return by_partitioner(entries, clients, config, seed)


def partition(labels: list[str], config: DataConfig, seed: int) -> list[np.ndarray]:
    """Positions of the training pairs of each client: every pair once, shares as equal as the rule allows.

    iid: shuffled and cut.  dirichlet: each label is split by shares from Dirichlet(alpha).  label: sorted by label and
    cut, then `mixed` of every client's pairs is shuffled among all clients. Raises DataError where it cannot be done.
    """
    rng, k = np.random.default_rng((seed, 20)), config.clients
    if len(labels) < 2 * k:
        raise DataError(f"{len(labels)} training pairs are too few for {k} clients")
    if config.partition == "iid":
        parts = np.array_split(rng.permutation(len(labels)), k)
    elif config.partition == "dirichlet":
        buckets: list[list[int]] = [[] for _ in range(k)]
        for label in sorted(set(labels)):
            members = rng.permutation(np.flatnonzero(np.array(labels) == label))
            cuts = (np.cumsum(rng.dirichlet(np.full(k, config.alpha)))[:-1] * len(members)).astype(int)
            for bucket, share in zip(buckets, np.split(members, cuts), strict=True):
                bucket.extend(share.tolist())
        parts = [np.array(b, dtype=np.intp) for b in buckets]
    else:
        order = np.lexsort((rng.permutation(len(labels)), np.array(labels)))
        own = [rng.permutation(p) for p in np.array_split(order, k)]
        keep = [len(p) - round(config.mixed * len(p)) for p in own]
        pool = rng.permutation(np.concatenate([p[n:] for p, n in zip(own, keep, strict=True)]))
        cuts = np.cumsum([len(p) - n for p, n in zip(own, keep, strict=True)])[:-1]
        parts = [np.concatenate([p[:n], extra]) for p, n, extra in zip(own, keep, np.split(pool, cuts), strict=True)]
    if any(len(p) < 2 for p in parts):
        raise DataError(f"data.partition={config.partition} leaves a client with less than two pairs: raise data.alpha")
    return [np.sort(p) for p in parts]


def by_file(entries: list[Entry], clients: tuple[str, ...], file: str) -> list[np.ndarray]:
    """Positions of each client's pairs as {"names": {CLIENT: [image names]}} says. Raises DataError."""
    said = read_names(file, "data.parts")
    where = {canonical(e.name): i for i, e in enumerate(entries)}
    if strange := sorted(set(said) - set(clients)):
        raise DataError(f"data.parts: {file} has images for {strange[0]!r}; the clients are {', '.join(clients)}")
    names = [said.get(client, []) for client in clients]
    if not all(isinstance(part, list) and len(part) > 1 and all(isinstance(n, str) for n in part) for part in names):
        raise DataError(f"data.parts: {file} needs two images at least for each of {', '.join(clients)}")
    names = [list(map(canonical, part)) for part in names]
    flat = [name for part in names for name in part]
    if lost := [n for n in flat if n not in where]:
        raise DataError(f"data.parts: {file} names {lost[0]!r}, which is not in the train split")
    if len(set(flat)) < len(flat):
        raise DataError(f"data.parts: {file} gives an image to two clients, or twice to one")
    return [np.sort([where[name] for name in part]) for part in names]


def undealt(entries: list[Entry], parts: list[np.ndarray]) -> str:
    """The line about pictures of the train split that no client has; "" where each has one."""
    rest = np.setdiff1d(np.arange(len(entries)), np.concatenate(parts))
    names = ", ".join(entries[i].name for i in rest[:6]) + (", ..." if len(rest) > 6 else "")
    return f"[data] {len(rest)} of {len(entries)} pictures of the train split are dealt to nobody: {names}" if len(rest) else ""


def by_column(entries: list[Entry], clients: tuple[str, ...]) -> list[np.ndarray]:
    """Positions of each client's pairs as the index says. Raises DataError for a pair of nobody, or of somebody else."""
    if nobody := next((e for e in entries if not e.client), None):
        raise DataError(f"data.partition=client: {nobody.where} ({nobody.name}) has no client: say in `client` whose it is")
    if strange := next((e for e in entries if e.client not in clients), None):
        raise DataError(f"data.names: {strange.where} has client {strange.client!r}; named are {', '.join(clients)}")
    if bad := next((c for c in clients if not NAME.fullmatch(c)), None):
        raise DataError(f"data.partition=client: {bad!r} cannot name a folder: letters, digits, . _ - and no other, 64 at most")
    parts = [np.array([i for i, e in enumerate(entries) if e.client == c], dtype=np.intp) for c in clients]
    if len(clients) < 2 or (few := next((c for c, p in zip(clients, parts, strict=True) if len(p) < 2), "")):
        who = f"{few} has less than two pairs" if len(clients) > 1 else "there are less than two clients"
        raise DataError(f"data.partition=client: {who} in the train split")
    return parts


def by_partitioner(entries: list[Entry], clients: tuple[str, ...], config: DataConfig, seed: int) -> list[np.ndarray]:
    """Positions of each client's pairs as a partitioner of flwr-datasets deals them.

    It sees the columns `label` and `client` of the index. Where it takes them, it gets `num_partitions`, `seed` and
    partition_by="label"; `data.partition_options` go before these. Raises DataError where it is not there, or does not fit.
    """
    wanted = f"data.partition={config.partition}"
    try:
        from datasets import Dataset
        from flwr_datasets import partitioner as known
    except ImportError as error:
        raise DataError(f"{wanted}: {error}: pip install flwr-datasets, or choose one of {', '.join(RULES)}") from None
    kind = getattr(known, config.partition, None)
    if kind is None:
        there = [n for n in dir(known) if n.endswith("Partitioner") and n != "Partitioner"]
        raise DataError(f"{wanted}: flwr-datasets has no such one: there are {', '.join(there)}")
    offered = {"num_partitions": len(clients), "partition_by": "label", "seed": seed}
    takes = inspect.signature(kind).parameters
    columns = {"index": list(range(len(entries))), "label": [e.label for e in entries], "client": [e.client for e in entries]}
    try:
        made = kind(**{k: v for k, v in offered.items() if k in takes} | settings(config.partition_options))
        made.dataset = Dataset.from_dict(columns)
        parts = [np.sort(np.array(made.load_partition(k)["index"], dtype=np.intp)) for k in range(made.num_partitions)]
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        raise DataError(f"{wanted}: {' '.join(str(error).split())[:300]}") from None
    if len(parts) != len(clients) or min(map(len, parts)) < 2 or len(set(np.concatenate(parts))) < sum(map(len, parts)):
        said = ", ".join(str(len(p)) for p in parts)
        raise DataError(f"{wanted}: {len(clients)} clients need two pairs each that nobody else has; it dealt {said}")
    return parts


def read_names(file: str, field: str) -> dict[str, Any]:
    """{"names": {...}} of a JSON file. field: the setting that named it."""
    try:
        found = json_of(text_of(Path(file).read_bytes()))
        return dict(found["names"])
    except OSError as error:
        raise DataError(f"{field}: {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{field}: {file} is not what `ease data` writes ({why}): make it anew") from None
