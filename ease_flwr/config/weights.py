"""Whether the files of a base model are what they should be, from their heads: before anything is started, without torch."""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import dataclass, field
from os.path import isdir, isfile  # which take what can be no path for one that is not there
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ease_flwr.config.identity import digest, named_file, named_file_sha256
from ease_flwr.config.model import ModelConfig
from ease_flwr.config.section import ConfigError

LOCAL, HUB = PUBLISHED = "local-dir:", "hf-hub:"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
"""What the two files of a published folder are called."""
BASE_MODEL = "ease-base-model/1"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
OF_TOWERS = {
    "hf_model_name": ("config.json",),
    "hf_tokenizer_name": (*TOKENIZER, "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
}
"""What a Hugging Face text tower is read from, by the key of text_cfg that names it."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
COLOURS = ("mean", "std")
RESIZE_MODES = ("shortest", "longest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear", "random")
HEADS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: run `git lfs pull` where it comes from",
    b"PK\x03\x04": "a pickle of torch, which is never read here: give the .safetensors file of the same model",
    b"\x80": "a pickle, which is never read here: give the .safetensors file of the same model",
    b"\x93NUMPY": "an array of NumPy: give the .safetensors file of the same model",
    b"<": "a web page or other text: fetch the file itself",
    b"{": "text: fetch the file itself",
}
"""What a file begins with that was given for weights and is none -> what it is, and what to do."""


@dataclass(frozen=True)
class Published:
    """A base model in files: its weights, and what the open_clip configuration beside them says."""

    file: Path
    config: Path | None = None
    """None where `model.name` says what the model is."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """What open_clip builds it from."""
    preprocess: dict[str, Any] = field(default_factory=dict)
    """How its pictures are prepared: mean, std, interpolation, resize_mode, as far as it says so."""

    @property
    def folder(self) -> Path | None:
        """Of a model that was published as a folder."""
        return self.config.parent if self.config and self.config.name == CONFIG else None


def published(model: ModelConfig) -> Published | None:
    """The files of a base model; None where it has none but a name, or is a base-model .json, whose content is checked.

    Raises ConfigError for a file that is missing, cut or of another kind.
    """
    said = model.weights
    if model.name.startswith(PUBLISHED):
        if said:
            raise ConfigError(f"model.weights={said}: {model.name} has its own weights: leave one of the two empty")
        folder = named_folder(model)
        return _folder(model, folder) if folder is not None else None
    path = named_file(said)
    if said.endswith(".json"):
        base_content(path)
        return None
    if said and isdir(path):
        return _folder(model, path)
    if said.endswith(PICKLED):
        raise ConfigError(f"model.weights: {path} is {HEADS[bytes([128])]}")
    if not said.endswith(".safetensors"):
        if "/" in said or (said and isfile(path)):
            what = "not a .safetensors or .json file" if isfile(path) else "neither a file nor a folder"
            raise ConfigError(f"model.weights: {path} is {what}: give the absolute path of one")
        return None
    own = _metadata(path)
    return _of_file(model, path, own)


def named_folder(model: ModelConfig) -> Path | None:
    """The folder that local-dir: names, or where the cache of this machine has what hf-hub: names; None where it has it not."""
    if model.name.startswith(LOCAL):
        return named_file(model.name.removeprefix(LOCAL))
    if not model.name.startswith(HUB):
        return named_file(model.weights) if model.weights and isdir(named_file(model.weights)) else None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = [try_to_load_from_cache(model.name.removeprefix(HUB), file) for file in (CONFIG, WEIGHTS)]
    except ValueError as error:
        raise ConfigError(f"model.name={model.name} can be no name on the hub ({' '.join(str(error).split())})") from None
    return Path(str(found[0])).parent if all(isinstance(f, str) for f in found) else None


def _folder(model: ModelConfig, folder: Path) -> Published:
    """A folder as open_clip publishes it. Raises ConfigError where a part is missing."""
    what = "model.name" if model.name.startswith(PUBLISHED) else "model.weights"
    if not isdir(folder):
        raise ConfigError(f"{what}: no folder {folder}")
    if not isfile(folder / CONFIG):
        raise ConfigError(f"{what}: {folder} has no {CONFIG}: give the folder of a published open_clip model")
    if not isfile(folder / WEIGHTS):
        others = ", ".join(sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", *PICKLED))) or "no weights"
        raise ConfigError(f"{what}: {folder} has no {WEIGHTS}, but {others}: fetch that file")
    return _of_file(model, folder / WEIGHTS, _metadata(folder / WEIGHTS))


def _of_file(model: ModelConfig, path: Path, metadata: dict[str, str]) -> Published:
    own: dict[str, Any] = {key: value for key in COLOURS if (value := _numbers(metadata.get(f"image_{key}", "")))}
    for key, known, said in (("resize_mode", RESIZE_MODES, "resize"), ("interpolation", INTERPOLATIONS, "interpolation")):
        if (name := metadata.get(f"image_{said}", "")) in known:
            own[key] = name
    beside, at_home = path.with_suffix(".json"), path.with_name(CONFIG)
    if model.name and not model.name.startswith(PUBLISHED) and path.name != WEIGHTS:
        return Published(path, preprocess=own)
    found = at_home if path.name == WEIGHTS and isfile(at_home) else beside
    found = at_home if not isfile(found) and isfile(at_home) else found
    if not isfile(found):
        if model.name:
            return Published(path, preprocess=own)
        raise ConfigError(f"model.weights: {path.name} needs its open_clip config {beside} beside it, or model.name")
    architecture, preprocess = read_config(found)
    return Published(path, found, architecture, own | preprocess)


def read_config(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an open_clip configuration says of the model, and of its pictures. Raises ConfigError.

    It is {"model_cfg": ..., "preprocess_cfg": ...}, or the first of these alone.
    """
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"model.weights: {file} is not an open_clip config ({error})") from None
    there = said if isinstance(said, dict) else {}
    preprocess = there.get("preprocess_cfg") or {}
    model = there.get("model_cfg", {k: v for k, v in there.items() if k != "preprocess_cfg"})
    parts = model if isinstance(model, dict) else {}
    if missing := [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in parts]:
        raise ConfigError(f"model.weights: {file} is not an open_clip config: it has no {missing[0]}")
    if wrong := [key for key in ("vision_cfg", "text_cfg") if not isinstance(parts[key], dict)]:
        raise ConfigError(f"model.weights: {file} is not an open_clip config: its {wrong[0]} has no settings")
    if wrong := [key for key in ("quick_gelu", "custom_text") if not isinstance(parts.get(key) or False, bool)]:
        raise ConfigError(f"model.weights: {file}: {wrong[0]}={parts[wrong[0]]!r} is neither true nor false")
    if not isinstance(preprocess, dict):
        raise ConfigError(f"model.weights: {file}: its preprocess_cfg has no settings")
    return parts, _preprocess(file, preprocess)


