"""Base models as people publish them are read as they are; whatever else is given is answered in one line."""

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file

from ease_flwr import config, data
from ease_flwr.config import ConfigError, ModelConfig, model_sha256, weights_sha256
from ease_flwr.hosts import policy
from ease_flwr.model import adapters, backbone, published
from ease_flwr.model.fitting import fitted
from tests.models import CONFIG, PREPROCESS, TEXT, VISION, WEIGHTS, of, random_model, run, ways, write_folder, write_weights
from tests.photographs import write_photographs

FEW = settings(deadline=None, max_examples=60)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "a model", of(quick_gelu=True), PREPROCESS)


def same_weights(model, architecture):
    expected, found = random_model(architecture).state_dict(), model.state_dict()
    return expected.keys() == found.keys() and all(torch.equal(expected[k], found[k]) for k in expected)


def test_a_folder_is_read_as_it_is_however_it_is_given(folder, tmp_path):
    renamed = tmp_path / "renamed.safetensors"
    shutil.copy(folder / WEIGHTS, renamed)
    shutil.copy(folder / CONFIG, tmp_path / "renamed.json")
    flat = tmp_path / "flat.safetensors"
    shutil.copy(folder / WEIGHTS, flat)
    (tmp_path / "flat.json").write_text(json.dumps({**of(quick_gelu=True), "preprocess_cfg": PREPROCESS}))
    for how in (*ways(folder), {"weights": str(renamed)}, {"weights": str(flat)}):
        for empty in (True, False):
            found = published.opened(ModelConfig(**how), empty)
            assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.3, 0.2, 0.1))
            assert (found.resize, found.interpolation, found.image_size) == ("squash", "bilinear", 32)
            assert found.tokenize(["a dog"]).shape == (1, TEXT["context_length"])
        assert same_weights(found.model, of(quick_gelu=True))
        activations = {type(b.mlp.gelu).__name__ for b in found.model.transformer.resblocks}
        assert activations == {"QuickGELU"}
    assert published.opened(ModelConfig(**ways(folder)[0], mean=(0, 0, 0))).mean == (0, 0, 0)


WRAPPED = {  # what training and publishing leave in a file -> of the weights as they should be
    "several GPUs": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "compiled on several GPUs": lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
    "several GPUs, compiled": lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
    "OpenAI's numbers": lambda state: state | {"input_resolution": torch.tensor(32), "vocab_size": torch.tensor(49408)},
    "no bias": lambda state: {name: tensor for name, tensor in state.items() if name != "logit_bias"},
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_weights_are_known_under_the_names_that_training_gave_them(wrapped, tmp_path):
    architecture = of(init_logit_bias=-10)
    folder = write_folder(tmp_path / "model", architecture, PREPROCESS)
    save_file(WRAPPED[wrapped](load_file(folder / WEIGHTS)), folder / WEIGHTS)
    for empty in (True, False):
        found = published.opened(ModelConfig(weights=str(folder)), empty)
    expected = random_model(architecture).state_dict()
    assert all(torch.equal(t, found.model.state_dict()[name]) for name, t in expected.items() if name != "logit_bias")


def test_a_side_said_twice_is_one_and_black_is_black(tmp_path):
    folder = write_folder(tmp_path / "m", of({**VISION, "image_size": [32, 32]}), PREPROCESS | {"fill_color": [0, 0, 0]})
    assert config.pictures(told(tmp_path, **{"model.weights": str(folder)})).image_size == 32
    assert published.opened(ModelConfig(weights=str(folder))).image_size == 32


def test_a_checkpoint_of_ours_says_its_colours_in_its_head(tmp_path):
    said = {"image_mean": "(0.1, 0.2, 0.3)", "image_std": "(0.4, 0.5, 0.6)"}
    file = write_weights(tmp_path / "own.safetensors", of(), said)
    (tmp_path / "own.json").write_text(json.dumps(of()))
    found = published.opened(ModelConfig(weights=str(file)))
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


SHAPES = st.tuples(st.integers(1, 90), st.integers(1, 90), st.integers(4, 48), st.integers(0, 9))
HOW = {"resize": st.sampled_from(["shortest", "longest", "squash"]), "by": st.sampled_from(["bicubic", "bilinear"])}


@FEW
@given(shape=SHAPES, **HOW)
def test_pictures_are_prepared_to_the_pixel_as_open_clip_does_it(shape, resize, by):
    width, height, side, seed = shape
    if resize == "longest" and max(width, height) > side * min(width, height):
        return  # open_clip itself has no pixel of the shorter side left
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    wanted = PreprocessCfg(side, mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1), interpolation=by, resize_mode=resize)
    theirs = image_transform_v2(wanted, is_train=False)(Image.fromarray(pixels))
    base = backbone.Backbone(None, None, side, (0.5, 0.4, 0.3), (0.3, 0.2, 0.1), {}, resize, by)
    assert torch.allclose(base.normalise(pixels[None])[0], theirs, atol=1e-6)
    assert fitted(Image.fromarray(pixels), side, resize, by).size == (side, side)


