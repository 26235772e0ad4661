"""From a YAML or JSON text to nested dataclasses: every key known and named once, every type right, or a sentence."""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import types
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

MAX_YAML_BYTES = 2**18
MAX_YAML_VALUES = 100_000
MAX_YAML_DEPTH = 50


def read_yaml(path: str | Path, kind: str, own: str = "hivg_hf/recipes") -> Mapping[str, Any]:
    """The mapping that a YAML file holds.

    Args:
        path: The file.
        kind: What it is, for messages: "recipe" or "study".
        own: The folder with the repository's files of this kind, for messages.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is not YAML, too large once its aliases are written out, or no mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No {kind} at {path}; the repository's own are in {own}/.")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise ValueError(f"{path} holds {path.stat().st_size} bytes; a {kind} has at most {MAX_YAML_BYTES}.")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a mapping with the keys of a {kind}. Got {type(content).__name__}.")
    return content


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, checked before anything of it is built.

    An alias costs a few letters and stands for all that its anchor holds, aliases included: ten lines can stand for
    more than any memory. So the size is counted with every alias written out.

    Raises:
        ValueError: It is not YAML, too large or too deep, holds an alias of what contains it, or names a key twice.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _written_out(node, {}, 0)
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_YAML_DEPTH} levels") from None
    except (yaml.YAMLError, OverflowError) as error:
        raise ValueError(str(error)) from error


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8, UTF-16 or UTF-32, every key named once: else the parser keeps the last value.

    Raises:
        ValueError: It is not JSON, nested too deeply, or an object in it names a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object")
    return content


def read_options(pairs: Iterable[str], flag: str, as_text: bool = False) -> dict[str, Any]:
    """`["root=/data", "size=5"]` to a dict, values read as YAML; nothing behind the sign is an empty text.

    Args:
        pairs: What was written.
        flag: Where, for messages: "--option".
        as_text: Whether values stay as they were written: a column may be called `no` or `007`.

    Raises:
        ValueError: A pair has no name or no "=", or its value is not YAML; or a name stands twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip()
        if not name or not equals:
            raise ValueError(f"{flag} takes NAME=VALUE, got {pair!r}.")
        if name in values:
            raise ValueError(f"{flag} gives {name} twice: {values[name]!r} and {value!r}.")
        try:
            values[name] = value if as_text or not value else parse_yaml(value)
        except ValueError as error:
            raise ValueError(f"{flag} {pair!r}: the value is not YAML: {' '.join(str(error).split())}") from error
    return values


def _written_out(node: yaml.Node, sizes: dict[yaml.Node, int], depth: int) -> int:
    """Number of values in a node, each alias counted in full; `sizes` holds those of the nodes that were visited."""
    if depth > MAX_YAML_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_YAML_DEPTH} levels")
    if node in sizes:
        if not sizes[node]:
            raise ValueError(f"an alias stands inside its own anchor, at line {node.start_mark.line + 1}")
        return sizes[node]
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        if keys and keys.most_common(1)[0][1] > 1:
            twice = keys.most_common(1)[0][0]
            raise ValueError(f"the key `{twice}` stands twice in one mapping, at line {node.start_mark.line + 1}")
        children = [child for pair in node.value for child in pair]
    sizes[node] = 0  # begun
    total = 1 + sum(_written_out(child, sizes, depth + 1) for child in children)
    if total > MAX_YAML_VALUES:
        raise ValueError(f"it holds more than {MAX_YAML_VALUES} values once its aliases are written out")
    sizes[node] = total
    return total


def refuse_other(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse a value that is not one of a few.

    Raises:
        ValueError: With what it may be.
    """
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def build_strictly(kind: type, content: Any, where: str) -> Any:
    """An instance of a dataclass from a mapping, with nested dataclasses, every key and type checked."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must be a mapping. Got {content!r}.")
    known = {option.name: option for option in fields(kind)}
    refuse_unknown(content, known, where)
    for name, option in known.items():
        if name not in content and option.default is MISSING and option.default_factory is MISSING:
            raise ValueError(f"{where} needs the key `{name}`.")
    hints = get_type_hints(kind)
    return kind(**{key: convert(hints[key], value, f"{where}.{key}") for key, value in content.items()})


