"""Pre-training on RefShapes, where there is no CLIP to start from: the towers learn to see and to name.

Grounding losses alone teach a new model nothing for a long time. Here CLIP's two towers, without bridges and fusion,
learn from what RefShapes knows about every object (rows with the column `objects`):

- per patch: is there an object, its colour, shape, size and filling, the box around it relative to the patch, and
  where that box lies in the square (the fusion encoder adds positions to queries and keys only, so that [REG] can
  read a place from nothing but the patch itself);
- regions: an object's patches match its description among all descriptions of the batch (as CLIP, but per object);
- images: CLIP's own contrastive loss between pictures and captions.

The heads are thrown away. What stays is a plain CLIP inside the HiVG model, under CLIP's own keys.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from hivg_hf.data.collator import open_row_image
from hivg_hf.data.refshapes_language import ATTRIBUTES
from hivg_hf.data.refshapes_scenes import COLORS, FILLINGS, SHAPES, SHIFTED_COLORS, SIZES
from hivg_hf.modeling.loss_hivg import contrastive_loss, hash_expressions, same_pairs
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding, key_padding_bias

CLASSES = {"size": SIZES, "filling": FILLINGS, "color": (*COLORS, *SHIFTED_COLORS), "shape": SHAPES}
LOSS_WEIGHTS = {
    "object": 1.0,
    "size": 0.5,
    "filling": 0.5,
    "color": 1.0,
    "shape": 1.0,
    "box": 5.0,
    "place": 5.0,
    "region": 0.5,
    "image": 0.25,
}
NO_CLASS = -100  # what cross-entropy leaves out
MIN_COVERED = 0.25  # share of a patch that a box must cover to be its object
CAPTION_STREAM = 3  # keeps the captions' random numbers apart from every other stream with the same seed


class PretrainingModel(nn.Module):
    """CLIP's towers inside a HiVG model, with heads that are used for pre-training only.

    Args:
        model: The HiVG model, kept as `.model`; only its `clip` learns, without the bridges.
        loss_weights: Weights that differ from `LOSS_WEIGHTS`.
    """

    def __init__(self, model: HiVGForVisualGrounding, loss_weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        unknown = set(loss_weights or {}) - set(LOSS_WEIGHTS)
        if unknown:
            raise ValueError(f"unknown pre-training losses {sorted(unknown)}; expected some of {list(LOSS_WEIGHTS)}.")
        self.model, self.config = model, model.config
        self.loss_weights = {**LOSS_WEIGHTS, **(loss_weights or {})}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("clip.") and ".bridge." not in name)
        width = self.config.clip_config.vision_config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in CLASSES.items()})
        self.heads["object"] = nn.Linear(width, 1)
        self.heads["box"] = nn.Linear(width, 4)
        self.heads["place"] = nn.Linear(width, 4)

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor,
        patch_classes: torch.Tensor,
        patch_boxes: torch.Tensor,
        region: torch.Tensor,
        phrase_ids: torch.Tensor,
        phrase_mask: torch.Tensor,
        caption_ids: torch.Tensor,
        caption_mask: torch.Tensor,
        patch_index: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """The loss of one batch.

        Args:
            pixel_values: (B, 3, S, S).
            pixel_mask: (B, S, S).
            patch_classes: (B, N, 4) class of each patch's object by `ATTRIBUTES`, `NO_CLASS` without one.
            patch_boxes: (B, N, 4) offset of its box's centre from the patch's centre, width and height, in patches.
            region: (B, N) bool, patches of the object that the phrase describes.
            phrase_ids, phrase_mask: (B, T) description of that object.
            caption_ids, caption_mask: (B, T') description of the picture.
            patch_index: (B, P) patches to compute, -1 = none.

        Returns:
            `loss`, and `loss_dict` with the unweighted terms.
        """
        patches, pooled, there = self._see(pixel_values, pixel_mask, patch_index)
        if patch_index is not None:
            place = patch_index.clamp(min=0)
            patch_classes, patch_boxes = (
                values.gather(1, place[:, :, None].expand(-1, -1, values.shape[-1]))
                for values in (patch_classes, patch_boxes)
            )  # (B, P, 4)
            region = region.gather(1, place)  # (B, P)
        terms = self._patch_terms(patches, patch_classes, patch_boxes, there, self._centers(patches, patch_index))
        clip, scale = self.model.clip, self.model.clip.logit_scale.exp()

        phrases = F.normalize(self._read(phrase_ids, phrase_mask), dim=-1)  # (B, H)
        inside = (region & there).to(patches.dtype)[:, :, None]  # (B, P, 1)
        mean = (clip.vision_model.post_layernorm(patches) * inside).sum(1) / inside.sum(1).clamp(min=1)  # (B, V)
        regions = F.normalize(clip.visual_projection(mean), dim=-1)  # (B, H)
        same = same_pairs(None, hash_expressions(phrase_ids, phrase_mask))
        terms["region"] = contrastive_loss(scale * phrases @ regions.t(), inside.sum((1, 2)) > 0, same)

        captions = F.normalize(self._read(caption_ids, caption_mask), dim=-1)  # (B, H)
        images = F.normalize(clip.visual_projection(pooled), dim=-1)  # (B, H)
        same = same_pairs(None, hash_expressions(caption_ids, caption_mask))
        terms["image"] = contrastive_loss(scale * captions @ images.t(), None, same)
        return {"loss": sum(self.loss_weights[name] * term for name, term in terms.items()), "loss_dict": terms}

    def _see(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor, patch_index: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run the vision tower as plain CLIP, past the bridges: patches (B, P, V), pooled (B, V), there (B, P)."""
        tower = self.model.clip.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values, patch_index))  # (B, 1 + P, V)
        if patch_index is not None:
            there = patch_index >= 0
        else:
            size = self.config.clip_config.vision_config.patch_size
            there = F.max_pool2d(pixel_mask[:, None].float(), size).flatten(1) > 0  # (B, N)
        bias = key_padding_bias(F.pad(there, (1, 0), value=True), hidden.dtype)
        for layer in tower.encoder.layers:
            hidden = CLIPEncoderLayer.forward(layer, hidden, bias)
        return hidden[:, 1:], tower.post_layernorm(hidden[:, 0]), there

    def _read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, H), the projected end token."""
        states = self.model.clip.text_model(
            input_ids
        ).last_hidden_state  # causal: padding after the end changes nothing
        end = attention_mask.sum(-1) - 1
        return self.model.clip.text_projection(states[torch.arange(len(end), device=end.device), end])

    def _centers(self, patches: torch.Tensor, patch_index: torch.Tensor | None) -> torch.Tensor:
        """(B, P, 4): centre of each patch as (x, y, 0, 0), in patches."""
        if patch_index is None:
            patch_index = torch.arange(patches.shape[1], device=patches.device).expand(patches.shape[:2])
        grid = self.config.grid_size
        x, y = patch_index % grid + 0.5, patch_index.div(grid, rounding_mode="floor") + 0.5
        return F.pad(torch.stack([x, y], dim=-1), (0, 2))  # (B, P, 2) -> (B, P, 4)

    def _patch_terms(
        self,
        patches: torch.Tensor,
        classes: torch.Tensor,
        boxes: torch.Tensor,
        there: torch.Tensor,
        centers: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Means over the patches that are there, and over those with an object."""
        object_there = (classes[:, :, 0] != NO_CLASS) & there  # (B, P)
        logits = self.heads["object"](patches)[:, :, 0]
        terms = {"object": F.binary_cross_entropy_with_logits(logits[there], object_there[there].to(logits.dtype))}
        found = patches[object_there]  # (patches with an object, V)
        for number, name in enumerate(ATTRIBUTES):
            # reduction sum over a clamped count: 0, not NaN, where no patch has an object
            loss = F.cross_entropy(self.heads[name](found), classes[object_there][:, number], reduction="sum")
            terms[name] = loss / max(len(found), 1)
        offsets = boxes[object_there]  # (patches with an object, 4)
        for name, targets in (("box", offsets), ("place", offsets + centers[object_there])):
            distance = (self.heads[name](found) - targets).abs().sum(-1)
            terms[name] = distance.sum() / max(len(found), 1) / self.config.grid_size
        return terms


