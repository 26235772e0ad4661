"""What strangers wrote is shown and does nothing: terminals, spreadsheets, Markdown."""

import csv
import io

import pytest

from hivg_hf.utils.inert import markdown_code, markdown_text, printable, table_cell


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("the dog", "the dog"),
        ("le château\t«bleu»\nשלום 犬 👨‍👩‍👧", "le château\t«bleu»\nשלום 犬 👨‍👩‍👧"),
        ("\x1b[2J\x1b]0;title\x07", "\\u001b[2J\\u001b]0;title\\u0007"),
        ("\x9b31m red", "\\u009b31m red"),
        ("a\rb\x00c\x7f", "a\\u000db\\u0000c\\u007f"),
        ("invoice\u202egpj.exe", "invoice\\u202egpj.exe"),
        ("half \ud83d", "half \\ud83d"),
    ],
)
def test_terminal_controls_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", " =1", "\r=1", "＝1", '=HYPERLINK("http://x")'])
def test_formulas_stand_behind_an_apostrophe(text: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([table_cell(text)])
    assert next(csv.reader(io.StringIO(file.getvalue(), newline=""))) == ["'" + text]


@pytest.mark.parametrize("text", ["the dog", "a = b", "2-3 dogs", "x@y"])
def test_other_cells_stay_as_they_are(text: str) -> None:
    assert table_cell(text) == text


def test_markdown_has_no_lines_cells_tags_or_links_of_a_name() -> None:
    name = "a\n# b | <img src=x onerror=y> [c](javascript:d) `e` ![f](g)"
    text = markdown_text(name)
    assert "\n" not in text
    assert "<" not in text
    assert text == ("a # b \\| &lt;img src=x onerror=y&gt; \\[c\\](javascript:d) \\`e\\` !\\[f\\](g)")
    code = markdown_code(name)
    assert code.count("`") == 2
    assert code == "`a # b \\| <img src=x onerror=y> [c](javascript:d) 'e' ![f](g)`"
