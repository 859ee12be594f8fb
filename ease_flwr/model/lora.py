"""LoRA that is exact, y = W x + b + (alpha / rank) B A x (arXiv 2106.09685, eq. 3), in linear, attention and
convolutional layers.

peft's own attention layer (0.21) applies the adapter of out_proj twice and trains it through one of the two; docs/upstream.md
shows it. These layers go in by peft's door for custom modules. Their tensors have the names of peft's, and a frozen weight is
never written.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import layer as stock
from torch import Tensor, nn
from torch.nn import functional as F


class LowRank(torch.autograd.Function):
    """x W^T + b + scaling (x A^T) B^T, for rows x (n, d), W (o, d), b (o,), A (r, d), B (o, r): (n, o).

    The gradients of A and B are products of rank r: none of the size of W is formed. W + scaling B A is formed where there are
    so many rows that adding (x A^T) B^T to each would be more work. Products are in the precision of x. The second output,
    x A^T (n, r), is for the backward pass.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """(n, o) and (n, r), in the precision of x."""
        bias = None if bias is None else bias.to(x.dtype)
        low, high = a.to(x.dtype), b.to(x.dtype)
        inner = x @ low.T
        if _many(x, weight):
            return F.linear(x, torch.addmm(weight, b, a, alpha=scaling).to(x.dtype), bias), inner
        return F.linear(x, weight.to(x.dtype), bias).addmm_(inner, high.T, alpha=scaling), inner

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the inputs, and x A^T."""
        x, weight, _, a, b, ctx.scaling = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, a, b, output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, A and B, where they are needed."""
        x, weight, a, b, inner = ctx.saved_tensors
        wants_x, wants_a, wants_b = (ctx.needs_input_grad[i] for i in (0, 3, 4))
        of_x: Any = None
        of_a, of_b = None, None
        low, high = a.to(x.dtype), b.to(x.dtype)
        outer = gradient @ high  # (n, r)
        if wants_a:
            of_a = (outer.T @ x).to(a.dtype) * ctx.scaling
        if wants_b:
            of_b = (gradient.T @ inner).to(b.dtype) * ctx.scaling
        if wants_x and _many(x, weight):
            of_x = gradient @ torch.addmm(weight, b, a, alpha=ctx.scaling).to(x.dtype)
        elif wants_x:
            of_x = (gradient @ weight.to(x.dtype)).addmm_(outer, low, alpha=ctx.scaling)
        return of_x, None, None, of_a, of_b, None


def _many(x: Tensor, weight: Tensor) -> bool:
    """Whether x has so many rows that forming W + scaling B A is less work than to do without."""
    return len(x) * sum(weight.shape) > weight.numel()


def adapted(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Any, rows: slice = slice(None)) -> Tensor:
    """x (..., d) through these rows of a frozen weight (o, d) and of the adapter of a peft layer: (..., o)."""
    weight, bias = weight[rows], None if bias is None else bias[rows]
    if layer.disable_adapters or layer.merged:
        return F.linear(x, weight, bias)
    (name,) = layer.active_adapters
    device = x.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight[rows]
    with torch.autocast(device, enabled=False):
        flat = x.to(precision).reshape(-1, x.shape[-1])
        out: Tensor = LowRank.apply(flat, weight, bias, a, b, layer.scaling[name])[0]
    return out.view(*x.shape[:-1], -1)


class LoraLinear(stock.Linear):
    """nn.Linear with one adapter in use."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., d) to (..., o)."""
        base: Any = self.get_base_layer()
        return adapted(x, base.weight, base.bias, self)


class LoraAttention(stock.MultiheadAttention):
    """nn.MultiheadAttention with one adapter in use, on its fused in_proj and on its out_proj; keys are the values."""

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """What the queries (n, m, d) find among the keys (n, l, d): (n, m, d). The keys are the queries where there are none.

        attn_mask: (m, l) or (n heads, m, l), added to the scores, or true where a query must not look.
        """
        key = query if key is None else key
        if need_weights or (value is not None and value is not key):
            raise ValueError("LoraAttention: keys are the values, and it returns no attention weights")
        base: Any = self.get_base_layer()
        weight, bias, heads, d = base.in_proj_weight, base.in_proj_bias, base.num_heads, query.shape[-1]

        def headed(x: Tensor) -> tuple[Tensor, ...]:  # (n, l, k d) to k of (n, heads, l, d / heads)
            return x.view(*x.shape[:2], -1, heads, d // heads).permute(2, 0, 3, 1, 4).unbind()

        if key is query:
            q, k, v = headed(adapted(query, weight, bias, self))
        else:
            (q,) = headed(adapted(query, weight, bias, self, slice(d)))
            k, v = headed(adapted(key, weight, bias, self, slice(d, None)))
        if attn_mask is not None:
            attn_mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask.to(q.dtype)
            attn_mask = attn_mask.view(len(q), heads, *attn_mask.shape[1:]) if attn_mask.ndim == 3 else attn_mask
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2).flatten(2)
        out = base.out_proj
        return adapted(found, out.get_base_layer().weight, out.get_base_layer().bias, out), None

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapter to both frozen weights, to each once. safe_merge: raises ValueError where it is not finite."""
        if self.merged:
            return
        base: Any = self.get_base_layer()
        (name,) = adapter_names or self.active_adapters
        delta = self.get_delta_weight(name)
        if safe_merge and not bool(torch.isfinite(delta).all()):
            raise ValueError(f"the adapter {name} is not finite")
        base.in_proj_weight.data = base.in_proj_weight.data + delta
        base.out_proj.merge(safe_merge=safe_merge, adapter_names=[name])
        self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Take the adapter out of both weights again, up to rounding."""
        base: Any = self.get_base_layer()
        while self.merged_adapters:
            delta = self.get_delta_weight(self.merged_adapters.pop())
            base.in_proj_weight.data = base.in_proj_weight.data - delta
        base.out_proj.unmerge()

    def _restore_weights(self) -> None:
        """peft registers its weights anew where a forward pass took them away; ours takes nothing away."""


class LoraConv2d(stock.Conv2d):
    """nn.Conv2d with one adapter in use: y = W * x + b + (alpha / rank) B * (A * x). A is laid over the picture as W is,
    with its stride, padding and dilation; B is of one pixel."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(n, c, h, w) to (n, o, h', w')."""
        base: Any = self.get_base_layer()
        out: Tensor = base(x)
        if self.disable_adapters or self.merged:
            return out
        (name,) = self.active_adapters
        a: Any = self.lora_A[name].weight
        b: Any = self.lora_B[name].weight
        return out + F.conv2d(base._conv_forward(x, a, None), b) * self.scaling[name]


LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.MultiheadAttention: LoraAttention,
    nn.Linear: LoraLinear,
    nn.Conv2d: LoraConv2d,
}
"""What is adapted, and by what."""
