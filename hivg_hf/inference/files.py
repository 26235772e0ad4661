"""What `hivg ground` is asked: which images, which expressions, and where the answers go."""

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hivg_hf.utils.strict_mapping import parse_json

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
# Suffixes of pictures, films and documents that are not opened, but that no expression ends in either.
OTHER_SUFFIXES = {".heic", ".heif", ".jp2", ".jxl", ".svg", ".eps", ".ps", ".pdf", ".ico", ".tga", ".raw", ".dng"}
OTHER_SUFFIXES |= {".jfif", ".mp4", ".mov", ".avi", ".mkv", ".webm", ".json", ".jsonl", ".csv", ".txt", ".zip", ".tar"}
# Suffixes that annotated pictures keep; pictures in other formats become PNG files.
KEPT_SUFFIXES = {".jpg", ".jpeg", ".png"}


# Characters of a file name; file systems allow 255 bytes, and endings are added.
LONGEST_NAME = 100


@dataclass(frozen=True)
class Question:
    """One image and what is asked of it.

    Attributes:
        image: path or URL.
        expressions: at least one.
        name: relative path of its annotated picture in an output folder.
    """

    image: str
    expressions: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class Assignment:
    """What one call of `hivg ground` asks.

    Attributes:
        questions: one per image; None where they come as lines of standard input.
        expressions: what is asked of every image that does not bring its own.
        target: the picture's path when `single`, else the folder of the answers.
        single: whether it is one plain image.
    """

    questions: list[Question] | None
    expressions: list[str]
    target: Path
    single: bool


def read_assignment(arguments: Sequence[str], out: Path | None = None, recursive: bool = False) -> Assignment:
    """The words of `hivg ground`, checked.

    Args:
        arguments: images, then expressions; `-` as the image for lines of standard input.
        out: where the answers shall go; by default beside the caller, named for the image.
        recursive: whether folders are searched to their depth.

    Raises:
        FileNotFoundError: the image does not exist.
        ValueError: nothing is asked, or `out` cannot hold the answers.
    """
    images, expressions = split_images_and_expressions(arguments)
    if images == ["-"]:
        _check_folder(out)
        return Assignment(None, expressions, out or Path("grounded"), single=False)
    if not expressions and len(images) > 1 and not (_looks_like_path(images[0]) or os.path.exists(images[0])):
        raise ValueError(
            f"'{images[0]}' stands before the image: images come first, then expressions, as in: hivg ground "
            f"{images[1]} '{images[0]}'"
        )
    found, single = find_images(images, recursive)
    if not expressions:
        raise ValueError("Say what to find after the image, as in: hivg ground street.jpg 'the man in blue'")
    questions = [Question(image, tuple(expressions), name) for image, name in found]
    if single and not (out is not None and out.is_dir()):
        target = out or Path(f"{Path(found[0][0].partition('?')[0]).stem}.grounded.png")
        return Assignment(questions, expressions, target, single=True)
    _check_folder(out)
    target = out or Path("grounded")
    return Assignment(_without_earlier_pictures(questions, images, target), expressions, target, single=False)


def _check_folder(out: Path | None) -> None:
    if out is not None and out.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"The answers to several images need a folder, and --out '{out}' is the name of a picture.")


