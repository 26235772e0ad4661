"""A JSON schema of recipes, made of their types: editors complete keys, show what they mean and underline mistakes.

It stands for the file as it is written, where a recipe may extend another and `defaults` fill in what is left out, so
it asks for no key that could come from there; `parse_recipe` does, of the whole.
"""

from __future__ import annotations

import inspect
import re
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from peft import LoraConfig

from hivg_hf.modeling.configuration_hivg import LOSS_NAMES
from hivg_hf.utils.plugins import plugin_names

from .phase_kinds import PHASE_KINDS, PLUGINS, phase_kind
from .recipe import Recipe
from .recipe_checks import augmentation_names, config_names

_NAMES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


def recipe_schema() -> dict[str, Any]:
    """The schema (draft 2020-12), with the kinds of phases of installed packages."""
    kinds = {name: phase_kind(name, "") for name in [*PHASE_KINDS, *plugin_names(PLUGINS)]}
    by_kind = {name: _described(kind)["properties"] | {"train": {"const": name}} for name, kind in kinds.items()}
    shared: dict[str, Any] = {key: value for properties in by_kind.values() for key, value in properties.items()}
    shared["train"] = {"enum": list(kinds), "description": shared["train"].get("description", "Its kind.")}
    schema = _described(Recipe)
    properties = schema["properties"]
    phase = {"$ref": "#/$defs/phase"}
    properties["phases"] = {
        "description": "In their order; with `extends`, by name what differs.",
        "anyOf": [{"type": "array", "items": phase}, {"type": "object", "additionalProperties": phase}],
    }
    properties["extends"] = {"type": "string", "description": "A recipe to build on: a name, or a file beside this."}
    properties["defaults"] = _closed(shared, "For every phase that reads the key and does not say otherwise.")
    rows = properties["data"]["properties"]
    rows["defaults"] = {"type": "object", "description": "Keys that all descriptions of rows share."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A training recipe of hivg_hf",
        **schema,
        "$defs": {"phase": _any_kind(by_kind, shared)},
    }


def _any_kind(by_kind: dict[str, dict[str, Any]], shared: dict[str, Any]) -> dict[str, Any]:
    """A phase: the keys of the kind that its `train` names; all kinds' keys where `defaults` say the kind."""
    return {
        "type": "object",
        "properties": shared,
        "additionalProperties": False,
        "allOf": [
            {
                "if": {"properties": {"train": {"const": name}}, "required": ["train"]},
                "then": {"propertyNames": {"enum": list(properties)}},
            }
            for name, properties in by_kind.items()
        ],
    }


def _described(kind: type) -> dict[str, Any]:
    """Schema of a dataclass, nested ones in it; what its docstrings say of a key is the key's description."""
    hints, descriptions = get_type_hints(kind), _said_of(kind)
    properties = {}
    for option in fields(kind):
        schema = _of_type(hints[option.name], _names_within(option.name))
        if option.name in descriptions:
            schema["description"] = descriptions[option.name]
        if option.default not in (MISSING, None):
            schema["default"] = option.default
        properties[option.name] = schema
    return _closed(properties, (inspect.getdoc(kind) or "").partition("\n")[0])


def _of_type(hint: Any, mapping: dict[str, Any] | None = None) -> dict[str, Any]:
    """Schema of a type; `mapping` is that of a dict in it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of_type(choice, mapping) for choice in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if isinstance(hint, type) and is_dataclass(hint):
        return _described(hint)
    if origin is list:
        return {"type": "array", "items": _of_type(arguments[0])}
    if origin is dict:
        return dict(mapping or {"type": "object"})
    return {"type": _NAMES[hint]}


def _names_within(key: str) -> dict[str, Any] | None:
    """Schema of a mapping that a recipe hands on to others, where the names in it are known."""
    if key == "config":
        return _closed({name: {} for name in config_names()})
    if key == "lora_options":
        return _closed({name: {} for name in LoraConfig.__dataclass_fields__})
    if key == "augmentation":
        return _closed({name: {} for name in sorted(augmentation_names())})
    if key == "loss_weights":  # terms of other packages may be among them
        weight = {"type": "number", "minimum": 0}
        return {"type": "object", "properties": dict.fromkeys(LOSS_NAMES, weight), "additionalProperties": weight}
    return None


def _closed(properties: dict[str, Any], description: str = "") -> dict[str, Any]:
    about = {"description": description} if description else {}
    return {"type": "object", **about, "properties": properties, "additionalProperties": False}


def _said_of(kind: type) -> dict[str, str]:
    """Key to what the `Args:` of the class and of its bases say of it."""
    descriptions: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = re.search(
            r"^Args:\n(.*?)(?:\n\S|\Z)", inspect.cleandoc(base.__doc__ or ""), re.DOTALL | re.MULTILINE
        )
        entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
        descriptions |= {name: " ".join(text.split()) for name, text in entries}
    return descriptions
