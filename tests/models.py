"""Image-text models of every class that is supported, random and tiny, written as people publish them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ease_flwr import launcher
from ease_flwr.hosts.simulation import Where
from ease_flwr.model import published
from tests.photographs import write_photographs

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
VISION = {"image_size": 32, "layers": 2, "width": 16, "patch_size": 16, "head_width": 8}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
SIGLIP = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}}
DECODER = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "attn_pooler_heads": 2}
PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1], "interpolation": "bilinear", "resize_mode": "squash"}


def timm_tower(name: str, size: int = 64, pool: str = "avg") -> dict:
    return {"timm_model_name": name, "timm_pool": pool, "timm_proj": "linear", "image_size": size}


def of(vision=VISION, text=TEXT, **more) -> dict:
    """What open_clip builds a model from."""
    return {"embed_dim": 16, "vision_cfg": dict(vision), "text_cfg": dict(text), **more}


SUPPORTED = {  # as docs/models.md names them: the architecture, and targets of adapters for both towers
    "open_clip ViT": (of(), ("attn", "c_fc", "c_proj")),
    "open_clip ViT, QuickGELU": (of(quick_gelu=True), ("attn", "c_fc", "c_proj")),
    "open_clip ViT, text tower of its own": (of(custom_text=True), ("attn", "c_fc", "c_proj")),
    "ModifiedResNet": (
        of({"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}),
        ("conv1", "conv2", "conv3", "attn"),
    ),
    "timm convnet": (of(timm_tower("test_efficientnet")), ("conv_pw", "conv_pwl", "conv_exp", "proj", "attn")),
    "timm ViT": (of(timm_tower("test_vit", 160)), ("qkv", "proj", "fc1", "fc2", "attn", "c_fc")),
    "SigLIP": (
        of(timm_tower("test_vit", 160), TEXT | SIGLIP, custom_text=True, init_logit_bias=-10),
        ("qkv", "proj", "attn", "c_fc"),
    ),
    "CoCa": (
        of(
            VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4, "output_tokens": True},
            TEXT | {"embed_cls": True, "output_tokens": True},
            custom_text=True,
            multimodal_cfg=DECODER,
            embed_dim=24,
        ),
        ("attn", "c_fc", "c_proj"),
    ),
}
"""But for Hugging Face text towers, whose configuration lies in a folder: see `with_hugging_face`."""
HUGGING_FACE = "Hugging Face text tower"
OF_BERT = ("attn", "query", "key", "value", "dense", "proj")


def with_hugging_face(folder: Path) -> dict:
    """A model with a text tower that lies in a folder."""
    from tests.towers import write_towers

    _, text = write_towers(folder)
    names = {"hf_model_name": str(text), "hf_tokenizer_name": str(text)}
    return of(text={**names, "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear", "context_length": 12})


def random_model(architecture: dict, seed: int = 0):
    """With weights away from open_clip's start, where many are zero or one."""
    model = published.built(architecture, "a test").eval()
    draw = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim:
            tensor.nan_to_num_(0).clamp_(-1, 1).add_(0.1 * torch.randn(tensor.shape, generator=draw))
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
    return model


def write_weights(file: Path, architecture: dict, metadata: dict[str, str] | None = None) -> Path:
    state = random_model(architecture).state_dict()
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, file, metadata)
    return file


def write_folder(folder: Path, architecture: dict, preprocess: dict | None = None) -> Path:
    """A folder as open_clip publishes it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / WEIGHTS, architecture)
    said = {"model_cfg": architecture} | ({} if preprocess is None else {"preprocess_cfg": preprocess})
    (folder / CONFIG).write_text(json.dumps(said))
    return folder


def ways(folder):
    """All ways to give a published folder."""
    return [{"weights": str(folder)}, {"weights": str(folder / WEIGHTS)}, {"name": f"local-dir:{folder}"}]


def run(tmp_path, *assignments):
    """`ease run flickr8k` with a few photographs. The exit status."""
    if not (tmp_path / "data").exists():
        write_photographs(tmp_path / "data", train=8, val=2, test=2)
    said = [f"data.root={tmp_path / 'data'}", "data.clients=2", "forget.targets=client-1", "model.context=0", *assignments]
    return launcher.run(launcher.NewRun("flickr8k", folder=tmp_path / "run", assignments=said), Where())