def _without_earlier_pictures(questions: list[Question], images: list[str], folder: Path) -> list[Question]:
    """Without what an earlier run drew into the output folder, where that stands in a folder that was searched."""
    folder = folder.resolve()
    if any(is_url(image) or Path(image).resolve().is_relative_to(folder) for image in images):
        return questions  # the images themselves lie in it, as with --out .
    return [question for question in questions if not Path(question.image).resolve().is_relative_to(folder)]


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def split_images_and_expressions(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The first argument is an image; so are those after it that are existing image files.

    A shell turns an unquoted `photos/*.jpg` into many arguments, of which only the first would be taken otherwise.

    Raises:
        FileNotFoundError: If a later argument is written as a file is, and there is none.
        ValueError: If a later argument is a folder, a URL, a pattern, another file, or an image behind an expression.
    """
    count = 1
    while count < len(arguments) and _is_image_file(arguments[count]):
        count += 1
    for argument in arguments[count:]:
        _refuse_path(argument)
    return list(arguments[:count]), list(arguments[count:])


def _refuse_path(argument: str) -> None:
    """An expression that names a place on disk or on the web is a mistake, which would be answered with a box."""
    if _is_image_file(argument):
        raise ValueError(f"The image '{argument}' stands behind an expression: images come first, then expressions.")
    if os.path.isdir(argument):
        advice = "give one folder, image or pattern, then the expressions"
        raise ValueError(f"'{argument}' is a folder, where an expression was expected: {advice} (as in 'the dog').")
    if os.path.exists(argument):
        raise ValueError(f"'{argument}' is a file that is not an image, where an expression was expected.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", argument):
        raise ValueError(f"'{argument}' is a URL, where an expression was expected: one URL per call, and first.")
    if not _looks_like_path(argument):
        return
    if glob.has_magic(argument):
        raise ValueError(f"'{argument}' is a pattern, where an expression was expected: put one pattern first.")
    raise FileNotFoundError(f"Image file not found: '{argument}', which does not read as an expression either.")


def _looks_like_path(argument: str) -> bool:
    if os.path.splitext(argument)[1].lower() in IMAGE_SUFFIXES | OTHER_SUFFIXES:
        return True
    if argument.startswith(("/", "./", "../", "~/", ".\\", "..\\")) or argument.endswith(("/", "\\")):
        return True
    # "black/white" may be said of a cat; photos/street is a place where there is a folder photos.
    folder = os.path.dirname(argument)
    return bool(folder) and not re.search(r"\s", argument) and os.path.isdir(folder)


def find_images(arguments: Iterable[str], recursive: bool = False) -> tuple[list[tuple[str, str]], bool]:
    """Files, folders, patterns and URLs -> (image, name for its picture) in order, and whether it is one plain image.

    Args:
        arguments: what was asked for; `**` in a pattern matches folders in folders.
        recursive: whether folders are searched to their depth.

    Raises:
        FileNotFoundError: a folder has no image, or a pattern matches none.
    """
    found: dict[str, str] = {}
    plain = True
    for argument in arguments:
        if is_url(argument):
            found[argument] = url_name(argument)
        elif os.path.isdir(argument):
            plain = False
            paths = _images_in(argument, recursive)
            if not paths:
                raise FileNotFoundError(f"No image in the folder '{argument}'.")
            found.update((path, os.path.relpath(path, argument)) for path in paths)
        elif glob.has_magic(argument) and not os.path.exists(argument):
            plain = False
            paths = sorted(path for path in glob.glob(argument, recursive=True) if _is_image_file(path))
            if not paths:
                raise FileNotFoundError(f"No image matches the pattern '{argument}'.")
            root = argument[: min(argument.find(sign) for sign in "*?[" if sign in argument)]
            found.update((path, os.path.relpath(path, os.path.dirname(root) or ".")) for path in paths)
        else:
            found[argument] = _safe_name(argument)  # whether it is there, and an image, shows when it is opened
    return list(found.items()), plain and len(found) == 1


def read_questions(lines: Iterable[str], expressions: Sequence[str]) -> Iterator[Question | ValueError]:
    """JSON Lines `{"image": ..., "expression" | "text" | "expressions": ...}` -> questions, read as they come.

    Args:
        lines: the lines; blank ones are skipped.
        expressions: what is asked of images whose line asks nothing.

    Yields:
        A question, or, for a line that cannot be used, the error that says why.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            texts = next((row[key] for key in ("expressions", "expression", "text") if key in row), list(expressions))
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(row["image"], str) or not texts or not all(isinstance(text, str) for text in texts):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError):
            yield ValueError(
                f"Line {number} must be like "
                '{"image": "street.jpg", "expressions": ["the man in blue"]}, got: ' + line.strip()[:80]
            )
            continue
        yield Question(row["image"], tuple(texts), _picture_name(row["image"]))


def picture_path(folder: Path, name: str, ending: str = "") -> Path:
    """Where the picture drawn for an image called `name` goes; `ending` tells several pictures of one image apart."""
    path = folder / name
    suffix = path.suffix if path.suffix.lower() in KEPT_SUFFIXES else path.suffix + ".png"
    if ending:
        suffix = f".{ending}{suffix}"
    return path.with_name(path.stem + suffix)


def _is_image_file(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES and os.path.isfile(path)


def _images_in(folder: str, recursive: bool) -> list[str]:
    if not recursive:
        return sorted(entry.path for entry in os.scandir(folder) if _is_image_file(entry.path))
    paths = (os.path.join(parent, file) for parent, _, files in os.walk(folder) for file in files)
    return sorted(path for path in paths if _is_image_file(path))


def _picture_name(image: str) -> str:
    if is_url(image):
        return url_name(image)
    if image[:5].lower() == "data:" or len(os.path.basename(image)) > LONGEST_NAME:  # a picture in base64
        return f"{_digest(image)}-image"
    return _safe_name(image)


def _safe_name(path: str) -> str:
    """A relative path that stays inside the output folder: other places are told apart by a hash of their path."""
    if not os.path.isabs(path) and ".." not in Path(path).parts:
        return os.path.normpath(path)
    return f"{_digest(os.path.dirname(os.path.abspath(path)))}-{os.path.basename(path)}"


def url_name(url: str) -> str:
    return f"{_digest(url)}-{PurePosixPath(url.partition('?')[0]).name or 'image'}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
