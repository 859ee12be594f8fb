"""Shorter towers say what open_clip's own say, with the same gradients, and do less."""

import copy

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP

from ease_flwr.config import LoraConfig
from ease_flwr.model import adapters, backbone, towers

VISION = {"image_size": 32, "layers": 3, "width": 32, "patch_size": 16, "head_width": 16}
TEXT = {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}


def model(kind=CLIP, vision=(), text=()):
    torch.manual_seed(0)
    found = kind(embed_dim=24, vision_cfg={**VISION, **dict(vision)}, text_cfg={**TEXT, **dict(text)})
    for parameter in found.parameters():  # away from open_clip's start, where many are zero or one
        parameter.data += 0.1 * torch.randn_like(parameter)
    return found.eval()


def base(of):
    return backbone.Backbone(of.requires_grad_(False), None, 32, (0, 0, 0), (1, 1, 1), {})


PICTURES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
TOKENS = torch.tensor([[48, 5, 6, 49], [48, 7, 49, 0], [48, 49, 0, 0], [48, 9, 8, 49]])
PADDED = torch.nn.functional.pad(TOKENS, (0, 8))

SHORTER = [
    (CLIP, {}, {}),
    (CustomTextCLIP, {}, {}),
    (CLIP, {"ls_init_value": 0.3, "final_ln_after_pool": True}, {"ls_init_value": 0.5}),
    (CLIP, {}, {"mlp_ratio": 2.0}),
]


@pytest.mark.parametrize(("kind", "vision", "text"), SHORTER)
def test_same_embeddings_and_gradients(kind, vision, text):
    whole = model(kind, vision, text)
    short = copy.deepcopy(whole)
    assert towers.shorten(base(short))
    assert {"encode_image", "encode_text"} <= vars(short).keys()
    found = []
    for m, tokens in ((whole, PADDED), (short, towers.without_padding(PADDED))):
        m.requires_grad_(True)
        f, g = m.encode_image(PICTURES, normalize=True), m.encode_text(tokens, normalize=True)
        (20 * f @ g.T).diagonal().sum().backward()
        found.append((f, g, {n: p.grad for n, p in m.named_parameters() if p.grad is not None}))
    (f, g, of_whole), (f1, g1, of_short) = found
    assert torch.allclose(f, f1, atol=1e-5)
    assert torch.allclose(g, g1, atol=1e-5)
    assert of_whole.keys() == of_short.keys()
    for name, expected in of_whole.items():
        part = of_short[name]
        assert torch.allclose(part, expected, rtol=1e-3, atol=1e-4), name
    assert torch.allclose(short.encode_text(TOKENS), whole.encode_text(PADDED), atol=1e-5)


def test_only_the_pooled_token_goes_through_the_end_of_the_last_block_and_no_padding_at_all():
    short, rows = model(), {}
    adapted = adapters.attach(base(short), LoraConfig(rank=2), 0)

    def counted(name, last):
        def hook(_, inputs):
            rows[name, last] = inputs[0].shape[:-1].numel()

        return hook

    for name, tower in (("image", short.visual), ("text", short)):
        blocks = tower.transformer.resblocks
        blocks[0].mlp.register_forward_pre_hook(counted(name, False))
        blocks[-1].mlp.register_forward_pre_hook(counted(name, True))
    adapted.embed_images(adapted.trunk(PICTURES))
    adapted.embed_texts(PADDED)
    assert rows == {("image", False): 4 * 5, ("image", True): 4, ("text", False): 4 * 4, ("text", True): 4}


UNLIKE = [
    (CLIP, {"pool_type": "avg"}, {"pool_type": "last"}),
    (CLIP, {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4}, {"no_causal_mask": True}),
    (CLIP, {"block_type": "custom", "qk_norm": True}, {"pool_type": "first"}),
    (CustomTextCLIP, {"pool_type": "avg"}, {"embed_cls": True}),
    (CustomTextCLIP, {"pool_type": "avg"}, {"pool_type": "last"}),
]


@pytest.mark.parametrize(("kind", "vision", "text"), UNLIKE)
def test_other_towers_stay_as_they_are(kind, vision, text):
    whole = model(kind, vision, text)
    expected = whole.encode_image(PICTURES), whole.encode_text(PADDED)
    assert not towers.shorten(base(whole))
    assert not {"encode_image", "encode_text"} & vars(whole).keys()
    for ours, theirs in zip((whole.encode_image(PICTURES), whole.encode_text(PADDED)), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_tower_that_only_looks_alike_is_found_out():
    """The shortcut is tried before it is used: here the text tower does something of its own."""
    odd = model()
    own = odd.encode_text
    odd.encode_text = lambda text, normalize=False: own(text, normalize) + 1
    before = odd.encode_text
    assert not towers.shorten(base(odd))
    assert odd.encode_text is before
    assert "encode_image" in vars(odd)


def test_published_shapes_are_recognised():
    """ViT-B-32 is shortened in both towers; a convolutional image tower keeps its own."""
    with torch.device("meta"):
        published = CLIP(**open_clip.get_model_config("ViT-B-32"))
        other = CLIP(**open_clip.get_model_config("RN50"))
    assert towers._pools_first(published.visual)
    assert towers._pools_highest(published)
    assert not towers._pools_first(other.visual)
    assert towers._pools_highest(other)
