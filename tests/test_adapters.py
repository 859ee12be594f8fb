"""LoRA on both towers and the adapter vector."""

import numpy as np
import peft
import pytest
import torch
from open_clip.model import CLIP

from ease_flwr.config import APP, ConfigError, LoraConfig, ModelConfig
from ease_flwr.data import make_base
from ease_flwr.model import adapters, backbone

BASE = ModelConfig(weights="ease_flwr/data/personas-base.json")


@pytest.fixture
def adapted():
    return adapters.load.__wrapped__(BASE, LoraConfig(rank=4), 3)


def test_vector_order_and_size(adapted):
    towers = [b.tower for b in adapted.blocks]
    assert towers == sorted(towers, reverse=True)  # visual first
    assert adapted.blocks[0].start == 0
    assert all(a.stop == b.start for a, b in zip(adapted.blocks, adapted.blocks[1:], strict=False))
    # per block: attn 6 d r + (c_fc, c_proj) 10 d r = 16 x 96 x 4; three image blocks and two text blocks
    assert adapted.size == 5 * 16 * 96 * 4 == len(adapted.get())
    first = LoraConfig(rank=4, visual_from=2, text_from=1)
    assert adapters.load.__wrapped__(BASE, first, 3).size == 2 * 16 * 96 * 4


def test_start_is_the_same_everywhere_and_changes_nothing(adapted):
    again = adapters.load.__wrapped__(BASE, LoraConfig(rank=4), 3)
    assert np.array_equal(adapted.get(), again.get())
    assert not np.array_equal(adapted.get(), adapters.load.__wrapped__(BASE, LoraConfig(rank=4), 4).get())
    assert adapters.sha256(adapted.get()) == adapters.sha256(again.get()) != adapters.sha256(adapted.get() + 1)
    for block in adapted.blocks:
        values = adapted.get()[block.start : block.stop]
        assert (values == 0).all() == ("lora_B" in block.name)
    plain = backbone.read_base(APP / BASE.weights)
    tokens = plain.tokenize(["small red circle above large blue star on green"])
    with torch.no_grad():
        assert torch.allclose(adapted.clip.encode_text(tokens), plain.model.eval().encode_text(tokens), atol=1e-5)


def test_every_adapter_gets_a_gradient_and_nothing_else_is_trained(adapted):
    adapted.set(np.full(adapted.size, 0.01, np.float32))
    images = adapted.trunk(torch.randn(2, 3, 64, 64))
    tokens = adapted.base.tokenize(["red circle above blue star", "green heart"])
    (adapted.clip.encode_image(images).sum() + adapted.clip.encode_text(tokens).sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapted.parameters)
    trained = {n for n, p in adapted.model.named_parameters() if p.requires_grad}
    assert len(trained) == len(adapted.blocks)
    assert not any("logit_scale" in n for n in trained)


def gradient(**how):
    """Loss and gradient of one contrastive step of the built-in model, all adapters a little away from their start."""
    adapted = adapters.load.__wrapped__(BASE.model_copy(update=how), LoraConfig(rank=4), 3)
    adapted.set(adapted.initial + np.float32(0.01))
    draw = torch.Generator().manual_seed(0)
    tokens = adapted.base.tokenize(["red circle above blue star", "green heart", "large red star", "blue heart on white"])
    images = adapted.embed_images(adapted.trunk(torch.randn(4, 3, 64, 64, generator=draw)))
    scores = 20 * images @ adapted.embed_texts(tokens).T
    loss = torch.nn.functional.cross_entropy(scores, torch.arange(4))
    loss.backward()
    assert {p.grad.dtype for p in adapted.parameters} == {torch.float32}
    return loss.item(), torch.cat([p.grad.flatten() for p in adapted.parameters])


def test_checkpointing_gives_the_same_gradient_and_bfloat16_nearly():
    loss, exact = gradient()
    again, recomputed = gradient(checkpointing=True)
    assert again == loss
    assert torch.equal(recomputed, exact)
    rough, half = gradient(precision="bfloat16")
    assert rough != loss  # autocast was on
    assert rough == pytest.approx(loss, rel=0.05)
    assert torch.cosine_similarity(half, exact, dim=0) > 0.98


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_an_error_only_when_asked_for():
    with pytest.raises(ConfigError, match=r"model.device=cuda: torch sees no GPU in this process; give it one"):
        adapters.load.__wrapped__(BASE.model_copy(update={"device": "cuda"}), LoraConfig(), 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_gradient():
    (loss, exact), (there, found) = gradient(device="cpu"), gradient(device="cuda")
    assert there == pytest.approx(loss, rel=1e-4)
    assert torch.allclose(found.cpu(), exact, rtol=1e-3, atol=1e-5)


def test_set_and_get(adapted):
    vector = np.random.default_rng(0).standard_normal(adapted.size).astype(np.float32)
    adapted.set(vector)
    assert np.array_equal(adapted.get(), vector)
    with pytest.raises(ValueError, match=r"adapter vector of shape \(3,\), this model has \(30720,\)"):
        adapted.set(np.zeros(3, np.float32))


def test_frozen_weights_stay_what_they_are(adapted):
    """peft's attention layer adds the adapter to the frozen weight and subtracts it again: rounding would pile up."""
    vector = np.random.default_rng(0).standard_normal(adapted.size).astype(np.float32)
    tokens = adapted.base.tokenize(["red circle above blue star", "green heart"])
    outputs = []
    for _ in range(3):
        adapted.set(vector)
        with torch.no_grad():
            outputs.append(adapted.clip.encode_text(tokens))
            for _ in range(5):
                adapted.clip.encode_text(tokens)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    weight = adapted.merged[0][2]
    plain = backbone.read_base(APP / BASE.weights).model.visual.transformer.resblocks[0].attn.in_proj_weight
    assert torch.equal(weight, plain)


def test_saved_folder_loads_with_peft_alone(adapted, tmp_path):
    vector = 0.1 * np.random.default_rng(1).standard_normal(adapted.size).astype(np.float32)
    adapted.save(vector, tmp_path / "peft")
    base = backbone.read_base(APP / BASE.weights)
    loaded = peft.PeftModel.from_pretrained(base.model.eval(), str(tmp_path / "peft")).base_model.model
    pictures = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    tokens = base.tokenize(["red circle above blue star", "green heart"])
    with torch.no_grad():
        assert torch.allclose(loaded.encode_image(pictures), adapted.clip.encode_image(adapted.trunk(pictures)), atol=1e-5)
        assert torch.allclose(loaded.encode_text(tokens), adapted.clip.encode_text(tokens), atol=1e-5)


def test_targets_that_are_not_there():
    base = backbone.Backbone(CLIP(**make_base.CONFIG), None, 64, (0, 0, 0), (1, 1, 1))
    with pytest.raises(ConfigError, match=r"nothing called conv_head to adapt in the visual tower"):
        adapters.target_modules(base.model, LoraConfig(targets=("conv_head",)))


@pytest.mark.slow
def test_clip_b32_has_the_known_number_of_adapter_parameters():
    adapted = adapters.load.__wrapped__(ModelConfig(name="ViT-B-32"), LoraConfig(rank=8, targets=("attn",)), 0)
    assert adapted.size == 737_280  # 92,160 r
    assert sum(b.size for b in adapted.blocks if b.tower == "visual") == 12 * 6 * 768 * 8
