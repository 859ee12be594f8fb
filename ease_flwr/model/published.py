"""Models of open_clip as people publish them: a name and a tag, a folder, a name on a hub, or a file and how it is built.

What is wrong is said in one line, and most of it from shapes alone: with `empty` a model is built without memory for its
weights and none are read, which takes a second.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import hf_model
from open_clip.coca_model import CoCa
from open_clip.factory import convert_state_dict
from open_clip.model import CLIP, CustomTextCLIP, convert_to_custom_text_state_dict
from safetensors.torch import load_file

from ease_flwr.config import (
    HUB,
    LARGEST,
    OPENAI,
    PUBLISHED,
    ConfigError,
    ModelConfig,
    Published,
    meant,
    published,
    tensors,
    towers_at_home,
)
from ease_flwr.model import targets, tokens, towers
from ease_flwr.model.encoder import Backbone
from ease_flwr.model.hub import at_once_or_not, fetch, line

POSITION_IDS = "text.transformer.embeddings.position_ids"
"""Numbers 0, 1, 2, ... that older text towers kept among their weights."""
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")
"""What OpenAI's own files have among their weights."""
PARTS = ("vision_cfg", "text_cfg")
TIMM_HUB = ("hf-hub:", "hf_hub:")
"""How timm writes a name on the hub."""
FLOATS = ("F64", "F32", "F16", "BF16")


def opened(config: ModelConfig, empty: bool = False) -> Backbone:
    """A model of open_clip with its weights. empty: without them, to find out what is wrong. Raises ConfigError."""
    found = published(config)
    if config.name.startswith(HUB) and found is None:
        fetch(config.name)
        found = published(config)
    if found is None:
        return _named(config, empty)
    architecture = copy.deepcopy(found.architecture) if found.config else _of_name(config, bare=True)
    if found.config:
        _agree(config, found)
        _find_towers(found, architecture)
        _count_layers(found, architecture)
    with torch.device("meta") if empty else nullcontext():
        model = built(architecture, str(found.config or config.name))
        _fill(model, found, config, empty)
    return _ready(config, model, architecture, found.preprocess if found.config else found.preprocess or _of_tags(config))


def _named(config: ModelConfig, empty: bool) -> Backbone:
    """By a name that open_clip knows, with its published weights or random ones."""
    name, tag = config.name, config.weights
    architecture, tags = _of_name(config), open_clip.list_pretrained_tags_by_model(name)
    if tag and tag not in tags:
        raise ConfigError(
            f"model.weights: {tag!r} is neither a file (.json, .safetensors) nor a pretrained tag of {name}: "
            f"{', '.join(tags)}{meant(tag, tags)}"
        )
    of_tag: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    quick, tower = bool(of_tag.get("quick_gelu")), architecture["text_cfg"].get("hf_model_name")
    if tag and config.quick_gelu is not None and config.quick_gelu != quick:
        raise ConfigError(f"model.quick_gelu={config.quick_gelu}: {tag} of {name} says otherwise: leave it out")
    architecture |= {"quick_gelu": True} if quick else {}
    try:
        with at_once_or_not() if tag or tower else nullcontext():
            if tag and empty:
                open_clip.download_pretrained(of_tag)
            if empty:
                with torch.device("meta"):
                    model = built(architecture, name)
            else:
                gelu = bool(architecture.get("quick_gelu"))
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    model = open_clip.create_model(name, tag or None, force_quick_gelu=gelu, pretrained_text=True)
    except (OSError, RuntimeError) as error:
        if tower:
            raise ConfigError(_no_tower(name, tower, error)) from None
        if not tag:
            raise
        source = f"open_clip_model.safetensors of {of_tag['hf_hub']}" if of_tag.get("hf_hub") else of_tag.get("url")
        said = f" with --set model.quick_gelu={str(quick).lower()}" if _twin(name) else ""
        raise ConfigError(
            f"model.weights: {tag!r} of {name} is not on this machine and cannot be downloaded now ({line(error)}): fetch "
            f"{source} and give it as --set model.weights=/DIR/FILE.safetensors{said}"
        ) from None
    return _ready(config, model, architecture, {key: of_tag[key] for key in OPENAI if of_tag.get(key)})


def _unknown(name: str) -> ConfigError:
    known = open_clip.list_models()
    there = f"a folder is given as model.weights={name}" if Path(name).is_dir() else "see open_clip.list_models()"
    return ConfigError(f"model.name: open_clip knows no model {name!r}; {there}{meant(name, known)}")


