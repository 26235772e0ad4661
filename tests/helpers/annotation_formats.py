"""The same rows in every format that is read: fixtures made from the formats' public descriptions.

A row is `{"image", "expression", "box" (xyxy pixels), "width", "height"}`; a writer puts rows of that kind into a file
or folder that the reader of its format opens, and returns the arguments of `load_grounding_dataset`.
"""

import csv
import json
import shutil
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import pyarrow as pa
import pyarrow.parquet


def _xywh(row):
    x1, y1, x2, y2 = row["box"]
    return [x1, y1, x2 - x1, y2 - y1]


def _shares(row, full):
    return [edge * full / side for edge, side in zip(row["box"], (row["width"], row["height"]) * 2, strict=True)]


def _lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"source": str(path)}


def csv_table(folder, rows):
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "Caption", "xmin", "ymin", "xmax", "ymax"])
        writer.writerows([row["image"], row["expression"], *row["box"]] for row in rows)
    return {"source": str(folder / "rows.csv"), "box_format": "xyxy"}


def json_table(folder, rows):
    records = [{"image": row["image"], "text": row["expression"], "bbox": _shares(row, 1000)} for row in rows]
    (folder / "rows.json").write_text(json.dumps(records))
    return {"source": str(folder / "rows.json"), "box_format": "xyxy_1000"}


def coco(folder, rows):
    images = [
        {"id": n, "file_name": row["image"], "width": row["width"], "height": row["height"]}
        for n, row in enumerate(rows)
    ]
    notes = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": _xywh(row), "caption": row["expression"]}
        for n, row in enumerate(rows)
    ]
    content = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "object"}]}
    (folder / "rows.json").write_text(json.dumps(content))
    return {"source": str(folder / "rows.json")}


def coco_categories(folder, rows):
    """Plain detection: the class names are the expressions."""
    content = json.loads(Path(coco(folder, rows)["source"]).read_text())
    content["categories"] = [{"id": n, "name": row["expression"]} for n, row in enumerate(rows)]
    for number, note in enumerate(content["annotations"]):
        del note["caption"]
        note["category_id"] = number
    (folder / "rows.json").write_text(json.dumps(content))
    return {"source": str(folder / "rows.json"), "expressions": "category"}


def odvg(folder, rows, name="filename"):
    return _lines(
        folder / "rows.jsonl",
        [
            {
                name: row["image"],
                "width": row["width"],
                "height": row["height"],
                "grounding": {
                    "caption": row["expression"],
                    "regions": [{"bbox": row["box"], "phrase": row["expression"], "tokens_positive": [[0, 3]]}],
                },
            }
            for row in rows
        ],
    )


def tao(folder, rows):
    """NVIDIA TAO's ODVG: `file_name`, and detection instances with a category."""
    return _lines(
        folder / "annotations.jsonl",
        [
            {
                "file_name": row["image"],
                "width": row["width"],
                "height": row["height"],
                "detection": {"instances": [{"bbox": row["box"], "label": 0, "category": row["expression"]}]},
            }
            for row in rows
        ],
    )


def grit(folder, rows):
    """Pictures are named by their keys, as img2dataset stores them: copies are made."""
    records = []
    for number, row in enumerate(rows):
        key = f"{number:09d}"
        if (folder / row["image"]).is_file():
            (folder / key[:5]).mkdir(exist_ok=True)
            shutil.copy(folder / row["image"], folder / key[:5] / f"{key}.jpg")
        caption = f"Look: {row['expression']}."
        entry = [6.0, 6.0 + len(row["expression"]), *_shares(row, 1), 0.9]
        records.append({"key": key, "caption": caption, "ref_exps": [entry], "noun_chunks": [entry], "width": 9999})
    pyarrow.parquet.write_table(pa.Table.from_pylist(records), folder / "rows.parquet")
    return {"source": str(folder / "rows.parquet")}


def chat_messages(folder, rows):
    """Qwen3-VL: 0..1000, answers in JSON."""
    return {
        **_lines(
            folder / "rows.jsonl",
            [
                {
                    "messages": [
                        {"role": "user", "content": f"<image>Locate {row['expression']}."},
                        {
                            "role": "assistant",
                            "content": "```json\n"
                            + json.dumps([{"bbox_2d": _shares(row, 1000), "label": row["expression"]}])
                            + "\n```",
                        },
                    ],
                    "images": [row["image"]],
                }
                for row in rows
            ],
        ),
        "box_format": "xyxy_1000",
    }


def chat_conversations(folder, rows):
    """LLaVA's turns with Qwen2-VL's tokens, one JSON array; the expression stands in the question."""
    records = [
        {
            "image": row["image"],
            "conversations": [
                {"from": "human", "value": f"<image>\nWhere is {row['expression']}?"},
                {
                    "from": "gpt",
                    "value": "<|box_start|>({},{}),({},{})<|box_end|>".format(*row["box"]),
                },
            ],
        }
        for row in rows
    ]
    (folder / "rows.json").write_text(json.dumps(records))
    return {"source": str(folder / "rows.json"), "box_format": "xyxy", "prompt": "Where is {expression}?"}


