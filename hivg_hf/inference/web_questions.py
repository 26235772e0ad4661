"""Which questions the page takes: its functions by name and number, and the values of each.

gradio answers what it cannot read with status 500 and writes a traceback to the server's log, once or twice for each
such request. Here it is refused before gradio sees it, in a sentence.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

_NAMED = re.compile(r"/gradio_api/(call|run)/(?P<name>\w+)/?", re.ASCII)
# gradio's clients send letters and digits. It keeps what it is given with every question, and half a character there
# makes each later question of all visitors end in a traceback.
_SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)
_MOST_SHOWN = 30

# What gradio's clients send as a value of a component, by its kind: a check, and its name for the refusal.
_TAKEN: Mapping[str, tuple[Callable[[Any, Any], bool], str]] = {
    "image": (lambda value, _: value is None or isinstance(value, dict), "an uploaded picture"),
    "textbox": (lambda value, _: value is None or isinstance(value, str), "a string"),
    "slider": (
        lambda value, slider: _is_number(value) and slider.minimum <= value <= slider.maximum,
        "a number from {0.minimum} to {0.maximum}",
    ),
    "checkbox": (lambda value, _: isinstance(value, bool), "true or false"),
    "dataset": (
        lambda value, examples: type(value) is int and 0 <= value < len(examples.samples),
        "the number of an example",
    ),
}


class QuestionError(ValueError):
    """A question that the page does not take; `status` is HTTP's."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def checked_question(functions: Mapping[int, Any], path: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """What gradio needs of a question, and nothing else that was sent.

    Args:
        functions: `fns` of the page.
        path: Where it was sent: `/gradio_api/queue/join`, `/gradio_api/call/NAME` or `/gradio_api/run/NAME`.
        question: The JSON object.

    Raises:
        QuestionError: The function is unknown, or a value is missing or of a wrong type.
    """
    kept = {name: question[name] for name in ("data", "fn_index", "session_hash", "trigger_id") if name in question}
    for name in ("fn_index", "trigger_id"):
        if not (kept.get(name) is None or type(kept[name]) is int):
            raise QuestionError(400, f"`{name}` must be an integer, got {_shown(kept[name])}.")
    session = kept.get("session_hash")
    if not (session is None or (isinstance(session, str) and _SESSION.fullmatch(session))):
        raise QuestionError(400, "`session_hash` must be a string of at most 64 letters, digits, - or _.")
    data, inputs = kept["data"], _function(functions, path, kept).inputs
    if len(data) != len(inputs):
        labels = ", ".join(f"'{component.label}'" for component in inputs)
        raise QuestionError(400, f"`data` must have a value for each of {labels}, got {len(data)} values.")
    for component, value in zip(inputs, data, strict=True):
        is_right, expected = _TAKEN[component.get_block_name()]
        if not is_right(value, component):
            wanted = expected.format(component)
            raise QuestionError(400, f"The value of '{component.label}' must be {wanted}, got {_shown(value)}.")
    return {**kept, "data": [_only_the_file(value) for value in data]}


def _only_the_file(value: Any) -> Any:
    """Of a file where it lies, which the guard has checked; nothing here reads what browsers send beside it."""
    return {name: value[name] for name in ("path", "meta") if name in value} if isinstance(value, dict) else value


def _function(functions: Mapping[int, Any], path: str, question: Mapping[str, Any]) -> Any:
    """The function that gradio would call: by number, but in `call/NAME` by name."""
    named, number = _NAMED.fullmatch(path), question.get("fn_index")
    if number is not None and not path.startswith("/gradio_api/call/"):
        if number not in functions:
            raise QuestionError(404, f"This page has no function {_shown(number)}.")
        return functions[number]
    if named is None:
        raise QuestionError(400, "A question needs `fn_index`, the number of the function that it is for.")
    for function in functions.values():
        if function.api_name == named["name"]:
            return function
    known = ", ".join(f"/{function.api_name}" for function in functions.values() if function.queue)
    raise QuestionError(404, f"Unknown API name '/{named['name'][:_MOST_SHOWN]}': this page has {known}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """A value as its sender wrote it; very long integers cannot be written."""
    if isinstance(value, int) and value.bit_length() > 100:
        return "an integer of many digits"
    text = json.dumps(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
