"""From plain mappings (YAML) to typed, frozen settings: strict on names and types, precise about mistakes."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from search_spaces.errors import InputError, did_you_mean
from search_spaces.files import check_keys, parse_yaml

__all__ = ["apply_overrides", "build", "to_plain"]

T = TypeVar("T")


def _describe(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    origin = get_origin(kind)
    if origin is tuple:
        return "a list"
    if origin in (Union, types.UnionType):
        return " or ".join("null" if k is type(None) else _describe(k) for k in get_args(kind))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return names.get(kind, "a mapping" if dataclasses.is_dataclass(kind) else str(kind))


def _is_container(kind: Any) -> bool:
    """Whether values of the kind are written as a mapping or a list."""
    return get_origin(kind) in (tuple, dict) or dataclasses.is_dataclass(kind)


def _is_text(value: str) -> bool:
    """Return whether files can hold the text and be named by it: no NUL, and nothing that UTF-8 lacks."""
    try:
        return b"\0" not in value.encode("utf-8")
    except UnicodeEncodeError:
        return False


def _convert(value: Any, kind: Any, where: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return to_plain(value)  # keys become texts, as they are once written and read again
    if dataclasses.is_dataclass(kind):
        return build(typing.cast("type[Any]", kind), value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        options = [k for k in get_args(kind) if k is not type(None)]
        options = [
            k for k in options if _is_container(k) == isinstance(value, dict | list | tuple)
        ] or options
        options = [
            k for k in options if (get_origin(k) is tuple) == isinstance(value, list | tuple)
        ] or options
        if len(options) == 1:
            return _convert(value, options[0], where)
        for option in options:
            try:
                return _convert(value, option, where)
            except InputError:
                continue
    elif origin is typing.Literal:
        if value in get_args(kind):
            return value
        if isinstance(value, str):
            known = [str(v) for v in get_args(kind)]
            raise InputError(f"{where}: unknown '{value}'{did_you_mean(value, known)}")
    elif origin is tuple:
        if isinstance(value, list | tuple):
            inner = get_args(kind)
            if len(inner) == 2 and inner[1] is Ellipsis:
                return tuple(_convert(v, inner[0], f"{where}[{i}]") for i, v in enumerate(value))
            if len(value) == len(inner):
                return tuple(_convert(v, k, f"{where}[{i}]") for i, (v, k) in enumerate(zip(value, inner)))
            raise InputError(f"{where} is a list of {len(inner)} values, not {value!r}")
    elif origin is dict:
        if isinstance(value, dict):
            return {str(k): _convert(v, get_args(kind)[1], f"{where}.{k}") for k, v in value.items()}
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind is float:
        number = value
        if isinstance(value, str):  # YAML 1.1 reads 4e-3 as text
            try:
                number = float(value)
            except ValueError:
                number = None
        if isinstance(number, int | float) and not isinstance(number, bool):
            try:
                number = float(number)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
    elif kind is str:
        if isinstance(value, str) and _is_text(value):
            return value
    elif kind is Path and isinstance(value, str | Path) and str(value) and _is_text(str(value)):
        return Path(value)
    raise InputError(f"{where} is {_describe(kind)}, not {value!r}")


def build(cls: type[T], values: Any, where: str) -> T:
    """Return the dataclass ``cls`` built from a mapping.

    Every key must be a field and every value of its type; nested dataclasses are built alike. ``where``
    names the mapping in messages (``train``), and its fields become ``train.epochs``.

    Raises
    ------
    InputError
        Naming the key or field, what it must be and what it was.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    given = check_keys(values, fields, where or "the recipe")
    hints = get_type_hints(cls)
    prefix = f"{where}." if where else ""
    for name, entry in fields.items():
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and name not in given:
            raise InputError(f"{where or 'the recipe'} lacks '{name}' ({_describe(hints[name])})")
    arguments = {name: _convert(value, hints[name], f"{prefix}{name}") for name, value in given.items()}
    try:
        return cls(**arguments)
    except InputError as error:
        # A class that does not know where it stands says what is wrong, but not where.
        told = str(error).removeprefix(f"{where.rpartition('.')[2]}: ")
        raise InputError(told if told.startswith(where) else f"{where}: {told}") from None


def to_plain(value: Any) -> Any:
    """Return ``value`` as mappings, lists, numbers and texts, from which :func:`build` makes it again."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return a copy of ``values`` with ``dotted.key=value`` settings applied; values are read as YAML.

    Raises
    ------
    InputError
        If a setting has no ``=``, or leads through something that is not a mapping.
    """
    result = to_plain(values)
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise InputError(f"--set takes key=value with a dotted key such as train.epochs=20, not '{text}'")
        value = parse_yaml(raw, f"--set {key}: the value '{raw}'")
        *path, last = (part.strip() for part in key.split("."))
        place = result
        for part in path:
            if place.get(part) is None:  # absent, or a default written out as null
                place[part] = {}
            place = place[part]
            if not isinstance(place, dict):
                raise InputError(f"--set {key}: '{part}' is not a mapping in the recipe")
        place[last] = value
    return typing.cast("dict[str, Any]", result)
