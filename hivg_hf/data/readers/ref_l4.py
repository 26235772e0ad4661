"""Ref-L4: `ref-l4-val.parquet` and `ref-l4-test.parquet` with long captions; boxes xywh pixels; pictures in a tar.

Official reader: github.com/JierunChen/Ref-L4, ref_l4/dataloader.py. Its split `all` is val and test together. The tar
of pictures must be unpacked: reading one picture out of a gzip stream means reading all before it.
"""

from pathlib import Path
from typing import Any

from ..splits import resolve_split
from .common import Annotations, Draft, ImageFinder, file_stem, need_file, need_folder, xywh_to_xyxy

PARTS = {"val": ("val",), "test": ("test",), "all": ("val", "test")}


def read_ref_l4(split: str, *, source: str, root: Any = None, images: Any = None) -> Annotations:
    """Read one split of Ref-L4.

    Args:
        split: `val`, `test` or `all`.
        source: `ref-l4`.
        root: the folder with the Parquet files.
        images: the folder that `images.tar.gz` was unpacked to; defaults to `root`.
    """
    import datasets

    split = resolve_split(split, tuple(PARTS), source)
    root = need_folder(root, source)
    files = [str(need_file(Path(root) / f"ref-l4-{part}.parquet", source)) for part in PARTS[split]]
    table = datasets.concatenate_datasets([datasets.Dataset.from_parquet(file) for file in files])
    find = ImageFinder(images if images is not None else root)

    def read(record: int) -> Draft:
        row = table[record]
        return Draft(
            image=find(row["file_name"]),
            expression=row["caption"],
            boxes=[xywh_to_xyxy(row["bbox"])],
            width=row.get("width"),
            height=row.get("height"),
            category=row.get("ori_category_id"),
            image_id=file_stem(row["file_name"]),
            ref_id=str(row.get("bbox_id", row["id"])),
            sent_id=str(row["id"]),
        )

    return Annotations(source, split, range(len(table)), read, lambda record, _: f"id {table[record]['id']}")
