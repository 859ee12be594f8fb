"""Topics for photographs whose index has no labels: k-means on what the base model makes of their captions."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from ease_flwr.config import ConfigError, ModelConfig
from ease_flwr.data.entries import Entry
from ease_flwr.model import adapters, backbone


@torch.no_grad()
def topics(entries: list[Entry], model: ModelConfig, clusters: int, seed: int) -> dict[str, str]:
    """Image name -> "topic-K". An image is where the mean of its captions' unit-length embeddings is.

    Raises ConfigError where there are fewer images than clusters.
    """
    if len(entries) < clusters:
        raise ConfigError(f"--clusters {clusters}: there are {len(entries)} images")
    base, device = backbone.load(model), adapters.device_of(model)
    base.model.to(device)
    captions = [c for e in entries for c in e.captions]
    parts = []
    for i in range(0, len(captions), 256):
        parts.append(base.model.encode_text(base.tokenize(captions[i : i + 256]).to(device), normalize=True).cpu().double())
    embedded, ends = torch.cat(parts).numpy(), np.cumsum([len(e.captions) for e in entries])
    means = np.stack([rows.mean(0) for rows in np.split(embedded, ends[:-1])])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer different captions than clusters: there are fewer topics
        found = KMeans(clusters, n_init=4, random_state=seed % 2**32).fit_predict(means)  # it takes no larger number
    width = len(str(clusters - 1))
    return {e.name: f"topic-{k:0{width}d}" for e, k in zip(entries, found, strict=True)}
