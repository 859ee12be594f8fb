"""The hub of Hugging Face, where it can be reached: else what this machine has kept of it, at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_session
from open_clip.pretrained import download_pretrained_from_hf

from ease_flwr.config import HUB, ConfigError


def line(error: Exception) -> str:
    """The message of an error, on one line."""
    return " ".join(str(error).split())[:200]


@contextmanager
def at_once_or_not() -> Iterator[None]:
    """Where the hub of Hugging Face cannot be reached, its clients ask their cache alone and do not try again for a minute."""
    before = constants.HF_HUB_OFFLINE
    if not before:
        try:
            get_session().head(constants.ENDPOINT, timeout=5)
        except Exception:  # whichever client it has for the network, and whatever that raises
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def fetch(name: str) -> None:
    """Bring the files of a model on the hub into the cache of this machine. Raises ConfigError."""
    repository = name.removeprefix(HUB)
    try:
        with at_once_or_not():
            for file in ("open_clip_config.json", "open_clip_model.safetensors"):
                download_pretrained_from_hf(repository, filename=file)
    except Exception as error:  # of its client, of the network, or of a name that can be none
        raise ConfigError(
            f"model.name: {name} is not on this machine and cannot be downloaded now ({line(error)}): fetch its "
            "open_clip_config.json and open_clip_model.safetensors into a folder, and give --set model.name=local-dir:/DIR"
        ) from None
