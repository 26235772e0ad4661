"""A page to look through labels in a browser: pictures with their boxes, the weakest first, and a box to tick for each
expression that is wrong.

The pictures stay where they are and are shown by relative addresses, so that the page is small and opens from the
label folder. Its button saves `rejected.txt`; put into the label folder, the next run leaves those expressions out.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hivg_hf.utils.html_page import write_page

REJECTED_NAME = "rejected.txt"
MOST_PICTURES = 300
COLORS = ("#d73027", "#1a9850", "#4575b4", "#f09000", "#9040b0", "#008f8f")

_STYLE = """
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem;
  align-items: start; }
figure { margin: 0; border: 1px solid #8884; border-radius: 8px; padding: .6rem; }
.picture { position: relative; line-height: 0; }
.picture img { width: 100%; height: auto; }
.box { position: absolute; border: 3px solid; box-sizing: border-box; box-shadow: 0 0 0 1px #fff9; }
label { display: block; overflow-wrap: anywhere; }
label:has(:checked) { text-decoration: line-through; opacity: .6; }
small { opacity: .75; }
button { position: sticky; top: .5rem; z-index: 1; font: inherit; padding: .3rem .8rem;
  margin-bottom: 1rem; }"""
_TOP = """
<p>Tick what is wrong, save <code>rejected.txt</code> into the label folder, and run the same command again.</p>
<button id="save">Save rejected.txt</button>
<div class="grid">"""
_SCRIPT = """<script>
document.getElementById("save").addEventListener("click", () => {
  const ids = [...document.querySelectorAll("input:checked")].map((box) => box.value);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([ids.join("\\n") + "\\n"], {type: "text/plain"}));
  link.download = "rejected.txt";
  link.click();
});
</script>"""


def write_review_page(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Write the page: the pictures with the lowest scores, at most `MOST_PICTURES`.

    Args:
        rows: labels; `image` is relative to the page's folder, or absolute.
        path: the HTML file.
        title: plain text.
    """
    by_image: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_image.setdefault(row["image"], []).append(row)
    weakest = sorted(by_image, key=lambda image: min(row["score"] for row in by_image[image]))
    figures = "\n".join(_figure(image, by_image[image]) for image in weakest[:MOST_PICTURES])
    subtitle = f"{len(rows)} expressions in {len(by_image)} pictures, those with the lowest scores first"
    if len(by_image) > MOST_PICTURES:
        subtitle += f"; the first {MOST_PICTURES} are shown"
    body = "\n".join([f"<p>{html.escape(subtitle)}</p>", _TOP, figures, "</div>", _SCRIPT])
    write_page(path, title, body, _STYLE, width=84, stands_alone=False)


def read_rejected(folder: Path) -> set[str]:
    """The `sent_id`s in `rejected.txt` of a label folder; none without that file."""
    path = folder / REJECTED_NAME
    return set(path.read_text(encoding="utf-8").split("\n")) - {""} if path.is_file() else set()


def _figure(image: str, rows: Sequence[Mapping[str, Any]]) -> str:
    width, height = rows[0]["width"], rows[0]["height"]
    colors: dict[str, str] = {}
    boxes, lines = [], []
    for row in rows:
        if row["ref_id"] not in colors:
            colors[row["ref_id"]] = color = COLORS[len(colors) % len(COLORS)]
            x1, y1, x2, y2 = row["box"]
            place = (100 * x1 / width, 100 * y1 / height, 100 * (x2 - x1) / width, 100 * (y2 - y1) / height)
            style = "left:{:.2f}%;top:{:.2f}%;width:{:.2f}%;height:{:.2f}%".format(*place)
            boxes.append(f'<div class="box" style="{style};border-color:{color}"></div>')
        lines.append(
            f'<label><input type="checkbox" value="{html.escape(row["sent_id"])}"> '
            f'<span style="color:{colors[row["ref_id"]]}">&#9632;</span> {html.escape(row["expression"])} '
            f"<small>{row['score']:.2f}</small></label>"
        )
    address = Path(image).as_uri() if Path(image).is_absolute() else quote(image)
    picture = f'<img src="{html.escape(address)}" alt="" loading="lazy" width="{width}" height="{height}">'
    name = f"<small>{html.escape(image)}</small>"
    return f'<figure><div class="picture">{picture}{"".join(boxes)}</div>{name}{"".join(lines)}</figure>'
