"""The one adapter to experiment trackers: numbers of a run's events go to TensorBoard, trackio or wandb as they are written.

Nothing is imported unless `tracking` of the experiment names one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ease_flwr.config import ConfigError, Experiment

Track = Callable[[int, dict[str, float]], None]
"""Called with the number of the event and its numbers by name."""


def tracker(experiment: Experiment, folder: Path) -> Track | None:
    """What `tracking` names, or None. Raises ConfigError where it is not installed."""
    kind = experiment.tracking
    if not kind:
        return None
    module = "torch.utils.tensorboard" if kind == "tensorboard" else kind
    try:
        found = import_module(module)
    except ImportError as error:
        raise ConfigError(f"tracking={kind}: {error}: pip install {kind}, or leave tracking empty") from None
    if kind == "tensorboard":
        writer = found.SummaryWriter(str(folder / "tensorboard"))

        def write(step: int, numbers: dict[str, float]) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        return write
    started = found.init(project="ease_flwr", name=folder.name, config=experiment.model_dump(mode="json"))
    return lambda step, numbers: started.log(numbers, step=step)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of nested dictionaries by dotted names; lists by their mean. What is not a number is left out."""
    out: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            out |= flat(value, f"{name}.")
        elif isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
            out[name] = sum(value) / len(value)
        elif isinstance(value, int | float):
            out[name] = float(value)
    return out