class PretrainingCollator:
    """Rows with the column `objects` -> a batch for `PretrainingModel`.

    Which object is described and the order of the caption depend on (seed, epoch, row index) alone.

    Args:
        processor: The `HiVGProcessor` of the model.
        seed: Seed of those choices.
        options: Of `PretrainingModel`; not read here.

    Raises:
        ValueError: A row has no objects.
    """

    def __init__(self, processor: Any, seed: int = 0, **options: Any) -> None:
        self.processor, self.seed = processor, seed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        image_processor = self.processor.image_processor
        squares, targets, phrases, captions = [], [], [], []
        for row in rows:
            if not row.get("objects"):
                raise ValueError("pre-training needs rows with objects: load refshapes with objects=True.")
            image = open_row_image(row)
            height, width, top, left = image_processor.geometry(image.height, image.width)
            squares.append(image_processor.place(image_processor.resize_image(image), top, left))
            ratio = (width / image.width, height / image.height)
            rng = np.random.default_rng([self.seed, row.get("epoch", 0), row.get("row_index", 0), CAPTION_STREAM])
            order = rng.permutation(len(row["objects"]))
            objects = [row["objects"][index] for index in order]
            boxes = np.array([item["box"] for item in objects]) * (ratio * 2) + (left, top, left, top)
            targets.append(self._targets(objects, boxes))
            phrases.append(_describe(objects[0]))
            captions.append(" and ".join(f"a {item['color']} {item['shape']}" for item in objects))
        batch = {name: torch.as_tensor(np.stack([square[name] for square in squares])) for name in squares[0]}
        if image_processor.skip_padded_patches:
            batch["patch_index"] = torch.as_tensor(image_processor.patch_index_for(batch["pixel_mask"]))
        for name, values in zip(("patch_classes", "patch_boxes", "region"), zip(*targets, strict=True), strict=True):
            batch[name] = torch.from_numpy(np.stack(values))
        for name, texts in (("phrase", phrases), ("caption", captions)):
            tokens = self.processor(text=texts, return_tensors="pt")
            batch |= {f"{name}_ids": tokens["input_ids"], f"{name}_mask": tokens["attention_mask"]}
        return batch

    def _targets(
        self, objects: Sequence[Mapping[str, Any]], boxes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per patch the object whose box covers most of it: classes (N, 4), boxes (N, 4), region (N,) of object 0.

        Args:
            objects: Attributes of the O objects.
            boxes: (O, 4) xyxy pixels of the square.
        """
        patch = self.processor.image_processor.patch_size
        grid = self.processor.image_processor.size["height"] // patch
        edges = np.arange(grid)
        boxes = boxes / patch  # in patches
        along_x, along_y = (
            np.clip(np.minimum(edges + 1, boxes[:, hi, None]) - np.maximum(edges, boxes[:, lo, None]), 0, 1)
            for lo, hi in ((0, 2), (1, 3))
        )  # (O, G) each
        covered = (along_y[:, :, None] * along_x[:, None, :]).reshape(len(boxes), -1)  # (O, N)
        owner = covered.argmax(axis=0)  # (N,)
        has_object = covered.max(axis=0) >= MIN_COVERED
        numbers = np.array([[CLASSES[name].index(item[name]) for name in ATTRIBUTES] for item in objects])
        classes = np.where(has_object[:, None], numbers[owner], NO_CLASS)
        centers = np.stack([np.tile(edges + 0.5, grid), np.repeat(edges + 0.5, grid)], axis=1)  # (N, 2) x, y
        middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        offsets = np.concatenate([middle[owner] - centers, size[owner]], axis=1).astype(np.float32)
        return classes, offsets, has_object & (owner == 0)


def plain_clip(model: HiVGForVisualGrounding) -> CLIPModel:
    """The pre-trained CLIP inside a HiVG model as a `CLIPModel` of its own, to be saved or used anywhere."""
    clip = CLIPModel(model.config.clip_config)
    clip.load_state_dict({name: value for name, value in model.clip.state_dict().items() if ".bridge." not in name})
    return clip


def _describe(item: Mapping[str, Any]) -> str:
    return " ".join(item[name] for name in ATTRIBUTES)
