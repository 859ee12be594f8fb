"""The frozen model: the built-in one, files that are wrong, and the part of it that is computed once."""

import json
from contextlib import nullcontext

import numpy as np
import open_clip
import pytest
import torch
from ease_flwr.clients.encoding import encode
from safetensors.torch import save_file

from ease_flwr.config import APP, ConfigError, DataConfig, LoraConfig, ModelConfig
from ease_flwr.data import make_base, personas
from ease_flwr.data.pairs import Pairs
from ease_flwr.model import adapters, backbone, published

BASE = APP / "ease_flwr" / "data" / "personas-base.json"


def test_built_in_model_sees_base_scenes():
    assert BASE.stat().st_size < 1_000_000
    base = backbone.read_base(BASE)
    assert sum(p.numel() for p in base.model.parameters()) < 1_000_000
    assert make_base.scene_recall(base, personas.scenes(500, (12345,))) >= 75


def test_built_in_model_does_not_know_personas():
    base = backbone.read_base(BASE)
    world = personas.load(personas.DataConfig(), 0)
    g = world.gallery("validation")
    base.model.eval()
    with torch.no_grad():
        a = base.model.encode_image(base.normalise(g.pairs.images[:60]), normalize=True)
        b = base.model.encode_text(base.tokenize([c[0] for c in g.pairs.captions[:60]]), normalize=True)
    assert ((a @ b.T).argmax(1) == torch.arange(60)).float().mean() < 0.1


def test_make_base_writes_what_it_measures(tmp_path):
    lines = []
    recall = make_base.make_base(tmp_path / "tiny.json", seed=1, scenes=512, epochs=1, progress=lines.append)
    assert len(lines) == 1
    again = make_base.scene_recall(backbone.read_base(tmp_path / "tiny.json"), personas.scenes(500, (1, 101)))
    assert recall == again


def test_changed_or_cut_file_is_refused(tmp_path):
    content = json.loads(BASE.read_text())
    content["image"]["size"] = 32
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"changed.json does not fit its sha256: it was changed or cut, write it anew"):
        backbone.read_base(changed)
    cut = tmp_path / "cut.json"
    cut.write_text(BASE.read_text()[:5000])
    with pytest.raises(ConfigError, match=r"cut.json is not a base model .*: write one with `ease make-base`"):
        backbone.read_base(cut)
    with pytest.raises(ConfigError, match=r"none.json is not a base model"):
        backbone.read_base(tmp_path / "none.json")


def test_quantisation_is_within_half_a_step():
    g = torch.Generator().manual_seed(0)
    state = {
        "w": torch.randn(5, 7, generator=g),
        "b": torch.randn(3, generator=g),
        "s": torch.tensor(2.5),
        "z": torch.zeros(2, 2),
    }
    back = backbone.dequantise(backbone.quantise(state))
    assert back["s"].shape == ()
    for name, tensor in state.items():
        rows = tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.reshape(1, -1)
        step = rows.abs().amax(1, keepdim=True) / 127
        assert ((back[name].reshape(rows.shape) - rows).abs() <= step / 2 + 1e-6).all()


def test_word_tokenizer():
    tokenize = backbone.WordTokenizer(("<pad>", "red", "star", "<start>", "<end>"), 5)
    assert tokenize(["red star", "star"]).tolist() == [[3, 1, 2, 4, 0], [3, 2, 4, 0, 0]]
    with pytest.raises(ValueError, match=r"'blue' has unknown words \['blue'\]"):
        tokenize(["blue"])
    with pytest.raises(ValueError, match=r"or more than 3"):
        tokenize(["red red red red"])


def small_config(tmp_path):
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 16, "patch_size": 16, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    (tmp_path / "own.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "own.json")
    model = open_clip.create_model("own")
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    return model


def test_own_configuration_and_weights_file(tmp_path, caplog):
    model = small_config(tmp_path)
    caplog.clear()
    loaded = backbone.load(ModelConfig(weights=str(tmp_path / "own.safetensors")))
    assert "No pretrained weights" not in caplog.text  # they come from the file
    expected, found = model.state_dict(), loaded.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[k], found[k]) for k in expected)
    assert loaded.image_size == 32
    short = backbone.load(ModelConfig(weights=str(tmp_path / "own.safetensors"), context=6))
    words = ["a dog", "two red cats"]
    with torch.no_grad():
        full = loaded.model.encode_text(loaded.tokenize(words))
        assert short.tokenize(words).shape == (2, 6)
        assert torch.allclose(short.model.encode_text(short.tokenize(words)), full, atol=1e-5)


