"""Models that people ground with today, by configuration only, each at the input size of its released checkpoint.

Defaults of transformers' configurations are not always the released shape (Owlv2VisionConfig has 768 pixels, the
released base 960; BartConfig is the large one), so what matters is written out; the parameter counts are tested.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    Florence2Config,
    Florence2ForConditionalGeneration,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    PreTrainedModel,
)

from hivg_hf.modeling.configuration_hivg import HiVGConfig

from .measure import Case
from .neighbors_onnx import onnx_cases

FLORENCE_NEW_TOKENS = 12  # one box is four location tokens, around them the phrase and the end
BERT_BEGIN, BERT_END, BERT_STOP = 101, 102, 1012


def grounding_dino_tiny() -> PreTrainedModel:
    """IDEA-Research/grounding-dino-tiny: Swin-T, BERT base, 900 queries."""
    return GroundingDinoForObjectDetection(GroundingDinoConfig())


def owlv2_base() -> PreTrainedModel:
    """google/owlv2-base-patch16-ensemble: ViT-B/16 at 960 pixels."""
    return Owlv2ForObjectDetection(Owlv2Config(vision_config={"image_size": 960, "patch_size": 16}))


def florence2_base() -> PreTrainedModel:
    """microsoft/Florence-2-base: DaViT base at 768 pixels, BART base."""
    text = {
        "model_type": "bart",
        "vocab_size": 51328,
        "d_model": 768,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
        "max_position_embeddings": 4096,
    }
    return Florence2ForConditionalGeneration(Florence2Config(text_config=text, vision_config={"projection_dim": 768}))


def clip_pair() -> PreTrainedModel:
    """openai/clip-vit-base-patch16, both towers: what HiVG base cannot be cheaper than at 77 tokens."""
    return CLIPModel(CLIPConfig(**HiVGConfig.preset("base").clip_config.to_dict()))


def neighbor_cases(folder: Path) -> list[Case]:
    """One image and one expression for each of them, in torch, and in onnxruntime those that export.

    Args:
        folder: Where the graphs are written; they are read before this returns.
    """
    dino, owl, florence, clip = (
        build().eval() for build in (grounding_dino_tiny, owlv2_base, florence2_base, clip_pair)
    )
    dino_inputs, owl_inputs = _dino_inputs(), _owl_inputs()
    return [
        _case("Grounding DINO tiny", dino, lambda: dino(**dino_inputs), "800 x 1066 pixels"),
        *onnx_cases("Grounding DINO tiny", dino, dino_inputs, folder),
        _case("OWLv2 base", owl, lambda: owl(**owl_inputs), "960 pixels"),
        *onnx_cases("OWLv2 base", owl, owl_inputs, folder),
        _case("Florence-2 base", florence, _florence_run(florence), f"768 pixels, {FLORENCE_NEW_TOKENS} tokens"),
        _case("CLIP B/16 pair", clip, _clip_run(clip), "224 pixels, 77 tokens, no grounding"),
    ]


def _case(name: str, model: PreTrainedModel, run: Callable[[], object], note: str) -> Case:
    return Case(name, torch.no_grad()(run), models=(model,), parameters=model.num_parameters(), note=note)


def _dino_inputs() -> dict[str, torch.Tensor]:
    words = torch.randint(2000, 20000, (1, 5))
    ids = torch.cat([torch.tensor([[BERT_BEGIN]]), words, torch.tensor([[BERT_STOP, BERT_END]])], dim=1)
    return {
        "pixel_values": torch.randn(1, 3, 800, 1066),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def _owl_inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 40000, (1, 16))
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 3, 960, 960),
        "attention_mask": torch.ones_like(ids),
    }


def _florence_run(model: PreTrainedModel) -> Callable[[], object]:
    image_tokens = (768 // 32) ** 2 + 1
    ids = torch.randint(4, 50000, (1, image_tokens + 10))
    ids[:, :image_tokens] = model.config.image_token_id
    pixels = torch.randn(1, 3, 768, 768)
    lengths = {"max_new_tokens": FLORENCE_NEW_TOKENS, "min_new_tokens": FLORENCE_NEW_TOKENS}
    return lambda: model.generate(input_ids=ids, pixel_values=pixels, do_sample=False, num_beams=1, **lengths)


def _clip_run(model: PreTrainedModel) -> Callable[[], object]:
    ids = torch.randint(1, 40000, (1, 77))
    pixels = torch.randn(1, 3, 224, 224)
    return lambda: model(input_ids=ids, pixel_values=pixels)
