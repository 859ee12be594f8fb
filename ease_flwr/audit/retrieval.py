"""Recall of every model on every set, from counts that clients make on their own pairs, and the gaps to the reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ease_flwr.core.federation import Federation
from ease_flwr.core.messages import Instruction
from ease_flwr.core.retrieval import Counts

SETS = ("forget_exclusive", "forget_shared", "forget", "retain", "test", "holdout")


@dataclass
class Judgement:
    """One model. sets: name -> {"n", "gallery", "i2t", "t2i", "r1"}.  similarity: name -> cosine of each pair."""

    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    similarity: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def r1(self, name: str) -> float:
        return float(self.sets[name]["r1"])


def judge(federation: Federation, theta: NDArray[np.float32], targets: tuple[str, ...], split: str = "test") -> Judgement:
    """Ask every client to judge its own pairs. "forget" is the union of forget_exclusive and forget_shared if they exist."""
    instruction = Instruction(
        phase="audit", round=0, train=federation.experiment.learn, targets=targets, split=split, similarity=True
    )
    counts: dict[str, Counts] = {}
    galleries: dict[str, int] = {}
    similarity: dict[str, list[float]] = {}
    for _, metrics in sorted(federation.evaluate(theta, instruction).items()):
        for key, value in metrics.items():
            name, _, kind = key.rpartition(".")
            if kind == "gallery":
                galleries[name] = int(value)
            elif kind == "similarity":
                similarity.setdefault(name, []).extend(value)
            elif kind == "counts":
                images, texts, *hits = value
                new = Counts(images, texts, tuple(hits[:3]), tuple(hits[3:]))
                counts[name] = counts[name] + new if name in counts else new
    parts = [s for s in ("forget_exclusive", "forget_shared") if s in counts]
    if parts:
        counts["forget"] = sum((counts[s] for s in parts[1:]), counts[parts[0]])
        galleries["forget"] = galleries[parts[0]]
        similarity["forget"] = [v for s in parts for v in similarity[s]]
    sets = {s: {"n": counts[s].images, "gallery": galleries[s], **counts[s].percent()} for s in SETS if s in counts}
    return Judgement(sets, {s: np.array(v) for s, v in similarity.items()})


def gaps(models: dict[str, Judgement], unlearned: str, reference: str) -> dict[str, float | None]:
    """Distance of a model to its reference, in points of R@1; forget gaps are absolute, others reference minus model.

    forget_normalised is |F_u - F_R| / |F_original - F_R|, None where the headroom is below one point;
    pair_similarity is the mean |s_u - s_R| over the forget pairs.
    """
    u, r, o = models[unlearned], models[reference], models["original"]
    out: dict[str, float | None] = {}
    for name in u.sets:
        signed = r.r1(name) - u.r1(name)
        out[name] = abs(signed) if name.startswith(("forget", "holdout")) else signed
    headroom = abs(o.r1("forget") - r.r1("forget"))
    out["forget_normalised"] = abs(u.r1("forget") - r.r1("forget")) / headroom if headroom >= 1 else None
    out["pair_similarity"] = float(np.abs(u.similarity["forget"] - r.similarity["forget"]).mean())
    return out


def table(models: dict[str, Judgement]) -> str:
    """Markdown: models x sets, R@1 in percent (mean of both directions), with the size of each set and its gallery."""
    first = next(iter(models.values())).sets
    names = [s for s in SETS if s in first]
    lines = [
        "| R@1 % | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(names),
        "| pairs (gallery) | " + " | ".join(f"{first[s]['n']} ({first[s]['gallery']})" for s in names) + " |",
    ]
    lines += [f"| {m} | " + " | ".join(f"{j.r1(s):.1f}" for s in names) + " |" for m, j in models.items()]
    return "\n".join(lines) + "\n"