def told(root, **changes):
    return config.load(
        "flickr8k",
        {
            "data.root": str(root),
            "data.image_size": 0,
            "data.clients": 2,
            "forget.targets": "client-1",
            "model.context": 0,
            **changes,
        },
    )


def test_data_are_prepared_as_the_model_was_published_unless_settings_say_otherwise(folder, tmp_path):
    write_photographs(tmp_path / "data", train=8, val=2, test=2)
    for how in ways(folder):
        said = told(tmp_path / "data", **{f"model.{k}": v for k, v in how.items()})
        found = config.pictures(said)
        assert (found.image_size, found.resize, found.interpolation) == (32, "squash", "bilinear")
    world = data.load(found, 0)
    (entry, *_), index = world.splits["test"], np.arange(1)
    with Image.open(entry.file) as opened:
        expected = np.asarray(opened.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(world.read("test", index).images[0], expected)
    other = {"data.resize": "longest", "data.image_size": 48, "data.interpolation": "bicubic"}
    found = config.pictures(told(tmp_path / "data", **{"model.weights": str(folder), **other}))
    assert (found.image_size, found.resize, found.interpolation) == (48, "longest", "bicubic")


def test_settings_that_say_otherwise_are_remarked(tmp_path, nothing_starts, capsys):
    folder = write_folder(tmp_path / "model", of(), PREPROCESS)
    run(tmp_path, f"model.weights={folder}", "model.mean=", "model.std=", "data.image_size=0", "lora.targets=attn")
    assert "note: model." not in capsys.readouterr().out
    run(tmp_path, f"model.weights={folder}", "model.std=", "data.resize=longest", "lora.targets=attn")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("note: model", "note: data"))]
    assert lines == [
        "note: model.mean=0.5,0.5,0.5 is not what the model says: to take that, say --set model.mean=0.5,0.4,0.3",
        "note: data.resize=longest is not what the model says: to take that, say --set data.resize=squash",
        "note: data.image_size=128 is not what the model says: to take that, say --set data.image_size=32",
    ]
    assert len(nothing_starts) == 2


def test_settings_that_say_another_model_than_the_folder_are_refused(folder):
    told = {"weights": str(folder)}
    with pytest.raises(ConfigError, match=r"^model.quick_gelu=False: .*config.json says True: leave it out"):
        published.opened(ModelConfig(**told, quick_gelu=False))
    with pytest.raises(ConfigError, match=r"^model.name=ViT-L-14 is another model than .* says \(context_length, .*: leave"):
        published.opened(ModelConfig(**told, name="ViT-L-14"))
    with pytest.raises(ConfigError, match=r"^model.weights=openai: local-dir:.* has its own weights: leave one of the two"):
        published.opened(ModelConfig(name=f"local-dir:{folder}", weights="openai"))


@pytest.fixture
def names(tmp_path, monkeypatch):
    """open_clip knows a small model by two names, and another by one."""
    known = dict(open_clip.factory._MODEL_CONFIGS)
    known |= {"small": of(), "small-quickgelu": of(quick_gelu=True), "alone": of()}
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", known)
    return write_weights(tmp_path / "bare.safetensors", of())


