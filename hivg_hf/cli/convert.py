"""`hivg convert PATH OUT`: an official checkpoint file to a folder that this package, transformers and PEFT open."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from . import run_verb, terminal

# The vocabulary of every published CLIP; only for it can the tokenizer be taken from their repository.
CLIP_VOCABULARY = 49408


class LoraChoice(StrEnum):
    """What becomes of the towers' low-rank terms."""

    MERGE = "merge"
    ADAPTER = "adapter"


def convert(
    path: Annotated[Path, typer.Argument(help="Official .pth or .safetensors file.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it appears whole or not at all.")],
    preset: Annotated[
        str | None, typer.Option(help="Variant, such as base-unc+, for a file that does not hold its own arguments.")
    ] = None,
    args: Annotated[
        Path | None,
        typer.Option(help="JSON file of official arguments (model, dataset, ...) instead of the file's own."),
    ] = None,
    clip_config: Annotated[
        str | None,
        typer.Option(help="Folder, JSON file or Hub id of a CLIP configuration that is not a published one."),
    ] = None,
    lora: Annotated[
        LoraChoice, typer.Option(help="Add the low-rank terms to the weights, or keep the towers' as a PEFT adapter.")
    ] = LoraChoice.MERGE,
    bridge_lora: Annotated[
        bool,
        typer.Option(
            "--bridge-lora",
            help="With --lora adapter, also keep the low-rank terms inside the bridges, to train them further.",
        ),
    ] = False,
    alpha: Annotated[float, typer.Option(help="The low-rank terms are scaled by alpha / rank.")] = 16.0,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the CLIP tokenizer to save with the model.")
    ] = None,
    names: Annotated[bool, typer.Option("--names", help="List every parameter, not only their number.")] = False,
) -> None:
    """Convert an official checkpoint file to a model folder.

    A whole model (best_checkpoint.pth) becomes a model and its processor. CLIP with bridges
    (clip_lora_stage_with_bridge.pth) becomes a model with fresh heads, by --preset. The debiased CLIP that training
    starts from becomes a plain CLIP folder, for HiVGForVisualGrounding.from_clip; with --preset, a model whose bridges
    and heads are fresh.
    """
    from hivg_hf.conversion import convert_official_checkpoint, official_clip
    from hivg_hf.conversion.files import CLIP_ALONE, read_official_file

    if out.exists():
        raise ValueError(f"{out} exists; choose another folder, or remove it first.")
    if preset is not None and args is not None:
        raise ValueError("Give either --preset or --args: both say which variant it is.")
    if bridge_lora and lora != LoraChoice.ADAPTER:
        raise ValueError("--bridge-lora keeps terms that --lora merge adds to the weights: add --lora adapter.")
    clip = None if clip_config is None else read_clip_config(clip_config)
    fields = {"bridge_lora": True} if bridge_lora else {}
    file = read_official_file(path)
    if preset is None and args is None and file.kind == CLIP_ALONE:
        if lora == LoraChoice.ADAPTER:
            raise ValueError(f"{path} becomes a plain CLIP, which has no adapter: omit --lora, or give --preset.")
        model, report = official_clip(file, clip, lora_alpha=alpha)
        _write_plain_clip(model, out, tokenizer)
    else:
        conversion = convert_official_checkpoint(
            file,
            _preset(preset, clip, **fields),
            args=None if args is None else _json(args, "--args"),
            clip_config=clip if preset is None else None,
            lora=lora.value,
            lora_alpha=alpha,
            **({} if preset else fields),
        )
        report = conversion.report
        _write_model(conversion.model, out, tokenizer)
    _print_report(report, out, names)


def _preset(name: str | None, clip: Any, **fields: Any) -> Any:
    from hivg_hf.modeling import HiVGConfig

    fields |= {} if clip is None else {"clip_config": clip}
    return None if name is None else HiVGConfig.preset(name, **fields)


def read_clip_config(source: str) -> Any:
    """A `CLIPConfig` from a folder, a JSON file or the Hub."""
    from transformers import CLIPConfig

    if Path(source).is_file():
        return CLIPConfig(**_json(Path(source), "--clip-config"))
    return CLIPConfig.from_pretrained(source)


def _json(path: Path, option: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"File not found: {path}, which {option} names.")
    from hivg_hf.utils.strict_mapping import parse_json

    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}, which {option} names, is not JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}, which {option} names, must hold a JSON object; it holds a {type(content).__name__}."
        )
    return content


def _write_model(model: Any, out: Path, tokenizer: str | None) -> None:
    """The model with its processor; or base/ and adapters/hilora/, as a HiLoRA training writes them."""
    from peft import PeftModel

    from hivg_hf.hilora import PROGRESSIVE_ADAPTER
    from hivg_hf.hilora.folders import save_adapter, save_base
    from hivg_hf.utils.atomic import atomic_folder

    processor = _processor(model, tokenizer)
    with atomic_folder(out) as folder:
        if isinstance(model, PeftModel):
            save_base(model, folder / "base", processor)
            save_adapter(model, PROGRESSIVE_ADAPTER, folder / "adapters" / PROGRESSIVE_ADAPTER, base=out / "base")
        else:
            model.save_pretrained(folder)
            if processor is not None:
                processor.save_pretrained(folder)


def _processor(model: Any, tokenizer: str | None) -> Any:
    """The processor, or None where no tokenizer was named and CLIP's own is not available."""
    from hivg_hf.conversion import official_processor

    config = model.config
    if tokenizer is None and config.clip_config.text_config.vocab_size != CLIP_VOCABULARY:
        return _without_tokenizer("the vocabulary is not CLIP's own")
    try:
        return official_processor(config, tokenizer)
    except OSError as error:
        if tokenizer is not None:
            raise
        return _without_tokenizer(str(error))


def _without_tokenizer(reason: str) -> None:
    terminal(stderr=True, soft_wrap=True).print(
        f"The processor was left out: {reason} Give --tokenizer to write it with the model.", style="yellow"
    )


def _write_plain_clip(model: Any, out: Path, tokenizer: str | None) -> None:
    from transformers import CLIPTokenizer

    from hivg_hf.utils.atomic import atomic_folder

    with atomic_folder(out) as folder:
        model.save_pretrained(folder)
        if tokenizer is not None:
            CLIPTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def _print_report(report: Any, out: Path, names: bool) -> None:
    console = terminal(soft_wrap=True)
    table = Table(title=f"{report.path}: {report.kind}")
    table.add_column("parameters", justify="right")
    table.add_column("became")
    for count, became, listed in report.rows():
        table.add_row(str(count), became)
        if names:
            for name in listed:
                table.add_row("", f"  {name}")
    console.print(table)
    for remark in report.remarks():
        console.print(remark)
    console.print(f"Written: {out.resolve()}")


def main() -> None:
    """Run the verb with the arguments of the process."""
    run_verb("convert")
