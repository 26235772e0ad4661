"""Documents whose tables are written from results: each table stands between two comments of its name."""

from collections.abc import Mapping


def with_marked(text: str, tables: Mapping[str, str]) -> str:
    """A document with each table in the place of what stood between its two comments.

    Raises:
        ValueError: a pair of comments is missing.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        head, marked, rest = text.partition(begin)
        _, closed, tail = rest.partition(end)
        if not (marked and closed):
            raise ValueError(f"The document needs the lines {begin} and {end}, in this order.")
        text = f"{head}{begin}\n{table}\n{end}{tail}"
    return text
