"""Which modules of a model get an adapter, and why others get none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from open_clip.modified_resnet import AttentionPool2d

from ease_flwr.config import ConfigError, LoraConfig
from ease_flwr.model.lora import LAYERS

NUMBERED = ("resblocks", "layer", "layers", "blocks", "stages", "h", "block")
"""What the blocks of a tower are called in open_clip, timm and Hugging Face models; their number comes next."""
Tower = Literal["visual", "text"]
SHOWN = 12


def modules(model: torch.nn.Module, lora: LoraConfig) -> list[str]:
    """Full names of the modules that get an adapter. Raises ConfigError if a tower has none, or one of another class."""
    found: dict[Tower, list[str]] = {"visual": [], "text": []}
    refused: dict[str, str] = {}
    by_name = dict(model.named_modules())
    for name, module in by_name.items():
        tower = tower_of(model, name)
        if tower is None or not any(name == t or name.endswith(f".{t}") for t in lora.targets):
            continue
        first = lora.visual_from if tower == "visual" else lora.text_from
        if first and _block(name) in range(first):
            continue
        outer = name.rpartition(".")[0]
        if type(by_name.get(outer)) is torch.nn.MultiheadAttention and _named(outer, lora):
            continue  # its adapter has one of out_proj
        if why := unfit(module, by_name.get(outer)):
            refused[name] = why
        else:
            found[tower].append(name)
    chosen = found["visual"] + found["text"]
    for name, why in refused.items():
        if not _left_out(name, chosen, lora):
            raise ConfigError(f"lora.targets: {name} {why}")
    for empty in [tower for tower, names in found.items() if not names]:
        there = ", ".join(adaptable(model, empty)) or "none"
        why = next((f"; {name} {why}" for name, why in refused.items() if tower_of(model, name) == empty), "")
        raise ConfigError(
            f"lora.targets: nothing called {', '.join(lora.targets)} to adapt in the {empty} tower; there are {there}{why}"
        )
    starts: dict[Tower, int] = {"visual": lora.visual_from, "text": lora.text_from}
    for kind, first in starts.items():
        if first and all(_block(name) is None for name in found[kind]):
            raise ConfigError(
                f"lora.{kind}_from={first}: what is adapted in this tower is in no numbered blocks: leave it at 0"
            )
    return chosen


def _block(name: str) -> int | None:
    """The number of the block of a tower that a module is in, not that of what blocks are made of; None outside of blocks."""
    numbers = (int(k) for n, k in pairwise(name.split(".")) if n in NUMBERED and k.isdecimal())
    return next(numbers, None)


def tower_of(model: torch.nn.Module, name: str) -> Tower | None:
    """The tower that a module is of; None of what embeds neither pictures nor captions, as CoCa's decoder."""
    if name.startswith("visual."):
        return "visual"
    return "text" if not hasattr(model, "text") or name.startswith("text.") else None


def _named(name: str, lora: LoraConfig) -> bool:
    return any(name == t or name.endswith(f".{t}") for t in lora.targets)


def _left_out(name: str, chosen: Sequence[str], lora: LoraConfig) -> bool:
    """Whether a module was only meant along with others: by targets that name some that can be adapted."""
    by = [t for t in lora.targets if name == t or name.endswith(f".{t}")]
    return all(any(c.endswith(f".{t}") for c in chosen) for t in by)


def unfit(module: torch.nn.Module, outer: torch.nn.Module | None) -> str:
    """Why a module gets no adapter, "" where it can have one. outer: the module that it is a part of."""
    if type(outer) is torch.nn.MultiheadAttention:
        return "is a part of nn.MultiheadAttention, which takes its weight and never calls it: name attn instead"
    if isinstance(outer, AttentionPool2d):
        return "is a part of AttentionPool2d, which takes its weight and never calls it: name others, conv1 for example"
    if type(module) not in LAYERS:
        kinds = ", ".join(f"nn.{kind.__name__}" for kind in LAYERS)
        inside = sorted({n.rpartition(".")[2] for n, m in module.named_modules() if n and type(m) in LAYERS})
        others = f"name what is in it: {', '.join(inside)}" if inside else "name others"
        return f"is of class {type(module).__name__}; adapters go on {kinds}: {others}"
    if isinstance(module, torch.nn.MultiheadAttention):
        if not module._qkv_same_embed_dim:
            return "looks at tokens of another width than its own, and such attention gets no adapter: name others"
        if not module.batch_first or module.bias_k is not None or module.add_zero_attn:
            return "is attention of another kind than that of open_clip's blocks: name others"
    if isinstance(module, torch.nn.Conv2d) and module.groups > 1:
        return f"is a convolution in {module.groups} groups, which gets no adapter: name others"
    return ""


def adaptable(model: torch.nn.Module, tower: Tower) -> list[str]:
    """Last parts of the names of what can be adapted in a tower, the first so many of them."""
    by_name = dict(model.named_modules())
    names = [
        name.rpartition(".")[2]
        for name, module in by_name.items()
        if name and tower_of(model, name) == tower and not unfit(module, by_name.get(name.rpartition(".")[0]))
    ]
    return list(dict.fromkeys(n for n in names if not n.isdecimal()))[:SHOWN]


def without_effect(dead: Sequence[str], there: Mapping[Tower, Sequence[str]]) -> str:
    """What to say of adapter tensors that get no gradient. there: what can be adapted, see `adaptable`."""
    names = list(dict.fromkeys(name.partition(".lora_")[0].replace(".base_layer", "") for name in dead))
    last = {name.rpartition(".")[2] for name in names}
    others = [n for n in there["visual" if names[0].startswith("visual.") else "text"] if n not in last]
    more = f" and {len(names) - 3} others" if len(names) > 3 else ""
    return (
        f"lora.targets: the adapters of {', '.join(names[:3])}{more} get no gradient and would change nothing: take other "
        f"names than {', '.join(sorted(last))}, for example {', '.join(others[:5]) or 'those of attention layers'}"
    )
