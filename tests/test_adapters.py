"""LoRA on both towers and the adapter vector."""

import json
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file

from ease_flwr.config import APP, ConfigError, LoraConfig, ModelConfig
from ease_flwr.data import make_base
from ease_flwr.model import adapters, backbone, targets

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
    loss = torch.nn.functional.cross_entropy(scores, torch.arange(4, device=scores.device))
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


def test_frozen_weights_are_never_written(adapted):
    """Not in a step, and not in what is computed beside it."""
    plain = dict(backbone.read_base(APP / BASE.weights).model.named_parameters())
    adapted.set(np.random.default_rng(0).standard_normal(adapted.size).astype(np.float32))
    optimizer = torch.optim.AdamW(adapted.parameters, lr=0.1)
    tokens = adapted.base.tokenize(["red circle above blue star", "green heart"])
    for _ in range(3):
        optimizer.zero_grad()
        adapted.embed_texts(tokens).sum().backward()
        optimizer.step()
        with torch.no_grad():
            adapted.embed_texts(tokens)
    frozen = {n.replace(".base_layer", ""): p for n, p in adapted.clip.named_parameters() if "lora_" not in n}
    assert {*frozen} == {*plain}
    assert all(torch.equal(p, plain[n]) for n, p in frozen.items())


def test_parameters_are_views_of_the_vector(adapted):
    adapted.parameters[0].data += 1
    assert adapted.get()[0] == adapted.initial[0] + 1
    adapted.set(adapted.initial)
    assert torch.equal(adapted.parameters[0].detach().flatten(), torch.from_numpy(adapted.initial[: adapted.blocks[0].size]))


def random_vector(adapted, seed=1):
    return 0.1 * np.random.default_rng(seed).standard_normal(adapted.size).astype(np.float32)


def embeddings(model, base, trunk=lambda x: x):
    """Of three pictures and two captions."""
    pictures = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    tokens = base.tokenize(["red circle above blue star", "green heart"])
    with torch.no_grad():
        return torch.cat([model.encode_image(trunk(pictures)), model.encode_text(tokens)])


def test_saved_folder_is_read_again_and_loads_with_peft_where_out_proj_is_doubled(adapted, tmp_path):
    """By peft alone it is the model with the adapter of every out_proj twice, as its README says."""
    vector = random_vector(adapted)
    adapted.save(vector, tmp_path / "peft", "base")
    assert np.array_equal(adapters.read(tmp_path / "peft", adapted.blocks), vector)
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    base = backbone.read_base(APP / BASE.weights)
    loaded = peft.PeftModel.from_pretrained(base.model.eval(), str(tmp_path / "peft")).base_model.model
    there = embeddings(loaded, base)
    adapted.set(vector)
    assert (embeddings(adapted.clip, base, adapted.trunk) - there).abs().max() > 1e-3
    adapted.set(doubled(adapted, vector))
    assert torch.allclose(embeddings(adapted.clip, base, adapted.trunk), there, atol=1e-5)


def doubled(adapted, vector):
    """The vector with B of every out_proj twice as large."""
    out = vector.copy()
    for b in adapted.blocks:
        if b.name.endswith("out_proj.lora_B.default.weight"):
            out[b.start : b.stop] *= 2
    return out


def rewrite(folder, **metadata):
    """The same adapters as another version has written them."""
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), file, {"format": "pt", **metadata})


def test_folders_of_older_versions_mean_what_they_meant(adapted, tmp_path):
    vector = random_vector(adapted)
    adapted.save(vector, tmp_path / "old", "base")
    rewrite(tmp_path / "old")  # no format number, as of version 0.1
    found = adapters.read(tmp_path / "old", adapted.blocks)
    assert np.array_equal(found, doubled(adapted, vector))
    assert not np.array_equal(found, vector)
    rewrite(tmp_path / "old", ease_flwr_adapters="3")
    with pytest.raises(ConfigError, match=r"adapters of format 3, this version reads 1 and 2: use a newer one"):
        adapters.read(tmp_path / "old", adapted.blocks)


def test_large_batches_in_parts_have_the_gradient_of_the_whole_and_the_memory_of_a_part(adapted):
    images = torch.randn(12, 17, 96, generator=torch.Generator().manual_seed(3))
    tokens = adapted.base.tokenize(
        [f"{c} {s}" for c in ("red", "green", "blue") for s in ("circle", "star", "heart", "square")]
    )
    adapted.set(random_vector(adapted))
    kept: list[int] = []

    def gradient(model):
        kept.append(0)
        for parameter in model.parameters:
            parameter.grad = None

        def keep(x):
            kept[-1] += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            f, g = model.embed_images(images), model.embed_texts(tokens)
        loss = torch.nn.functional.cross_entropy(20 * f @ g.T, torch.arange(12))
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters])

    loss, exact = gradient(adapted)
    again, found = gradient(replace(adapted, micro=5))
    assert again == pytest.approx(loss, rel=1e-6)
    assert torch.allclose(found, exact, rtol=1e-4, atol=1e-6)
    assert kept[1] < kept[0] / 10


def test_what_cannot_be_adapted_is_refused_by_name():
    config = {**make_base.CONFIG, "vision_cfg": {**make_base.CONFIG["vision_cfg"], "block_type": "custom", "qk_norm": True}}
    base = backbone.Backbone(CLIP(**config), None, 64, (0, 0, 0), (1, 1, 1), config)
    with pytest.raises(
        ConfigError, match=r"visual tower; there are .*; visual.transformer.resblocks.0.attn is of class Attention"
    ):
        targets.modules(base.model, LoraConfig(targets=("attn",)))


def test_targets_that_are_not_there():
    base = backbone.Backbone(CLIP(**make_base.CONFIG), None, 64, (0, 0, 0), (1, 1, 1), make_base.CONFIG)
    with pytest.raises(ConfigError, match=r"nothing called conv_head to adapt in the visual tower"):
        targets.modules(base.model, LoraConfig(targets=("conv_head",)))


@pytest.mark.slow
def test_clip_b32_has_the_known_number_of_adapter_parameters():
    adapted = adapters.load.__wrapped__(ModelConfig(name="ViT-B-32"), LoraConfig(rank=8, targets=("attn",)), 0)
    assert adapted.size == 737_280  # 92,160 r
    assert sum(b.size for b in adapted.blocks if b.tower == "visual") == 12 * 6 * 768 * 8