def _of_name(config: ModelConfig, bare: bool = False) -> dict[str, Any]:
    """What open_clip builds a name from. bare: a file without a configuration says nothing of its activations."""
    name, said = config.name, config.quick_gelu
    if name not in open_clip.list_models():
        raise _unknown(name)
    architecture: dict[str, Any] = open_clip.get_model_config(name)
    if said is False and architecture.get("quick_gelu"):
        raise ConfigError(f"model.quick_gelu=false: {name} is the name with QuickGELU: leave it out, or take the other name")
    if bare and said is None and _twin(name):
        raise ConfigError(
            f"model.weights: {config.weights} may be of {name} or of {name}-quickgelu, which have the same weights and other "
            "activations: say --set model.quick_gelu=true where it is OpenAI's or its source says QuickGELU, else =false"
        )
    return architecture | ({"quick_gelu": True} if said else {})


def _twin(name: str) -> bool:
    """Whether open_clip has a name for a model with other activations."""
    return f"{name}-quickgelu" in open_clip.list_models()


def _of_tags(config: ModelConfig) -> dict[str, Any]:
    """How pictures are prepared for all published weights of a name, where it is the same for all."""
    name = config.name
    of_tags = {tag: open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    found: dict[str, Any] = {}
    for key in OPENAI:
        values = {str(cfg.get(key)): cfg.get(key) for cfg in of_tags.values()}
        if len(values) > 1 and not getattr(config, key, True):
            raise ConfigError(
                f"model.weights: {config.weights} does not say its {key} of colours, and published weights of {name} have "
                f"{' or '.join(values)}: say --set model.mean=... and model.std=..."
            )
        if len(values) == 1:
            found[key] = next(iter(values.values()))
    return found


def _agree(config: ModelConfig, found: Published) -> None:
    """Raises ConfigError where settings say another model than the configuration beside its weights."""
    quick = bool(found.architecture.get("quick_gelu"))
    if config.quick_gelu not in (None, quick):
        raise ConfigError(f"model.quick_gelu={config.quick_gelu}: {found.config} says {quick}: leave it out")
    if not config.name or config.name.startswith(PUBLISHED):
        return
    if config.name not in open_clip.list_models():
        raise _unknown(config.name)
    named = open_clip.get_model_config(config.name)
    parts = [(named, found.architecture, ("embed_dim",)), *((named[p], found.architecture[p], ()) for p in PARTS)]
    other = {k for a, b, keys in parts for k in (keys or a.keys() & b.keys()) if a.get(k) != b.get(k)}
    if other or (named.get("quick_gelu") and not quick):
        what = ", ".join(sorted(other)) or "quick_gelu"
        raise ConfigError(
            f"model.name={config.name} is another model than {found.config} says ({what}): leave model.name empty"
        )


def _find_towers(found: Published, architecture: dict[str, Any]) -> None:
    """Configuration and tokenizer of a Hugging Face text tower may lie in the folder, or in one beside the file."""
    text = architecture["text_cfg"]
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if not isinstance(name := text.get(key) or "", str):
            raise ConfigError(f"model.weights: {found.config}: text_cfg.{key}={name!r} is no name")
    text |= {key: str(folder) for key, folder in towers_at_home(found).items()}


def _count_layers(found: Published, architecture: dict[str, Any]) -> None:
    """Raises ConfigError where there are thousands of layers, more than tensors: nobody could wait until they are built."""
    most = len(tensors(found.file))
    for part in (*PARTS, "multimodal_cfg"):
        said = (architecture.get(part) or {}).get("layers")
        if any(isinstance(n, int) and n > max(most, 1000) for n in (said if isinstance(said, list) else [said])):
            raise ConfigError(f"model.weights: {found.config} says {part}.layers={said}, {found.file.name} has {most} tensors")


def built(architecture: dict[str, Any], where: str) -> Any:
    """An open_clip model of random weights. Raises ConfigError where there is none of this architecture."""
    parts = copy.deepcopy(architecture)
    tower, trunk = parts["text_cfg"].get("hf_model_name"), str(parts["vision_cfg"].get("timm_model_name"))
    asks = trunk.startswith(TIMM_HUB) or (tower and not Path(tower).is_dir())
    parts["text_cfg"] |= {"hf_model_pretrained": False} if tower else {}
    parts["vision_cfg"] |= {"timm_model_pretrained": False} if parts["vision_cfg"].get("timm_model_name") else {}
    custom = parts.pop("custom_text", False) or tower
    kind: Any = (CoCa if "multimodal_cfg" in parts else CustomTextCLIP) if custom else CLIP
    try:
        with torch.random.fork_rng(devices=[]), at_once_or_not() if asks else nullcontext():
            torch.manual_seed(0)
            if tower and hf_model.transformers is not None:  # it refuses code of others, else it would ask whether to run it
                hf_model.AutoConfig.from_pretrained(tower, trust_remote_code=False)
            return kind(**parts)
    except Exception as error:  # whatever a library says of settings that are none of ours
        if tower and isinstance(error, (OSError, RuntimeError)):
            raise ConfigError(_no_tower(where, tower, error)) from None
        raise ConfigError(
            f"model: {where} cannot be built ({type(error).__name__}: {line(error)}): mend its settings"
        ) from None


def _no_tower(where: str, tower: str, error: Exception) -> str:
    return (
        f"model.weights: the text tower of {where} is that of {tower}, which cannot be read ({line(error)}): see that the "
        f"folder is there, or fetch config.json and the tokenizer of {tower}, and pip install 'ease-flwr[towers]'"
    )


def _unwrapped(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by the names that the model has for them: without what training on several GPUs or torch.compile puts before
    each, and without numbers that are no weights."""
    for wrapper in ("module.", "_orig_mod.", "module."):  # whichever is the outer one
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if name not in OPENAI_NUMBERS}


def _fill(model: Any, found: Published, config: ModelConfig, empty: bool) -> None:
    """Weights of a file into a model; empty: their shapes alone. Raises ConfigError where they are those of another model."""
    where = f"model.weights: {found.file}"
    heads = tensors(found.file)
    kinds = {kind for kind, _ in heads.values()} - {*FLOATS, "I64"}
    if kinds:
        raise ConfigError(f"{where} has weights of kind {', '.join(sorted(kinds))}, which cannot be trained on: fetch others")
    state = {n: torch.empty(shape, device="meta") for n, (_, shape) in heads.items()} if empty else load_file(found.file)
    state = _unwrapped(state)
    used = [] if empty else [n for n in state if targets.tower_of(model, n) or "." not in n]
    if broken := [n for n in used if not bool(torch.isfinite(state[n]).all())]:
        raise ConfigError(f"{where}: {broken[0]} has numbers that are not finite: fetch it again")
    try:
        state = convert_state_dict(model, state)
    except Exception as error:  # it looks like weights of others that open_clip knows to convert, and is none
        raise ConfigError(f"{where} cannot be converted ({type(error).__name__}: {line(error)}): fetch them again") from None
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    wanted = model.state_dict()
    if POSITION_IDS not in wanted:
        state.pop(POSITION_IDS, None)
    if "logit_bias" in wanted:  # as open_clip does; no embedding has it
        state.setdefault("logit_bias", torch.zeros_like(wanted["logit_bias"]))
    for scale in {"logit_scale", "logit_bias"} & state.keys() & wanted.keys():
        state[scale] = state[scale].reshape(wanted[scale].shape) if state[scale].numel() == 1 else state[scale]
    wrong = [f"it has no {n}" for n in wanted if n not in state] + [f"it has {n}" for n in state if n not in wanted]
    wrong += [
        f"{n} is of shape {tuple(state[n].shape)}, not {tuple(t.shape)}"
        for n, t in wanted.items()
        if n in state and state[n].shape != t.shape
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        hint = (
            " (it is transformers' own layout: fetch open_clip_model.safetensors)"
            if "text_model.embeddings" in str(heads)
            else ""
        )
        raise ConfigError(f"{where} does not fit {found.config.name if found.config else config.name}: {wrong[0]}{more}{hint}")
    model.load_state_dict(state)


def _ready(config: ModelConfig, model: Any, architecture: dict[str, Any], said: dict[str, Any]) -> Backbone:
    """A model with what comes before it. Raises ConfigError where it wants what this program has not."""
    size = model.visual.image_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    if not all(isinstance(n, int) and 0 < n <= LARGEST for n in (height, width)):
        raise ConfigError(
            f"model: its pictures are {height} x {width} pixels, expected 1 to {LARGEST}: mend vision_cfg.image_size"
        )
    if height != width:
        raise ConfigError(f"model: its pictures are {height} x {width} pixels, only squares are supported: take another model")
    said = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    if config.context:
        architecture = towers.shorten_context(model, architecture, config.context)
    tokenize = tokens.of_model(architecture, getattr(model, "vocab_size", 0) or getattr(model.text, "vocab_size", 0))
    known = OPENAI | {key: value for key, value in said.items() if value}
    mean, std = tuple(config.mean or known["mean"]), tuple(config.std or known["std"])
    how: dict[str, Any] = {"resize": known["resize_mode"], "interpolation": known["interpolation"], "said": said}
    return Backbone(model, tokenize, int(height), mean, std, architecture, **how)
