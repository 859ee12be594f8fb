"""Towers that are made of stages, that ask for what was cut, or that fail on a picture."""

import pytest
import torch

from ease_flwr.config import ConfigError, LoraConfig
from ease_flwr.model import adapters, published, targets, towers
from tests.models import of, timm_tower
from tests.test_supported import base


def test_blocks_are_counted_from_outside_in():
    """Stages that are made of blocks, as Swin's are, are left out or adapted whole."""
    with torch.device("meta"):
        model = published.built(of(timm_tower("test_mambaout", pool="")), "a test")
    every, late = (targets.modules(model, LoraConfig(targets=("fc1", "attn"), visual_from=first)) for first in (0, 2))
    stages = {name.split(".")[3] for name in every if name.startswith("visual.")}
    assert stages == {"0", "1", "2", "3"}
    assert late == [name for name in every if not name.startswith(("visual.trunk.stages.0.", "visual.trunk.stages.1."))]


def test_a_beginning_that_others_ask_for_is_not_cut():
    adapted = adapters.attach(base(of(timm_tower("test_vit", 96))), LoraConfig(rank=1, targets=("qkv", "attn")), 0)
    pictures = towers.made_up(adapted.base)[0]
    assert torch.equal(adapted.trunk(pictures), pictures)


@pytest.mark.parametrize("kind", [AssertionError, KeyError, NotImplementedError, AttributeError])
def test_towers_that_fail_on_a_picture_are_one_line(kind):
    built = base(of())

    def fails(*_):
        raise kind("Input height\ndoes not match")

    built.model.visual.forward = built.model.visual._embeds = fails
    with pytest.raises(ConfigError, match=r"^model: its towers cannot be run on a picture and a caption \(\w+: [^\n]*: mend"):
        adapters.attach(built, LoraConfig(rank=1), 0)
