"""Two towers at their smallest, written as people have them: a timm image model and a Hugging Face text folder, random."""

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from tests.photographs import write_photographs

IMAGE_MODEL = "test_efficientnet"
WORDS = ("train", "val", "test", "base", "one", "two", *map(str, range(40)))


def write_towers(folder: Path) -> tuple[Path, Path]:
    """The image tower's file and the text tower's folder."""
    from transformers import BertConfig, BertModel, BertTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = timm.create_model(IMAGE_MODEL, num_classes=0)
        text = BertModel(
            BertConfig(
                vocab_size=5 + len(WORDS),
                hidden_size=16,
                num_hidden_layers=3,
                num_attention_heads=2,
                intermediate_size=24,
                max_position_embeddings=20,
            )
        )
    image = folder / "image.safetensors"
    save_file({k: v.contiguous() for k, v in trunk.state_dict().items()}, image)
    text.save_pretrained(folder / "text")
    vocabulary = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    (folder / "text" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer(vocab=str(folder / "text" / "vocab.txt")).save_pretrained(folder / "text")
    return image, folder / "text"


def write_all(folder: Path) -> dict[str, str]:
    """Towers, and photographs with a base split: the options of `ease align`."""
    image, text = write_towers(folder)
    write_photographs(folder / "photographs", base=32, train=30, val=8, test=16)
    return {
        "--image": str(image),
        "--image-model": IMAGE_MODEL,
        "--text": str(text),
        "--root": str(folder / "photographs"),
        "--to": str(folder / "base.safetensors"),
        "--size": "32",
        "--width": "8",
        "--context": "6",
        "--epochs": "400",
    }


def flat(options: dict[str, str]) -> list[str]:
    return [part for option in options.items() for part in option]


def config_beside(options: dict[str, str]) -> dict:
    return json.loads(Path(options["--to"]).with_suffix(".json").read_text())
