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
from hivg_hf.utils.whole_weights import load_whole, quiet_transformers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_pipeline(
    model: str | Path, device: str | None = None, dtype: str | None = None, trust_remote_code: bool = False
) -> VisualGroundingPipeline:
    """The grounding pipeline of a folder or Hub id, quietly.

    Args:
        model: a name that `hivg_hf.hub.resolve_model` knows: `tiny`, `official:base-mixup`, a folder of a training
            run or of `save_pretrained`, or a repository on the Hub, `owner/name` or `owner/name@revision`. Downloads
            are compared with the Hub's checksums, unless the repository's own code is to run.
        device: `"cpu"`, `"cuda:1"`, ...; by default the first accelerator, or the CPU.
        dtype: `"float32"`, `"bfloat16"` or `"float16"`; by default that of the checkpoint.
        trust_remote_code: run the code that a Hub repository brings instead of this package's.

    Raises:
        FileNotFoundError: there is no such folder, or no model in it.
        ValueError: the folder holds another kind of model, there is no such repository, or `dtype` is unknown; or
            weights are missing, of another shape, NaN or infinite.
        ConnectionError: the download failed or is damaged; the same call tries again.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    name = resolve_model(model)
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
            return transformers.pipeline(
                "visual-grounding", model=opened, processor=processor, device=device, pipeline_class=kind
            )
    except ConnectionError:
        raise
    except OSError as error:
        # Some of the library's messages run over many lines, all but the first general advice.
        raise FileNotFoundError(f"No model could be opened at '{name}': {str(error).splitlines()[0]}") from None


def _load_own(name: str, **options: Any) -> tuple[Any, Any, type]:
    return *load_with_stages(name, **options), VisualGroundingPipeline


def _load_trusted(name: str, **options: Any) -> tuple[Any, Any, type]:
    """Model, processor and pipeline class by the code that the repository brings."""
    model = load_whole(transformers.AutoModel, name, trust_remote_code=True, **options)
    processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=True)
    impl = (getattr(model.config, "custom_pipelines", None) or {}).get("visual-grounding", {}).get("impl")
    return model, processor, get_class_from_dynamic_module(impl, name) if impl else VisualGroundingPipeline


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
