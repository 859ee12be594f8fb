"""The towers of open_clip without work that nothing comes of: padding, a last block for tokens that are not pooled, and a
frozen beginning that is computed once.

Each shortcut is tried on random input where it is put in. Where a tower is not built as expected it stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, Transformer, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ease_flwr.config import ConfigError

if TYPE_CHECKING:
    from ease_flwr.model.encoder import Backbone


def through(transformer: Transformer, x: Tensor, mask: Tensor | None, pick: Tensor) -> Tensor:
    """x (n, l, d) through all blocks, of the last one only these positions (n,): (n, d). mask: (l, l), added to the scores."""
    *before, last = transformer.resblocks
    for block in before:
        if transformer.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, None, None, mask, use_reentrant=False)
        else:
            x = block(x, attn_mask=mask)
    rows = torch.arange(len(x), device=x.device)
    seen, chosen = last.ln_1(x), x[rows, pick][:, None]
    heads = last.attn.num_heads
    own = None if mask is None else mask[pick].repeat_interleave(heads, 0)[:, None]
    found = last.attn(seen[rows, pick][:, None], seen, seen, need_weights=False, attn_mask=own)[0]
    chosen = chosen + last.ls_1(found)
    return (chosen + last.ls_2(last.mlp(last.ln_2(chosen))))[:, 0]


def encode_image(model: Any, image: Tensor, normalize: bool = False) -> Tensor:
    """open_clip's `encode_image` of a tower that pools its first token."""
    visual = model.visual
    x = visual._embeds(image)
    x = visual.ln_post(through(visual.transformer, x, None, x.new_zeros(len(x), dtype=torch.long)))
    x = x if visual.proj is None else x @ visual.proj
    return F.normalize(x, dim=-1) if normalize else x


def encode_text(model: Any, text: Tensor, normalize: bool = False) -> Tensor:
    """open_clip's `encode_text` of a causal tower that pools the token with the highest number, of rows of any length."""
    tower = model.text if hasattr(model, "text") else model
    length = text.shape[1]
    x = tower.token_embedding(text) + tower.positional_embedding[:length]
    x = tower.ln_final(through(tower.transformer, x, tower.attn_mask[:length, :length], text.argmax(1)))
    projection = tower.text_projection
    if projection is not None:
        x = projection(x) if isinstance(projection, nn.Module) else x @ projection
    return F.normalize(x, dim=-1) if normalize else x


def without_padding(text: Tensor) -> Tensor:
    """Rows of tokens (n, length) without the padding (0) that all of them end with. It reads them: they are on the CPU."""
    longest = text.any(0).nonzero()
    return text[:, : int(longest.max()) + 1 if len(longest) else 1]


def _plain(transformer: Any) -> bool:
    """Whether `through` knows how its blocks are built."""
    known = type(transformer) is Transformer and transformer.batch_first
    return known and type(transformer.resblocks[-1]) is ResidualAttentionBlock


def _pools_first(visual: Any) -> bool:
    plain = type(visual) is VisionTransformer and _plain(visual.transformer) and not visual.output_tokens
    return plain and visual.attn_pool is None and visual.pool_type == "tok"


def _pools_highest(model: Any) -> bool:
    tower = getattr(model, "text", model)
    if type(tower) is TextTransformer:
        pools = tower.pool_type == "argmax" and tower.cls_emb is None and not tower.use_pad_mask and not tower.output_tokens
    else:
        pools = type(tower) is CLIP and tower.text_pool_type == "argmax"
    return pools and tower.attn_mask is not None and _plain(tower.transformer)


