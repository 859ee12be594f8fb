"""How pictures are prepared: as the experiment says, and where it says nothing as the base model was published."""

from __future__ import annotations

from typing import Any

from ease_flwr.config.data import DataConfig
from ease_flwr.config.experiment import Experiment
from ease_flwr.config.model import ModelConfig
from ease_flwr.config.weights import published

OPENAI = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
"""What open_clip takes where a model says nothing."""


def pictures(experiment: Experiment) -> DataConfig:
    """The section data of an experiment, with what the configuration beside its base model says of pictures filled in.

    Raises ConfigError where the model's files are not what they should be.
    """
    data = experiment.data
    found = published(experiment.model) if data.kind != "personas" else None
    if found is None:
        return data
    sides = found.architecture.get("vision_cfg", {}).get("image_size")
    size = sides[0] if isinstance(sides, list) and sides else sides
    said = {
        "image_size": size if isinstance(size, int) and size > 0 else 0,
        "resize": found.preprocess.get("resize_mode", ""),
        "interpolation": found.preprocess.get("interpolation", ""),
    }
    return data.model_copy(update={key: value for key, value in said.items() if not getattr(data, key)})


def remarks(model: ModelConfig, data: DataConfig | None, said: dict[str, Any], size: int) -> list[str]:
    """Where settings prepare pictures in another way than a model says, one line each. size: of its pictures in pixels."""
    chosen: dict[str, Any] = {"model.mean": model.mean, "model.std": model.std}
    wanted: dict[str, Any] = {"model.mean": said.get("mean"), "model.std": said.get("std")}
    if data is not None and data.kind != "personas":
        chosen |= {"data.resize": data.resize or OPENAI["resize_mode"], "data.image_size": data.image_size or 224}
        chosen |= {"data.interpolation": data.interpolation or OPENAI["interpolation"]}
        wanted |= {"data.resize": said.get("resize_mode"), "data.image_size": size}
        wanted |= {"data.interpolation": said.get("interpolation")}
    return [
        f"{key}={_spelled(value)} is not what the model says: to take that, say --set {key}={_spelled(wanted[key])}"
        for key, value in chosen.items()
        if value and wanted[key] and _spelled(value) != _spelled(wanted[key])
    ]


def _spelled(value: Any) -> str:
    return ",".join(f"{v:g}" for v in value) if isinstance(value, (tuple, list)) else str(value)
