"""What a CUDA device must give: the answers of the CPU, in every precision and engine; `pytest -m accelerator`.

The other tests run on the device too where there is one: Trainer, pipeline and `hivg` choose it by themselves.
"""

import copy

import numpy as np
import pytest
import torch
import transformers

from hivg_hf import TINY_CHECKPOINT, HiVGForVisualGrounding, HiVGProcessor
from hivg_hf.data.collator import GroundingCollator
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.inference import load_pipeline
from hivg_hf.metrics.overlaps import paired_iou
from hivg_hf.training import HiVGTrainer, HiVGTrainingArguments

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def rows():
    return list(refshapes_dataset("val", seed=5, size=48))


@pytest.fixture(scope="module")
def on_cpu(rows):
    return answers(load_pipeline("tiny", device="cpu"), rows)


@pytest.fixture
def exact_products():
    """cuDNN's convolutions use TF32 by default, which CLIP's patch embedding then does."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def answers(pipe, rows, **options):
    found = pipe([{"image": row["image"], "expression": row["expression"]} for row in rows], batch_size=16, **options)
    return [answer[0] if isinstance(answer, list) else answer for answer in found]


def boxes(found):
    return torch.tensor([[answer["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")] for answer in found])


def scores(found):
    return torch.tensor([answer["score"] for answer in found])


def test_a_pipeline_takes_the_device_by_itself_and_answers_as_on_a_cpu(rows, on_cpu, exact_products):
    pipe = load_pipeline("tiny")
    assert pipe.device.type == "cuda"
    found = answers(pipe, rows)
    torch.testing.assert_close(boxes(found), boxes(on_cpu), rtol=0, atol=0.01)  # pixels
    torch.testing.assert_close(scores(found), scores(on_cpu), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_precision_keeps_the_boxes(rows, on_cpu, dtype):
    found = answers(load_pipeline("tiny", dtype=dtype), rows)
    iou = torch.from_numpy(paired_iou(boxes(found).numpy(), boxes(on_cpu).numpy()))
    assert iou.median() > (0.999 if dtype == "float32" else 0.95)
    assert (iou > 0.5).float().mean() > 0.95
    assert (scores(found) - scores(on_cpu)).abs().median() < 0.03


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masks_and_several_boxes_equal_those_of_the_cpu(attention, exact_products):
    rows = list(refshapes_dataset("plural", seed=5, size=16))
    processor = HiVGProcessor.from_pretrained(TINY_CHECKPOINT)
    batch = processor(
        images=[row["image"] for row in rows], text=[row["expression"] for row in rows], return_tensors="pt"
    )
    model = HiVGForVisualGrounding.from_pretrained(TINY_CHECKPOINT, attn_implementation=attention).eval()
    with torch.no_grad():
        here = model(**batch, output_masks=True)
        there = model.to("cuda")(**batch.to("cuda"), output_masks=True)
    for name in ("pred_boxes", "scores", "query_boxes", "query_scores"):
        torch.testing.assert_close(there[name].cpu(), here[name], rtol=0, atol=1e-4)
    for name in ("mask_logits", "query_mask_logits"):
        torch.testing.assert_close(there[name].cpu(), here[name], rtol=1e-3, atol=2e-3)


def test_compiled_models_answer_alike(rows):
    processor = HiVGProcessor.from_pretrained(TINY_CHECKPOINT)
    model = HiVGForVisualGrounding.from_pretrained(TINY_CHECKPOINT).cuda().eval()
    batch = processor(
        images=[row["image"] for row in rows[:8]], text=[row["expression"] for row in rows[:8]], return_tensors="pt"
    ).to("cuda")
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(model)(**batch).pred_boxes, model(**batch).pred_boxes, rtol=0, atol=1e-4
        )


def test_a_device_map_may_split_the_model_between_device_and_memory(rows, on_cpu, exact_products):
    model = HiVGForVisualGrounding.from_pretrained(
        TINY_CHECKPOINT, device_map="auto", max_memory={0: "6MB", "cpu": "1GB"}
    )
    assert {torch.device(place).type for place in model.hf_device_map.values()} == {"cuda", "cpu"}
    processor = HiVGProcessor.from_pretrained(TINY_CHECKPOINT)
    pipe = transformers.pipeline("visual-grounding", model=model.eval(), processor=processor)
    torch.testing.assert_close(boxes(answers(pipe, rows)), boxes(on_cpu), rtol=0, atol=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_learns_and_resumes_on_the_device(tmp_path, several_model, tiny_processor, precision):
    rows = list(refshapes_dataset("train", seed=5, size=32, plural_fraction=0.3, no_target_fraction=0.2))

    def trainer(folder, steps):
        arguments = HiVGTrainingArguments(
            output_dir=str(tmp_path / folder),
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            save_steps=3,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            logging_steps=1,
            report_to=[],
            lr_scheduler_type="constant",
        )
        collator = GroundingCollator(tiny_processor, several_targets=True)
        return HiVGTrainer(
            copy.deepcopy(several_model),
            arguments,
            data_collator=collator,
            train_dataset=rows,
            processing_class=tiny_processor,
        )

    whole = trainer("whole", 6)
    whole.train()
    assert next(whole.model.parameters()).device.type == "cuda"
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert np.isfinite(losses).all()
    trainer("parts", 3).train()
    resumed = trainer("parts", 6)
    resumed.train(resume_from_checkpoint=True)
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=0, atol=1e-5, msg=name)
