"""What things are told apart by: digests of values, of files, and of the code that a module needs."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of ease_flwr itself."""
APP = PACKAGE if (PACKAGE / "strategies").is_dir() else PACKAGE.parent
"""The folder that holds conf/, strategies/ and clients/: the package as a wheel installs it, a checkout, or the unpacked app on
a Flower host."""
ADAPTERS = 2
"""Number of the function that an adapter vector means. 1 (ease_flwr 0.1) is that of the attention layer of peft 0.21,
which applies the adapter of out_proj twice. 2 is LoRA, see ease_flwr/model/lora.py."""
HALVES = ("strategies", "clients")
"""Packages inside ease_flwr that lie in APP."""


def digest(*parts: Any) -> str:
    """sha256 of JSON-serialisable values and models: 64 hex digits."""
    plain = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def file_sha256(file: Path) -> str:
    """64 hex digits."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def named_file_sha256(file: str) -> str:
    """Of a file named by a setting; "" where there is none."""
    return file_sha256(named_file(file)) if file and named_file(file).is_file() else ""


def named_file(file: str) -> Path:
    """A file named by a setting: by its absolute path, or as ease_flwr/..., which is the package."""
    return PACKAGE.parent / file  # of an absolute path, that path


def code_hash(more: Mapping[str, Path] | None = None) -> str:
    """sha256 over the project's own Python files: the two halves of a run must agree on it.

    more: files of the user's own by their places in the app that a run is shipped with; they are hashed where it runs.
    """
    ours = (p for folder in (PACKAGE, *(APP / name for name in HALVES)) for p in folder.rglob("*.py"))
    return _hash(_named(ours) | dict(more or {}))


def code_of(*modules: str) -> str:
    """sha256 over these modules of the project and all that they import from it, directly or through others.

    A cached result is as old as the code that made it, and no list kept by hand can be trusted to name that code.
    """
    return _hash(_named(imported(*modules)))


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
    first, *inside = module.split(".")
    if first != PACKAGE.name:
        return None
    path = (APP if inside[:1] and inside[0] in HALVES else PACKAGE).joinpath(*inside)
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


def _hash(files: Mapping[str, Path]) -> str:
    h = hashlib.sha256()
    for name, path in sorted(files.items()):
        h.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return h.hexdigest()


def _named(files: Iterable[Path]) -> dict[str, Path]:
    return {_name(path): path for path in files}


def _name(path: Path) -> str:
    """The same for a file wherever strategies/ and clients/ lie."""
    half = next((h for h in HALVES if path.is_relative_to(APP / h)), None)
    return (path.relative_to(APP) if half else Path(PACKAGE.name) / path.relative_to(PACKAGE)).as_posix()
