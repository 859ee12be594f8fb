"""A base model of two pretrained towers: towers stay as they are, the checkpoint is open_clip's, its transformer is adapted."""

import importlib
import json
import re
import shutil

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

pytest.importorskip("transformers", reason="pip install 'ease-flwr[towers]'")

from ease_flwr.cli import app
from ease_flwr.config import ConfigError, LoraConfig, ModelConfig
from ease_flwr.data import align, formats
from ease_flwr.model import adapters, backbone, towers
from tests.in_process_grid import submit
from tests.small import RUN_CONFIG
from tests.test_photographs import ROOT, SHARED
from tests.towers import WORDS, config_beside, flat, write_all

FLOOR = 12.0
"""Percent. The small model of the experiment flickr8k has 8.1."""
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
TARGETS = ("conv_head", "proj", "query", "key", "value", "dense")


def ease_align(options):
    return CliRunner().invoke(app, ["align", *flat(options)])


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("towers"))


@pytest.fixture(scope="module")
def said(options):
    done = ease_align(options)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def weights(options, said):
    return options["--to"]


def loaded(weights, **changes):
    return backbone.load.__wrapped__(ModelConfig(weights=weights, **IMAGENET, **changes))


def adapted(weights, lora, **changes):
    return adapters.attach(loaded(weights, **changes), lora, 0)


def test_says_what_the_written_model_finds(options, said, weights):
    entries = [e for e in formats.read_entries(options["--root"]) if e.split == "test"]
    again = align.recall(loaded(weights), entries, lambda line: None)
    assert f"R@1 {again:.1f} % on the test photographs" in said
    assert "use it with model.mean=[0.485, 0.456, 0.406] model.std=[0.229, 0.224, 0.225]" in said


def test_learns_the_photographs_it_is_trained_on(options, said, weights):
    losses = [float(n) for n in re.findall(r"loss ([\d.]+)", said)]
    assert losses[-1] < 1 < losses[0]
    entries = [e for e in formats.read_entries(options["--root"]) if e.split == "base"]
    assert align.recall(loaded(weights), entries, lambda line: None) > 90  # of noise, by towers that know nothing


def test_towers_stay_as_they_are_and_open_clip_reads_the_file(options, weights):
    found = load_file(weights)
    for name, tensor in load_file(options["--image"]).items():
        assert torch.equal(found[f"visual.trunk.{name}"], tensor)
    for name, tensor in load_file(f"{options['--text']}/model.safetensors").items():
        assert name.startswith("pooler.") or torch.equal(found[f"text.transformer.{name}"], tensor)
    cfg = config_beside(options)
    model = open_clip.model.CustomTextCLIP(**cfg).eval()
    model.load_state_dict(found, strict=True)
    base, pictures = loaded(weights), torch.randn(2, 3, 32, 32)
    tokens = base.tokenize(["train 3 one", "val"])
    assert tokens.shape == (2, 6)
    assert tokens[0].tolist() == [2, 5, 6 + 5 + 3, 5 + WORDS.index("one"), 3, 0]
    assert torch.allclose(base.model.encode_image(pictures), model.encode_image(pictures), atol=1e-6)
    assert torch.allclose(base.model.encode_text(tokens), model.encode_text(tokens), atol=1e-6)


def test_the_same_seed_gives_the_same_bytes(options, weights, tmp_path):
    again, other = ({**options, "--to": str(tmp_path / f"{n}.safetensors"), "--seed": n} for n in ("0", "1"))
    for o in (again, other):
        assert ease_align(o).exit_code == 0
    first, second, third = (load_file(f) for f in (weights, again["--to"], other["--to"]))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert {k for k in first if not torch.equal(first[k], third[k])} == {
        "visual.head.proj.weight",
        "text.proj.weight",
        "logit_scale",
    }


@pytest.mark.parametrize(("first", "blocks"), [(0, 3), (2, 1)])
def test_the_transformer_is_adapted_from_a_block_on(weights, first, blocks):
    model = adapted(weights, LoraConfig(rank=2, targets=TARGETS, text_from=first))
    one = 4 * 2 * (16 + 16) + 2 * 2 * (16 + 24)  # query, key, value, output; up, down
    assert sum(b.size for b in model.blocks if b.tower == "text") == blocks * one + 2 * (16 + 8)
    numbers = {int(n) for b in model.blocks for n in re.findall(r"layer\.(\d)", b.name)}
    assert numbers == set(range(first, 3))
    assert model.cuts
    tokens = model.base.tokenize(["train 3 one", "val"])
    loss = model.embed_texts(tokens).sum() + model.embed_images(model.trunk(torch.randn(2, 3, 32, 32))).sum()
    loss.backward()
    moved = {b.name for b, p in zip(model.blocks, model.parameters, strict=True) if p.grad is not None and p.grad.abs().sum()}
    assert moved == {b.name for b in model.blocks if "lora_B" in b.name}  # B is zero at the start, so A has no gradient yet


