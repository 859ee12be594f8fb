"""A group of settings: frozen, documented field by field, and strict about names it does not know."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from ease_flwr.config import typed

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What can name a client, and so a folder."""


BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
"""What ends a line."""
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""What does other things to a terminal."""


class ConfigError(ValueError):
    """A setting that cannot be used. The message is one line, whatever it quotes: what, where, what to do."""

    def __init__(self, message: object) -> None:
        super().__init__(CONTROL.sub(lambda found: repr(found[0])[1:-1], BREAKS.sub(" ", str(message))))


class DataError(ConfigError):
    """Something in somebody's data that cannot be used. The message may quote them (a caption, a label, the name of a file): it
    is for who keeps them, and no host sends it on."""


class RunError(RuntimeError):
    """A run has stopped before its end; resuming it goes on, once the cause is mended."""


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Decides = Literal["learning", "later", "nothing"]
"""What the value of a field can change: what is learnt, only what comes after learning, or no adapter at all."""


def searched(default: Any, values: tuple[Any, ...], **limits: Any) -> Any:
    """A field whose values `ease tune` tries."""
    return Field(default, json_schema_extra={"search": list(values)}, **limits)


def operational(default: Any, **limits: Any) -> Any:
    """A field that changes no adapter: how clients are waited for, where files lie, what is looked at."""
    return Field(default, json_schema_extra={"decides": "nothing"}, **limits)


def located(default: str, decides: Decides = "learning") -> Any:
    """A field that names a file or a folder; a relative path is meant from where the user stands."""
    return Field(default, json_schema_extra={"decides": decides, "path": True})


def afterwards(default: Any, **limits: Any) -> Any:
    """A field that changes nothing about the learn phase, only what comes after it."""
    return Field(default, json_schema_extra={"decides": "later"}, **limits)


def decides(field: FieldInfo) -> Decides:
    """What a field can change; every field counts as part of learning unless it says otherwise."""
    extra = field.json_schema_extra
    found: Any = extra.get("decides", "learning") if isinstance(extra, dict) else "learning"
    return found


def leaves(model: type[BaseModel], prefix: str = "", within: Decides = "learning") -> Iterator[tuple[str, FieldInfo, Decides]]:
    """(dotted name, field, what it can change) of all fields of nested sections; a section's mark holds for its fields."""
    for name, field in model.model_fields.items():
        what = decides(field) if within == "learning" else within
        if isinstance(kind := field.annotation, type) and issubclass(kind, BaseModel):
            yield from leaves(kind, f"{prefix}{name}.", what)
        else:
            yield f"{prefix}{name}", field, what


def chosen(values: BaseModel, *kinds: Decides) -> dict[str, Any]:
    """The fields of a model that can change these things: dotted name -> value as JSON holds it."""
    plain = values.model_dump(mode="json")
    found = {}
    for name, _, what in leaves(type(values)):
        if what in kinds:
            value: Any = plain
            for part in name.split("."):
                value = value[part]
            found[name] = value
    return found


M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], values: Mapping[str, Any], where: str) -> M:
    """model(**values), text read by the types of the fields, and every mistake named on one line. Raises ConfigError."""
    try:
        return model(**typed.read(values, model))
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_mistake(model, e) for e in error.errors())) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _mistake(model: type[BaseModel], e: Any) -> str:
    key = ".".join(str(p) for p in e["loc"])
    if e["type"] == "extra_forbidden":
        section: Any = model
        for p in e["loc"][:-1]:
            section = section.model_fields[str(p)].annotation
        known, last = section.model_fields, str(e["loc"][-1])
        elsewhere = [name for name, _, _ in leaves(model) if name.split(".")[-1] == last]
        near = f": did you mean {' or '.join(elsewhere)}?" if elsewhere else meant(last, known, key[: -len(last)])
        return f"unknown key {key} (known: {', '.join(known)}){near}"
    message = e["msg"].removeprefix("Value error, ")
    about_section = isinstance(e["input"], dict)  # from a check of several fields: the message names them
    return f"{key}.{message}" if about_section and key else f"{key}={typed.shown(e['input'])}: {message}" if key else message


def among(name: str, known: Sequence[str]) -> str:
    """What there is in place of an unknown name, and which of them was perhaps meant."""
    return f"there are {', '.join(known) or 'none'}{meant(name, known)}"


def meant(name: str, known: Iterable[str], prefix: str = "") -> str:
    """To be added to what is said of an unknown name: the known one that is near, "" where none is."""
    near = get_close_matches(name, list(known), 1)
    return f": did you mean {prefix}{near[0]}?" if near else ""
