"""Open a checkpoint for grounding: what the command line, the web page and the scripts share."""

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from hivg_hf.hub import download_checked, load_with_stages, resolve_model
from hivg_hf.hub.errors import damaged_files
from hivg_hf.modeling.pipeline_hivg import VisualGroundingPipeline
from hivg_hf.modeling.processing_hivg import DEFAULT_THRESHOLD
from hivg_hf.modeling.processing_inputs_hivg import refuse_options
from hivg_hf.utils.devices import device_name, find_device, warn_of_slow_bfloat16
from hivg_hf.utils.strict_mapping import refuse_other
from hivg_hf.utils.whole_weights import load_whole, quiet_transformers

from .onnx_model import PRECISIONS, open_onnx

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


BACKENDS = ("torch", "onnx")
# Precisions of torch that have a name of their own there.
_TORCH_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}


def load_pipeline(
    model: str | Path,
    device: str | int | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
    backend: str = "torch",
    precision: str | None = None,
    num_threads: int | None = None,
    **unknown: Any,
) -> VisualGroundingPipeline:
    """The grounding pipeline of a folder or Hub id, quietly.

    Args:
        model: a name that `hivg_hf.hub.resolve_model` knows: `tiny`, `official:base-mixup`, a folder of a training
            run or of `save_pretrained`, or a repository on the Hub, `owner/name` or `owner/name@revision`. Downloads
            are compared with the Hub's checksums, unless the repository's own code is to run.
        device: `"cpu"`, `"cuda:1"`, ..., or the number of an accelerator; by default the first one, or the CPU.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; by default that of the checkpoint.
        trust_remote_code: run the code that a Hub repository brings instead of this package's.
        backend: `"torch"`, or `"onnx"`: onnxruntime on the CPU (`pip install 'hivg_hf[onnx]'`), the same answers in
            less time. Its file is taken from the model's `onnx/`, or exported once into the Hugging Face cache.
        precision: `"fp32"`, `"bf16"` (torch) or `"int8"` (onnx); by default that of the checkpoint in torch, and fp32
            in onnxruntime.
        num_threads: of the processor; by default torch's number, for onnxruntime too. With torch it holds for the
            whole process.

    Raises:
        FileNotFoundError: the folder is missing, or no model in it.
        ImportError: onnxruntime is asked for and not installed.
        ValueError: the folder holds another kind of model, the repository does not exist, or `dtype`, `backend` or
            `precision` is unknown or does not go with the others; the device is not available; or weights are missing,
            of another shape, NaN or infinite.
        ConnectionError: the download failed or is damaged; the same call tries again.
        TypeError: an option is unknown, or the model is not a name.
    """
    hint = "Options of a call, such as threshold and batch_size, go into the call: pipe(image, text, ...)."
    refuse_options("load_pipeline", unknown, hint)
    if not isinstance(model, (str, Path)):
        raise TypeError(
            f"load_pipeline takes the name of a model, got {type(model).__name__}: of a model in memory, write "
            'pipeline("visual-grounding", model=model, processor=processor), pipeline being that of transformers.'
        )
    if dtype is not None:
        refuse_other("dtype", dtype, DTYPES)
    check_engine(backend, precision, num_threads, device, dtype, trust_remote_code)
    device = None if device is None else find_device(device)
    name = resolve_model(model)
    if backend == "onnx":
        opened, processor = open_onnx(name, precision or "fp32", num_threads)
        return VisualGroundingPipeline(opened, processor=processor, device="cpu")
    dtype = _TORCH_PRECISIONS[precision] if precision else dtype
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if not trust_remote_code:
        name = str(download_checked(name))
    try:
        with damaged_files(name), quiet_transformers():
            # An adapter folder has no config of its own: its base has.
            is_adapter = (Path(name) / "adapter_config.json").exists()
            if not is_adapter:
                config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
                if config.model_type != "hivg":
                    raise ValueError(f"'{name}' is a {config.model_type} model; a HiVG model was expected.")
            open_model = _load_trusted if trust_remote_code and not is_adapter else _load_own
            opened, processor, kind = open_model(name, dtype=DTYPES[dtype] if dtype else "auto")
            pipe = transformers.pipeline(
                "visual-grounding", model=opened, processor=processor, device=device, pipeline_class=kind
            )
        warn_of_slow_bfloat16(opened.dtype, pipe.device)
        return pipe
    except ConnectionError:
        raise
    except OSError as error:
        # Some of the library's messages run over many lines, all but the first general advice.
        raise FileNotFoundError(f"No model could be opened at '{name}': {str(error).splitlines()[0]}") from None


