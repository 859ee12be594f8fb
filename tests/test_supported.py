"""What is supported, class by class: the rows of docs/models.md. LoRA is exact on each, and every adapter has an effect."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ease_flwr.audit.export import merged
from ease_flwr.config import APP, ConfigError, DataError, LoraConfig, ModelConfig
from ease_flwr.model import adapters, backbone, published, targets, towers
from ease_flwr.model import tokens as tokenizers
from ease_flwr.model.tokens import NamingTokenizer
from tests.models import HUGGING_FACE, OF_BERT, SUPPORTED, TEXT, VISION, of, random_model, timm_tower, with_hugging_face

FEW = settings(deadline=None, max_examples=15)
ROWS = (*SUPPORTED, HUGGING_FACE)
ROW = pytest.mark.parametrize("row", ROWS)


@pytest.fixture(scope="module")
def architectures(tmp_path_factory):
    found = dict(SUPPORTED)
    try:
        import transformers  # noqa: F401
    except ImportError:
        return found
    return {**found, HUGGING_FACE: (with_hugging_face(tmp_path_factory.mktemp("text")), OF_BERT)}


def base(architecture, double=False):
    """A random model of an architecture, frozen, with its tokenizer."""
    model = random_model(architecture).requires_grad_(False)
    ready = published._ready(ModelConfig(), model.double() if double else model, architecture, {})
    return replace(ready, model=ready.model)


def attached(architectures, row):
    if row not in architectures:
        pytest.skip("pip install 'ease-flwr[towers]'")
    architecture, names = architectures[row]
    return architecture, adapters.attach(base(architecture), LoraConfig(rank=2, targets=names), 0)


def test_every_row_of_the_table_is_tested_and_no_other():
    text = (APP / "docs" / "models.md").read_text()
    table = text[text.index("| model |") :].split("\n\n")[0].splitlines()[2:]
    assert [line.split("|")[1].strip() for line in table] == list(ROWS)
    for line, (_, names) in zip(table, [*SUPPORTED.values(), ({}, OF_BERT)], strict=True):
        assert tuple(re.findall(r"[a-z0-9_]+", line.split("|")[2].strip(" `"))) == names, line


@ROW
def test_merged_is_unmerged_and_every_adapter_has_an_effect(architectures, row):
    architecture, adapted = attached(architectures, row)
    draw = np.random.default_rng(0)
    theta = (adapted.initial + 0.05 * draw.standard_normal(adapted.size)).astype(np.float32)
    plain = base(architecture).model
    pictures, tokens = towers.made_up(adapted.base)
    tensors = merged(adapted, theta, plain)
    before = plain.encode_image(pictures, normalize=True), plain.encode_text(tokens, normalize=True)
    plain.load_state_dict(tensors)
    after = plain.encode_image(pictures, normalize=True), plain.encode_text(tokens, normalize=True)
    ours = adapted.embed_images(adapted.trunk(pictures)), adapted.embed_texts(tokens)
    for a, b, c in zip(before, after, ours, strict=True):
        assert torch.allclose(b, c, atol=2e-5)
        assert (a - b).abs().max() > 1e-3
    sum((f * torch.randn(f.shape, generator=torch.Generator().manual_seed(i))).sum() for i, f in enumerate(ours)).backward()
    assert all(p.grad is not None and p.grad.any() for p in adapted.parameters)


@ROW
def test_gradients_are_those_of_the_function(architectures, row):
    """gradcheck in double precision, of sums of the embeddings, along random directions of the adapters."""
    _, adapted = attached(architectures, row)
    draw = torch.Generator().manual_seed(1)
    names = {n: p for n, p in adapted.model.named_parameters() if "lora_" in n}
    start = {n: p.detach() + 0.1 * torch.randn(p.shape, generator=draw, dtype=torch.float64) for n, p in names.items()}
    ways = {n: torch.randn(p.shape, generator=draw, dtype=torch.float64) for n, p in names.items()}
    pictures, tokens = towers.made_up(adapted.base)
    with torch.no_grad():
        images = adapted.trunk(pictures).double()
    adapted.clip.double()
    wrapped = torch.nn.Module()
    wrapped.inner = adapted.model.base_model.model
    wrapped.forward = lambda images, tokens: (wrapped.inner.encode_image(images), wrapped.inner.encode_text(tokens))

    def function(steps):
        moved = {n: start[n] + steps[i % len(steps)] * way for i, (n, way) in enumerate(ways.items())}
        inside = {n.replace("base_model.model.", "inner."): value for n, value in moved.items()}
        found = torch.cat([x.flatten() for x in torch.func.functional_call(wrapped, inside, (images, tokens))])
        mix = torch.randn(len(found), 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        return found @ mix

    steps = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (steps,), eps=1e-6, atol=1e-5, rtol=1e-3)
    assert torch.autograd.functional.jacobian(function, steps).abs().min() > 1e-6


NAMES = (
    "attn",
    "out_proj",
    "c_fc",
    "c_proj",
    "mlp",
    "ln_1",
    "resblocks",
    "conv1",
    "0",
    "transformer",
    "q_proj",
    "nothing",
    "visual",
)


@FEW
@given(st.sets(st.sampled_from(NAMES), min_size=1), st.integers(0, 3), st.integers(0, 3))
def test_targets_are_adapted_with_effect_or_refused_in_one_line(names, visual_from, text_from):
    lora = LoraConfig(rank=1, targets=tuple(sorted(names)), visual_from=visual_from, text_from=text_from)
    said = ""
    try:
        adapted = adapters.attach(base(of()), lora, 0)
    except ConfigError as error:
        said = str(error)
    if said:
        assert re.fullmatch(r"lora\.[^\n]*", said)
        return
    adapted.set(adapted.initial + np.float32(0.05))
    pictures, tokens = towers.made_up(adapted.base)
    (adapted.embed_images(adapted.trunk(pictures)).sum() + adapted.embed_texts(tokens).sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in adapted.parameters)


REFUSED = [  # architecture, targets, what is said
    (of(), ("out_proj",), r"attn.out_proj is a part of nn.MultiheadAttention, .*: name attn instead"),
    (of(), ("out_proj", "c_fc"), r"attn.out_proj is a part of nn.MultiheadAttention, .*: name attn instead"),
    (of(timm_tower("test_vit", 160)), ("attn",), r"nothing called attn to adapt in the visual tower; there are proj, qkv, "),
    (SUPPORTED["CoCa"][0], ("attn_pool.attn", "attn"), r"attn_pool.attn looks at tokens of another width than its own"),
    (SUPPORTED["ModifiedResNet"][0], ("c_proj",), r"nothing called c_proj to adapt in the visual .* are conv1, conv2, conv3; "),
    (
        of(timm_tower("test_efficientnet")),
        ("conv_dw", "attn"),
        r"conv_dw is a convolution in 128 groups, which gets no adapter",
    ),
    (of(), ("mlp",), r"mlp is of class Sequential; .*: name what is in it: c_fc, c_proj"),
]


@pytest.mark.parametrize(("architecture", "names", "said"), REFUSED)
def test_what_gets_no_adapter_is_said(architecture, names, said):
    with torch.device("meta"):
        model = published.built(architecture, "a test")
    with pytest.raises(ConfigError, match=rf"^lora.targets: .*{said}"):
        targets.modules(model, LoraConfig(targets=names))


def test_an_adapter_that_gets_no_gradient_is_named():
    """A layer whose weight is taken, and that is never called, as there may be in any library."""
    built = base(of())
    block = built.model.transformer.resblocks[1]
    layer = block.mlp.c_fc
    layer.forward = lambda x: torch.nn.functional.linear(x, layer.weight, layer.bias)
    taken = layer.forward
    block.mlp[0] = torch.nn.Sequential()
    block.mlp[0].add_module("kept", layer)
    block.mlp[0].forward = taken
    with pytest.raises(ConfigError) as error:
        adapters.attach(built, LoraConfig(targets=("kept", "attn")), 0)
    assert str(error.value) == (
        "lora.targets: the adapters of transformer.resblocks.1.mlp.c_fc.kept get no gradient and would change nothing: "
        "take other names than kept, for example attn, c_fc, c_proj"
    )


@pytest.mark.parametrize("context", [4, 5, 11])
@ROW
def test_a_shorter_context_says_the_same_or_is_refused(architectures, row, context):
    if row not in architectures:
        pytest.skip("pip install 'ease-flwr[towers]'")
    architecture, _ = architectures[row]
    captions = ["one", "two"]
    whole = base(architecture)
    if row in ("SigLIP", "CoCa"):
        with pytest.raises(ConfigError, match=rf"^model.context={context}: this text tower looks at its padding too"):
            towers.shorten_context(whole.model, architecture, context)
        return
    expected = whole.model.encode_text(whole.tokenize(captions))
    short = published._ready(ModelConfig(context=context), whole.model, architecture, {})
    rows = short.tokenize(captions)
    assert rows.shape == (2, context)
    assert torch.allclose(short.model.encode_text(rows), expected, atol=1e-5)


@pytest.mark.parametrize("context", [-1, 1, 2, 3])
def test_a_context_without_room_for_words_is_refused(context):
    with pytest.raises(ValueError, match=r"context"):
        ModelConfig(context=context)


def test_pictures_that_are_not_square_are_refused():
    wide = of({**VISION, "image_size": [32, 64]})
    with pytest.raises(ConfigError, match=r"^model: its pictures are 32 x 64 pixels, only squares are supported"):
        base(wide)


ODD = [
    "كلب يجري في الحقل",
    "एक कुत्ता खेत में दौड़ रहा है",
    "一只狗在田野里奔跑",
    "👩‍👩‍👧‍👦 👨🏽‍🚒 🏳️‍🌈",
    "a\0b",
    "\x01\x02\x1b[31m",
    "",
    "   \n\t ",
    "\u202eright to left\u202c",
    "e\u0301\u0301\u0301",
    "<end_of_text> dog",
    "word " * 500,
]


@ROW
def test_captions_of_all_scripts_are_trained_on(architectures, row):
    _, adapted = attached(architectures, row)
    tokens = adapted.base.tokenize(ODD)
    found = adapted.embed_texts(tokens)
    assert found.isfinite().all()
    assert torch.allclose(found.norm(dim=1), torch.ones(len(ODD)), atol=1e-4)
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in adapted.parameters if p.grad is not None)
    with pytest.raises(DataError, match=r"^caption 'a\\ud800' is no text: it has half a character"):
        adapted.base.tokenize(["fine", "a\ud800"])


def test_a_caption_that_a_tokenizer_cannot_read_is_named():
    def picky(texts):
        if any("!" in t for t in texts):
            raise KeyError("no such\nword")
        return torch.ones(len(texts), 3, dtype=torch.long)

    tokenize = NamingTokenizer(picky)
    assert tokenize(["a", "b"]).shape == (2, 3)
    with pytest.raises(DataError, match=r"^caption 'b!': the tokenizer cannot read it \('no such.*word'\)$"):
        tokenize(["a", "b!", "c"])


@FEW
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_any_text_becomes_tokens(texts):
    tokens = TOKENIZE(texts)
    assert tokens.shape == (len(texts), TEXT["context_length"])
    assert ((tokens >= 0) & (tokens < TEXT["vocab_size"])).all()
    assert (tokens == TEXT["vocab_size"] - 1).any(1).all()  # each has its end


TOKENIZE = tokenizers.of_model(of(), TEXT["vocab_size"])


@FEW
@given(
    st.integers(1, 3),
    st.sampled_from([8, 16, 24]),
    st.integers(1, 3),
    st.integers(4, 20),
    st.sampled_from([16, 32, 48]),
    st.booleans(),
)
def test_towers_of_any_shape_are_adapted_with_effect(layers, width, text_layers, context, size, custom):
    shape = {"layers": layers, "width": width, "head_width": 8, "image_size": size}
    text = {**TEXT, "vocab_size": 99, "layers": text_layers, "context_length": context}
    model = random_model(of(VISION | shape, text, custom_text=custom)).requires_grad_(False)
    plain = backbone.Backbone(model, TOKENIZE, size, (0, 0, 0), (1, 1, 1), of(VISION | shape, text))
    adapted = adapters.attach(plain, LoraConfig(rank=1), 0)
    assert np.array_equal(adapted.get(), adapted.initial)
    assert {b.tower for b in adapted.blocks} == {"visual", "text"}
