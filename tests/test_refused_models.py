"""Base models that are not what they should be are answered in one line, before anything is started."""

import json
import random
from functools import partial

import pytest
import torch

from benchmarks import fuzz_models
from ease_flwr import config
from ease_flwr.config import ConfigError, ModelConfig
from ease_flwr.model import adapters, backbone, hub, published
from tests.models import CONFIG, PREPROCESS, TEXT, WEIGHTS, of, run, ways, write_folder, write_weights


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "a model", of(quick_gelu=True), PREPROCESS)


OTHER = {  # what lies under the name of the weights -> what is said
    "nothing": (lambda f: f.unlink(), r"model.weights: .* has no open_clip_model.safetensors, but no weights: fetch that file"),
    "empty": (lambda f: f.write_bytes(b""), r"open_clip_model.safetensors is empty: fetch it again"),
    "cut": (lambda f: f.write_bytes(f.read_bytes()[:-9]), r"is not a .safetensors file, or was cut \("),
    "text": (lambda f: f.write_text("hello"), r"is not a .safetensors file, or was cut \("),
    "web page": (lambda f: f.write_text("<html>404</html>"), r"is a web page or other text: fetch the file itself"),
    "LFS pointer": (
        lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\n"),
        r"is a Git LFS pointer, .*`git lfs pull`",
    ),
    "pickle": (lambda f: torch.save({"a": torch.zeros(3)}, f), r"is a pickle of torch, which is never read here: give"),
    "other model": (
        partial(write_weights, architecture=of(text={**TEXT, "layers": 1})),
        r"does not fit .*: it has no transformer",
    ),
    "wider": (
        partial(write_weights, architecture=of() | {"embed_dim": 8}),
        r"is of shape \(16, 8\), not \(16, 16\), and 1 more",
    ),
}


@pytest.mark.parametrize("what", OTHER)
@pytest.mark.parametrize("way", range(3))
def test_other_files_are_answered_before_anything_is_started(what, way, tmp_path, nothing_starts):
    folder = write_folder(tmp_path / "model", of(), PREPROCESS)
    change, said = OTHER[what]
    change(folder / WEIGHTS)
    key, value = next(iter(ways(folder)[way].items()))
    if what == "nothing":
        said = r"model.name: .* has no open_clip" if way == 2 else said if way == 0 else r"model.weights: no file .*: give the"
    with pytest.raises(ConfigError, match=said) as error:
        run(tmp_path, f"model.{key}={value}", "lora.targets=attn")
    assert "\n" not in str(error.value)
    assert not nothing_starts


def test_a_folder_with_a_pickle_alone_is_told_which_file_is_wanted(folder, tmp_path):
    (folder / WEIGHTS).rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"has no open_clip_model.safetensors, but open_clip_pytorch_model.bin: fetch that"):
        published.opened(ModelConfig(weights=str(folder)))
    with pytest.raises(ConfigError, match=r"open_clip_pytorch_model.bin is a pickle, which is never read here: give the"):
        published.opened(ModelConfig(name="ViT-B-32", weights=str(folder / "open_clip_pytorch_model.bin")))
    with pytest.raises(ConfigError, match=r"has no open_clip_config.json: give the folder of a published open_clip model"):
        published.opened(ModelConfig(weights=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"^model.weights: /nowhere/at/all is neither a file nor a folder"):
        published.opened(ModelConfig(name="ViT-B-32", weights="/nowhere/at/all"))


SAID = [  # of the configuration, and what is answered
    ("text_cfg", {"layers": 7**30}, r"says text_cfg.layers=\d+, open_clip_model.safetensors has 62 tensors"),
    ("vision_cfg", {"width": 7**30}, r"cannot be built \(\w+: .*\): mend its settings"),
    ("vision_cfg", {"image_size": "x"}, r"cannot be built \(\w+: .*\): mend its settings"),
    (
        "vision_cfg",
        {"pool_type": "none"},
        r"^model: its embeddings of two pictures are of shape \(2, 5, 16\), of captions \(2, 16\)",
    ),
    (
        "text_cfg",
        {"tokenizer_kwargs": {"clean": "x"}},
        r"^model: its tokenizer of open_clip cannot be read \(.*\): mend text_cfg.tokenizer_kw",
    ),
    (
        "text_cfg",
        {"pool_type": "eos"},
        r"looks for token 2 at the end of a caption, its tokenizer of open_clip makes none: mend",
    ),
    ("text_cfg", {"pool_type": "eos", "eos_id": None}, r"looks for token None at the end of a caption"),
    ("text_cfg", {"hf_tokenizer_name": 3}, r"text_cfg.hf_tokenizer_name=3 is no name"),
]


@pytest.mark.parametrize("key", ["quick_gelu", "custom_text"])
@pytest.mark.parametrize("value", ["false", 1, None])
def test_what_is_true_or_false_is_no_text(folder, key, value):
    """The text "false" would count as true: other activations, in silence."""
    said = json.loads((folder / CONFIG).read_text())
    said["model_cfg"][key] = value
    (folder / CONFIG).write_text(json.dumps(said))
    if not value:
        assert not config.published(ModelConfig(weights=str(folder))).architecture[key]
        return
    with pytest.raises(ConfigError, match=rf"open_clip_config.json: {key}={value!r} is neither true nor false$"):
        config.published(ModelConfig(weights=str(folder)))


@pytest.mark.parametrize("wrong", [[123.7, 116.3, 103.5], [-0.5, 0.5, 0.5], [0.5, 0.5]])
def test_colours_that_are_not_from_0_to_1_are_refused(folder, wrong):
    said = json.loads((folder / CONFIG).read_text())
    said["preprocess_cfg"]["mean"] = wrong
    (folder / CONFIG).write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=r"preprocess_cfg.mean=\[.*\] are not three numbers for the colours, 0 to 1$"):
        config.published(ModelConfig(weights=str(folder)))
    with pytest.raises(ValueError, match=r"expected three numbers|divide those of 0 to 255 by 255"):
        ModelConfig(mean=wrong)
    with pytest.raises(ValueError, match=r"expected three numbers|divide those of 0 to 255 by 255"):
        ModelConfig(std=wrong)


