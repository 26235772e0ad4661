"""A plain CLIP with random weights, and detectors of transformers by configuration: nothing is downloaded."""

import string

import pytest
import torch
from transformers import CLIPModel

from hivg_hf.zero_shot import TextDetector, ZeroShotClip


@pytest.fixture(scope="session")
def clip(tiny_config):
    """A random CLIP: square 64, patch 8, four vision layers; matrices three times larger than usual."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model = CLIPModel(tiny_config.clip_config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


@pytest.fixture(scope="session")
def encoder(clip, tiny_tokenizer):
    return ZeroShotClip(clip, tiny_tokenizer, attention="ordinary", background=())


@pytest.fixture(scope="session")
def grounding_dino():
    """Grounding DINO with random weights, about 100 thousand parameters."""
    from transformers import (
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessorPil,
        GroundingDinoProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "red", "blue", "star", "circle", "square"]
    vocabulary = {word: number for number, word in enumerate(words + list(string.ascii_lowercase))}
    tokenizer = BertTokenizer(vocab=vocabulary)
    config = GroundingDinoConfig(
        backbone_config={
            **{"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
            **{"window_size": 4, "image_size": 64, "out_indices": [2, 3, 4]},
        },
        text_config={
            **{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
            **{"intermediate_size": 16, "vocab_size": len(vocabulary), "max_position_embeddings": 64},
        },
        **{"d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 20, "max_text_len": 32},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GroundingDinoForObjectDetection(config)
    image_processor = GroundingDinoImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 64})
    return TextDetector(model, GroundingDinoProcessor(image_processor, tokenizer))


@pytest.fixture(scope="session")
def owlv2(tiny_tokenizer):
    """OWLv2 with random weights."""
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessorPil, Owlv2Processor

    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={**tower, "vocab_size": len(tiny_tokenizer), "max_position_embeddings": 77},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Owlv2ForObjectDetection(config)
    return TextDetector(
        model, Owlv2Processor(Owlv2ImageProcessorPil(size={"height": 32, "width": 32}), tiny_tokenizer)
    )


@pytest.fixture(scope="session")
def florence2():
    """Florence-2 with random weights: model and processor, places as the tokens <loc_0> to <loc_999>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessorPil,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        PreTrainedTokenizerFast,
    )

    special = ["<s>", "<pad>", "</s>", "<unk>", "<image>", *(f"<loc_{number}>" for number in range(1000))]
    vocabulary = {token: number for number, token in enumerate([*special, "star", "red", "Locate", "in", "the"])}
    base = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        **{"tokenizer_object": base, "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        **{"unk_token": "<unk>", "extra_special_tokens": {"image_token": "<image>"}},
    )
    tokenizer.add_tokens([f"<loc_{number}>" for number in range(1000)], special_tokens=True)
    text = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    text |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": len(vocabulary)}
    text |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    text |= {"forced_eos_token_id": None, "max_position_embeddings": 256}
    vision = {"embed_dim": [8, 8, 8, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "num_groups": [1] * 4}
    config = Florence2Config(
        text_config={"model_type": "bart", **text},
        vision_config={**vision, "projection_dim": 16, "window_size": 2},
        image_token_id=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Florence2ForConditionalGeneration(config)
    image_processor = CLIPImageProcessorPil(size={"height": 64, "width": 64}, do_center_crop=False)
    image_processor.image_seq_length = 5  # a 2 x 2 grid and its mean
    tasks: dict[str, dict] = {"phrase_grounding": {}, "description_with_bboxes": {}}
    return model, Florence2Processor(image_processor, tokenizer, post_processor_config=tasks)
