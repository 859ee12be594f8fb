"""LoRA layers against dense weights, in numbers and in gradients."""

import copy

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ease_flwr.model.lora import LAYERS, LoraAttention, LowRank

SCALING = 2.0  # alpha 8 over rank 4


def wrapped(module, kinds=LAYERS, name="inner"):
    """A module with a random adapter of rank 4, alone in a model."""
    model = nn.Module()
    model.inner = copy.deepcopy(module).requires_grad_(False)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=[name])
    config._register_custom_module(kinds)
    layer = peft.get_peft_model(model, config).base_model.model.inner
    draw = torch.Generator().manual_seed(1)
    for n, p in layer.named_parameters():
        if "lora_" in n:
            p.data = 0.3 * torch.randn(p.shape, generator=draw, dtype=p.dtype)
            p.requires_grad_(True)
    return layer


def factors(layer):
    return {n: p for n, p in layer.named_parameters() if "lora_" in n}


def product(layer):
    return SCALING * layer.lora_B["default"].weight @ layer.lora_A["default"].weight


def attention(d=16, heads=4, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.MultiheadAttention(d, heads, batch_first=True).to(dtype).eval()


def dense(plain, layer, query, keys, mask):
    """Torch's own attention with W + (alpha / r) B A in place of W, differentiable in A and B."""
    weights = {
        "in_proj_weight": plain.in_proj_weight.detach() + product(layer),
        "out_proj.weight": plain.out_proj.weight.detach() + product(layer.base_layer.out_proj),
        "in_proj_bias": plain.in_proj_bias.detach(),
        "out_proj.bias": plain.out_proj.bias.detach(),
    }
    asked = (query, keys, keys)
    return torch.func.functional_call(plain, weights, asked, {"attn_mask": mask, "need_weights": False})[0]


@pytest.mark.parametrize("batch", [1, 40])  # few rows: low rank; many: merged
@pytest.mark.parametrize("masked", [None, "float", "bool"])
@pytest.mark.parametrize("pooled", [False, True])
def test_attention_is_the_dense_one_in_value_and_gradient(batch, masked, pooled):
    plain = attention()
    layer, draw = wrapped(plain), torch.Generator().manual_seed(2)
    assert isinstance(layer, LoraAttention)
    x = torch.randn(batch, 5, 16, generator=draw, requires_grad=True)
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    mask = {"bool": mask, "float": torch.zeros(5, 5).masked_fill(mask, -torch.inf), None: None}[masked]
    query = x
    if pooled:
        query = x[:, 2:3]
        mask = None if mask is None else mask[2][None, None].repeat(4 * batch, 1, 1)
    weight = torch.randn(batch, query.shape[1], 16, generator=draw)
    found, expected = layer(query, x, x, attn_mask=mask)[0], dense(plain, layer, query, x, mask)
    assert torch.allclose(found, expected, atol=1e-5)
    parameters = [x, *factors(layer).values()]
    assert len(parameters) == 5
    pairs = zip(*(torch.autograd.grad((y * weight).sum(), parameters) for y in (found, expected)), strict=True)
    for ours, theirs in pairs:
        assert theirs.abs().max() > 0
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [2, 60])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_the_function(rows, bias):
    draw = torch.Generator().manual_seed(0)
    shapes = [(rows, 7), (9, 7), (9,), (3, 7), (9, 3)]
    x, w, c, a, b = (torch.randn(*s, generator=draw, dtype=torch.float64) for s in shapes)
    c = c if bias else None
    expected = F.linear(x, w + 0.5 * b @ a, c)
    assert torch.allclose(LowRank.apply(x, w, c, a, b, 0.5)[0], expected, rtol=1e-12)
    inputs = [t.requires_grad_(True) for t in (x, a, b)]
    assert torch.autograd.gradcheck(lambda x, a, b: LowRank.apply(x, w, c, a, b, 0.5)[0], inputs)


def test_whole_attention_passes_gradcheck():
    layer = wrapped(attention(8, 2, torch.float64))
    x = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    names = list(factors(layer))

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(function, (x, *factors(layer).values()))


def test_merged_is_unmerged_and_comes_apart_again():
    plain = attention()
    layer = wrapped(plain)
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        apart = layer(x)[0]
        layer.merge()
        layer.merge()  # once is enough
        assert torch.allclose(layer(x)[0], apart, atol=1e-5)
        expected = plain.in_proj_weight + product(layer)
        assert torch.allclose(layer.base_layer.in_proj_weight, expected, atol=1e-6)
        layer.unmerge()
        assert torch.allclose(layer(x)[0], apart, atol=1e-5)
        assert torch.allclose(layer.base_layer.in_proj_weight, plain.in_proj_weight, atol=1e-6)
        unloaded = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
    assert type(unloaded) is nn.MultiheadAttention
    assert torch.allclose(unloaded(x, x, x, need_weights=False)[0], apart, atol=1e-5)


def test_without_adapters_it_is_the_plain_layer():
    plain = attention()
    layer = wrapped(plain)
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(4))
    layer.enable_adapters(False)
    layer.base_layer.out_proj.enable_adapters(False)
    assert torch.allclose(layer(x)[0], plain(x, x, x)[0], atol=1e-6)


def test_what_it_does_not_do_is_said():
    layer, x = wrapped(attention()), torch.randn(1, 3, 16)
    for wrong in ({"need_weights": True}, {"value": x + 1}):
        with pytest.raises(ValueError, match=r"keys are the values, and it returns no attention weights"):
            layer(x, x, **{"value": x, **wrong})


def test_half_precision_is_near_and_keeps_gradients_single():
    layer = wrapped(attention())
    x = torch.randn(30, 5, 16, generator=torch.Generator().manual_seed(4))
    exact = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = layer(x)[0]
    assert rough.dtype == torch.bfloat16
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()
    rough.float().sum().backward()
    assert {p.grad.dtype for p in factors(layer).values()} == {torch.float32}


def test_the_stock_layer_of_peft_doubles_out_proj():
    """The fault of docs/upstream.md, in the forward pass. Where this fails peft has mended it."""
    plain = attention()
    ours, stock = wrapped(plain), wrapped(plain, {})
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(4))
    found = stock(x, x, x, need_weights=False)[0]
    assert (found - ours(x)[0]).abs().max() > 0.1
    with torch.no_grad():
        ours.base_layer.out_proj.lora_B["default"].weight *= 2
    assert torch.allclose(found, ours(x)[0], atol=1e-5)
