"""What things are told apart by: digests of values, of files, and of the code that a module needs."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from ease_flwr.config.model import ModelConfig

APP = Path(__file__).resolve().parents[2]
"""The folder that holds conf/, strategies/ and clients/: a checkout, or the unpacked app on a Flower host."""
ADAPTERS = 2
"""Number of the function that an adapter vector means. 1 (ease_flwr 0.1) is that of the attention layer of peft 0.21,
which applies the adapter of out_proj twice. 2 is LoRA, see ease_flwr/model/lora.py."""
PACKAGES = ("ease_flwr", "strategies", "clients")
"""The project's own code."""


def digest(*parts: Any) -> str:
    """sha256 of JSON-serialisable values and models: 64 hex digits."""
    plain = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def file_sha256(file: Path) -> str:
    """64 hex digits."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def named_file_sha256(file: str) -> str:
    """Of a file named by a setting, by its absolute path or inside the app; "" where there is none."""
    path = APP / file  # of an absolute path, that path
    return file_sha256(path) if file and path.is_file() else ""


def weights_sha256(model: ModelConfig) -> str:
    """Of the base model's file; where there is none, of its name: all hosts must have the same."""
    return named_file_sha256(model.weights) or hashlib.sha256(f"{model.name} {model.weights}".encode()).hexdigest()


def code_hash() -> str:
    """sha256 over the project's own Python files: the two halves of a run must agree on it."""
    return _hash(p for package in PACKAGES for p in (APP / package).rglob("*.py"))


def code_of(*modules: str) -> str:
    """sha256 over these modules of the project and all that they import from it, directly or through others.

    A cached result is as old as the code that made it, and no list kept by hand can be trusted to name that code.
    """
    return _hash(imported(*modules))


@lru_cache(maxsize=32)
def imported(*modules: str) -> frozenset[Path]:
    """Files of these modules and of all project modules that they import; imports for type checking do not count."""
    found: set[Path] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        parents = name.split(".")
        for i in range(1, len(parents) + 1):  # importing a.b runs a/__init__.py as well
            file = _file(".".join(parents[:i]))
            if file and file not in found:
                found.add(file)
                waiting += _imports(ast.parse(file.read_text(encoding="utf-8")))
    return frozenset(found)


def _file(module: str) -> Path | None:
    path = APP.joinpath(*module.split("."))
    if path.parts[len(APP.parts)] not in PACKAGES:
        return None
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _imports(tree: ast.AST) -> Iterator[str]:
    """Modules that a file imports, anywhere in it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imports(node)


def _hash(files: Iterable[Path]) -> str:
    h = hashlib.sha256()
    for path in sorted(set(files)):
        h.update(path.relative_to(APP).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return h.hexdigest()
