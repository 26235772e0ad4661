"""Training recipes and accelerate configurations, as files that ship with the package and are found by name."""

from .content import override, read_recipe
from .files import accelerate_names, describe_recipe, find_accelerate, find_recipe, recipe_names

__all__ = [
    "accelerate_names",
    "describe_recipe",
    "find_accelerate",
    "find_recipe",
    "override",
    "read_recipe",
    "recipe_names",
]
