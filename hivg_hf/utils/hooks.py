"""What a module's hooks are given, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def named_inputs(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a module's call by the names that its `forward` has for them, however the caller gave them.

    Args:
        module: Whose hook was called, registered with `with_kwargs=True`.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    return inspect.signature(module.forward).bind(*args, **kwargs).arguments
