"""Whether a base model can be used as an experiment says: asked before anything is started."""

from __future__ import annotations

from ease_flwr import config


def check(experiment: config.Experiment) -> list[str]:
    """A line about each setting that prepares pictures in another way than the base model says.

    Raises ConfigError where its files, its tokenizer or what is to be adapted are not as they should be. The built-in model is
    read without torch.
    """
    model = experiment.model
    config.published(model)
    if model.weights.endswith(".json"):
        return []
    from ease_flwr.model import published, targets

    base = published.opened(model, empty=True)
    targets.modules(base.model, experiment.lora)
    return config.remarks(model, config.pictures(experiment), base.said, base.image_size)
