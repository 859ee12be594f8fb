"""A model of a run as one plain open_clip checkpoint: what a user takes home. Nothing of this project is needed to load it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ease_flwr.audit.summary import read_run_config
from ease_flwr.config import ConfigError, Experiment, among, from_run_config, weights_sha256
from ease_flwr.model import adapters, backbone, towers
from ease_flwr.model.adapters import AdaptedModel, Vector
from ease_flwr.model.card import card, named
from ease_flwr.store.files import write_json, write_text
from ease_flwr.store.layout import RunLayout, no_run

CLOSE = 1e-5
"""Largest difference of an embedding's numbers from the adapted model's."""


def merged(model: AdaptedModel, theta: Vector, plain: nn.Module) -> dict[str, Tensor]:
    """Tensors of the plain model with the adapters theta added: W + (alpha / r) B A in each adapted module, once."""
    model.set(theta)
    tensors = {name: t.detach().cpu().clone() for name, t in plain.state_dict().items()}
    layers: Any = [(n, m) for n, m in model.clip.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in layers:
        path = name.replace(".base_layer", "")
        weight = f"{path}.in_proj_weight" if f"{path}.in_proj_weight" in tensors else f"{path}.weight"
        tensors[weight] += layer.get_delta_weight("default").detach().cpu()
    return tensors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, kinds, shapes and bytes of all tensors, in the order of their names: 64 hex digits."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


def export(experiment: Experiment, theta: Vector, file: Path, facts: Mapping[str, str]) -> str:
    """Write FILE.safetensors and the open_clip configuration FILE.json beside it; the digest of the tensors.

    facts: more metadata of the file. The file is loaded strictly by open_clip and its embeddings are compared before it appears
    under its name. Raises ConfigError where they differ, or where it cannot be written.
    """
    if file.exists() or file.with_suffix(".json").exists():
        raise ConfigError(f"--to {file}: there is a file of this name, or its .json: choose another, or remove them")
    model = adapters.load(experiment.model, experiment.lora, experiment.seed)
    plain = backbone.load(experiment.model)
    tensors = merged(model, theta, plain.model)
    about = {"format": "pt", "sha256": digest(tensors), "parent_sha256": weights_sha256(experiment.model), **facts}
    about |= {"adapters_sha256": adapters.sha256(theta), "image_mean": str(plain.mean), "image_std": str(plain.std)}
    about |= {"image_resize": plain.resize, "image_interpolation": plain.interpolation}
    partial = file.with_name(f"{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, about)
        _compare(replace(model, half=False), plain, partial)
        write_json(file.with_suffix(".json"), plain.architecture)
        partial.replace(file)
    except OSError as error:
        raise ConfigError(f"--to {file}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
        backbone.load.cache_clear()  # it has other weights now
    return about["sha256"]


@torch.no_grad()
def _compare(model: AdaptedModel, plain: backbone.Backbone, file: Path) -> None:
    """Load a checkpoint strictly into the plain model. Raises ConfigError where its embeddings are not the adapted model's."""
    pictures, tokens = towers.made_up(plain)
    found = plain.model
    found.load_state_dict(load_file(file), strict=True)
    ours = model.embed_images(model.trunk(pictures.to(model.device))), model.embed_texts(tokens)
    theirs = found.encode_image(pictures, normalize=True), found.encode_text(tokens, normalize=True)
    away = max(float((a.cpu() - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    if not away <= CLOSE:
        raise ConfigError(f"{file.name}: its embeddings are {away:.1e} away from those of the run")


def write_folder(experiment: Experiment, theta: Vector, folder: Path, name: str, forgotten: Sequence[str]) -> None:
    """A model as a PEFT folder, with what it has forgotten (identifiers of requests), and a README that tells how to use it."""
    model = adapters.load(experiment.model, experiment.lora, experiment.seed)
    model.save(theta, folder, named(experiment.model))
    write_json(folder / "provenance.json", {"forgotten": list(forgotten)})
    write_text(folder / "README.md", card(name, forgotten, experiment.model, experiment.lora, model.base))


def _provenance(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {"forgotten": list(found["forgotten"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: it does not say what the model has forgotten ({error}): restore it") from None


def adapters_of(run: Path, name: str) -> tuple[Experiment, str, Vector]:
    """The experiment of a run, its strategy, and the adapters of one of its models. Raises ConfigError for an unknown name."""
    layout = RunLayout(run)
    if not layout.is_run:
        raise no_run(run)
    names = [p.name for p in sorted(layout.adapters.glob("*"))]
    if name not in names:
        raise ConfigError(f"{run}: no model {name!r} there: {among(name, names)}")
    experiment, submitted = from_run_config(read_run_config(run))
    model = adapters.load(experiment.model, experiment.lora, experiment.seed)
    return experiment, submitted.strategy, adapters.read(layout.adapters / name, model.blocks)


def export_run(run: Path, name: str, file: Path, form: str = "open_clip") -> str:
    """Write a model of a run to a file as `export` does, or (form peft) its adapters to a PEFT folder; says what was written.

    Raises ConfigError, and leaves nothing half written.
    """
    if form not in ("open_clip", "peft"):
        raise ConfigError(f"form={form!r}: expected open_clip or peft")
    if form == "open_clip" and file.suffix != ".safetensors":
        raise ConfigError(f"--to {file}: expected a name that ends in .safetensors")
    experiment, strategy, theta = adapters_of(run, name)
    provenance = _provenance(RunLayout(run).adapters / name / "provenance.json")
    if form == "open_clip":
        facts = {"model": name, "strategy": strategy, "requests": json.dumps(provenance["forgotten"])}
        return f"{file}: sha256 {export(experiment, theta, file, facts)}"
    if file.exists():
        raise ConfigError(f"--to {file}: it is there already: choose another, or remove it")
    try:
        write_folder(experiment, theta, file, name, provenance["forgotten"])
    except OSError as error:
        raise ConfigError(f"--to {file}: {error}") from None
    return f"{file}: adapters {adapters.sha256(theta)}"