def _preprocess(file: Path, said: dict[str, Any]) -> dict[str, Any]:
    """What is known of these settings, checked."""
    found = {key: said[key] for key in (*COLOURS, "interpolation", "resize_mode", "fill_color") if said.get(key) is not None}
    for key in found.keys() & COLOURS:
        try:
            found[key] = (found[key],) * 3 if isinstance(found[key], (int, float)) else found[key]
            found[key] = ModelConfig(**{key: found[key]}).model_dump()[key]
        except ValueError:
            found[key] = ()
        if not found[key]:
            raise ConfigError(
                f"model.weights: {file}: preprocess_cfg.{key}={said[key]!r} are not three numbers for the colours, 0 to 1"
            )
    for key, known in (("interpolation", INTERPOLATIONS), ("resize_mode", RESIZE_MODES)):
        if key in found and found[key] not in known:
            raise ConfigError(f"model.weights: {file}: preprocess_cfg.{key}={found[key]!r} is none of {', '.join(known)}")
    if said.get("mode", "RGB") != "RGB" or found.pop("fill_color", 0) not in (0, [0, 0, 0]):
        raise ConfigError(f"model.weights: {file}: preprocess_cfg wants pictures that are not RGB, or not filled up with black")
    if found.get("interpolation") == "random":  # in training; open_clip judges with bicubic
        found["interpolation"] = "bicubic"
    return found


