"""A model whose answers onnxruntime computes: called like `HiVGForVisualGrounding`, so that pipeline, evaluation and
command line do not know the difference; and where its files come from.

A file answers for weights and a config only where its own metadata names exactly these: new weights beside an old file
are exported again into the Hugging Face cache, never answered for by the old one.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import cached_assets_path
from safetensors import safe_open
from torch import nn

from hivg_hf.hub import download_checked, load_with_stages
from hivg_hf.hub.loading import DOWNLOADED
from hivg_hf.modeling.configuration_hivg import HiVGConfig
from hivg_hf.modeling.image_processing_hivg import HiVGImageProcessor
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding, HiVGOutput, check_inputs
from hivg_hf.modeling.processing_hivg import HiVGProcessor
from hivg_hf.utils.atomic import atomic_folder, atomic_path
from hivg_hf.utils.imports import require_package
from hivg_hf.utils.version import __version__
from hivg_hf.utils.whole_weights import tensors_hash

from .onnx_split import GROUNDING, TEXT, TEXT_INPUTS, part_of

logger = logging.getLogger(__name__)

ONNX_FOLDER = "onnx"
# Names that Transformers.js and optimum use.
MODEL_FILES = {"fp32": "model.onnx", "int8": "model_quantized.onnx", "fp16": "model_fp16.onnx"}
PRECISIONS = ("fp32", "int8")
# Fields of a config that say where it lies or what opens it, not what is computed.
_NO_COMPUTATION = {"architectures", "auto_map", "custom_pipelines", "dtype", "torch_dtype", "transformers_version"}
_NO_COMPUTATION |= {"_name_or_path", "_commit_hash", "_attn_implementation"}
# Raised where a file that was written before would answer otherwise than one written now, releases apart.
EXPORTER = "2"  # unsigned weights in 8 bits


@dataclass(frozen=True)
class GraphIdentity:
    """What a graph was made from. Weights are hashed as float32, whatever they are stored as and in how many files."""

    hivg_weights_sha256: str
    hivg_config_sha256: str
    hivg_version: str = __version__
    hivg_exporter: str = EXPORTER

    @classmethod
    def of_model(cls, model: HiVGForVisualGrounding) -> "GraphIdentity":
        tensors = ((name, tensor.float()) for name, tensor in sorted(model.state_dict().items()))
        return cls(tensors_hash(tensors), _config_hash(model.config))

    @classmethod
    def of_folder(cls, folder: Path) -> "GraphIdentity":
        """Of a model folder that `save_pretrained` wrote, without building the model."""
        return cls(tensors_hash(_stored_tensors(folder)), _config_hash(HiVGConfig.from_pretrained(folder)))

    @classmethod
    def of_file(cls, file: Any) -> "GraphIdentity | None":
        """What a loaded ONNX file says of itself; None where it says nothing."""
        metadata = {entry.key: entry.value for entry in file.metadata_props}
        return (
            cls(**{key: metadata[key] for key in cls.__annotations__})
            if cls.__annotations__.keys() <= metadata.keys()
            else None
        )

    def as_metadata(self) -> dict[str, str]:
        return asdict(self)


class OnnxModel(nn.Module):
    """`HiVGForVisualGrounding`'s call, answered by onnxruntime on the CPU.

    The graph runs as one, until the same words are asked of several pictures: of at least twice as many in a call, or
    in two calls after each other, as in a video. From then on it runs in two parts (`onnx_split.py`), whose first is
    left out for words that it has just encoded.

    Args:
        path: an ONNX file that `hivg export` wrote.
        config: of the model.
        num_threads: of onnxruntime; None takes torch's number. Its own default keeps idle threads spinning.

    Raises:
        ImportError: onnx or onnxruntime is not installed.
        ValueError: the file names data outside its folder, or does not say what it was made from.
    """

    def __init__(self, path: str | Path, config: HiVGConfig, num_threads: int | None = None):
        super().__init__()
        self.path, self.config, self.num_threads = Path(path), config, num_threads
        file = read_graph(self.path)
        if (identity := GraphIdentity.of_file(file)) is None:
            raise ValueError(f"{path} does not say which weights it was made from: export the model with hivg export.")
        self.identity = identity
        self.inputs = [value.name for value in file.graph.input]
        self.outputs = [value.name for value in file.graph.output]
        self._sessions: dict[tuple[str, ...], Any] = {}
        self._in_parts = False
        self._text_session: Any = None
        self._said: tuple[bytes, dict[str, Any]] = (b"", {})  # the words of the last call, and what the text part gave
        self.eval()

    device = torch.device("cpu")
    dtype = torch.float32

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        patch_index: torch.Tensor | None = None,
        text_index: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        output_masks: bool = False,
        output_token_logits: bool = False,
        **other: Any,
    ) -> HiVGOutput:
        """As `HiVGForVisualGrounding.forward`, for boxes, scores, masks and token logits.

        Raises:
            ValueError: shapes do not fit the config, or something is asked for that only torch computes.
        """
        if strange := [name for name, value in other.items() if value is not None and value is not False]:
            raise ValueError(f"The onnx backend has no {', '.join(strange)}: load the model with backend='torch'.")
        if attention_mask is None:
            raise ValueError("The onnx backend needs `attention_mask`: pass the one that the processor gives.")
        check_inputs(self.config, input_ids, pixel_values, patch_index, text_index, image_index)
        words = self._words(input_ids.long(), attention_mask.long(), text_index)
        given = {
            **words,
            "pixel_values": pixel_values.float(),
            "image_index": torch.arange(len(words["input_ids"])) if image_index is None else image_index,
            **self._padding(pixel_values, pixel_mask, patch_index),
        }
        requested = {"mask_logits": output_masks, "token_logits": output_token_logits}
        if self.config.num_queries > 1:
            requested["query_mask_logits"] = output_masks
        names = tuple(name for name in self.outputs if requested.get(name, True))
        if missing := [name for name, wanted in requested.items() if wanted and name not in names]:
            raise ValueError(f"{self.path} does not give {', '.join(missing)}: export it with --masks --tokens.")
        session = self._session(names)
        found = session.run(list(names), {value.name: given[value.name].numpy() for value in session.get_inputs()})
        return HiVGOutput(**{name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)})

    def _words(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, text_index: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Ids and mask (U, T) of the words to those of each sample (B, T), and, in parts, what the text part gives."""
        own = dict(zip(TEXT_INPUTS, (input_ids, attention_mask), strict=True))
        key = b"".join(repr(tuple(value.shape)).encode() + value.numpy().tobytes() for value in own.values())
        last_key, encoded = self._said
        repeated = text_index is not None and 2 * len(input_ids) <= len(text_index)
        if not self._in_parts and (repeated or key == last_key) and not self.config.bridge_mixes_batch:
            self._in_parts, self._sessions = True, {}
            self._text_session = open_session(self.path, None, self.num_threads, TEXT)
        if self._in_parts and (key != last_key or not encoded):
            values = self._text_session.run(None, {name: value.numpy() for name, value in own.items()})
            names = [value.name for value in self._text_session.get_outputs()]
            encoded = {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}
        self._said = key, encoded
        words = {**own, **encoded} if self._in_parts else own
        return words if text_index is None else {name: value[text_index] for name, value in words.items()}

    def to(self, *args: Any, **kwargs: Any) -> "OnnxModel":
        """The model itself; refuses another device or precision, which the file decides."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if (device is not None and device.type != "cpu") or dtype not in (None, torch.float32):
            raise ValueError(f"The onnx backend computes on the CPU with the precision of its file, not on {args}.")
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("A pipeline with the onnx backend is not saved: save the model it was exported from.")

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes open the file again: sessions do not travel."""
        return type(self), (self.path, self.config, self.num_threads)

    def _padding(self, pixels: torch.Tensor, pixel_mask: Any, patch_index: Any) -> dict[str, torch.Tensor]:
        """What tells the graph where the image ends; all of the square is image where nothing was given."""
        if patch_index is not None:
            return {"patch_index": patch_index}
        if pixel_mask is None:
            pixel_mask = torch.ones(len(pixels), *pixels.shape[-2:], dtype=torch.long)
        return {"pixel_mask": pixel_mask.long(), "patch_index": patches_of(pixel_mask, self.config)}

    def _session(self, names: tuple[str, ...]) -> Any:
        """A session for each set of outputs that is asked for: what is not asked for is not computed."""
        if names not in self._sessions:
            part = GROUNDING if self._in_parts else None
            self._sessions[names] = open_session(self.path, names, self.num_threads, part)
        return self._sessions[names]


