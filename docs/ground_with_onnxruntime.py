"""Ground an image with a folder that `hivg export` wrote, without torch, transformers or hivg_hf.

pip install onnxruntime pillow tokenizers
python ground_with_onnxruntime.py EXPORTED_FOLDER street.jpg "the man in blue" "the dog"
"""

import html
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

# Pillow's other formats may start programs (EPS) when a picture is opened.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF")


def open_picture(path):
    """Upright 8-bit RGB, transparency on white, as a viewer shows it."""
    image = ImageOps.exif_transpose(Image.open(path, formats=FORMATS))
    if image.mode.startswith(("I", "F")):
        sys.exit(f"{path} has {image.mode} samples, deeper than 8 bits: convert it first.")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def letterbox(image, settings):
    """Resize to a long side of `size`, normalize, pad with zeros; also returns where the image lies in the square."""
    size, patch = settings["size"], settings["patch_size"]
    ratio = size / max(image.size)
    width, height = (max(1, round(side * ratio)) for side in image.size)
    top, left = round((size - height) / 2 - 0.1), round((size - width) / 2 - 0.1)
    if settings["pad_align"] == "patch":
        top, left = top // patch * patch, left // patch * patch
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    pixels = (pixels - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
    square = np.zeros((3, size, size), dtype=np.float32)
    square[:, top : top + height, left : left + width] = pixels.transpose(2, 0, 1)
    mask = np.zeros((size, size), dtype=np.int64)
    mask[top : top + height, left : left + width] = 1
    return square, mask, (top, left, height, width)


def patches_with_image(mask, patch):
    """Numbers (P,) of the patches that hold at least one pixel of the image, row by row."""
    grid = len(mask) // patch
    return np.flatnonzero(mask.reshape(grid, patch, grid, patch).max((1, 3)))


def encode(tokenizer, expressions):
    """Resolve HTML entities (the tokenizer cleans the rest), pad to the longest: token ids and mask, each (B, T)."""
    rows = [
        encoding.ids for encoding in tokenizer.encode_batch([html.unescape(html.unescape(t)) for t in expressions])
    ]
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return ids, mask


def ground(folder, path, expressions):
    """Yields (expression, score or None, (left, top, right, bottom) in pixels of the image)."""
    settings = json.loads((folder / "onnx" / "grounding.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # their names in an expression are plain text
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings["max_text_length"])
    session = onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])

    image = open_picture(path)
    square, image_mask, (top, left, height, width) = letterbox(image, settings)
    ids, text_mask = encode(tokenizer, expressions)
    count = len(expressions)
    inputs = {
        "input_ids": ids,
        "attention_mask": text_mask,
        "pixel_values": square[None],
        "pixel_mask": image_mask[None],  # some models read where the image is as pixels, others as patches
        "patch_index": patches_with_image(image_mask, settings["patch_size"])[None],
        "image_index": np.zeros(count, dtype=np.int64),  # which image each expression is about
    }
    outputs = dict(zip(settings["outputs"], session.run(None, {name: inputs[name] for name in settings["inputs"]})))
    scores = outputs.get("scores", [None] * count)
    for expression, score, (cx, cy, w, h) in zip(expressions, scores, outputs["pred_boxes"] * settings["size"]):
        x = (np.array([cx - w / 2, cx + w / 2]) - left) * image.width / width
        y = (np.array([cy - h / 2, cy + h / 2]) - top) * image.height / height
        (x1, x2), (y1, y2) = x.clip(0, image.width), y.clip(0, image.height)
        yield expression, score, (float(x1), float(y1), float(x2), float(y2))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    for expression, score, box in ground(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]):
        print(
            f"{'--' if score is None else f'{score:.3f}'}  {' '.join(f'{value:.1f}' for value in box)}  {expression}"
        )
