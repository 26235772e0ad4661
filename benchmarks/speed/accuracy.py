"""What others published of the systems in the README's table: Acc@0.5 on RefCOCO, RefCOCO+ and RefCOCOg."""

from typing import NamedTuple

from .groups import BOX


class System(NamedTuple):
    """A row of the table.

    Args:
        name: Markdown.
        accuracy: RefCOCO val, testA, testB; RefCOCO+ val, testA, testB; RefCOCOg (umd) val, test; in percent.
        license: Of the weights.
        source: Where the accuracy was read.
        measured: The benchmark's group and case that tell its cost, or None where it has none.
        parameters, operations: Without a case, what is known: millions, and GFLOP for one answer
            (`benchmarks.speed.chat_models` counts them for Qwen3-VL).
    """

    name: str
    accuracy: tuple[str, str, str]
    license: str
    source: str
    measured: tuple[str, str] | None = None
    parameters: str = ""
    operations: str = "not counted"


PUBLISHED = (
    System(
        "**HiVG-B**, mixed pre-training (`official:base-mixup`)",
        ("90.6 92.6 87.2", "83.1 87.8/89.2 76.7", "84.7/86.5 84.7/86.6"),
        "not stated (code: Apache-2.0)",
        "README of linhuixiao/HiVG (51f9233); OneRef, table 2, by the same authors",
        ("neighbors", BOX),
    ),
    System(
        "**HiVG-L**, mixed pre-training (`official:large-mixup`)",
        ("91.4 93.6 88.0", "83.6/86.8 88.2/89.9 77.4/78.0", "86.7/88.6 86.9/88.6"),
        "not stated (code: Apache-2.0)",
        "README of linhuixiao/HiVG (51f9233); OneRef, table 2, by the same authors",
        ("large-1", BOX),
    ),
    System(
        "Grounding DINO tiny, fine-tuned",
        ("89.2 91.9 86.0", "81.1 87.4 74.7", "84.2 84.9"),
        "not verified",
        "Liu et al., Grounding DINO, table of referring expression comprehension",
        ("neighbors", "Grounding DINO tiny"),
    ),
    System(
        "Grounding DINO tiny as in transformers, never trained on them",
        ("50.8 57.4 45.0", "51.6 57.3 46.4", "60.4 59.7"),
        "Apache-2.0",
        "mmdetection, configs/mm_grounding_dino/README.md (220dca2)",
        ("neighbors", "Grounding DINO tiny"),
    ),
    System(
        "Florence-2 large, fine-tuned",
        ("93.4 95.3 92.0", "88.3 92.9 83.6", "91.2 91.7"),
        "MIT",
        "Xiao et al., Florence-2, table of fine-tuned models; the benchmark has Florence-2 base, a third of it",
        parameters="770",
    ),
    System(
        "Qwen3-VL-4B-Thinking, a chat model",
        ("90.0 92.7 85.6", "85.2 89.5 79.3", "87.0 87.7"),
        "Apache-2.0",
        "model card of nvidia/EGM-4B",
        parameters="4,438",
        operations="3,654, thoughts not counted",
    ),
    System(
        "EGM-4B, Qwen3-VL-4B trained to ground",
        ("93.5 95.1 90.0", "89.7 93.1 84.9", "90.4 90.8"),
        "see its card",
        "model card of nvidia/EGM-4B",
        parameters="4,438",
        operations="3,654, thoughts not counted",
    ),
)
