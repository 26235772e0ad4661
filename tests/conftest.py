"""Shared fixtures: a tiny HiVG with its tokenizer and processor, made from a seed; no network, quiet libraries."""

import os
import shutil
import tempfile
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

# Before any library reads them. Tests of Hub traffic start processes of their own with another environment.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads only get in each other's way
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Caches (datasets, remote code) of a run are its own: no run sees what an earlier one left behind.
_OWN_CACHE = None
if "HF_HOME" not in os.environ:
    _OWN_CACHE = os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hivg-tests-")

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

    from hivg_hf import HiVGConfig, HiVGForVisualGrounding, HiVGProcessor

OPTIONAL_MARKERS = ("slow", "browser", "accelerator")

# Longest first where one contains another; enough to make some words single tokens and others several.
TINY_MERGES = ["r e", "re d</w>", "b l", "bl u", "blu e</w>", "t h", "th e</w>", "s t", "st a", "sta r</w>", "o f</w>"]


@pytest.fixture(scope="session")
def tiny_config() -> "HiVGConfig":
    """A config of a few thousand parameters: square 64, patch 8, 77 text positions. Copy it before changing it."""
    from transformers import CLIPConfig

    from hivg_hf import HiVGConfig

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    clip_config = CLIPConfig(
        text_config={
            **tower,
            "num_hidden_layers": 3,
            "vocab_size": len(_tiny_vocabulary()),
            "max_position_embeddings": 77,
        },
        vision_config={**tower, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8},
        projection_dim=16,
    )
    return HiVGConfig(
        clip_config=clip_config,
        image_size=64,
        bridge_layers=[1, 3],
        bridge_text_layers=[1, 2, 3],
        visual_feature_layers=[1, 2, 4],
        fusion_layers=2,
        fusion_heads=2,
        fusion_ffn_dim=32,
        fusion_dropout=0.0,
        token_head_dim=32,
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config: "HiVGConfig") -> "HiVGForVisualGrounding":
    """A seeded model in eval mode, shared by the session: copy.deepcopy it before training or changing it.

    CLIP's matrices are three times larger than initialized: a fresh tiny model answers about 0.5 to everything, which
    hides faults.
    """
    import torch

    from hivg_hf import HiVGForVisualGrounding

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = HiVGForVisualGrounding(tiny_config).eval()
        for parameter in model.clip.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


@pytest.fixture(scope="session")
def several_model(tiny_model: "HiVGForVisualGrounding") -> "HiVGForVisualGrounding":
    """`tiny_model` with three queries that answer apart: copy.deepcopy it before training or changing it."""
    import copy

    import torch

    model = copy.deepcopy(tiny_model)
    model.add_queries(3)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        model.grounding_head.reg_token.weight.normal_().mul_(3)
        model.grounding_head.query_mask_proj.weight.normal_()
        model.grounding_head.score_head.weight.mul_(3)
    return model


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "CLIPTokenizer":
    """CLIP's byte-level BPE with a handful of merges; any text can be written in it."""
    from transformers import CLIPTokenizer

    merges = [tuple(merge.split()) for merge in TINY_MERGES]
    return CLIPTokenizer(vocab=_tiny_vocabulary(), merges=merges, model_max_length=77)


@pytest.fixture(scope="session")
def tiny_processor(tiny_config: "HiVGConfig", tiny_tokenizer: "CLIPTokenizer") -> "HiVGProcessor":
    """The processor that fits `tiny_config`."""
    from hivg_hf import HiVGProcessor

    return HiVGProcessor.for_config(tiny_config, tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tiny_model: "HiVGForVisualGrounding", tiny_processor: "HiVGProcessor", tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A folder with `tiny_model` and its processor."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def forkserver() -> Any:
    """Processes that start quickly: the libraries are imported once, in a server that forks."""
    import multiprocessing

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hivg_hf.training.staged", "hivg_hf.data.refshapes", "helpers.training"])
    return context


def _tiny_vocabulary() -> dict[str, int]:
    """Token to id: bytes, bytes that end a word, the merges, then CLIP's two special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    symbols = sorted(ByteLevel.alphabet())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(m.split()) for m in TINY_MERGES)]
    return {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


class LeftOutTests:
    """Count the marked tests that a run leaves out, deselected or skipped, and say so at the end."""

    def __init__(self) -> None:
        self.deselected: Counter[str] = Counter()

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.deselected.update(
            marker for item in items for marker in OPTIONAL_MARKERS if item.get_closest_marker(marker)
        )

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workeroutput"):  # a worker of xdist: its controller prints
            session.config.workeroutput["deselected"] = dict(self.deselected)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        self.deselected |= Counter(getattr(node, "workeroutput", {}).get("deselected", {}))  # each worker counts all

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        skipped = Counter(
            marker
            for report in terminalreporter.stats.get("skipped", [])
            for marker in OPTIONAL_MARKERS
            if marker in getattr(report, "keywords", ())  # a test module that was skipped has none
        )
        counts = [f"{marker} {self.deselected[marker] + skipped[marker]}" for marker in OPTIONAL_MARKERS]
        terminalreporter.write_line(f"marked tests left out of this run: {', '.join(counts)}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(LeftOutTests(), "hivg-left-out-tests")


def pytest_unconfigure(config: pytest.Config) -> None:
    if _OWN_CACHE is not None and not hasattr(config, "workerinput"):
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


@pytest.fixture
def make_image():
    """Write a picture of seeded noise and return its path: `make_image(path, width, height)`."""

    from pathlib import Path

    import numpy as np
    from PIL import Image

    def write(path, width=64, height=48, seed=0):
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return str(path)

    return write
