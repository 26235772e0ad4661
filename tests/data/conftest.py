"""Fixtures of the data tests: small pictures, rows of the schema, a processor that needs no model."""

import pytest


@pytest.fixture
def make_row():
    """A row of the schema with sensible columns; keyword arguments replace them."""

    def make(**columns):
        box = columns.get("box", [10.0, 12.0, 30.0, 40.0])
        row = {
            "image": None,
            "expression": "the red star",
            "box": box,
            "boxes": [] if box is None else [box],
            "no_target": box is None,
            "mask": None,
            "width": 64,
            "height": 48,
            "category": None,
            "image_id": "image 1",
            "ref_id": "7",
            "sent_id": "9",
            "source": "test",
            "split": "train",
        }
        return {**row, **columns}

    return make


@pytest.fixture(params=["patch", "pixel"])
def processor(request, tiny_tokenizer):
    """A processor with square 64 and patch 8, for both paddings."""
    from hivg_hf.modeling.image_processing_hivg import HiVGImageProcessor
    from hivg_hf.modeling.processing_hivg import HiVGProcessor

    image_processor = HiVGImageProcessor(size={"height": 64, "width": 64}, patch_size=8, pad_align=request.param)
    return HiVGProcessor(image_processor, tiny_tokenizer)
