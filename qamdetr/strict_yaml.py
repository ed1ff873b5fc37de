"""Strict YAML for frozen dataclasses: files that `extends:` others, `a.b=c` overrides, and no key, type or value that is not known.

The dataclasses hold the defaults; a file holds what differs. `qamdetr.config` reads experiments this way, `inference.system` systems.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from qamdetr.errors import ConfigError

_Section = TypeVar("_Section")


class _DoubledKeyError(yaml.YAMLError):
    """A mapping holds a key twice, which PyYAML would read as the last of them."""


class _Loader(yaml.SafeLoader):
    """Refuses doubled keys."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401 - PyYAML's own signature
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                first = seen.setdefault((key.tag, key.value), key)
                if first is not key:
                    lines = f"{first.start_mark.line + 1} and {key.start_mark.line + 1}"
                    raise _DoubledKeyError(f"the key {key.value!r} stands twice, in lines {lines}; remove one.")
        return node


def read(name: str, folder: Path, kind: str = "config") -> dict[str, Any]:
    """Read a YAML file and all that it extends, the later over the earlier, to nested mappings.

    Args:
        name: A path, or the name of a file in `folder`.
        folder: Where named files lie; those that begin with `_` are parts of others and are not offered.
        kind: What such a file is called in messages.

    Raises:
        ConfigError: Unknown or broken file, or a circular `extends`.
    """
    return _read_chain(_find(name, folder, kind), folder, kind, seen=())


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Put `a.b=c` overrides, whose values are YAML, into nested mappings.

    Raises:
        ConfigError: A malformed override.
    """
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set {override!r} is not of the form section.key=value, such as train.epochs=10.")
        *parents, leaf = key.strip().split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override!r}: {parent!r} is a value, not a section; use section.key=value.")
        try:
            target[leaf] = yaml.load(text, _Loader)
        except yaml.YAMLError:
            raise ConfigError(f"--set {override!r}: the value is not valid YAML; write numbers, words or [lists].") from None


def build(cls: type[_Section], values: object, prefix: str = "") -> _Section:
    """Build a dataclass, and those inside it, from nested mappings.

    Args:
        cls: A dataclass; keys that `values` lacks take its defaults.
        values: What a file holds.
        prefix: Stands before keys in messages, such as `model.`.

    Raises:
        ConfigError: An unknown key, a wrong type, or what the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or 'config'} must be a section with keys, not {values!r}.")
    hints = get_type_hints(cls)
    unknown = sorted(map(str, set(values) - set(hints)))
    if unknown:
        raise ConfigError(f"Unknown key {prefix + unknown[0]!r}; known here: {', '.join(hints)}.")
    missing = [item.name for item in dataclasses.fields(cls) if item.name not in values and _is_required(item)]  # type: ignore[arg-type]
    if missing:
        raise ConfigError(f"{prefix + missing[0]} is missing; it has no default.")
    return cls(**{key: _coerce(hints[key], value, prefix + key) for key, value in values.items()})


def plain(value: Any) -> Any:  # noqa: ANN401 - a config value is any YAML type
    """Undo `build`: nested mappings and lists of plain YAML types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def check_ranges(section: object, name: str, **ranges: tuple[float, float]) -> None:
    """Refuse values of a section outside `[low, high]`, and NaN.

    Raises:
        ConfigError: Names value and limit.
    """
    for key, (low, high) in ranges.items():
        value = getattr(section, key)
        if not low <= value <= high:
            limit = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise ConfigError(f"{f'{name}.{key}'.lstrip('.')} is {value}; it must be {limit}.")


def _find(name: str, folder: Path, kind: str) -> Path:
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in folder.glob("[!_]*.yaml")))
    raise ConfigError(f"No {kind} {name!r}: give a YAML file or one of {known}.")


def _read_chain(path: Path, folder: Path, kind: str, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `extends` goes round in a circle; remove one of {[p.name for p in seen]}.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except _DoubledKeyError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold sections such as `model:`, not {type(values).__name__}.")
    merged: dict[str, Any] = {}
    for name in _parents(path, values.pop("extends", None)):
        beside = path.parent / f"{name}.yaml"
        parent = beside if beside.is_file() else _find(name, folder, kind)
        _merge(merged, _read_chain(parent, folder, kind, (*seen, path.resolve())))
    _merge(merged, values)
    return merged


def _parents(path: Path, extends: object) -> list[str]:
    """Names that a file extends, in the order in which they apply."""
    names: list[Any] = extends if isinstance(extends, list) else [] if extends is None else [extends]
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            f"{path}: `extends` is {extends!r}; it must be the name of a config, or a list of names, of which later ones win."
        )
    return names


def _merge(base: dict[str, Any], diff: Mapping[str, Any]) -> None:
    """Put the entries of `diff` over those of `base`, section by section; a mapping inside a section is replaced whole."""
    for section, entries in diff.items():
        if isinstance(entries, dict) and isinstance(base.get(section), dict):
            base[section] = {**base[section], **entries}
        else:
            base[section] = entries


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _coerce(hint: Any, value: Any, name: str) -> Any:  # noqa: ANN401, PLR0911 - dispatches on a run-time type hint
    if dataclasses.is_dataclass(hint):
        return build(hint, value, prefix=name + ".")  # type: ignore[arg-type]
    origin = get_origin(hint)
    if value is None and hint is str:  # an empty value in YAML
        return ""
    if origin is Literal:
        # YAML 1.1 reads a bare `no` as False.
        value = "no" if value is False and "no" in get_args(hint) else value
        if value not in get_args(hint):
            raise ConfigError(f"{name} is {value!r}; it must be one of {', '.join(map(str, get_args(hint)))}.")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_coerce(get_args(hint)[0], item, name) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        entry = get_args(hint)[1]
        # A section names its own keys; a plain value is told by the key that holds the mapping.
        return {str(key): _coerce(entry, item, f"{name}.{key}" if dataclasses.is_dataclass(entry) else name) for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # YAML 1.1 reads "1e-4" as a string.
    if hint is float and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    if origin is None and isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{name} is {value!r}; expected {getattr(hint, '__name__', hint)}.")
