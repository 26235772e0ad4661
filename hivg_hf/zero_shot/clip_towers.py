"""A plain CLIP with what it needs to read pictures of any shape and expressions: the base of every zero-shot method.

Pictures are letterboxed as HiVG's are (their shape is kept, the padding starts at a patch border) and padded patches
are masked, so that no patch ever reads the padding. Of a square picture nothing is padded, and every feature is
CLIP's own.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel

from hivg_hf.modeling.image_processing_hivg import HiVGImageProcessor
from hivg_hf.modeling.processing_hivg import ExpressionCutWarning

from .dense_map import changed_blocks, dense_states, image_states, padding_bias
from .detector import best_device

DEFAULT_TEMPLATES = ("a photo of {}.",)
# What a picture holds beside the object; its mean is subtracted, as CLIP is about as fond of some patches whatever is
# asked (CLIP Surgery, Li et al., 2023, subtracts the mean over many labels for the same reason).
BACKGROUND_PROMPTS = ("", "a photo", "background", "the ground", "the sky", "a wall", "something")
MOST_KEPT_DIRECTIONS = 10_000


class Squares(NamedTuple):
    """Pictures as the tower takes them."""

    pixel_values: torch.Tensor  # (B, 3, S, S)
    patch_mask: torch.Tensor  # (B, N) bool, True where a patch holds a pixel of the picture


class ZeroShotClip:
    """A CLIP for zero-shot grounding.

    Args:
        clip: any `CLIPModel`; put into eval mode.
        tokenizer: its tokenizer.
        image_processor: a CLIP image processor, for mean and standard deviation; CLIP's own by default.
        resolution: side of the square that pictures are scaled to, a multiple of the patch size. Larger than CLIP's
            own (the default) gives a finer map, with interpolated positions.
        templates: prompts with `{}` in place of the expression; their mean is the text's direction.
        background: prompts whose mean is subtracted; none turns that off.
        attention, layers, iterations: how the dense map attends, see `dense_map.dense_states`.

    Raises:
        ValueError: a template has no `{}`, the resolution is not a multiple of the patch size, or the attention is
            unknown.
    """

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: Any,
        image_processor: Any = None,
        resolution: int | None = None,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        background: Sequence[str] = BACKGROUND_PROMPTS,
        attention: str = "self-self",
        layers: int | None = None,
        iterations: int = 1,
    ) -> None:
        lost = [template for template in templates if "{}" not in template]
        if lost or not templates:
            raise ValueError(f"Expected templates with {{}} in place of the expression, got {list(templates)}.")
        changed_blocks(clip.config.vision_config.num_hidden_layers, attention, layers)
        self.clip, self.tokenizer = clip.eval(), tokenizer
        vision = clip.config.vision_config
        self.image_processor = HiVGImageProcessor(
            size=resolution or vision.image_size,
            patch_size=vision.patch_size,
            image_mean=getattr(image_processor, "image_mean", None) or HiVGImageProcessor.image_mean,
            image_std=getattr(image_processor, "image_std", None) or HiVGImageProcessor.image_std,
            resample=PIL.Image.Resampling.BICUBIC,
            skip_padded_patches=False,
        )
        self.templates, self.background = tuple(templates), tuple(background)
        self.dense_options: dict[str, Any] = {"attention": attention, "layers": layers, "iterations": iterations}
        self._directions: dict[str, torch.Tensor] = {}

    @classmethod
    def from_pretrained(
        cls, model: str, device: str | None = None, dtype: torch.dtype = torch.float32, **options: Any
    ) -> "ZeroShotClip":
        """Open a CLIP of transformers by folder or Hub id; `options` are the constructor's.

        Raises:
            ValueError: it is another kind of model.
        """
        config = AutoConfig.from_pretrained(model)
        if config.model_type != "clip":
            raise ValueError(
                f"'{model}' is a {config.model_type} model; zero-shot grounding needs a plain CLIP, for example "
                "openai/clip-vit-base-patch16."
            )
        clip = CLIPModel.from_pretrained(model, dtype=dtype).to(device or best_device())
        try:
            image_processor = AutoImageProcessor.from_pretrained(model)
        except (OSError, ValueError):  # a folder without preprocessor_config.json: CLIP's own constants
            image_processor = None
        return cls(clip, AutoTokenizer.from_pretrained(model), image_processor, **options)

    @property
    def device(self) -> torch.device:
        return self.clip.device

    @property
    def grid(self) -> int:
        """Patches per side of the square."""
        return self.image_processor.side // self.image_processor.patch_size

    @property
    def logit_scale(self) -> float:
        return float(self.clip.logit_scale.detach().exp())

    def squares(self, pictures: Sequence[PIL.Image.Image]) -> Squares:
        """RGB pictures -> letterboxed tensors."""
        features = self.image_processor(list(pictures), return_tensors="pt")
        pixel_mask = features["pixel_mask"][:, None].float()  # (B, 1, S, S)
        patch_mask = F.max_pool2d(pixel_mask, self.image_processor.patch_size).flatten(1) > 0  # (B, N)
        return Squares(features["pixel_values"].to(self.device, self.clip.dtype), patch_mask.to(self.device))

    @torch.no_grad()
    def patches(self, squares: Squares) -> torch.Tensor:
        """(B, N, P) normalized dense features in the space of the text."""
        tower = self.clip.vision_model
        hidden = self.embed(squares)
        states = dense_states(self.clip, hidden, self.bias(squares, hidden), **self.dense_options)
        return F.normalize(self.clip.visual_projection(tower.post_layernorm(states[:, 1:])), dim=-1)

    @torch.no_grad()
    def pooled(self, squares: Squares) -> torch.Tensor:
        """(B, P) normalized features of whole pictures."""
        hidden = self.embed(squares)
        return self.project(image_states(self.clip, hidden, self.bias(squares, hidden))[:, 0])

    def embed(self, squares: Squares) -> torch.Tensor:
        """(B, 1 + N, V) hidden states before the first layer."""
        tower = self.clip.vision_model
        resized = self.image_processor.side != self.clip.config.vision_config.image_size
        return tower.pre_layrnorm(tower.embeddings(squares.pixel_values, interpolate_pos_encoding=resized))

    def bias(self, squares: Squares, hidden: torch.Tensor) -> torch.Tensor | None:
        return padding_bias(squares.patch_mask, hidden.dtype)

    def project(self, class_states: torch.Tensor) -> torch.Tensor:
        """(..., V) states of [CLS] after the last layer -> (..., P), normalized."""
        return F.normalize(self.clip.visual_projection(self.clip.vision_model.post_layernorm(class_states)), dim=-1)

    def directions(self, expressions: Sequence[str]) -> torch.Tensor:
        """(E, P): each expression's mean text feature minus the mean of the background prompts.

        Its product with a normalized image feature is the cosine with the expression minus the mean cosine with the
        background. Kept, as expressions and nouns repeat over pictures.

        Raises:
            ValueError: an expression is blank.
        """
        blank = [text for text in expressions if not text.strip()]
        if blank:
            raise ValueError(f"Expected an expression that names an object, got {blank[0]!r}.")
        if len(self._directions) > MOST_KEPT_DIRECTIONS:
            self._directions.clear()
        new = [text for text in dict.fromkeys(expressions) if text not in self._directions]
        if new:
            prompts = [template.format(text) for text in new for template in self.templates]
            texts = self.texts(prompts).view(len(new), len(self.templates), -1)  # (E, templates, P)
            directions = F.normalize(texts.mean(1), dim=-1)
            if self.background:
                directions = directions - self.texts(self.background).mean(0)
            self._directions.update(zip(new, directions, strict=True))
        return torch.stack([self._directions[text] for text in expressions])

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """(E, P) normalized text features; the end token is found by the mask, not by an id of the config."""
        longest = self.clip.config.text_config.max_position_embeddings
        options = {"padding": True, "padding_side": "right", "truncation": True, "max_length": longest}
        tokens = self.tokenizer(list(prompts), return_tensors="pt", **options).to(self.device)
        self._warn_of_cut(prompts, longest)
        states = self.clip.text_model(**{key: tokens[key] for key in ("input_ids", "attention_mask")})
        end = tokens["attention_mask"].sum(-1) - 1  # (E,)
        pooled = states.last_hidden_state[torch.arange(len(end), device=end.device), end]  # (E, T, D) -> (E, D)
        return F.normalize(self.clip.text_projection(pooled), dim=-1)

    def _warn_of_cut(self, prompts: Sequence[str], longest: int) -> None:
        for prompt in prompts:
            # A token covers at least one character: most prompts need no second look.
            if len(prompt) > longest - 2 and (length := len(self.tokenizer(prompt)["input_ids"])) > longest:
                message = f"CLIP reads {longest} tokens; of the {length} of {prompt[:60]!r}... the rest was cut off."
                warnings.warn(message, ExpressionCutWarning, stacklevel=4)


def square_boxes(boxes_xyxy: Any, image_processor: HiVGImageProcessor, size: tuple[int, int]) -> np.ndarray:
    """(K, 4) xyxy pixels of a picture of `size` (height, width) -> xyxy in 0..1 of the square."""
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    cxcywh = image_processor.boxes_to_square(boxes, [size] * len(boxes)).numpy()
    return np.concatenate([cxcywh[:, :2] - cxcywh[:, 2:] / 2, cxcywh[:, :2] + cxcywh[:, 2:] / 2], axis=1)