def patches_of(pixel_mask: torch.Tensor, config: HiVGConfig) -> torch.Tensor:
    """`pixel_mask` (I, S, S) -> `patch_index` (I, P), as the processor gives it."""
    size = {"height": config.image_size, "width": config.image_size}
    return torch.from_numpy(HiVGImageProcessor(size=size, patch_size=config.patch_size).patch_index_for(pixel_mask))


def open_onnx(name: str, precision: str = "fp32", num_threads: int | None = None) -> tuple[OnnxModel, HiVGProcessor]:
    """The model of a folder or Hub id in onnxruntime, and its processor.

    The file is taken from `onnx/` of the folder where it was made from these very weights, this config and this
    version, and otherwise exported into the Hugging Face cache, once.

    Args:
        name: a model folder, an adapter, a folder that `hivg export` wrote, or a Hub id.
        precision: `"fp32"` or `"int8"`.
        num_threads: of onnxruntime; None takes torch's number.

    Raises:
        ImportError: onnx, onnxruntime or (to export) onnxscript is not installed.
        ValueError: an unknown precision, or a file that names data outside its folder.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"The onnx backend has the precisions {', '.join(PRECISIONS)}, got {precision!r}.")
    require_package("onnxruntime", extra="onnx")
    file = MODEL_FILES[precision]
    folder = download_checked(name, patterns=[*DOWNLOADED, f"{ONNX_FOLDER}/{file}*"])
    if (folder / "adapter_config.json").is_file():
        model, processor = load_with_stages(name)
        return OnnxModel(_cached_file(model, processor, precision), model.config, num_threads), processor
    config = HiVGConfig.from_pretrained(folder)
    processor = HiVGProcessor.from_pretrained(folder, trust_remote_code=False)
    path = folder / ONNX_FOLDER / file
    if not path.is_file() or not _answers_for(path, folder, config):
        path = _cached_file(folder, processor, precision)
    return OnnxModel(path, config, num_threads), processor


def open_session(
    path: Path, outputs: Sequence[str] | None = None, num_threads: int | None = None, part: str | None = None
) -> Any:
    """An onnxruntime session that computes `outputs` and nothing else, of the whole graph or of one of its parts; see
    `OnnxModel`."""
    onnxruntime = require_package("onnxruntime", extra="onnx")
    file = read_graph(path)
    if part is not None:
        file = part_of(file, part)
    if outputs is not None and len(outputs) < len(file.graph.output):
        extractor = require_package("onnx.utils", extra="onnx").Extractor(file)
        file = extractor.extract_model([value.name for value in file.graph.input], list(outputs))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return onnxruntime.InferenceSession(file.SerializeToString(), options, providers=["CPUExecutionProvider"])


def read_graph(path: Path) -> Any:
    """An ONNX file without the data beside it, whose paths were checked."""
    file = require_package("onnx", extra="onnx").load(str(path), load_external_data=False)
    check_onnx_paths(file, path)
    return file


def check_onnx_paths(file: Any, path: Path) -> None:
    """Refuse external data that does not lie in the folder of the file itself, links followed.

    Raises:
        ValueError: with the path.
    """
    helper = require_package("onnx.external_data_helper", extra="onnx")
    folder = path.parent.resolve()
    for tensor in helper._get_all_tensors(file):
        if not helper.uses_external_data(tensor):
            continue
        location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        # A Hub download is a folder of links into the cache's blobs: names are what must not leave it.
        inside = location == os.path.basename(location) and location not in ("", ".", "..")
        real = (path.parent / location).resolve()
        if not inside or not (real.parent == folder or real.parent == path.resolve().parent):
            raise ValueError(
                f"{path} reads weights from {location!r}, outside its own folder, which is refused: export the model "
                "again (hivg export)."
            )


def _answers_for(path: Path, folder: Path, config: HiVGConfig) -> bool:
    """Whether a file in a model folder was made from what lies beside it, by this version; says what differs."""
    file = read_graph(path)
    identity = GraphIdentity.of_file(file)
    if any(folder.glob("*.safetensors")):
        expected = GraphIdentity.of_folder(folder)
    else:  # a folder that `hivg export` wrote: nothing beside the file could contradict its weights
        expected = GraphIdentity(identity.hivg_weights_sha256 if identity else "", _config_hash(config))
    differs = [key for key, value in asdict(expected).items() if identity is None or getattr(identity, key) != value]
    if not differs:
        return True
    what = ", ".join(key.removeprefix("hivg_").removesuffix("_sha256") for key in differs)
    sentence = f"{path} was made from other {what} than the model beside it"
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{sentence}, and there are no weights to export again: run hivg export on the model.")
    logger.warning("%s; it is left alone, and the model is exported again into the cache.", sentence)
    return False


def _cached_file(source: Path | HiVGForVisualGrounding, processor: HiVGProcessor, precision: str) -> Path:
    """The file of a model in the Hugging Face cache, exported where it is not there yet."""
    from .onnx_export import quantize, write_onnx_files  # the exporter is needed once in a model's life

    identity = GraphIdentity.of_folder(source) if isinstance(source, Path) else GraphIdentity.of_model(source)
    digest = hashlib.sha256(json.dumps(identity.as_metadata()).encode()).hexdigest()[:32]
    folder = cached_assets_path("hivg_hf", "onnx", digest)
    full, wanted = folder / MODEL_FILES["fp32"], folder / MODEL_FILES[precision]
    with FileLock(str(folder) + ".lock"):
        if not full.is_file():
            logger.warning("The model is exported to ONNX once, into %s; this takes a minute or so.", folder)
            model = load_with_stages(str(source))[0] if isinstance(source, Path) else source
            with atomic_folder(folder) as temporary:
                report = write_onnx_files(model, processor, temporary, identity)
            logger.info("It differs from torch by at most %s.", report)
        if not wanted.is_file():
            with atomic_path(wanted) as temporary:
                quantize(full, temporary)
    return wanted


def _config_hash(config: HiVGConfig) -> str:
    text = json.dumps(_computation(config.to_dict()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _computation(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _computation(inner) for key, inner in value.items() if key not in _NO_COMPUTATION}
    return list(value) if isinstance(value, tuple) else value


def _stored_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, float32 tensor) of all safetensors of a folder, by name."""
    files = [safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))]
    owner = {name: file for file in files for name in file.keys()}
    for name in sorted(owner):
        yield name, owner[name].get_tensor(name).float()
