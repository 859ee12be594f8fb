"""The README of a PEFT folder: which model it is, what it has forgotten, and how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from string import Template

from ease_flwr.config import LoraConfig, ModelConfig, weights_sha256
from ease_flwr.model import towers
from ease_flwr.model.backbone import Backbone

CARD = Template("""---
library_name: peft
base_model: $base
license: other # say under which licence the base model and the training data allow you to pass this on
tags: [lora, open_clip, image-text, federated-learning, machine-unlearning]
---

# $name: LoRA adapters of an image-text model

$forgotten

| | |
|---|---|
| base model | $base, sha256 `$digest` |
| tokenizer | that of the base model, $context tokens |
| pictures | $size x $size pixels, mean $mean, standard deviation $std |
| adapters | LoRA, rank $rank, alpha $alpha: W + (alpha / r) B A |
| data | clients of a federation, who have not shown them; see the results of the run |

## Use

`ease export RUN $name --to $name.safetensors` writes the whole model as one open_clip checkpoint, and `$name.json` beside it:

```python
import open_clip, torch
from PIL import Image

open_clip.add_model_config("$name.json")
colours = {"image_mean": $mean, "image_std": $std}
model, _, prepare = open_clip.create_model_and_transforms("$name", pretrained="$name.safetensors", **colours)
with torch.no_grad():
    embedding = model.eval().encode_image(prepare(Image.open("picture.png"))[None], normalize=True)
```

peft 0.21 loads this folder, but its attention layer applies the adapter of `out_proj` twice: it is another model there.
""")


def card(name: str, forgotten: Sequence[str], model: ModelConfig, lora: LoraConfig, base: Backbone) -> str:
    """Markdown with a head for model hubs. forgotten: identifiers of the requests that were served before this model."""
    said = f"It has forgotten what these requests name: {', '.join(forgotten)}." if forgotten else "It has forgotten nothing."
    return CARD.substitute(
        name=name,
        forgotten=said,
        base=named(model),
        digest=weights_sha256(model),
        context=towers.context_of(base.model, base.architecture),
        size=base.image_size,
        mean=tuple(base.mean),
        std=tuple(base.std),
        rank=lora.rank,
        alpha=lora.alpha,
    )


def named(model: ModelConfig) -> str:
    """What the base model is called: its open_clip name and tag, or the name of its file."""
    return " ".join(filter(None, (model.name, model.weights.rpartition("/")[2])))
