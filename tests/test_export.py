"""What a user takes home: a plain checkpoint that open_clip loads by itself."""

import json
import re
import shutil

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from ease_flwr import config, data
from ease_flwr.audit import export
from ease_flwr.audit.summary import read_results, read_run_config
from ease_flwr.cli import app
from ease_flwr.config import LoraConfig, ModelConfig
from ease_flwr.model import adapters
from tests.small import small_experiment


def ease(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def test_a_checkpoint_loads_by_open_clip_alone_and_embeds_as_the_run_does(whole, tmp_path):
    file = tmp_path / "new" / "forgotten.safetensors"
    done = ease("export", whole, "unlearned", "--to", file)
    assert done.exit_code == 0, done.output
    with safe_open(file, "pt") as opened:
        said = opened.metadata()
    assert export.digest(load_file(file)) == said["sha256"]
    assert said["sha256"] in done.output
    results = read_results(whole)
    assert said["adapters_sha256"] == results["adapters_sha256"]["unlearned"]
    assert json.loads(said["requests"]) == [r["id"] for r in results["requests"]]
    assert (said["model"], said["strategy"]) == ("unlearned", "ease")
    experiment, _ = config.from_run_config(read_run_config(whole))
    assert said["parent_sha256"] == config.weights_sha256(experiment.model)

    open_clip.add_model_config(file.with_suffix(".json"))
    model = open_clip.create_model("forgotten", pretrained=str(file))
    model.load_state_dict(load_file(file), strict=True)
    adapted = adapters.load.__wrapped__(experiment.model, experiment.lora, experiment.seed)
    adapted.set(adapters.read(whole / "adapters" / "unlearned", adapted.blocks))
    pictures = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = adapted.base.tokenize(["red circle above blue star", "green heart"])
    with torch.no_grad():
        f, g = model.eval().encode_image(pictures, normalize=True), model.encode_text(tokens, normalize=True)
        assert torch.allclose(f, adapted.embed_images(adapted.trunk(pictures)), atol=1e-5)
        assert torch.allclose(g, adapted.embed_texts(tokens), atol=1e-5)
    assert {p.name for p in file.parent.iterdir()} == {"forgotten.safetensors", "forgotten.json"}


@pytest.mark.parametrize("card", [False, True], ids=["README of the project", "README of the model"])
def test_the_lines_of_the_readme_embed_a_picture(card, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "unlearned" if card else "forgotten"
    assert ease("export", whole, "unlearned", "--to", f"{name}.safetensors").exit_code == 0
    experiment, _ = config.from_run_config(read_run_config(whole))
    pixels = data.load(experiment.data, experiment.seed).client("client-1").train.images[:1]
    Image.fromarray(pixels[0]).save("picture.png")
    readme = (whole / "adapters" / "unlearned" if card else config.APP) / "README.md"
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", readme.read_text(), re.S) if name in c and "open_clip" in c]
    found = {}
    exec(compile(code, "README.md", "exec"), found)
    adapted = adapters.load(experiment.model, experiment.lora, experiment.seed)
    adapted.set(adapters.read(whole / "adapters" / "unlearned", adapted.blocks))
    with torch.no_grad():
        expected = adapted.embed_images(adapted.trunk(adapted.base.normalise(pixels)))
    assert torch.allclose(found["embedding"], expected, atol=1e-5)


def test_the_card_of_a_model_says_what_it_is_and_what_it_has_forgotten(whole):
    experiment, _ = config.from_run_config(read_run_config(whole))
    cards = {name: (whole / "adapters" / name / "README.md").read_text() for name in ("original", "unlearned")}
    for name, text in cards.items():
        head = yaml.safe_load(text.split("---")[1])
        assert (head["library_name"], head["base_model"]) == ("peft", "personas-base.json")
        assert config.weights_sha256(experiment.model) in text
        assert f"# {name}: " in text
        assert "rank 16, alpha 32" in text
        assert "$" not in text
    assert "It has forgotten nothing." in cards["original"]
    requests = json.loads((whole / "adapters" / "unlearned" / "provenance.json").read_text())["forgotten"]
    assert f"It has forgotten what these requests name: {', '.join(requests)}." in cards["unlearned"]


def test_a_folder_of_adapters_is_the_runs(whole, tmp_path):
    done = ease("export", whole, "original", "--to", tmp_path / "peft", "--format", "peft")
    assert done.exit_code == 0, done.output
    experiment = small_experiment()
    blocks = adapters.load(experiment.model, experiment.lora, experiment.seed).blocks
    theirs, ours = (adapters.read(folder, blocks) for folder in (tmp_path / "peft", whole / "adapters" / "original"))
    assert np.array_equal(theirs, ours)
    assert json.loads((tmp_path / "peft" / "provenance.json").read_text()) == {"forgotten": []}


def test_an_open_clip_model_of_two_towers_and_a_shorter_context(tmp_path):
    model = {"embed_dim": 24, "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}}
    model["text_cfg"] = {"context_length": 12, "width": 32, "heads": 2, "layers": 2}
    (tmp_path / "own.json").write_text(json.dumps({**model, "custom_text": True}))
    open_clip.add_model_config(tmp_path / "own.json")
    how = ModelConfig(name="own", precision="bfloat16")  # weights are single, in whatever precision it was trained
    experiment = small_experiment().model_copy(update={"model": how, "lora": LoraConfig(rank=2)})
    adapted = adapters.load(how, experiment.lora, experiment.seed)
    theta = 0.1 * np.random.default_rng(0).standard_normal(adapted.size).astype(np.float32)
    said = export.export(experiment, theta, tmp_path / "out.safetensors", {})
    assert export.digest(load_file(tmp_path / "out.safetensors")) == said
    built = open_clip.CustomTextCLIP(
        **{k: v for k, v in json.loads((tmp_path / "out.json").read_text()).items() if k != "custom_text"}
    )
    built.load_state_dict(load_file(tmp_path / "out.safetensors"), strict=True)


def test_what_does_not_embed_alike_is_not_written(whole, tmp_path, monkeypatch):
    honest = export.merged
    monkeypatch.setattr(export, "merged", lambda *a: {n: t * 1.01 if "ln_" in n else t for n, t in honest(*a).items()})
    done = ease("export", whole, "unlearned", "--to", tmp_path / "wrong.safetensors")
    assert done.exit_code == 2
    assert "its embeddings are" in done.stderr
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line(whole, tmp_path):
    (tmp_path / "there.json").write_text("mine")
    (tmp_path / "folder").mkdir()
    damaged = tmp_path / "damaged"
    shutil.copytree(whole, damaged)
    (damaged / "adapters" / "unlearned" / "provenance.json").write_text("{}")
    done = ease("export", damaged, "unlearned", "--to", tmp_path / "a.safetensors")
    assert done.exit_code == 2
    assert "provenance.json: it does not say what the model has forgotten ('forgotten'): restore it" in done.stderr
    shutil.rmtree(damaged)
    cases = [
        (("forgot", "--to", tmp_path / "a.safetensors"), "no model 'forgot' there: there are continued, original, "),
        (("unlearned", "--to", tmp_path / "a.bin"), "a.bin: expected a name that ends in .safetensors"),
        (("unlearned", "--to", tmp_path / "there.safetensors"), "there is a file of this name, or its .json: choose another"),
        (("unlearned", "--to", tmp_path / "folder", "--format", "peft"), "folder: it is there already: choose another"),
        (("unlearned", "--to", tmp_path / "b", "--format", "peft", "--merged"), "--merged: a PEFT folder holds adapters alone"),
    ]
    for words, expected in cases:
        done = ease("export", whole, *words)
        assert done.exit_code == 2
        assert done.stderr.startswith("ease export: ")
        assert expected in done.stderr
        assert done.stderr.count("\n") == 1
    assert (tmp_path / "there.json").read_text() == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"there.json", "folder"}
    shutil.rmtree(tmp_path / "folder")
