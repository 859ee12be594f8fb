"""Several runs side by side, from their results.json: what docs/results.md is made of."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ease_flwr import config
from ease_flwr.audit.retrieval import SIGN, differences, meant, signed
from ease_flwr.config import AuditConfig, ConfigError
from ease_flwr.store.files import read_object
from ease_flwr.store.layout import RunLayout, no_run

AGAIN = "gaps_retrain_2_to_retrain"
"""Where results.json has the differences of two retrainings: the noise of every other difference."""
PAIRS = (
    ("unlearned", "retrain", "gaps"),
    ("unlearned", "retrain_equal", "gaps_unlearned_to_retrain_equal"),
    ("continued", "retrain_continued", "gaps_continued_to_retrain_continued"),
    ("retrain_2", "retrain", AGAIN),
)
"""Models, their references, and where results.json has model minus reference."""


def read_results(folder: Path) -> dict[str, Any]:
    """results.json of a run directory. Raises ConfigError when there is none, or another schema."""
    try:
        results: dict[str, Any] = json.loads(RunLayout(folder).results.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not RunLayout(folder).is_run:
            raise no_run(folder) from None
        raise ConfigError(f"{folder}: this run has no results yet: `ease status {folder}` says where it is") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: no readable results.json there ({error}): give folders of finished runs") from None
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != 2:
        raise ConfigError(
            f"{folder}/results.json has schema {schema!r}, this version reads 2: read it with the version that made it"
        )
    return results


def current_audit(run: Path, results: dict[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """The audit of the adapters that results.json names: one with a reference first, the full one before a quick one, then the
    newest.

    (None, {}) where there is none: an audit of earlier adapters says nothing about these. Raises ConfigError at a broken one.
    """
    found = []
    for file in RunLayout(run).audits():
        audit = read_object(file, f"restore it, or ask again with `ease audit {run}`")
        named = audit.get("adapters_sha256", {})
        there = results["adapters_sha256"]
        made = audit.get("trained", [])  # further retrainings that the audit did itself
        if named.get("unlearned") and all(there.get(m) == sha or m in made for m, sha in named.items()):
            found.append(("retrain" in named, audit["level"] == "full", audit["at"], file, audit))
    if not found:
        return None, {}
    *_, file, audit = max(found, key=lambda f: f[:3])
    return file, audit


def read_run_config(folder: Path) -> dict[str, Any]:
    """The run config that a run was submitted with. Raises ConfigError."""
    try:
        found: dict[str, Any] = json.loads(RunLayout(folder).run_config.read_text(encoding="utf-8"))
        config.from_run_config(found)
    except FileNotFoundError as error:
        if not RunLayout(folder).is_run:
            raise no_run(folder) from None
        raise ConfigError(f"{folder}/run_config.json: {error}: it is needed to ask about this run again") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder}/run_config.json: {error}: it is needed to ask about this run again") from None
    return found


def summary(folders: list[Path]) -> str:
    """Markdown: R@1 of every model of every run, the gaps with mean and spread over runs, and what forgetting cost."""
    if twice := [f for i, f in enumerate(folders) if f.resolve() in {other.resolve() for other in folders[:i]}]:
        raise ConfigError(f"{twice[0]} is named twice: a mean would count it twice, name it once")
    runs = [read_results(f) for f in folders]
    sets = list(next(iter(runs[0]["models"].values())))
    if any(list(next(iter(run["models"].values()))) != sets for run in runs):
        raise ConfigError("these runs judge different sets: give runs of one experiment")
    head = "| experiment, strategy, seed, forgotten | model | " + " | ".join(sets) + " |"
    lines = [head, "|---|---|" + "---:|" * len(sets)]
    for run in runs:
        name = f"{run['experiment']}, {run['strategy']}, {run['seed']}, {asked(run)}"
        for model, found in run["models"].items():
            lines.append(f"| {name} | {model} | " + " | ".join(f"{found[s]['r1']:.1f}" for s in sets) + " |")
    lines += ["", f"{SIGN}. Mean ± spread over runs, then the worst:", ""]
    lines += ["| | " + " | ".join(sets) + " |", "|---|" + "---:|" * len(sets)]
    for model, reference, key in PAIRS:
        if all(run.get(key) for run in runs):
            each = [differences(run["models"], model, meant(model, reference, list(run["models"]))) for run in runs]
            cells = []
            for s in sets:
                values = [found[s] for found in each]
                worst = max(values, key=abs) if s.startswith("forget") else min(values)
                cells.append(f"{spread(values, sign='+')}, {signed(s, worst, limits_of(runs))}")
            lines.append(f"| {model} minus {reference} | " + " | ".join(cells) + " |")
    lines += ["", *(cost_line(run) for run in runs if "retrain" in run["cost"])]
    return "\n".join(lines) + "\n"


def limits_of(runs: list[dict[str, Any]]) -> AuditConfig:
    """How near is near enough, as these runs of one experiment have it."""
    return AuditConfig(**runs[0].get("limits", {}))


def asked(run: dict[str, Any]) -> str:
    """What was to be forgotten, by name unless that is long."""
    targets = run["forget"]["targets"]
    return " ".join(targets) if len(targets) <= 4 else f"{len(targets)} targets"


def spread(values: list[float], digits: int = 1, sign: str = "") -> str:
    """Mean, with ± standard deviation where there are several. sign: "+" shows it always."""
    more = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.{digits}f}{more}"


def cost_shares(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """Client steps and bytes of forgetting as shares of retraining's, over all these runs."""

    def share(*what: str) -> float:
        unlearn, retrain = (sum(run["cost"][phase][w] for run in runs for w in what) for phase in ("unlearn", "retrain"))
        return float(unlearn / retrain)

    return share("client_steps"), share("uplink_bytes", "downlink_bytes")


def cost_line(run: dict[str, Any]) -> str:
    """What forgetting cost against retraining, in client steps and bytes."""
    steps, traffic = cost_shares([run])
    taken = f"{steps:.1%} of the client steps and {traffic:.1%} of the bytes of retraining"
    return f"- seed {run['seed']}, {asked(run)}: forgetting took {taken}"
