"""`quintet export`: a trained model for other software."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quintet.cli.inputs import Checkpoint


class Format(StrEnum):
    """What can be written."""

    HUGGINGFACE = "huggingface"


class Precision(StrEnum):
    """The type of the weights that are written."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def export(
    run: Annotated[str, typer.Argument(help="run folder, or name of a run under runs/")],
    folder: Annotated[Path, typer.Argument(help="folder to write, new or empty")],
    to: Annotated[Format, typer.Option(help="form of the files", show_default=False)],
    checkpoint: Checkpoint = "latest",
    dtype: Annotated[Precision, typer.Option(help="type of the weights")] = Precision.FP32,
) -> None:
    """Write the model and tokenizer of a run so that transformers loads them."""
    from quintet.export.huggingface import export_huggingface
    from quintet.train.trained import load_trained

    assert to is Format.HUGGINGFACE
    exported = export_huggingface(load_trained(run, checkpoint), folder, dtype.value)
    for note in exported.notes:
        typer.echo(note, err=True)
    typer.echo(f"{folder}: {exported.architecture} with {exported.parameters:,} parameters in {dtype.value}")
