"""Shared by the reader tests: rows without what a test is not about."""

import pytest


@pytest.fixture
def facts():
    """The columns of a dataset that a reader decides, image paths shortened to file names, masks to their areas."""

    def shorten(dataset):
        from pathlib import Path

        from hivg_hf.data.order import without_image_decoding
        from hivg_hf.data.schema import decode_mask

        rows = []
        for row in without_image_decoding(dataset):
            path = row["image"]["path"]
            row["image"] = Path(path).name if path else f"{len(row['image']['bytes'])} bytes"
            row["mask"] = None if row["mask"] is None else int(decode_mask(row["mask"]).sum())
            rows.append(row)
        return rows

    return shorten
