"""Everything that shapes the computation of a HiVG model, in one config that checks itself.

Defaults are what a new model should use. Where the authors' weights need something else, the field says so, and
`HiVGConfig.preset("base-unc")` or `HiVGConfig.from_official_args(args)` sets it. Paper: HiVG, ACM MM 2024,
arXiv 2404.13400. `Official:` names a file and line of the authors' code (commit 51f9233).
"""

import copy
import difflib
from dataclasses import fields
from numbers import Real
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, PreTrainedConfig
from transformers.utils import logging

from .loss_hivg import EXTRA_LOSSES
from .presets_hivg import LOSS_NAMES, OFFICIAL_LOSS_WEIGHTS, official_fields, preset_fields
from .score_head_hivg import SCORE_INPUTS

if TYPE_CHECKING:
    # Named in every saved config (PIPELINE_ENTRY, AUTO_MAP), so their files must travel along: transformers copies
    # beside the weights what relative import lines name, these included.
    from .modeling_hivg import HiVGForVisualGrounding  # noqa: F401
    from .pipeline_hivg import VisualGroundingPipeline  # noqa: F401

logger = logging.get_logger(__name__)

FORMAT_VERSION = 1

# What PreTrainedConfig takes, or writes into config.json, without declaring a field; Trainer writes the tokens' ids.
UNDECLARED_NAMES = (
    *("model_type", "auto_map", "custom_pipelines", "quantization_config", "transformers.js_config"),
    *("torch_dtype", "num_labels", "name_or_path", "output_attentions", "attn_implementation"),
    *("experts_implementation", "per_layer_config", "use_cache", "tie_word_embeddings", "use_return_dict"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
)

# Far above the largest CLIP, far below what would keep a machine busy for hours.
MOST = {
    "num_hidden_layers": 200,
    "fusion_layers": 200,
    "num_attention_heads": 1024,
    "fusion_heads": 1024,
    "hidden_size": 16384,
    "projection_dim": 16384,
    "token_head_dim": 65536,
    "num_queries": 1000,
    "fusion_ffn_dim": 65536,
    "intermediate_size": 65536,
    "image_size": 4096,
    "patch_size": 1024,
    "max_position_embeddings": 16384,
    "vocab_size": 2_000_000,
}

# Fields with few values.
CHOICES = {
    "initialization": ("xavier", "official"),
    "bridge_text_source": ("hidden_states", "projection"),
    "fusion_positions": ("queries_keys", "tokens"),
    "token_target": ("coverage", "nearest"),
    "pad_align": ("patch", "pixel"),
    "image_normalization": ("clip", "imagenet"),
    "score": ("head", "similarity"),
}

PIPELINE_ENTRY = {
    "visual-grounding": {
        "impl": "pipeline_hivg.VisualGroundingPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}

# Where AutoModel and the auto class of the Hub's task find the code; `register_for_auto_class` keeps one of the two.
AUTO_MAP = {
    "AutoConfig": "configuration_hivg.HiVGConfig",
    "AutoModel": "modeling_hivg.HiVGForVisualGrounding",
    "AutoModelForZeroShotObjectDetection": "modeling_hivg.HiVGForVisualGrounding",
}


@strict
class HiVGConfig(PreTrainedConfig):
    r"""Configuration of [`HiVGForVisualGrounding`].

    Args:
        clip_config (`CLIPConfig` or `dict`, *optional*):
            The CLIP that HiVG is built around. Its `projection_dim` is the width of the fusion encoder.
        image_size (`int`, *optional*):
            Side of the padded square the model sees, in pixels; a multiple of CLIP's patch size. Default: CLIP's own.
            Another size interpolates CLIP's position embedding; another than a checkpoint was trained at, given to
            `from_pretrained`, the positions of the fusion encoder too.
        bridge_layers (`list[int]`, *optional*):
            Vision layers, counted from 0, that carry a bridge; `[]` for a model without bridges. Default: four in the
            upper half (6, 8, 10, 11 of 12), so that the lower half runs once for all expressions of an image; official
            base has 0, 3, 7, 11.
        bridge_text_source (`str`): `"hidden_states"`, the text layers below; or `"projection"`, CLIP's projected
            final text features through one linear layer that all bridges share, as the official mixed pre-training.
        bridge_text_layers (`list[int]`, *optional*):
            Text hidden states that feed the bridges, 0 = embedding. Default: the last.
        bridge_adaptive_weights (`bool`): learn one weight per text position and channel, `f + w * f`.
        adaptive_weight_init (`float`): standard deviation of those weights at the start; official 1.0.
        initialization (`str`): how new weights start: `"xavier"`, Xavier-uniform heads with biases of 0, and bridges
            as CLIP's own layers; or `"official"`, as the authors' constructor leaves them (torch's defaults outside
            the fusion encoder, a multi-level projection copied from CLIP's).
        bridge_text_norm (`bool`): LayerNorm on each text state before they are mixed. Official: False, with which
            several text layers collapse training once samples no longer mix.
        bridge_mask_padding (`bool`): the bridge ignores text padding. Official: False; the model then restores the
            official input (all positions, `text_pad_id` in the padding) whatever the caller padded.
        bridge_mixes_batch (`bool`): reproduce the official batched figures, in which each sample attends to other
            samples' words. Never right for a new model.
        bridge_lora (`bool`): train a low-rank term (rank 32, scale 0.5, dropout 0.1) beside each projection of the
            bridges' attention, as the authors' code does in every stage. It changes how a bridge trains, never what
            it can compute: `model.fold_bridge_lora()` adds it to the weights, and all that training publishes is
            folded.
        visual_feature_layers (`list[int]`, *optional*):
            Vision hidden states, 0 = embedding, that are joined for the fusion encoder. Default: those after the
            `bridge_layers` that were given, else after the first layer and the last of each third (1, 4, 8, 12 of 12,
            as official base).
        text_pad_id (`int`): token id that the official tokenizer pads with; read only without `bridge_mask_padding`.
        fusion_layers, fusion_heads, fusion_ffn_dim, fusion_dropout, fusion_activation, fusion_pre_norm:
            Shape of the fusion encoder.
        fusion_positions (`str`): `"queries_keys"`, each layer adds positions to queries and keys, as officially; or
            `"tokens"`, they are added to the tokens once, so that values carry them and [REG] can read a place from
            the attention alone, where no pre-trained tower has put it into the patches.
        num_queries (`int`): learned [REG] tokens, each of which answers with a box, a score and a mask: 1, as
            published, for expressions that name one thing; more for expressions that name none, one or many. Training
            then matches queries and targets (see `queries_hivg`), which needs `score="head"`.
        refine_boxes (`bool`): while the model does not train, each box moves half-way to the box around its mask where
            the two agree: tighter boxes for a mask head that was trained, at the cost of always computing masks.
        token_head_dim (`int`): hidden width of the head that compares patches with the expression.
        token_target (`str`): `"coverage"`, the share of each patch that the target covers; or `"nearest"`, one pixel
            per patch as the official code samples, with which a thin target can vanish.
        skip_padded_patches (`bool`): patches wholly in the padding never enter the vision tower. Official: False.
        pad_align (`str`): `"patch"`, the letterbox offset is rounded down to whole patches; or `"pixel"`, official.
        image_normalization (`str`): `"clip"`, CLIP's own mean and deviation; or `"imagenet"`, official.
        score (`str`): `"head"`, a trained confidence; or `"similarity"`, from the token similarity inside and outside
            the box, for weights that have no score head.
        score_inputs (`list[str]`, *optional*): what the score head reads, `"reg"` (alone by default) and of
            `"expression"`, `"box_patches"`, `"box_similarity"`, `"sharpness"`, `"contrastive"`, see `ScoreEvidence`.
            What is read beside `"reg"` is read without gradient; a checkpoint that is opened with more begins with the
            score that it had.
        score_temperature, score_bias (`float`): the score is `sigmoid(logit / temperature + bias)` of the head's
            logit; calibrated, see `hivg calibrate`.
        score_similarity_scale, score_similarity_bias (`float`): calibrated constants of the similarity score.
        score_threshold (`float`, *optional*): from which score on a box counts as found, where a call names none.
            Default: none, every box is given and nothing is said about it.
        multiple_threshold (`float`, *optional*): where every box is asked for (`multiple=True`) and the best reaches
            `score_threshold`, from which score on the others are given too. Default: the same.
        loss_weights (`dict[str, float]`, *optional*):
            Weight of each loss term; 0 turns a term and what only it needs off. Terms that are not named keep their
            weight: the official one, and 1 for a score head. Terms of your own: `register_loss`; a saved config
            leaves them out, since who opens it may not have them.
        contrastive_ignore_duplicates (`bool`): pairs of a batch that share the image or the expression are not
            negatives of each other. Official: False.
        contrastive_gather (`bool`): negatives from every process, gathered with gradient. Official: False.
        format_version (`int`): layout of the saved folder.

    Example:

    ```python
    >>> from hivg_hf import HiVGConfig, HiVGForVisualGrounding
    >>> model = HiVGForVisualGrounding(HiVGConfig.preset("tiny"))
    ```"""

    model_type = "hivg"
    sub_configs_defaults = {"clip_config": CLIPConfig}
    keys_to_ignore_at_inference = [
        "loss_dict",
        "token_logits",
        "mask_logits",
        "query_boxes",
        "query_scores",
        "query_mask_logits",
        "logits_per_text",
        "logits_per_image",
        "vision_hidden_states",
        "text_hidden_states",
        "hidden_states",
        "vision_attentions",
        "cross_attentions",
        "attentions",
    ]

    clip_config: dict | PreTrainedConfig | None = None
    image_size: int | None = None
    initialization: str = "xavier"

    # Bridge
    bridge_layers: list[int] | None = None
    bridge_text_source: str = "hidden_states"
    bridge_text_layers: list[int] | None = None
    bridge_adaptive_weights: bool = True
    adaptive_weight_init: float | int = 0.02
    bridge_text_norm: bool = True
    bridge_mask_padding: bool = True
    bridge_mixes_batch: bool = False
    bridge_lora: bool = False
    text_pad_id: int = 0

    # Fusion encoder. Official: models/vl_transformer.py:18-147, hivg_train.py:64-73
    visual_feature_layers: list[int] | None = None
    fusion_layers: int = 6
    fusion_heads: int = 8
    fusion_ffn_dim: int = 2048
    fusion_dropout: float | int = 0.1
    fusion_activation: str = "relu"
    fusion_pre_norm: bool = True
    fusion_positions: str = "queries_keys"

    # Heads. Official: models/HiVG.py:756-767
    num_queries: int = 1
    refine_boxes: bool = False
    token_head_dim: int = 3072
    token_target: str = "coverage"
    score: str = "head"
    score_inputs: list[str] | None = None
    score_temperature: float | int = 1.0
    score_bias: float | int = 0.0
    score_similarity_scale: float | int = 1.0
    score_similarity_bias: float | int = 0.0
    score_threshold: float | int | None = None
    multiple_threshold: float | int | None = None

    # Input
    skip_padded_patches: bool = True
    pad_align: str = "patch"
    image_normalization: str = "clip"

    # Losses
    loss_weights: dict | None = None
    contrastive_ignore_duplicates: bool = True
    contrastive_gather: bool = False

    format_version: int = FORMAT_VERSION

    # The only class there is: what an expression names. Which expression is the `label` of a result.
    id2label: dict[int, str] | dict[str, str] | None = None

    def __post_init__(self, **kwargs):
        if "vision_config" in kwargs and "text_config" in kwargs:
            raise ValueError(
                "This is the configuration of a plain CLIP, not of a HiVG model. Start a new model from it with "
                "`HiVGForVisualGrounding.from_clip(folder_or_hub_id)`."
            )
        _refuse_unknown(kwargs, type(self))
        if self.id2label is None and kwargs.get("num_labels") is None:
            self.id2label, self.label2id = {0: "target"}, {"target": 0}
        super().__post_init__(**kwargs)
        vision_depth = self.clip_config.vision_config.num_hidden_layers
        if self.image_size is None:
            self.image_size = self.clip_config.vision_config.image_size
        if self.visual_feature_layers is None:
            self.visual_feature_layers = [layer + 1 for layer in self.bridge_layers or spread_layers(vision_depth)]
        if self.bridge_layers is None:
            self.bridge_layers = default_bridge_layers(vision_depth)
        if self.bridge_text_layers is None:
            self.bridge_text_layers = [self.clip_config.text_config.num_hidden_layers]
        if self.score_inputs is None:
            self.score_inputs = ["reg"]
        score = {"score": 1.0} if self.score == "head" else {}
        self.loss_weights = {**OFFICIAL_LOSS_WEIGHTS, **score, **(self.loss_weights or {})}
        if not type(self).__module__.startswith("transformers_modules"):
            # With `custom_pipelines` on the instance, transformers asks for trust even where this package is
            # installed and its own classes win; `to_dict` still writes it for those who have not installed it.
            self.__dict__.pop("custom_pipelines", None)

    def to_dict(self) -> dict:
        """The config as plain values, with what finds our code beside the weights: for both auto classes of the model,
        and for our pipeline."""
        values = super().to_dict()
        if weights := values.get("loss_weights"):  # terms that are registered elsewhere do not travel
            values["loss_weights"] = {name: weights[name] for name in weights if name in LOSS_NAMES}
        auto_map = {**AUTO_MAP, **(values.get("auto_map") or {})}
        # "owner/name--" before a class says where code lies that was not copied; it holds for both
        known = [auto_map[name] for name in list(AUTO_MAP)[1:] if auto_map[name] != AUTO_MAP[name]]
        if known:
            auto_map.update(dict.fromkeys(list(AUTO_MAP)[1:], known[0]))
        return {**values, "auto_map": auto_map, "custom_pipelines": copy.deepcopy(PIPELINE_ENTRY)}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> "HiVGConfig":
        """As `PreTrainedConfig.from_pretrained`; names that no config has are refused instead of ignored."""
        if kwargs.get("return_unused_kwargs"):
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        kwargs["return_unused_kwargs"] = True
        config, unused = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        _refuse_unknown(unused, cls)
        return config

    @classmethod
    def _dict_from_json_file(cls, json_file):
        try:
            return super()._dict_from_json_file(json_file)
        except RecursionError:
            raise ValueError(f"The file {json_file} is nested too deeply; save or download it again.") from None

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "HiVGConfig":
        """A config from the content of a config.json, as `from_pretrained` reads it.

        Fields that a newer version of this package added are left out with a warning.

        Args:
            config_dict: the content of the file.
            kwargs: fields that replace the file's.

        Raises:
            ValueError: for names that no config has, or values that do not fit.
        """
        version = config_dict.get("format_version", FORMAT_VERSION)
        if isinstance(version, int) and version > FORMAT_VERSION:
            known = {name: value for name, value in config_dict.items() if _is_known(name, cls)}
            logger.warning(
                f"This model was saved in format {version}, newer than format {FORMAT_VERSION} of this version of "
                f"hivg_hf, which leaves out {sorted(set(config_dict) - set(known))}. Install a newer hivg_hf."
            )
            config_dict = {**known, "format_version": FORMAT_VERSION}
        if kwargs.get("loss_weights") is not None:  # merged, as everywhere
            kwargs["loss_weights"] = {**(config_dict.get("loss_weights") or {}), **kwargs["loss_weights"]}
        if not kwargs.get("return_unused_kwargs"):  # with it, the caller asks which names are not the config's
            # Auto classes and `pipeline` call this with options of the model too, such as `low_cpu_mem_usage`
            _refuse_unknown({name for name in kwargs if _nearest(name, cls, 0.8)}, cls)
        found = super().from_dict(config_dict, **kwargs)
        (found[0] if isinstance(found, tuple) else found).validate()  # `kwargs` were set on a config that was built
        return found

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        """CLIP's text config, where transformers looks for the vocabulary (`resize_token_embeddings`)."""
        return self.clip_config.text_config

    @property
    def text_config(self) -> PreTrainedConfig:
        """Config of CLIP's text tower, where code for any image-text model looks for it."""
        return self.clip_config.text_config

    @property
    def vision_config(self) -> PreTrainedConfig:
        """Config of CLIP's vision tower."""
        return self.clip_config.vision_config

    @property
    def hidden_size(self) -> int:
        """Width of the fusion encoder: CLIP's projection dimension. Official: models/HiVG.py:731"""
        return self.clip_config.projection_dim

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.clip_config.vision_config.patch_size

    @property
    def grid_size(self) -> int:
        """Patches along one side of the padded square."""
        return self.image_size // self.patch_size

    def calibrated(self, score_logits):
        """Logits of the score head as calibration moved them; of a model that was not calibrated, as they are."""
        if (self.score_temperature, self.score_bias) == (1, 0):
            return score_logits
        return score_logits / self.score_temperature + self.score_bias

    @property
    def max_text_length(self) -> int:
        """Tokens that CLIP's text tower can read, begin and end included."""
        return self.clip_config.text_config.max_position_embeddings

    @classmethod
    def preset(cls, name: str, **overrides) -> "HiVGConfig":
        """A named shape: `"tiny"`, `"base"`, `"large"`, `"large-336"` for new models; `"base-unc"`, `"base-unc+"`,
        `"base-gref_umd"`, `"base-referit"`, `"base-flickr"`, `"base-mixup"` and the same for large for the official
        variants.

        Args:
            name: the preset.
            overrides: fields that replace the preset's.

        Raises:
            ValueError: for an unknown name; the message lists the known ones.
        """
        return cls(**preset_fields(name, **overrides))

    @classmethod
    def from_official_args(cls, args, clip_config, **overrides) -> "HiVGConfig":
        """The official variant that a checkpoint's own arguments describe.

        Args:
            args: the checkpoint's `argparse.Namespace`, or a dict of the same names.
            clip_config: the CLIP that the checkpoint was trained with (`CLIPConfig` or dict).
            overrides: fields that replace what the arguments say.

        Raises:
            ValueError: for arguments that describe no official variant.
        """
        return cls(**official_fields(args, clip_config, **overrides))

    def validate_architecture(self):
        """Part of `@strict` validation: runs on construction and again before saving."""
        vision, text = self.clip_config.vision_config, self.clip_config.text_config
        _check_sizes({"": self, "clip_config.": self.clip_config})
        _check_sizes({"clip_config.vision_config.": vision, "clip_config.text_config.": text})
        for name in CHOICES:
            check_choice(name, getattr(self, name))
        _check_layers("bridge_layers", self.bridge_layers, range(vision.num_hidden_layers), allow_empty=True)
        _check_layers("bridge_text_layers", self.bridge_text_layers, range(text.num_hidden_layers + 1))
        _check_layers("visual_feature_layers", self.visual_feature_layers, range(vision.num_hidden_layers + 1))
        if self.image_size % self.patch_size:
            raise ValueError(
                f"`image_size` must be a multiple of CLIP's patch size. Got {self.image_size} and {self.patch_size}."
            )
        if self.hidden_size % self.fusion_heads:
            raise ValueError(
                f"CLIP's `projection_dim` ({self.hidden_size}) is the width of the fusion encoder and must be a "
                f"multiple of `fusion_heads` ({self.fusion_heads})."
            )
        if self.fusion_layers < 1:
            raise ValueError(f"`fusion_layers` must be at least 1. Got {self.fusion_layers}.")
        if not 0 <= self.fusion_dropout < 1:
            raise ValueError(f"`fusion_dropout` must be in [0, 1). Got {self.fusion_dropout}.")
        if not (self.bridge_mask_padding or 0 <= self.text_pad_id < text.vocab_size):
            raise ValueError(f"`text_pad_id` must be a token id, 0 to {text.vocab_size - 1}. Got {self.text_pad_id}.")
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"This model was saved in format {self.format_version}; this version of hivg_hf reads formats up to "
                f"{FORMAT_VERSION}. Install a newer hivg_hf."
            )
        self._validate_score()
        self._validate_loss_weights()

    def _validate_score(self) -> None:
        inputs = self.score_inputs
        if "reg" not in inputs or len(set(inputs)) < len(inputs) or not set(inputs) <= set(SCORE_INPUTS):
            raise ValueError(f'`score_inputs` must be "reg" and any of {list(SCORE_INPUTS)[1:]}, once. Got {inputs}.')
        if self.score != "head" and inputs != ["reg"]:
            raise ValueError(f'`score_inputs` are read by a score head: set `score="head"`. Got {self.score!r}.')
        if not (_is_float32(self.score_temperature) and self.score_temperature > 0):
            raise ValueError(f"`score_temperature` must be a finite number above 0. Got {self.score_temperature}.")
        for name in ("score_bias", "score_similarity_scale", "score_similarity_bias", "adaptive_weight_init"):
            if not _is_float32(value := getattr(self, name)):
                raise ValueError(f"`{name}` must be a finite number. Got {value}.")
        for name in ("score_threshold", "multiple_threshold"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be a score, 0 to 1, or None. Got {value}.")

    def _validate_loss_weights(self) -> None:
        known = [*LOSS_NAMES, *EXTRA_LOSSES]
        unknown = sorted(set(self.loss_weights) - set(known))
        if unknown:
            raise ValueError(f"Unknown terms in `loss_weights`: {unknown}. Known terms: {known}.")
        weights = self.loss_weights.items()
        bad = {k: w for k, w in weights if not _is_float32(w) or w < 0}
        if bad:
            raise ValueError(f"Each of `loss_weights` must be a finite number of at least 0. Got {bad}.")
        if self.loss_weights.get("score") and self.score != "head":
            raise ValueError('`loss_weights["score"]` trains the score head, which needs `score="head"`.')
        if self.num_queries > 1 and not self.loss_weights.get("score"):
            raise ValueError(
                f"With `num_queries={self.num_queries}` the score says which boxes are meant, so that it must be "
                f'trained: set `score="head"` and a weight for it. Got `score="{self.score}"` and '
                f'`loss_weights["score"]={self.loss_weights.get("score", 0)}`.'
            )


def default_bridge_layers(depth: int) -> list[int]:
    """The upper half, a sixth of the layers apart, and the last: 6, 8, 10, 11 of 12.

    With bridges from the first layer on, which ground no better (docs/refshapes-study.md, part 3), nothing of the
    tower is shared by the expressions of an image. Official: for ViT-L/14-336 alone (models/HiVG.py:655-672).
    """
    return sorted({depth // 2, depth // 2 + depth // 6, depth // 2 + depth // 3, depth - 1})


def spread_layers(depth: int) -> list[int]:
    """The first layer and the last of each third: 0, 3, 7, 11 of 12. Official: bridges of base, models/HiVG.py:682"""
    return sorted({0, max(depth // 3 - 1, 0), max(2 * depth // 3 - 1, 0), depth - 1})


def _is_known(name: str, config_class: type) -> bool:
    """Whether a config has a field of that name; what begins with an underscore is transformers' own."""
    return name.startswith("_") or name in UNDECLARED_NAMES or name in {field.name for field in fields(config_class)}


def _is_float32(value: Any) -> bool:
    """Whether the model can compute with a number: beyond float32's range it is infinite there, or 0, or NaN."""
    is_number = isinstance(value, Real)
    return is_number and (value == 0 or 1.2e-38 < abs(value) < 3.4e38)


def _nearest(name: str, config_class: type, cutoff: float = 0.6) -> str | None:
    close = difflib.get_close_matches(name, [field.name for field in fields(config_class)], n=1, cutoff=cutoff)
    return close[0] if close else None


def _refuse_unknown(names, config_class: type) -> None:
    for name in names:
        if not _is_known(name, config_class):
            close = _nearest(name, config_class)
            hint = f"Did you mean `{close}`?" if close else "Its fields are listed in the docstring of HiVGConfig."
            raise ValueError(f"Unknown field `{name}` of HiVGConfig. {hint}")


def _check_sizes(configs: dict[str, Any]) -> None:
    """Refuse sizes that no HiVG has before a module of that size is made: a damaged file could ask for any number."""
    for prefix, config in configs.items():
        for name, most in MOST.items():
            size = getattr(config, name, None)
            for side in size if isinstance(size, (list, tuple)) else (size,):
                if isinstance(side, int) and not 0 < side <= most:
                    raise ValueError(f"{prefix}{name} must be between 1 and {most:,}, got {side:,}.")


def check_choice(name: str, value: Any) -> None:
    """Refuse a value that a field with few values does not have.

    Raises:
        ValueError: With what it may be.
    """
    if value not in CHOICES[name]:
        raise ValueError(f"`{name}` must be one of {list(CHOICES[name])}. Got {value!r}.")


def _check_layers(name: str, layers: list[int], allowed: range, allow_empty: bool = False) -> None:
    if not layers and not allow_empty:
        raise ValueError(f"`{name}` must name at least one layer.")
    if sorted(set(layers)) != list(layers) or any(layer not in allowed for layer in layers):
        raise ValueError(
            f"`{name}` must be increasing layer numbers from {allowed.start} to {allowed.stop - 1}. Got {layers}."
        )


__all__ = ["FORMAT_VERSION", "LOSS_NAMES", "HiVGConfig", "default_bridge_layers"]