def test_padding_does_not_count_and_context_cuts(weights):
    model = adapted(weights, LoraConfig(targets=TARGETS))
    long, short = (loaded(weights, context=n).tokenize(["train 3 one", "val"]) for n in (0, 5))
    assert (long.shape, short.shape) == ((2, 6), (2, 5))
    whole = model.clip.text(long)
    for tokens in (short, towers.without_padding(long)):
        assert torch.allclose(model.clip.encode_text(tokens), whole, atol=1e-5)
    assert loaded(weights, context=5).architecture["text_cfg"]["context_length"] == 5


def test_a_federation_learns_and_forgets_with_it(options, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("EASE_FLWR_HOME", str(tmp_path))
    quick = (
        "data.clients=3 data.image_size=32 data.unseen=8 model.context=0 lora.text_from=2 forget.targets=client-1 learn.batch=8"
    )
    quick += " learn.rounds=2 learn.patience=1 learn.judge_every=1 strategy.rounds=1 continuation.rounds=0 evaluation.every=0"
    run_config = {
        **RUN_CONFIG,
        "experiment": "flickr8k_towers",
        "run-dir": str(tmp_path / "run"),
        "set": quick,
        "data.root": options["--root"],
        "model.weights": weights,
    }
    submit(run_config, clients=3)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {"original", "retrain", "unlearned"} <= set(results["models"])
    assert len(set(results["adapters_sha256"].values())) == len(results["models"])
    found = load_file(tmp_path / "run" / "adapters" / "unlearned" / "adapter_model.safetensors")
    transformer = [t for n, t in found.items() if "text.transformer.encoder.layer.2.attention" in n and "lora_B" in n]
    assert len(transformer) == 4
    assert all(t.abs().sum() > 0 for t in transformer)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"--image-model": "nothing"}, "--image-model: timm knows no 'nothing'"),
        ({"--image-model": "test_vit"}, "these towers cannot be loaded: Error(s) in loading state_dict for VisionTransformer"),
        ({"--image": "nowhere.safetensors"}, "these towers cannot be loaded: "),
        ({"--text": "nowhere"}, "/nowhere: no config.json there"),
        ({"--split": "pretraining"}, "no photograph of split 'pretraining'; there are base, test, train, val"),
        ({"--root": "nowhere"}, "nowhere': there is no such folder"),
        ({"--to": "nowhere/x.safetensors"}, "/nowhere/x.safetensors: give the name of a .safetensors file"),
        ({"--to": "x.json"}, "/x.json: give the name of a .safetensors file"),
    ],
)
def test_mistakes_are_one_line(options, change, line):
    done = ease_align({**options, **change})
    assert done.exit_code == 2
    assert line in done.stderr
    assert done.stderr.startswith("ease align: ")
    assert done.stderr.count("\n") == 1


def test_a_text_folder_that_is_gone_is_named(options, weights, tmp_path):
    cfg = config_beside(options)
    cfg["text_cfg"]["hf_model_name"] = cfg["text_cfg"]["hf_tokenizer_name"] = str(tmp_path / "gone")
    (tmp_path / "moved.json").write_text(json.dumps(cfg))
    shutil.copy(weights, tmp_path / "moved.safetensors")
    with pytest.raises(
        ConfigError, match=r"the text tower of .*moved.json is that of .*gone, which cannot be read .*: see that the folder"
    ):
        loaded(str(tmp_path / "moved.safetensors"))


def test_without_transformers_the_extra_is_named(options, monkeypatch):
    monkeypatch.setattr(importlib.import_module("ease_flwr.data.align"), "find_spec", lambda name: None)
    assert "pip install 'ease-flwr[towers]'" in ease_align(options).stderr


@pytest.mark.long
@pytest.mark.skipif(not (SHARED / "towers").is_dir(), reason=f"no towers in {SHARED}: set EASE_SHARED")
def test_real_towers_find_photographs_that_they_have_not_seen(tmp_path):
    """docs/data.md has what it measured; one in 500 is chance."""
    options = {
        "--image": str(SHARED / "towers" / "tf_efficientnet_lite2.safetensors"),
        "--image-model": "tf_efficientnet_lite2",
        "--text": str(SHARED / "towers" / "minilm"),
        "--root": str(ROOT),
        "--to": str(tmp_path / "towers.safetensors"),
    }
    done = ease_align(options)
    assert done.exit_code == 0, done.output
    assert float(re.search(r"R@1 ([\d.]+) %", done.output)[1]) > FLOOR