def made_up(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Two pictures, and two rows of tokens: one as long as can be, one short with padding."""
    model, draw = backbone.model, torch.Generator().manual_seed(0)
    tower = getattr(model, "text", model)
    pictures = torch.randn(2, 3, backbone.image_size, backbone.image_size, generator=draw)
    of_bert = isinstance(tower, HFTextEncoder)
    words = tower.vocab_size if of_bert else tower.token_embedding.num_embeddings
    length = context_of(model, backbone.architecture)
    tokens, short = torch.randint(1, words - 1, (2, length), generator=draw), min(4, length)
    end = getattr(tower, "eos_id", getattr(tower, "text_eos_id", 0)) if pooled(tower) == "eos" else words - 1
    tokens[0, -1], tokens[1, short - 1], tokens[1, short:] = end, end, (tower.config.pad_token_id or 0) if of_bert else 0
    return pictures, tokens


def context_of(model: Any, architecture: dict[str, Any]) -> int:
    """Tokens of text that a model looks at; 77 is open_clip's own number, 0 in T5, which looks at any."""
    return int(architecture.get("text_cfg", {}).get("context_length") or min(77, model.context_length or 77))


def pooled(tower: Any) -> str:
    """Which token a text tower of open_clip takes; "" of others."""
    return str(getattr(tower, "text_pool_type", "") or getattr(tower, "pool_type", ""))


@torch.no_grad()
def shorten(backbone: Backbone) -> bool:
    """Let the model's encoders leave out what does not count. True where captions may come without their padding."""
    model, draw = backbone.model, torch.Generator().manual_seed(0)
    device = model.logit_scale.device
    if _pools_first(model.visual):
        pictures = torch.randn(2, 3, backbone.image_size, backbone.image_size, generator=draw).to(device)
        _replace(model, "encode_image", encode_image, pictures, pictures)
    tower = getattr(model, "text", model)
    if _pools_highest(model):
        words, shorter = tower.token_embedding.num_embeddings, encode_text
    elif isinstance(tower, HFTextEncoder) and tower.config.pad_token_id == 0:  # it masks its padding
        words, shorter = tower.vocab_size, type(model).encode_text
    else:
        return False
    length = context_of(model, backbone.architecture)
    tokens, short = torch.randint(1, words - 1, (2, length), generator=draw), min(4, length)
    tokens[:, short - 1], tokens[:, short:] = words - 1, 0
    return _replace(model, "encode_text", shorter, tokens.to(device), tokens[:, :short].to(device))


def _replace(model: Any, name: str, shorter: Callable[..., Tensor], given: Tensor, enough: Tensor) -> bool:
    """Put a shorter encoder in where it says of enough what the model's own says of what is given."""
    before = getattr(model, name)(given)
    if same := torch.allclose(shorter(model, enough), before, rtol=1e-4, atol=1e-5):
        setattr(model, name, MethodType(shorter, model))
    return same


def shorten_context(model: Any, architecture: dict[str, Any], length: int) -> dict[str, Any]:
    """The same open_clip model for captions of at most `length` tokens; the architecture of it.

    Exact where what a caption becomes depends on its tokens alone: the text tower is causal, padding comes last and is not
    pooled, or it is a Hugging Face one, which masks its padding. Raises ConfigError for others.
    """
    own = context_of(model, architecture)
    if length >= own:
        return architecture
    tower = getattr(model, "text", model)
    if not isinstance(tower, HFTextEncoder):
        causal = tower.attn_mask is not None and getattr(tower, "cls_emb", None) is None
        if not causal or pooled(tower) not in ("argmax", "eos", "first"):
            raise ConfigError(
                f"model.context={length}: this text tower looks at its padding too, so that captions of {length} tokens would "
                f"mean something else than the same with {own}: leave model.context at 0"
            )
        tower.positional_embedding = nn.Parameter(tower.positional_embedding[:length].clone(), requires_grad=False)
        tower.attn_mask = tower.attn_mask[:length, :length]
    tower.context_length = model.context_length = length
    shorter = copy.deepcopy(architecture)
    shorter["text_cfg"]["context_length"] = length
    return shorter


class Skip(nn.Module):
    """Stands where a frozen module was taken out: returns its first argument."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x


@torch.no_grad()
def cut_trunk(backbone: Backbone) -> Callable[[Tensor], Tensor]:
    """Take the frozen beginning of the image tower out of the model, so that its output can be computed once and kept.

    Everything before the first module with a trainable parameter moves into the returned function; afterwards
    `model.encode_image` expects that function's output in place of pictures. Verified here on a random picture: where
    the tower is not built as expected, nothing is cut and the function is the identity.
    """
    visual = backbone.model.visual
    probe = torch.randn(2, 3, backbone.image_size, backbone.image_size, generator=torch.Generator().manual_seed(0))
    probe = probe.to(next(visual.parameters()).device)
    before = backbone.model.encode_image(probe)
    stages: list[Callable[[Tensor], Tensor]] = []
    undo: list[Callable[[], Any]] = []
    if hasattr(visual, "transformer") and hasattr(visual, "_embeds"):
        stages.append(visual._embeds)
        visual._embeds = lambda x: x
        undo.append(lambda: delattr(visual, "_embeds"))
        chain: nn.Module = visual.transformer.resblocks
    else:
        chain = getattr(visual, "trunk", nn.Module())
    for name, child in list(chain.named_children()):
        if any(p.requires_grad for p in child.parameters()):
            break
        stages.append(child)
        chain._modules[name] = Skip()
        undo.append(partial(chain._modules.__setitem__, name, child))

    def trunk(pictures: Tensor) -> Tensor:
        for stage in stages:
            pictures = stage(pictures)
        return pictures

    try:
        same = torch.allclose(backbone.model.encode_image(trunk(probe)), before, rtol=1e-4, atol=1e-5)
    except Exception:  # whatever a tower asks of a module that was taken out
        same = False
    if not same:
        for restore in undo:
            restore()
        stages.clear()
    return trunk
