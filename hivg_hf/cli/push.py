"""`hivg push FOLDER REPO_ID`: upload a model or an adapter to the Hub in one commit, and load it back."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from . import run_verb, say, terminal


def push(
    folder: Annotated[
        Path, typer.Argument(help="What save_pretrained wrote: a model with its processor, or an adapter.")
    ],
    repo_id: Annotated[
        str,
        typer.Argument(
            help="owner/name on the Hub; created if missing. A path such as ./folder is a trial: what would be "
            "pushed is written there, and nothing is sent."
        ),
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository visible to you alone.")] = False,
    branch: Annotated[str, typer.Option(help="Branch to commit to; created from main if missing.")] = "main",
    message: Annotated[str, typer.Option(help="Title of the commit.")] = "Upload HiVG",
    base: Annotated[
        str | None,
        typer.Option(help="For an adapter: the repository of its model, owner/name or owner/name@revision."),
    ] = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update", help="Commit to a repository that holds other files; its weights and code are replaced."
        ),
    ] = False,
    onnx: Annotated[
        bool,
        typer.Option("--onnx", help="Also push ONNX files, fp32 and int8; exported first if missing or out of date."),
    ] = False,
    check: Annotated[bool, typer.Option(help="Load what was pushed and ground a picture with it.")] = True,
    token: Annotated[
        str | None, typer.Option(help="Access token; by default HF_TOKEN or that of `hf auth login`.")
    ] = None,
) -> None:
    """Upload a model folder to the Hub in one commit, and load it back.

    Only the model's own files are sent: weights, processor, code, card. Nothing is visible until everything is there.
    """
    options: dict[str, Any] = {"branch": branch, "message": message, "base": base, "update": update, "onnx": onnx}
    with tempfile.TemporaryDirectory() as place:
        folder = _find(folder, Path(place) / "model", onnx)
        _push(folder, repo_id, token=token, private=private, check=check, **options)


def _find(folder: Path, copy: Path, onnx: bool) -> Path:
    """The folder to push; with current ONNX files, which never go into the folder of a model that is given by name."""
    from hivg_hf.hub import is_tiny, resolve_model, write_pushed
    from hivg_hf.hub.files import files_to_push

    is_name = not folder.exists() or (folder / "results.json").is_file()  # tiny, official:base-mixup, that of a run
    if is_name:
        folder = Path(resolve_model(folder.as_posix()))
    if onnx:
        from hivg_hf.inference import write_current_onnx

        if is_name or is_tiny(str(folder)):
            write_pushed(folder, copy)
            folder = copy
        files_to_push(folder)  # what is not whole is refused before the minutes that an export takes
        write_current_onnx(folder)
    return folder


def _push(folder: Path, repo_id: str, *, token: str | None, private: bool, check: bool, **options: Any) -> None:
    from hivg_hf.hub import push_folder, write_pushed

    if repo_id.startswith((".", "/", "~")):
        out = Path(repo_id).expanduser()
        for path in write_pushed(folder, out, options["base"], onnx=options["onnx"]):
            say(f"{(out / path).stat().st_size:>12,}  {path}")
        say(f"Nothing was sent; this would be pushed: {out.resolve()}")
        return
    report = push_folder(folder, repo_id, token=token, private=private, check=check, **options)
    console = terminal(soft_wrap=True)
    console.print(f"{report.repo_id} {'now holds' if report.changed else 'held already'} {len(report.files)} files.")
    console.print(f"commit {report.commit}" + (", read back and working" if check else ", not read back"))


def main() -> None:
    """Run the verb with the arguments of the process."""
    run_verb("push")
