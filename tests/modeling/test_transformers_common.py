"""transformers' own common tests, run on HiVG: what works for every model of the library works for this one."""

import unittest
from typing import Any
from unittest import mock

import pytest
import torch
from transformers import CLIPConfig

from helpers import transformers_tests
from hivg_hf import TINY_CHECKPOINT, HiVGConfig, HiVGForVisualGrounding, HiVGImageProcessor, HiVGProcessor

modeling = transformers_tests.load("test_modeling_common")
configuration = transformers_tests.load("test_configuration_common")
processing = transformers_tests.load("test_processing_common")
image_processing = transformers_tests.load("test_image_processing_common")

pytestmark = pytest.mark.xdist_group("transformers_common")


class HiVGModelTester:
    """A model of a few thousand parameters and a batch for it, as transformers' testers give them."""

    # The tests of attention want seven rows, and would fill up fewer with masks and indexes out of range.
    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads = 7, 7, 16, 2, 2
    num_hidden_states_types = 3  # of the two towers and of the fusion encoder
    is_training = True

    def __init__(self, parent: Any, letterboxed: bool) -> None:
        self.parent = parent
        self.letterboxed = letterboxed
        # `hidden_states` and `attentions` are the fusion encoder's, over [REG, CLS, patches, words].
        self.encoder_seq_length = 2 + (8 if letterboxed else 16) + self.seq_length

    def get_config(self) -> HiVGConfig:
        tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
        clip_config = CLIPConfig(
            text_config={**tower, "vocab_size": 99, "max_position_embeddings": 12},
            vision_config={**tower, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
        return HiVGConfig(
            clip_config=clip_config,
            bridge_layers=[0, 1],
            bridge_text_layers=[1, 2],
            visual_feature_layers=[1, 2],
            fusion_layers=2,
            fusion_heads=2,
            fusion_ffn_dim=32,
            fusion_dropout=0.0,
            token_head_dim=32,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[HiVGConfig, dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, 90, (self.batch_size, self.seq_length), generator=generator)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.rand(self.batch_size, 3, 32, 32, generator=generator),
            "pixel_mask": torch.ones(self.batch_size, 32, 32, dtype=torch.long),
        }
        if self.letterboxed:
            inputs["pixel_mask"][:, 16:] = 0
            inputs["pixel_values"][:, :, 16:] = 0
            inputs["patch_index"] = torch.arange(8).expand(self.batch_size, -1).clone()
            inputs["attention_mask"][:, -2:] = 0
        return self.get_config(), inputs


class _Applicable:
    """Skips the tests that do not apply to HiVG, each with its reason; every other one must pass."""

    not_applicable: dict[str, str] = {}

    def setUp(self) -> None:
        reason = self.not_applicable.get(self._testMethodName)
        if reason is not None:
            self.skipTest(reason)
        if hasattr(super(), "setUp"):
            super().setUp()


def less_flaky(config: HiVGConfig) -> None:
    """Large epsilons, as transformers' own helper sets them, which would also write fields that HiVGConfig refuses."""
    config.text_config.layer_norm_eps = config.vision_config.layer_norm_eps = 1.0


class _ModelTests(_Applicable, modeling.ModelTesterMixin):
    all_model_classes = (HiVGForVisualGrounding,)
    letterboxed = False
    additional_model_inputs = ("pixel_values", "pixel_mask", "patch_index")
    not_applicable = {
        "test_correct_missing_keys": "it saves `model.clip` alone, and the folder of a plain CLIP is refused with a "
        "sentence that names `from_clip` (test_modeling_hivg.py)",
    }

    def setUp(self) -> None:
        super().setUp()
        self.model_tester = HiVGModelTester(self, self.letterboxed)
        flaky = mock.patch.object(modeling, "set_config_for_less_flaky_test", less_flaky)
        flaky.start()
        self.addCleanup(flaky.stop)

    def _prepare_for_class(self, inputs_dict: dict, model_class: type, return_labels: bool = False) -> dict:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            inputs["labels"] = torch.full((len(inputs["input_ids"]), 4), 0.4)
        return inputs


class HiVGModelTest(_ModelTests, unittest.TestCase):
    pass


class HiVGLetterboxedModelTest(_ModelTests, unittest.TestCase):
    letterboxed = True


class HiVGConfigTest(unittest.TestCase):
    def test_config(self) -> None:
        self.model_tester = HiVGModelTester(self, False)
        fields = {"fusion_layers": 2, "fusion_ffn_dim": 32}
        configuration.ConfigTester(self, config_class=HiVGConfig, has_text_modality=False, **fields).run_common_tests()


class HiVGProcessorTest(_Applicable, processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = HiVGProcessor
    # Within the 77 tokens that the model reads.
    images_text_kwargs_max_length = 70
    images_text_kwargs_override_max_length = 60
    images_unstructured_max_length = 76
    not_applicable = {
        "test_processor_text_has_no_visual": "an expression is grounded in an image: there are no rows without one",
    }

    @classmethod
    def _setup_from_components(cls) -> HiVGProcessor:
        return HiVGProcessor.from_pretrained(TINY_CHECKPOINT)


class HiVGImageProcessorTester(image_processing.ImageProcessingTester):
    size = {"height": 32, "width": 32}
    patch_size = 8
    do_normalize = True

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": HiVGImageProcessor}

    def prepare_image_processor_dict(self) -> dict[str, Any]:
        return {"size": self.size, "patch_size": self.patch_size}


class HiVGImageProcessorTest(_Applicable, image_processing.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = HiVGImageProcessorTester
    not_applicable = {
        "test_call_numpy_4_channels": "CLIP reads RGB: a fourth channel is transparency, which is composited on white",
        "test_new_models_require_torchvision_backend": "torchvision is never needed: there is one backend, PIL",
    }