def chat_objects(folder, rows):
    """ms-swift: boxes beside the messages."""
    records = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": row["image"]}, {"type": "text", "text": "?"}]},
                {"role": "assistant", "content": "<ref-object><bbox>"},
            ],
            "objects": {"ref": [row["expression"]], "bbox": [row["box"]]},
        }
        for row in rows
    ]
    return {**_lines(folder / "rows.jsonl", records), "box_format": "xyxy"}


def label_studio(folder, rows):
    tasks = []
    for number, row in enumerate(rows):
        x, y, width, height = _xywh({**row, "box": _shares(row, 100)})
        shared = {"original_width": row["width"], "original_height": row["height"], "image_rotation": 0, "id": "r1"}
        value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
        result = [
            {**shared, "type": "rectanglelabels", "value": {**value, "rectanglelabels": ["thing"]}},
            {**shared, "type": "textarea", "value": {**value, "text": [row["expression"]]}},
        ]
        image = f"/data/upload/1/1a2b3c4d-{row['image']}" if row["image"] else ""
        tasks.append({"id": number + 1, "data": {"image": image}, "annotations": [{"result": result}]})
    (folder / "rows.json").write_text(json.dumps(tasks))
    return {"source": str(folder / "rows.json")}


def cvat(folder, rows):
    images = [
        f'<image id="{n}" name={quoteattr(str(row["image"]))} width="{row["width"]}" height="{row["height"]}">'
        + '<box label="thing" occluded="0" '
        + " ".join(f'{k}="{edge}"' for k, edge in zip(("xtl", "ytl", "xbr", "ybr"), row["box"], strict=True))
        + f'><attribute name="expression">{escape(str(row["expression"]))}</attribute></box></image>'
        for n, row in enumerate(rows)
    ]
    head = '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>'
    (folder / "annotations.xml").write_text(head + "".join(images) + "</annotations>", encoding="utf-8")
    return {"source": str(folder / "annotations.xml")}


def _voc_file(row, described):
    corners = "".join(
        f"<{k}>{edge}</{k}>" for k, edge in zip(("xmin", "ymin", "xmax", "ymax"), row["box"], strict=True)
    )
    words = escape(str(row["expression"]))
    name = "thing" if described else words
    text = f"<description>{words}</description>" if described else ""
    return (
        f"<annotation><filename>{escape(str(row['image']))}</filename><size><width>{row['width']}</width>"
        f"<height>{row['height']}</height><depth>3</depth></size>"
        f"<object><name>{name}</name><pose>x</pose><bndbox>{corners}</bndbox>{text}</object></annotation>"
    )


def voc(folder, rows):
    (folder / "Annotations").mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        (folder / "Annotations" / f"{number:04d}.xml").write_text(_voc_file(row, False), encoding="utf-8")
    return {"source": str(folder)}


def dior_rsvg(folder, rows):
    (folder / "Annotations").mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        (folder / "Annotations" / f"{number:04d}.xml").write_text(_voc_file(row, True), encoding="utf-8")
    (folder / "train.txt").write_text("".join(f"{number}\n" for number in range(len(rows))))
    return {"source": str(folder), "split": "train"}


def yolo(folder, rows):
    """Each picture in `images`, its boxes in `labels`; every expression is a class."""
    (folder / "images").mkdir(exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    lines = {}
    for number, row in enumerate(rows):
        if (folder / row["image"]).is_file():
            shutil.copy(folder / row["image"], folder / "images" / row["image"])
        x1, y1, x2, y2 = _shares(row, 1)
        line = f"{number} {(x1 + x2) / 2!r} {(y1 + y2) / 2!r} {x2 - x1!r} {y2 - y1!r}\n"
        lines[row["image"]] = lines.get(row["image"], "") + line
    for image, text in lines.items():
        (folder / "labels" / f"{Path(image).stem}.txt").write_text(text)
    names = {number: row["expression"] for number, row in enumerate(rows)}
    (folder / "data.yaml").write_text(json.dumps({"names": names}))  # JSON is YAML
    return {"source": str(folder)}


def roboflow_csv(folder, rows):
    (folder / "train").mkdir(exist_ok=True)
    with (folder / "train" / "_annotations.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
        for row in rows:
            if (folder / row["image"]).is_file():
                shutil.copy(folder / row["image"], folder / "train" / row["image"])
            writer.writerow([row["image"], row["width"], row["height"], row["expression"], *row["box"]])
    return {"source": str(folder), "split": "train"}


WRITERS = {
    "csv": csv_table,
    "json": json_table,
    "coco": coco,
    "coco-categories": coco_categories,
    "odvg": odvg,
    "tao": tao,
    "grit": grit,
    "chat-messages": chat_messages,
    "chat-conversations": chat_conversations,
    "chat-objects": chat_objects,
    "label-studio": label_studio,
    "cvat": cvat,
    "voc": voc,
    "dior-rsvg": dior_rsvg,
    "yolo": yolo,
    "roboflow-csv": roboflow_csv,
}
