"""Text of strangers where it is shown: in a terminal, a spreadsheet or a card it is text and does nothing.

Names of files, expressions, columns and models come from whoever wrote them. Pages of HTML need no more than
`html.escape`.
"""

import re

# What moves a cursor, starts a terminal's commands, or turns the order of what follows: C0 but tab and line feed,
# delete, C1, line separators and embedded directions; and halves of characters, which cannot be written at all.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r]")


def printable(text: str) -> str:
    r"""Text with control characters written out, as in ``\u001b``, which is how JSON writes them too."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def table_cell(text: str) -> str:
    """A cell of a table for people: behind an apostrophe where a spreadsheet would compute it."""
    return f"'{text}" if _FORMULA.match(text) else text


def markdown_text(text: str) -> str:
    """Text in a paragraph or table of Markdown: no tags, links, code, cells or lines of its own."""
    one_line = " ".join(printable(text).split())
    escaped = re.sub(r"([\\`\[\]|])", r"\\\1", one_line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_code(text: str) -> str:
    """Text as a span of code in Markdown, in a table too."""
    one_line = " ".join(printable(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{one_line}`"
