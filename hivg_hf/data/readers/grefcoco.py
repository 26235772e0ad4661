"""gRefCOCO: REFER's layout where one expression may name several objects, or none.

`ann_id` and `category_id` of a ref are lists; `ann_id == [-1]` says that the expression names nothing in the picture.
"""

import json
from typing import Any

from hivg_hf.utils.safe_pickle import load_pickle

from ..splits import resolve_split
from .common import Annotations, Draft, ImageFinder, need_file, need_folder
from .refer import Instances

SPLITS = ("train", "val", "testA", "testB")
NOTHING = -1


def read_grefcoco(split: str, *, source: str, root: Any = None, images: Any = None, masks: bool = True) -> Annotations:
    """Read one split of gRefCOCO.

    Args:
        split: `train`, `val`, `testA` or `testB`.
        source: `grefcoco`.
        root: the folder with `grefs(unc).json` (or `.p`) and `instances.json`, or one above it.
        images: folder or folders of COCO's train2014 pictures; defaults to `root`.
        masks: whether to draw the polygons into run-length masks.
    """
    split = resolve_split(split, SPLITS, source, {"test": "testA"})
    root = need_folder(root, source)
    folder = root / "grefcoco" if (root / "grefcoco").is_dir() else root
    pickled = folder / "grefs(unc).p"
    if pickled.is_file():
        refs = load_pickle(pickled)
    else:
        refs = json.loads(need_file(folder / "grefs(unc).json", source).read_text(encoding="utf-8"))
    instances = Instances.load(need_file(folder / "instances.json", source))
    find = ImageFinder(images if images is not None else root)
    records = [(ref, sentence) for ref in refs if ref["split"] == split for sentence in ref["sentences"]]

    def read(record: tuple[dict[str, Any], dict[str, Any]]) -> Draft:
        ref, sentence = record
        ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
        nothing = ids == [NOTHING]
        if not ids:
            raise ValueError(f"its ann_id is empty, expected ids of annotations, or [{NOTHING}] for no target")
        annotations = [] if nothing else [instances.annotation(number) for number in ids]
        return instances.draft(ref, annotations, sentence, find, masks, no_target=nothing)

    return Annotations(source, split, records, read, _name_record)


def _name_record(record: tuple[dict[str, Any], dict[str, Any]], position: int) -> str:
    return f"ref_id {record[0].get('ref_id')}, sent_id {record[1].get('sent_id')}"