def test_a_configuration_given_for_weights_is_told_what_is_wanted(folder):
    with pytest.raises(
        ConfigError, match=r"open_clip_config.json says how a model is built: give the .safetensors file beside"
    ):
        config.published(ModelConfig(weights=str(folder / CONFIG)))


@pytest.mark.parametrize(("part", "change", "said"), SAID)
def test_a_configuration_that_cannot_be_is_one_line(folder, part, change, said):
    there = json.loads((folder / CONFIG).read_text())
    there["model_cfg"][part] |= change
    (folder / CONFIG).write_text(json.dumps(there))
    with pytest.raises(ConfigError, match=said) as error:
        adapters.load.__wrapped__(ModelConfig(weights=str(folder)), config.LoraConfig(), 0)
    assert "\n" not in str(error.value)


def test_a_base_model_of_right_hash_and_wrong_content_is_one_line(tmp_path):
    content = {"format": config.BASE_MODEL, "config": {"embed_dim": 3}}
    file = tmp_path / "base.json"
    file.write_text(json.dumps({**content, "sha256": config.base_hash(content)}))
    with pytest.raises(ConfigError, match=r"base.json is not a base model \(TypeError: .*\): write one with `ease make-base`"):
        backbone.load.__wrapped__(ModelConfig(weights=str(file)))


@pytest.mark.parametrize(
    "path", ["/" + "a" * 5000, "/a\0b", "/dev/null", "/proc/self/mem/x.safetensors", "/" + "a" * 300 + ".bin"]
)
def test_what_can_be_no_file_is_one_line(path):
    for told in (
        {"weights": path},
        {"name": f"local-dir:{path}"},
        {"weights": f"{path}.json"},
        {"weights": f"{path}.safetensors"},
    ):
        with pytest.raises(ConfigError, match=r"^model\.(weights|name): [^\n]*$"):
            config.published(ModelConfig(**told))


def test_without_a_network_the_hub_is_asked_once(monkeypatch, folder):
    asked = []

    def no_network():
        asked.append(1)
        raise OSError("no network")

    monkeypatch.setattr(hub, "get_session", no_network)
    for told, said in (
        (
            {"name": "hf-hub:nobody/nothing"},
            r"^model.name: hf-hub:nobody/nothing is not on this machine and cannot be downloaded",
        ),
        ({"name": "hf-hub:a b/c/d"}, r"^model.name=hf-hub:a b/c/d can be no name on the hub"),
    ):
        with pytest.raises(ConfigError, match=said):
            published.opened(ModelConfig(**told))
    said = json.loads((folder / CONFIG).read_text())
    said["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "nobody/tokenizer"
    (folder / CONFIG).write_text(json.dumps(said))
    with pytest.raises(
        ConfigError, match=r"^model: its tokenizer nobody/tokenizer cannot be read \(.*\): fetch tokenizer.json, to"
    ):
        published.opened(ModelConfig(weights=str(folder)))
    said["model_cfg"]["vision_cfg"]["timm_model_name"] = "hf-hub:nobody/tower"
    (folder / CONFIG).write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=r"cannot be built \(LocalEntryNotFoundError: "):
        published.opened(ModelConfig(weights=str(folder)))
    assert len(asked) == 3
    assert not hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("target", fuzz_models.TARGETS)
def test_whatever_is_brought_is_read_or_refused_in_one_line(target, tmp_path):
    """Some tries of benchmarks.fuzz."""
    for seed in range(6):
        try:
            said = fuzz_models.TARGETS[target](random.Random(f"{target} {seed}"), tmp_path / str(seed))
        except Exception as error:
            raise AssertionError(f"{target}, seed {seed}: {type(error).__name__}: {error}") from error
        assert said