def refuse_unknown(keys: Iterable[Any], known: Iterable[str], where: str) -> None:
    """Refuse keys that nobody reads.

    Raises:
        ValueError: Naming the first such key and the nearest known one.
    """
    choices = list(known)
    for key in keys:
        if key not in choices:
            raise ValueError(f"Unknown key `{key}` in {where}: {nearest(key, choices)}")


def nearest(name: Any, known: Iterable[str]) -> str:
    """What to write in place of a name that is not known: the nearest one, or all of them."""
    choices = sorted(known)
    close = difflib.get_close_matches(str(name), choices, n=1)
    return f"did you mean `{close[0]}`?" if close else f"expected some of: {', '.join(choices)}."


def check_plain_values(values: Mapping[str, Any], reader: Any, where: str, choices: bool = True) -> None:
    """Refuse values of another type than a function's keywords, or a class's fields, say; of plain types alone.

    Args:
        values: Name to value; names that are not known, or of other types, are somebody else's to check.
        reader: The function or class.
        where: They stand, for messages.
        choices: Check the values of a few texts too, which a function refuses itself.

    Raises:
        ValueError: With the first that does not fit.
    """
    try:
        hints = get_type_hints(reader)
    except (NameError, TypeError):  # some type is there for type checkers alone; those that are texts stay unchecked
        hints = dict(getattr(reader, "__annotations__", {}))
    for name, value in values.items():
        if name in hints and _is_plain(hints[name]) and (choices or not _has_choices(hints[name])):
            convert(hints[name], value, f"{where}.{name}")


def _is_plain(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType, list):
        return all(map(_is_plain, get_args(hint)))
    return get_origin(hint) is Literal or hint in (int, float, bool, str, type(None))


def _has_choices(hint: Any) -> bool:
    return Literal in (get_origin(hint), *map(get_origin, get_args(hint)))


def convert(hint: Any, value: Any, where: str) -> Any:
    """A value as its type says, the numbers in it finite.

    Raises:
        ValueError: It is of another type.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        if isinstance(value, hint):  # of a type that was chosen before
            return value
        return build_strictly(hint, value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for choice in arguments:
            if _fits(choice, value):
                return convert(choice, value, where)
    elif origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{where} must be one of {', '.join(map(repr, arguments))}. Got {value!r}.")
    elif origin is list and isinstance(value, list):
        return [convert(arguments[0], item, f"{where}[{number}]") for number, item in enumerate(value)]
    elif _fits(hint, value):
        return _finite(value, where) if hint is float else value
    raise ValueError(f"{where} must be {_describe(hint)}. Got {value!r}{_yaml_hint(value)}.")


def _finite(value: int | float, where: str) -> float:
    """A number that can be compared and multiplied: NaN passes every check for a number that is too small."""
    if not abs(value) <= sys.float_info.max:
        shown = value if isinstance(value, float) else "an integer of more than 300 digits"
        raise ValueError(f"{where} must be a finite number. Got {shown}.")
    return float(value)


def _fits(hint: Any, value: Any) -> bool:
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if is_dataclass(hint):
        return isinstance(value, Mapping)
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    return isinstance(value, get_origin(hint) or hint)


def _describe(hint: Any) -> str:
    if is_dataclass(hint):
        return "a mapping"
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    names = {float: "a number", int: "an integer", str: "a text", bool: "true or false", dict: "a mapping"}
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("empty" if choice is type(None) else _describe(choice) for choice in get_args(hint))
    return names.get(get_origin(hint) or hint, "a list" if get_origin(hint) is list else str(hint))


def _yaml_hint(value: Any) -> str:
    """YAML 1.1 reads 1e-4 as a text; 1.0e-4 is a number."""
    if (
        isinstance(value, str)
        and "e" in value
        and value.replace("e", "", 1).replace("-", "").replace(".", "", 1).isdigit()
    ):
        return " (YAML reads 1e-4 as a text: write 1.0e-4)"
    return ""


def expand_variables(value: Any, where: str) -> Any:
    """Replace ${NAME} in every text by the environment variable NAME."""
    if isinstance(value, Mapping):
        return {key: expand_variables(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [expand_variables(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, str):
        for name in re.findall(r"\$\{(\w+)\}", value):
            if name not in os.environ:
                raise ValueError(f"{where} uses the environment variable {name}, which is not set: export {name}=...")
            value = value.replace(f"${{{name}}}", os.environ[name])
    return value
