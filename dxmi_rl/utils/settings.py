"""Settings as frozen dataclasses that may hold others: single fields changed by name, written to JSON and read back."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from dxmi_rl.utils.checks import check_flag
from dxmi_rl.utils.registry import UnknownNameError

ConfigT = TypeVar("ConfigT")
PYTHON = {"True": True, "False": False, "None": None}
"""Python's spelling of what JSON writes as true, false and null."""


def setting_names(config: Any) -> list[str]:
    """All fields of a config, those of the configs inside as ``policy.width``."""
    return list(flat_settings(config))


def flat_settings(config: Any) -> dict[str, Any]:
    """``{"n_epochs": 4, "policy.width": 64, ...}`` of a config."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            found |= {f"{field.name}.{key}": inner for key, inner in flat_settings(value).items()}
        else:
            found[field.name] = value
    return found


def changed(config: ConfigT, settings: Mapping[str, Any], kind: str) -> ConfigT:
    """The config with some fields replaced.

    Args:
        config: a frozen dataclass.
        settings: new values by name. A field of a config inside is ``"policy.width": 128``, or ``"policy": {"width":
            128}``, or a whole config of its type. Lists become tuples, as JSON and TOML know no others.
        kind: word for error messages, such as "setting of 'ppo'".

    Raises UnknownNameError (with the near names) for an unknown name, and what the config raises for its values.
    """
    result = _changed(config, settings, kind, "")
    _check_flags(result, flat_settings(result))
    return result


def _check_flags(config: Any, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raise TypeError for a value of a setting that is annotated as a bool and is none, as "off" would count as true.

    ``prefix`` stands before the names of the message, such as "policy.".
    """
    for field in fields(config):
        inner, kind = getattr(config, field.name), getattr(field.type, "__name__", field.type)
        if is_dataclass(inner):
            start = f"{field.name}."
            own = {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}
            _check_flags(inner, own, prefix + start)
        elif kind in ("bool", "bool | None") and field.name in values:
            value = values[field.name]
            if kind == "bool":
                check_flag(f"{prefix}{field.name}", value)
            elif value is not None and not isinstance(value, bool):
                raise TypeError(f"{prefix}{field.name} must be True, False or None, got {value!r}.")


def _changed(config: ConfigT, settings: Mapping[str, Any], kind: str, prefix: str) -> ConfigT:
    """``changed`` for a config whose full name is ``prefix``, such as "policy." (for messages)."""
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{kind}: a config must be a dataclass, got {config!r}.")
    inside: dict[str, dict[str, Any]] = {}
    direct: dict[str, Any] = {}
    known = {field.name for field in fields(config)}
    for key, value in settings.items():
        name, _, rest = key.partition(".")
        nested = name in known and is_dataclass(getattr(config, name))
        if name not in known or (rest and not nested):
            # The bare name of a field inside ("width", or "widht") is nearest to its full one ("policy.width").
            every = [prefix + full for full in setting_names(config)]
            bare = difflib.get_close_matches(key, {full.rpartition(".")[2] for full in every}, n=1, cutoff=0.8)
            near = [full for full in every if full.rpartition(".")[2] in bare and "." not in key]
            raise UnknownNameError(kind, prefix + key, every, near=near)
        if rest:
            inside.setdefault(name, {})[rest] = value
        elif nested and isinstance(value, Mapping):
            inside.setdefault(name, {}).update(value)
        elif nested and type(value) is not (wanted := type(getattr(config, name))):
            raise TypeError(f"{prefix}{key} must be a {wanted.__name__} or a mapping, got {value!r}.")
        else:
            direct[key] = tuple(value) if isinstance(value, list) else value
    for name, values in inside.items():
        start = direct.get(name, getattr(config, name))
        direct[name] = _changed(start, values, kind, f"{prefix}{name}.")
    _check_flags(config, direct, prefix)  # before the config's own checks, which take them at their word
    return replace(config, **direct)


def check_given_once(words: Sequence[str], may_repeat: Collection[str] = ()) -> None:
    """Raise ValueError for an option of a command line that is given twice, of which the first would be lost."""
    options = [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    for option in options:
        if options.count(option) > 1 and option not in may_repeat:
            raise ValueError(f"{option} must be given once, with all its values behind it.")


def parsed_settings(name: str, words: Iterable[str]) -> dict[str, Any]:
    """``["width=128", "loss=nce"]`` as a dict; values are JSON, or Python's True, False and None, or else text.

    Raises ValueError without a "=", and for a key that stands there twice.
    """
    found = dict[str, Any]()
    for word in words:
        key, sign, text = word.partition("=")
        if not (key and sign):
            raise ValueError(f"{name} must hold name=value, got {word!r}.")
        if key in found:
            raise ValueError(f"{name} must hold {key!r} once, got it again as {word!r}.")
        try:
            found[key] = PYTHON[text] if text in PYTHON else json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found