def test_weights_that_cannot_be_used(tmp_path):
    small_config(tmp_path)
    with pytest.raises(ConfigError, match=r"open_clip knows no model 'ViT-Z'"):
        backbone.load(ModelConfig(name="ViT-Z"))
    with pytest.raises(ConfigError, match=rf"knows no model '{tmp_path}'; a folder is given as model.weights={tmp_path}"):
        backbone.load(ModelConfig(name=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"'mine' is neither a file .* nor a pretrained tag of ViT-B-32: openai"):
        backbone.load(ModelConfig(name="ViT-B-32", weights="mine"))
    with pytest.raises(ConfigError, match=r"no file .*gone.safetensors: give the absolute path"):
        backbone.load(ModelConfig(weights=str(tmp_path / "gone.safetensors")))
    (tmp_path / "own.json").rename(tmp_path / "other.json")
    with pytest.raises(ConfigError, match=r"own.safetensors needs its open_clip config .*own.json beside it, or model.name"):
        backbone.load(ModelConfig(weights=str(tmp_path / "own.safetensors")))
    save_file({"logit_scale": torch.tensor(1.0)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"other.safetensors does not fit other.json: it has no positional_embedding, and "):
        backbone.load(ModelConfig(weights=str(tmp_path / "other.safetensors")))


def test_published_weights_come_with_their_activation_or_say_where_to_get_them(monkeypatch):
    asked = {}

    def without_network(name, pretrained, force_quick_gelu, pretrained_text):
        asked.update(name=name, pretrained=pretrained, gelu=force_quick_gelu, text=pretrained_text)
        raise RuntimeError("Failed to download weights\nfor tag")

    monkeypatch.setattr(published, "at_once_or_not", nullcontext)
    monkeypatch.setattr(published.open_clip, "create_model", without_network)
    with pytest.raises(ConfigError) as error:
        backbone.load.__wrapped__(ModelConfig(name="ViT-B-32", weights="openai"))
    assert asked == {"name": "ViT-B-32", "pretrained": "openai", "gelu": True, "text": True}
    assert str(error.value) == (
        "model.weights: 'openai' of ViT-B-32 is not on this machine and cannot be downloaded now (Failed to download weights "
        "for tag): fetch open_clip_model.safetensors of timm/vit_base_patch32_clip_224.openai/ and give it as "
        "--set model.weights=/DIR/FILE.safetensors with --set model.quick_gelu=true"
    )
    with pytest.raises(ConfigError, match=r"fetch open_clip_model.safetensors of laion/"):
        backbone.load.__wrapped__(ModelConfig(name="ViT-B-32", weights="laion2b_s34b_b79k"))
    assert asked["gelu"] is False


@pytest.mark.parametrize("first", [0, 2])
def test_trunk_and_rest_make_the_whole(tmp_path, first):
    small_config(tmp_path)
    whole = backbone.load.__wrapped__(ModelConfig(weights=str(tmp_path / "own.safetensors")))
    adapted = adapters.load.__wrapped__(
        ModelConfig(weights=str(tmp_path / "own.safetensors")), LoraConfig(visual_from=first), 0
    )
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        h = adapted.trunk(x)
        assert h.shape == (3, 5, 16)
        assert torch.allclose(adapted.clip.encode_image(h), whole.model.encode_image(x), atol=1e-5)
    assert adapted.clip.encode_image(h).requires_grad


def test_training_behind_the_kept_trunk_has_the_same_gradients(tmp_path, monkeypatch):
    small_config(tmp_path)
    model, lora = ModelConfig(weights=str(tmp_path / "own.safetensors")), LoraConfig(visual_from=2, text_from=1)
    pictures = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    captions = tuple((f"number {i}",) for i in range(6))

    def gradient(adapted, images):
        adapted.set(adapted.initial + np.float32(0.1))
        f, g = adapted.embed_images(images), adapted.embed_texts(adapted.base.tokenize([c[0] for c in captions]))
        loss = torch.nn.functional.cross_entropy(20 * f @ g.T, torch.arange(6))
        return torch.cat([x.flatten() for x in torch.autograd.grad(loss, adapted.parameters)])

    with monkeypatch.context() as patch:
        patch.setattr(adapters.towers, "cut_trunk", lambda whole: lambda images: images)
        whole = adapters.load.__wrapped__(model, lora, 0)
    exact = gradient(whole, whole.base.normalise(pictures))
    cut = adapters.load.__wrapped__(model, lora, 0)

    def kept(**how):
        data = DataConfig(cache=str(tmp_path / "cache"), **how)
        return encode(cut, Pairs(pictures, captions, ("",) * 6), data, f"{how}").images

    cold, warm = kept(), kept()
    assert cold.shape == (6, 5, 16)
    assert torch.equal(cold, warm)
    assert torch.allclose(gradient(cut, warm), exact, rtol=1e-3, atol=1e-6)
    half = kept(cache_half=True)
    assert half.dtype == torch.bfloat16
    assert torch.cosine_similarity(gradient(cut, half), exact, dim=0) > 0.999
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_trunk_of_a_convolutional_tower_is_cut_at_the_first_adapter(tmp_path):
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "timm_model_name": "mobilenetv2_100",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "conv.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "conv.json")
    whole = backbone.load.__wrapped__(ModelConfig(name="conv"))
    lora = LoraConfig(targets=("conv_head", "head.proj", "c_fc"))
    adapted = adapters.load.__wrapped__(ModelConfig(name="conv"), lora, 0)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        h = adapted.trunk(x)
        assert h.shape == (2, 320, 2, 2)
        assert torch.allclose(adapted.clip.encode_image(h), whole.model.encode_image(x), atol=1e-4)
