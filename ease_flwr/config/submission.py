"""What the run config of Flower says: how a run is submitted, beside its experiment.

The launcher hands everything over as one document, in letters and digits that nothing on the way reads or splits. `flwr run` by
hand writes plain keys, and `set` as words. A run keeps what it was told in run_config.json, with `set` by its keys.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Literal

from ease_flwr.config import own
from ease_flwr.config.experiment import Experiment
from ease_flwr.config.reading import load, parse_assignments
from ease_flwr.config.section import ConfigError, Section, validate


class Submission(Section):
    """What the run config of `flwr run` carries beside the experiment itself."""

    strategy: str = "ease"
    """File in strategies/."""
    run_dir: str = ""
    """Absolute folder of the run; "" is a new one under $EASE_FLWR_HOME or ~/ease_flwr_runs."""
    fresh: bool = False
    """Whether to compute learn phases again instead of taking them from the cache."""
    audit: Literal["", "quick", "full"] = ""
    """Instead of a new run, audit the finished one whose folder is the parent of run_dir."""
    resume: bool = False
    """Do what is left of the request queue of the run in run_dir, instead of a new run."""
    until: Literal["", "learn"] = ""
    """learn: a new run ends when it has learnt; what it forgets is asked later."""


def encoded(settings: Mapping[str, Any]) -> str:
    """Settings of a run as one document, for the key `document` of a run config."""
    return base64.urlsafe_b64encode(json.dumps(settings).encode()).decode().rstrip("=")


def decoded(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """A run config, with what its document says in place of the document. Raises ConfigError."""
    values = dict(run_config)
    document = str(values.pop("document", ""))
    try:
        told = json.loads(base64.urlsafe_b64decode(document + "=" * (-len(document) % 4))) if document else {}
        return values | dict(told)
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"document: not what `ease run` writes ({error}): submit the run again") from None


def said(run_config: Mapping[str, Any]) -> dict[str, str]:
    """What `set` of a run config says, by key. Raises ConfigError."""
    extra = run_config["set"]
    return dict(extra) if isinstance(extra, Mapping) else parse_assignments(str(extra).split())


def from_run_config(run_config: Mapping[str, Any]) -> tuple[Experiment, Submission]:
    """Read the run config of pyproject.toml, as changed by `flwr run -c` or by the launcher. Raises ConfigError.

    Keys: experiment, strategy, seed, run-dir, fresh, audit, resume, until; the dotted keys that pyproject.toml lists; `set` for
    any others, by key or as words, "learn.rounds=3 continuation.rounds=2"; `own`, see own.py; or a document of all of them. An
    empty string means: not set.
    """
    values = decoded(run_config)
    kept = {
        "strategy": str(values.pop("strategy")),
        "run_dir": str(values.pop("run-dir")),
        "fresh": bool(values.pop("fresh")),
        "audit": values.pop("audit", ""),
        "resume": bool(values.pop("resume", False)),
        "until": values.pop("until", ""),
    }
    more = said(values)
    name, told = str(values.pop("experiment")), own.read(str(values.pop("own", "")))
    del values["set"]
    overrides = {k: v for k, v in values.items() if v != ""} | more
    return load(name, overrides, told), validate(Submission, kept, "run config")