def test_activations_of_a_bare_file_are_asked_for_where_there_are_two(names):
    bare = {"weights": str(names)}
    with pytest.raises(
        ConfigError, match=r"bare.safetensors may be of small or of small-quickgelu, .*: say --set model.quick_g"
    ):
        published.opened(ModelConfig(name="small", **bare))
    with pytest.raises(ConfigError, match=r"^model.quick_gelu=false: small-quickgelu is the name with QuickGELU"):
        published.opened(ModelConfig(name="small-quickgelu", quick_gelu=False, **bare))
    said = [("small", True), ("small", False), ("small-quickgelu", None), ("small-quickgelu", True), ("alone", None)]
    made = [published.opened(ModelConfig(name=n, quick_gelu=q, **bare)) for n, q in said]
    found = [type(m.model.visual.transformer.resblocks[0].mlp.gelu).__name__ for m in made]
    assert found == ["QuickGELU", "GELU", "QuickGELU", "QuickGELU", "GELU"]
    assert [bool(m.architecture.get("quick_gelu")) for m in made] == [True, False, True, True, False]


def test_colours_that_published_weights_of_a_name_differ_in_are_asked_for(names, monkeypatch):
    of_tags = {"a": {"mean": (0.5,) * 3, "std": (0.5,) * 3}, "b": {"mean": (0.4,) * 3, "std": (0.5,) * 3}}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: list(of_tags))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, tag: of_tags[tag])
    told = {"name": "alone", "weights": str(names)}
    with pytest.raises(
        ConfigError, match=r"does not say its mean of colours, and published weights of alone have \(0.5, .* or \("
    ):
        published.opened(ModelConfig(**told))
    found = published.opened(ModelConfig(**told, mean=(0.1, 0.1, 0.1)))
    assert (found.mean, found.std) == ((0.1,) * 3, (0.5,) * 3)


def test_what_tells_two_models_apart(folder, tmp_path):
    """Not where they lie: the weights, and what is said beside them."""
    moved = shutil.copytree(folder, tmp_path / "moved")
    told = [ModelConfig(**how) for how in (*ways(folder), *ways(moved))]
    assert len({model_sha256(m) for m in told}) == 1
    assert {weights_sha256(m) for m in told} == {config.file_sha256(folder / WEIGHTS)}
    said = json.loads((moved / CONFIG).read_text())
    said["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    (moved / CONFIG).write_text(json.dumps(said))
    assert model_sha256(told[0]) != model_sha256(told[3])
    assert weights_sha256(told[0]) == weights_sha256(told[3])


def test_a_host_reads_no_folder_that_the_server_names(folder):
    asked = config.load("hospitals", {"model.name": f"local-dir:{folder}", "model.weights": ""})
    with pytest.raises(
        policy.RefusedError, match=r"refuses: model.name names a file, and only its owner does that: base-model"
    ):
        policy.own_paths(asked, {"client-name": "north"})
    own = policy.own_paths(asked, {"client-name": "north", "base-model": str(folder)})
    assert (own.model.name, own.model.weights) == ("", str(folder))


def test_an_exported_model_of_a_folder_comes_back_as_it_was(folder, tmp_path):
    """Its file and its configuration are all that it needs."""
    from ease_flwr.audit.export import export

    experiment = config.load("flickr8k", {"model.weights": str(folder), "model.mean": "", "model.std": "", "model.context": 0})
    experiment = experiment.model_copy(update={"lora": config.LoraConfig(targets=("attn",))})
    model = adapters.load(experiment.model, experiment.lora, 0)
    export(experiment, model.initial, tmp_path / "out.safetensors", {})
    adapters.load.cache_clear()
    found = published.opened(ModelConfig(weights=str(tmp_path / "out.safetensors")))
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.3, 0.2, 0.1))
    assert (found.resize, found.interpolation) == ("squash", "bilinear")
    assert same_weights(found.model, of(quick_gelu=True))
