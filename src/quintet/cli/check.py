"""`quintet check`: find what is wrong with a run file before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from quintet.cli.inputs import Inputs, load
from quintet.errors import UserError
from quintet.files import to_json

if TYPE_CHECKING:
    from quintet.config.load import Loaded
    from quintet.config.schema import RunConfig


def check(inputs: Inputs, as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Say what is wrong with a run file: every mistake at once, with its line. Nothing is read but the file itself."""
    try:
        loaded = load(inputs)
        check_beyond_schema(loaded)
    except UserError as error:
        if not as_json:
            raise
        typer.echo(to_json({"ok": False, "problems": _problems(error)}, indent=2))
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(to_json({"ok": True, "problems": [], "notes": loaded.notes}, indent=2))
        return
    typer.echo(f"OK {_summary(loaded.config)}")
    for note in loaded.notes:
        typer.echo(f"note: {note}")


def check_beyond_schema(loaded: Loaded) -> None:
    """What costs little and the schema cannot know: whether the sources are there, and other libraries' arguments."""
    from quintet.data.sources import check_sources
    from quintet.train.check import check_training

    problems: list[str] = []
    for look in (check_sources, check_training):
        try:
            look(loaded.config)
        except UserError as error:
            problems += error.problems
    if problems:
        raise loaded.located(UserError(*problems))


def _problems(error: UserError) -> list[dict[str, Any]]:
    from quintet.config.places import RunFileError

    if isinstance(error, RunFileError):
        return [
            {"file": one.place.file, "line": one.place.line, "key": one.key or None, "message": one.message}
            for one in error.details
        ]
    return [{"file": None, "line": None, "key": None, "message": problem} for problem in error.problems]


def _summary(config: RunConfig) -> str:
    """A run in one line: what is trained, on what, how long."""
    model, train, batch = config.model, config.train, config.batch
    lengths = {"steps": train.steps, "tokens": train.tokens, "epochs": train.epochs}
    length = " or ".join(f"{count:,} {unit}" for unit, count in lengths.items() if count is not None)
    sources = ", ".join(dict.fromkeys(source.kind for source in config.data.sources))
    size = f"of {model.layers} layers, width {model.width}" if model.kind == "transformer" else model.name_or_path
    settled = train.batch_size_per_device is None or train.batch_devices is not None
    each = "" if settled else " on each device"
    return (
        f"{config.name}: {model.kind} {size}; "
        f"{config.tokenizer.kind} tokenizer; {sources}; "
        f"{length}, {batch.samples} × {batch.sequence_length} tokens a step{each}"
    )
