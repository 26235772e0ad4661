"""Conversations of vision-language models with boxes in the answers: JSONL, or one JSON array.

    {"messages": [{"role": "user", "content": "<image>Locate the red star."},
                  {"role": "assistant", "content": "[{\"bbox_2d\": [10, 20, 30, 40], \"label\": \"red star\"}]"}],
     "images": ["a.jpg"]}

Understood are `messages` (OpenAI, LLaMA-Factory, ms-swift) and `conversations` (`from`, `value`: LLaVA, Qwen's own
fine-tuning), text or lists of parts; answers in JSON (`bbox_2d` or `bbox`, `label`), Qwen2-VL's `<|box_start|>` and
InternVL's `<box>` tokens; and ms-swift's `objects` (`ref`, `bbox`). The numbers are pixels (Qwen2.5-VL) or 0..1000
(Qwen2-VL, Qwen3-VL, InternVL): files of both look alike, so `box_format` says it. Checked only against descriptions.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..schema import shown
from .boxes import BOX_FORMATS, FEWEST_BOXES, possible_formats
from .common import Annotations, need_file
from .phrases import Phrase, PhraseFile, Several
from .tables import JsonLines, load_json_array, place_of

FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
QWEN2 = re.compile(
    r"(?:<\|object_ref_start\|>(?P<ref>.*?)<\|object_ref_end\|>)?"
    r"<\|box_start\|>\((?P<box>[^)]*\)\s*,\s*\([^)]*)\)<\|box_end\|>",
    re.DOTALL,
)
INTERNVL = re.compile(r"(?:<ref>(?P<ref>.*?)</ref>)?<box>\s*\[(?P<box>.*?)\]\s*</box>", re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
ANSWERS = ("assistant", "gpt")
QUESTIONS = ("user", "human")


def read_chat(
    split: str,
    *,
    source: str,
    box_format: str | None = None,
    images: Any = None,
    holdout: float | None = None,
    several: Several = "together",
    prompt: str | None = None,
    check_format: bool = True,
) -> Annotations:
    """Read conversations.

    Args:
        split: `all`, or `train` and `val` with `holdout`.
        source: a JSONL file, or a JSON array.
        box_format: `xyxy` (pixels of the original image) or `xyxy_1000`; ms-swift's `bbox_type` may say it instead.
        images: folder or folders of the pictures; the file's own folder by default.
        holdout: share of the images whose rows are `val`.
        several: `together`, boxes of one answer with one label are targets of one row; `apart`, rows of their own.
        prompt: the question with `{expression}` in it, such as `Locate {expression}.`; the expression is then what
            stands there, not the label in the answer.
        check_format: whether to refuse a box format that the numbers contradict.
    """
    path = need_file(Path(source), "the conversations")
    records = load_json_array(path) if path.suffix.lower() == ".json" else JsonLines(path)
    question = _question_pattern(prompt)
    file = PhraseFile(
        path.stem,
        str(path),
        records,
        lambda record, _: _phrases(record, question),
        lambda position: place_of(records, position, path),
        box_format or "xyxy",
        images if images is not None else path.parent,
        several,
    )
    if box_format is None:
        looks = file.looks()
        fits = [name for name in possible_formats(looks) if name in ("xyxy", "xyxy_1000")]
        hint = f"; the {len(looks)} boxes looked at can be {' or '.join(fits)}" if len(looks) >= FEWEST_BOXES else ""
        raise ValueError(
            f"{path}: say what its boxes mean with box_format=, xyxy for pixels or xyxy_1000{hint} "
            f"(any of {', '.join(BOX_FORMATS)})."
        )
    return file.annotations(split, holdout, check_format)


def _question_pattern(prompt: str | None) -> re.Pattern[str] | None:
    if prompt is None:
        return None
    before, braces, after = prompt.partition("{expression}")
    if not braces:
        raise ValueError(f"prompt={prompt!r} has no {{expression}}; write it where the expression stands.")
    return re.compile(rf"\s*{re.escape(before.strip())}\s*(.+?)\s*{re.escape(after.strip())}\s*", re.DOTALL)


def _phrases(record: Mapping[str, Any], question: re.Pattern[str] | None) -> list[Phrase]:
    turns = record["messages"] if "messages" in record else record["conversations"]
    picture = _picture(record, turns)
    shared = {"image": picture, "split": record.get("split")}
    if isinstance(record.get("objects"), Mapping):
        return _swift_objects(record["objects"], shared)
    phrases: list[Phrase] = []
    question_text = ""
    for turn in turns:
        role, text = str(turn.get("role", turn.get("from"))), _text(turn.get("content", turn.get("value")))
        if role in QUESTIONS:
            question_text = text.replace("<image>", " ").strip()
        elif role in ANSWERS:
            phrases += _answer(text, _expression(question_text, question), shared)
    return phrases


def _expression(question_text: str, question: re.Pattern[str] | None) -> str | None:
    """What a question asks for, None without a pattern.

    Raises:
        ValueError: the question is not of the pattern.
    """
    if question is None:
        return None
    match = question.fullmatch(question_text)
    if match is None:
        raise ValueError(f"its question {shown(question_text)} is not of the form that prompt= says")
    return match.group(1)


def _answer(text: str, expression: str | None, shared: Mapping[str, Any]) -> list[Phrase]:
    """The phrases of one answer; [] where it has no boxes."""
    for pattern in (QWEN2, INTERNVL):
        found = list(pattern.finditer(text))
        if found:
            return [
                Phrase(expression=_named(expression, match["ref"]), boxes=_fours(match["box"]), **shared)
                for match in found
            ]
    entries = _json_entries(text)
    if entries == [] and expression is not None:
        return [Phrase(expression=expression, boxes=[], no_target=True, **shared)]
    phrases = []
    for entry in entries or []:
        box = entry.get("bbox_2d", entry.get("bbox"))
        if box is None:
            raise ValueError(f"its answer has {shown(entry)}, expected bbox_2d and label")
        phrases.append(Phrase(expression=_named(expression, entry.get("label")), boxes=[box], **shared))
    return phrases


def _named(expression: str | None, label: Any) -> Any:
    if expression is None and label is None:
        raise ValueError("its answer has a box and no label; say prompt='Locate {expression}.', as its questions read")
    return label if expression is None else expression


def _json_entries(text: str) -> list[Mapping[str, Any]] | None:
    """The objects with boxes of an answer in JSON, None where it is not JSON."""
    fenced = FENCE.search(text)
    try:
        content = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError) as error:
        if "bbox" in text:
            raise ValueError(f"its answer is not JSON ({error})") from error
        return None
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list) or not all(isinstance(entry, Mapping) for entry in content):
        return None
    return content


def _fours(text: str) -> list[list[float]]:
    """The boxes in text that is numbers and brackets only."""
    numbers = [float(number) for number in NUMBER.findall(text)]
    if not numbers or len(numbers) % 4:
        raise ValueError(f"box {shown(text)} is not four numbers")
    return [numbers[start : start + 4] for start in range(0, len(numbers), 4)]


def _swift_objects(objects: Mapping[str, Any], shared: Mapping[str, Any]) -> list[Phrase]:
    """ms-swift's `objects`: one expression for each box."""
    names, boxes = objects.get("ref") or [], objects.get("bbox") or []
    if len(names) != len(boxes):
        raise ValueError(f"its objects have {len(names)} ref and {len(boxes)} bbox, expected one for each")
    if any(not isinstance(box, Sequence) or len(box) != 4 for box in boxes):
        raise ValueError(f"its objects have boxes that are not four numbers: {shown(boxes)}")
    return [Phrase(expression=name, boxes=[box], **shared) for name, box in zip(names, boxes, strict=True)]


def _text(content: Any) -> str:
    """The text of a turn, whose content may be a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(str(part["text"]) for part in content if isinstance(part, Mapping) and "text" in part)
    raise ValueError(f"a turn of it says {shown(content)}, expected text")


def _picture(record: Mapping[str, Any], turns: Sequence[Mapping[str, Any]]) -> Any:
    """The one picture of a conversation.

    Raises:
        ValueError: there is none, or there are several, of which boxes do not say which they mean.
    """
    named = record.get("images", record.get("image"))
    pictures = list(named) if isinstance(named, list) else [] if named is None else [named]
    for turn in turns:
        content = turn.get("content", turn.get("value"))
        for part in content if isinstance(content, list) else []:
            if isinstance(part, Mapping) and "image" in part:
                pictures.append(part["image"])
    if len(pictures) != 1:
        raise ValueError(f"it has {len(pictures)} images, expected one")
    picture = pictures[0]
    if isinstance(picture, Mapping) and picture.get("bytes") is None and "path" in picture:
        picture = picture["path"]
    return picture.removeprefix("file://") if isinstance(picture, str) else picture
