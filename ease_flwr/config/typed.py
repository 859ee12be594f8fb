"""Text is read by the type of the field that it is for, once: what somebody typed, or YAML holds, is text until it comes here.

A number is written as numbers are. A list is text with commas, or a JSON list of texts where one of them has a comma or blanks
at its ends. Where a field has no type of its own (settings of a method, which its class knows) a text becomes a number or a
truth value only if JSON writes that as it was typed, so that nothing of it is lost.
"""

from __future__ import annotations

import json
import math
import os
import re
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,39})")
NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
NOTHING = ("", "null", "none", "None", "~")
"""Texts that mean no value, where a field can have none."""


def read(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """The values of a section by name, every text read by its field; what the section does not know stays as it is.

    Raises ValueError: one line with every mistake, each with the dotted name of its field.
    """
    mistakes: list[str] = []
    found = _section(values, model, "", mistakes)
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return found


def spelled(value: Any) -> str:
    """A value as somebody would type it: `read` makes the same of it again."""
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        texts = [spelled(v) for v in value]
        bare = all(t and t == t.strip() and "," not in t for t in texts) and "".join(texts[:1])[:1] != "["
        return ",".join(texts) if bare else json.dumps(texts, ensure_ascii=False)
    return json.dumps(value.item() if hasattr(value, "item") else value)  # of numpy


def items(text: str) -> list[str]:
    """The texts of a list: a JSON list of texts, or what stands between commas.

    Raises ValueError where it is in brackets and no such list: the first and the last text would have a bracket.
    """
    if text.startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, list) and all(isinstance(part, str) for part in found):
            return found
        if text.endswith("]"):
            raise ValueError('write it with commas alone, a,b, or as a JSON list of texts, ["a","b"]')
    return [part.strip() for part in text.split(",") if part.strip()]


def _section(values: Mapping[str, Any], model: type[BaseModel], prefix: str, mistakes: list[str]) -> dict[str, Any]:
    found = dict(values)
    for name, field in model.model_fields.items():
        if name in values:
            try:
                found[name] = _by_type(values[name], field.annotation, f"{prefix}{name}", mistakes)
            except ValueError as error:
                mistakes.append(f"{prefix}{name}={shown(values[name])}: {error}")
    return found


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def _by_type(value: Any, kind: Any, key: str, mistakes: list[str]) -> Any:
    """A value as its field wants it; what does not fit stays, and is refused by pydantic. Raises ValueError."""
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if isinstance(value, Mapping):
            return _section(value, kind, f"{key}.", mistakes)
        if isinstance(value, str):
            raise ValueError(f"this is a section: give one of its fields, for example {key}.{next(iter(kind.model_fields))}")
    elif origin in (Union, types.UnionType):
        if isinstance(value, str) and types.NoneType in inner and value in NOTHING:
            return None
        (only, *others) = [k for k in inner if k is not types.NoneType]
        return value if others else _by_type(value, only, key, mistakes)
    elif origin is tuple:
        parts = items(value) if isinstance(value, str) else value
        if isinstance(parts, (list, tuple)):
            kinds = inner[:1] * len(parts) if inner[1:] == (...,) else inner
            return [_by_type(p, k, key, mistakes) for p, k in zip(parts, kinds, strict=False)] + list(parts[len(kinds) :])
    elif origin is dict and isinstance(value, Mapping):
        return {k: _by_type(v, inner[1], f"{key}.{k}", mistakes) for k, v in value.items()}
    elif kind is Any:
        return plain(value)
    else:
        return _scalar(value, kind)
    return value


def _scalar(value: Any, kind: Any) -> Any:
    if kind is str and isinstance(value, (bool, int, float)):
        return spelled(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    if not isinstance(value, str) or kind not in (int, float):
        return value
    if (WHOLE if kind is int else NUMBER).fullmatch(value):
        number = kind(value)
        if kind is float and not math.isfinite(number):
            raise ValueError("expected a finite number")
        return number
    try:
        near = float(value) if kind is float or len(value) < 40 else math.nan
    except ValueError:
        return value
    if not math.isfinite(near):
        raise ValueError("expected a finite number" if kind is float else "expected a whole number, of 40 digits at most")
    if kind is int and near != int(near):
        raise ValueError("expected a whole number")
    raise ValueError(f"write {int(near) if near == int(near) else near!r}")


def plain(value: Any) -> Any:
    """Of a field without a type: a number or a truth value where JSON writes it as it was typed, else the text."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, str) and (WHOLE.fullmatch(value) or NUMBER.fullmatch(value) or value in ("true", "false")):
        try:
            found = json.loads(value)
        except ValueError:
            return value
        return found if json.dumps(found) == value else value
    return value
