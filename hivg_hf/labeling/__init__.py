"""Pseudo-labels for pictures without any: `hivg label`, see docs/labels.md."""

from .colors import name_color
from .run import LabelReport, label_pictures
from .scene import Scene, SceneObject
from .teachers import ClipTeacher, DetectorTeacher, FlorenceTeacher, Teacher, load_teacher
from .templates import DEFAULT_TEMPLATES, Expression, check_template, write_expressions

__all__ = [
    "DEFAULT_TEMPLATES",
    "ClipTeacher",
    "DetectorTeacher",
    "Expression",
    "FlorenceTeacher",
    "LabelReport",
    "Scene",
    "SceneObject",
    "Teacher",
    "check_template",
    "label_pictures",
    "load_teacher",
    "name_color",
    "write_expressions",
]