def check_engine(
    backend: str,
    precision: str | None,
    num_threads: int | None = None,
    device: str | int | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Refuse an engine that there is not, and options that do not go with it.

    Raises:
        ValueError: with the option and what it may be.
    """
    refuse_other("The backend", backend, BACKENDS)
    known = tuple(_TORCH_PRECISIONS) if backend == "torch" else PRECISIONS
    if precision is not None and precision not in known:
        raise ValueError(f"The {backend} backend has the precisions {', '.join(known)}, got {precision!r}.")
    if num_threads is not None and not (isinstance(num_threads, int) and num_threads >= 1):
        raise ValueError(f"The number of threads must be a whole number, at least 1, got {num_threads!r}.")
    if backend == "torch" and precision is not None and dtype not in (None, _TORCH_PRECISIONS[precision]):
        raise ValueError(f"precision {precision!r} and dtype {dtype!r} contradict each other: give one of them.")
    if backend == "onnx" and dtype not in (None, "float32"):
        raise ValueError(f"The onnx backend takes no dtype {dtype!r}: give precision, fp32 or int8.")
    if backend == "onnx" and device is not None and device_name(device) != "cpu":
        raise ValueError(f"The onnx backend computes on the CPU, not on {device!r}: use the torch backend there.")
    if backend == "onnx" and trust_remote_code:
        raise ValueError("The onnx backend runs no code of a repository: omit trust_remote_code.")


def _load_own(name: str, **options: Any) -> tuple[Any, Any, type]:
    return *load_with_stages(name, **options), VisualGroundingPipeline


def _load_trusted(name: str, **options: Any) -> tuple[Any, Any, type]:
    """Model, processor and pipeline class by the code that the repository brings."""
    model = load_whole(transformers.AutoModel, name, trust_remote_code=True, **options)
    processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=True)
    impl = (getattr(model.config, "custom_pipelines", None) or {}).get("visual-grounding", {}).get("impl")
    return model, processor, get_class_from_dynamic_module(impl, name) if impl else VisualGroundingPipeline


def threshold_in_use(pipe: Any, threshold: float | None, multiple: bool = False) -> float | None:
    """The threshold that answers are compared with: the one given, the model's own, and for several boxes at least
    `DEFAULT_THRESHOLD`; None where every answer counts."""
    own = getattr(getattr(getattr(pipe, "model", None), "config", None), "score_threshold", None)
    chosen = own if threshold is None else threshold
    return DEFAULT_THRESHOLD if chosen is None and multiple else chosen


def answer_as_json(result: dict[str, Any]) -> dict[str, Any]:
    """A pipeline result as values that JSON can hold: the mask as COCO run lengths, no heat map.

    Raises:
        ValueError: the model gave NaN or an infinite value, which JSON has no way to write.
    """
    numbers = [*result["box"].values(), 0.0 if result["score"] is None else result["score"]]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"The model's answer to {result['expression']!r} is not finite (box {result['box']}, score "
            f"{result['score']}): load it in float32."
        )
    plain = {key: value for key, value in result.items() if key not in ("mask", "heatmap")}
    if result.get("mask") is not None:
        from hivg_hf.data.schema import encode_mask  # needs pycocotools, which only masks in JSON ask for

        plain["mask"] = encode_mask(result["mask"])
    return plain