def tensors(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Kind and shape of every tensor of a .safetensors file, without reading any. Raises ConfigError."""
    try:
        with safe_open(file, framework="numpy") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  (it is no dictionary)
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    except (OSError, SafetensorError) as error:
        raise ConfigError(_other(file, error)) from None


def _metadata(file: Path) -> dict[str, str]:
    """What a .safetensors file says of itself. Raises ConfigError where it is none, or has no tensors."""
    if not isfile(file):
        raise ConfigError(f"model.weights: no file {file}: give the absolute path of a .safetensors or .json file")
    if not tensors(file):
        raise ConfigError(f"model.weights: {file} has no tensors: give the weights of a whole CLIP model")
    with safe_open(file, framework="numpy") as opened:
        return dict(opened.metadata() or {})


def _other(file: Path, error: Exception) -> str:
    """What a file is that is not one of weights."""
    try:
        with file.open("rb") as opened:
            head = opened.read(32)
    except OSError as unreadable:
        return f"model.weights: {file} cannot be read ({unreadable.strerror}): see whose it is"
    if not head:
        return f"model.weights: {file} is empty: fetch it again"
    if what := next((what for start, what in HEADS.items() if head.startswith(start)), ""):
        return f"model.weights: {file} is {what}"
    return f"model.weights: {file} is not a .safetensors file, or was cut ({' '.join(str(error).split())}): fetch it again"


def _numbers(said: str) -> tuple[float, ...]:
    """The three numbers of "(0.5, 0.5, 0.5)"; none of anything else."""
    try:
        found = ast.literal_eval(said) if said else ()
        return ModelConfig(mean=found).mean
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return ()


def base_content(path: Path) -> dict[str, Any]:
    """What is in a base model .json of `ease make-base`. Raises ConfigError if it is none, or does not fit its hash."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if "sha256" not in content and content.keys() & {"model_cfg", "vision_cfg"}:
            raise ConfigError(f"model.weights: {path} says how a model is built: give the .safetensors file beside it")
        expected = content.pop("sha256")
        if content["format"] != BASE_MODEL:
            raise ConfigError(f"model.weights: {path} is {content['format']!r}, expected {BASE_MODEL!r}")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"model.weights: {path} is not a base model ({error}): write one with `ease make-base`") from None
    if base_hash(content) != expected:
        raise ConfigError(f"model.weights: the content of {path} does not fit its sha256: it was changed or cut, write it anew")
    return dict(content)


def base_hash(content: dict[str, Any]) -> str:
    """sha256 of a base model's content: 64 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def towers_at_home(found: Published) -> dict[str, Path]:
    """The folders on this machine that a Hugging Face text tower is read from, by the key of text_cfg that names them.

    They are named there, or beside the file; or what is read lies in the published folder itself.
    """
    text, home = found.architecture.get("text_cfg", {}), found.file.parent
    folders: dict[str, Path] = {}
    for key, wanted in (("hf_model_name", OF_TOWERS["hf_model_name"]), ("hf_tokenizer_name", TOKENIZER)):
        name = text.get(key)
        if isinstance(name, str) and name and isdir(home / name):
            folders[key] = home / name
        elif name and found.folder and any(isfile(home / file) for file in wanted):
            folders[key] = home
    return folders


def weights_sha256(model: ModelConfig) -> str:
    """Of the base model's file; where there is none, of its name."""
    folder = named_folder(model)
    file = str(folder / WEIGHTS) if folder else model.weights
    return named_file_sha256(file) or hashlib.sha256(f"{model.name} {model.weights}".encode()).hexdigest()


def model_sha256(model: ModelConfig) -> str:
    """What a base model is told apart by: its weights, and what is said beside them of how it is built, wherever that lies.
    All hosts must have the same."""
    found = published(model) if not model.weights.endswith(".json") else None
    if found is None or found.config is None:
        return weights_sha256(model)
    text = dict(found.architecture["text_cfg"])
    for key, folder in towers_at_home(found).items():
        text[key] = [named_file_sha256(str(folder / file)) for file in OF_TOWERS[key]]
    return digest(weights_sha256(model), found.architecture | {"text_cfg": text}, found.preprocess)
