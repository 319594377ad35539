"""`quintet export` and `import`: models for other software and from other software."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quintet.cli.inputs import Checkpoint, Precision, echo, fail
from quintet.config.names import local_path


class Format(StrEnum):
    """The formats of an export."""

    HUGGINGFACE = "huggingface"


def export(
    run: Annotated[str, typer.Argument(help="run folder, or name of a run under runs/")],
    folder: Annotated[Path, typer.Argument(help="folder to write, new or empty")],
    to: Annotated[Format, typer.Option(help="format of the files", show_default=False)],
    checkpoint: Checkpoint = "latest",
    dtype: Annotated[Precision, typer.Option(help="type of the weights")] = Precision.FP32,
) -> None:
    """Write the model and tokenizer of a run so that transformers loads them."""
    from quintet.train.trained import load_trained

    assert to is Format.HUGGINGFACE
    exported = load_trained(run, checkpoint).export(folder, dtype.value)
    for note in exported.notes:
        echo(note, err=True)
    echo(f"{folder}: {exported.architecture} with {exported.parameters:,} parameters in {dtype.value}")


def import_(
    checkpoint: Annotated[str, typer.Argument(help="folder of a Hugging Face checkpoint, or its name on the hub")],
    to: Annotated[Path, typer.Option(metavar="FILE.yaml", help="file to write", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit on the hub", show_default=False)] = None,
) -> None:
    """Write the model and tokenizer sections of a run that starts from a checkpoint, with Quintet's own transformer.

    Name the file before your own: `quintet train FILE.yaml mine.yaml`.
    """
    if to.exists():
        fail(f"{to}: exists already; name another file, or remove it")
    import yaml

    from quintet.config.model import TransformerConfig
    from quintet.model.hf.files import find_checkpoint, read_config
    from quintet.model.hf.settings import model_section
    from quintet.model.hf.weights import pretrained_weights
    from quintet.tokenize.huggingface import huggingface_tokenizer

    folder = find_checkpoint(checkpoint, revision)
    values = read_config(folder, lambda line: echo(line, err=True))
    section = model_section(values, checkpoint)
    source = str(folder.resolve()) if local_path(checkpoint).is_dir() else checkpoint
    origin = {"path": source} | ({} if revision is None else {"revision": revision})
    section["init"] = {"kind": "pretrained", **origin}
    huggingface_tokenizer(str(folder))  # so that a missing tokenizer is reported now
    config = TransformerConfig.model_validate(section)
    assert config.vocab_size is not None
    assert config.context_length is not None
    start = pretrained_weights(str(folder), config, config.vocab_size, config.context_length)
    parts = {"model": section, "tokenizer": {"kind": "huggingface", **origin}}
    text = f"# {checkpoint}, a {values['model_type']}, as Quintet's transformer.\n" + yaml.safe_dump(
        parts, sort_keys=False, allow_unicode=True
    )
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")
    count = sum(weight.numel() for weight in start.weights.values())
    for note in start.notes:
        echo(note, err=True)
    echo(f"{to}: {values['model_type']} with {count:,} parameters; quintet train {to} YOUR_RUN.yaml starts from it")
