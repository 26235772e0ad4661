"""An extension for `make docs`: docstrings in the habit of transformers, read as Google's."""

import re
from typing import Any

import griffe

# name (`type`, *optional*): or name ([`type`]):
_TYPE = re.compile(r"^( +[\w, ]+ )\((\[?`.+)\):", re.MULTILINE)


class HFDocstrings(griffe.Extension):
    """Types without their marks, and the fields of a strict config as arguments with defaults."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _TYPE.sub(_plain, obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        if "__init__" in cls.members or not any(str(decorator.value) == "strict" for decorator in cls.decorators):
            return
        kind = griffe.ParameterKind.keyword_only
        fields = [
            griffe.Parameter(name, annotation=member.annotation, kind=kind, default=member.value)
            for name, member in cls.members.items()
            if isinstance(member, griffe.Attribute) and member.annotation is not None
        ]
        cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*fields)))


def _plain(match: re.Match[str]) -> str:
    types = re.sub(r"\[`|`\]|`", "", match[2]).replace("*optional*", "optional")
    return f"{match[1]}({types}):"
