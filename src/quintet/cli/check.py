"""`quintet check`: find what is wrong with a run file before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from quintet.cli.inputs import AsJson, Inputs, forget_read, load
from quintet.errors import UserError
from quintet.files import to_json

if TYPE_CHECKING:
    from quintet.config.load import Loaded
    from quintet.config.schema import RunConfig


def check(
    inputs: Inputs,
    as_json: AsJson = False,
    tries: Annotated[
        bool,
        typer.Option(
            "--try",
            help="also go through all that the run will do, with small counts: two steps, validation, samples, "
            "benchmarks, checkpoint, resume, report, export",
        ),
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="with --try: keep the folder of the trial")] = False,
) -> None:
    """Say what is wrong with a run file: every mistake at once, with its line. Without --try nothing is read but the
    file itself."""
    if keep and not tries:
        raise UserError("--keep: goes with --try; leave it out, or try the run")
    try:
        loaded = load(inputs)
        if tries:
            _try(loaded, as_json=as_json, keep=keep)
            return
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
    """Raise RunFileError for what costs little to find and the schema cannot know: sources that are not there, and
    arguments that another library does not take."""
    problems = _beyond_schema(loaded)
    if problems:
        raise loaded.located(UserError(*problems))


def _beyond_schema(loaded: Loaded) -> list[str]:
    from quintet.data.sources import check_sources
    from quintet.train.check import check_training

    problems: list[str] = []
    for look in (check_sources, check_training):
        try:
            look(loaded.config)
        except UserError as error:
            problems += error.problems
    return problems


def _try(loaded: Loaded, *, as_json: bool, keep: bool) -> None:
    """Go through the run and print what was done. Raises UserError, or typer.Exit with JSON, when something failed."""
    from quintet.cli.trial import try_run

    tried = try_run(loaded, _beyond_schema(loaded), keep=keep)
    notes = [*loaded.notes, *tried.notes]
    located = [(stage, loaded.located(UserError(problem)).details[0], problem) for stage, problem in tried.failures]
    if as_json:
        failures = [
            {
                "stage": stage,
                "file": one.place.file,
                "line": one.place.line,
                "key": one.key or None,
                "message": one.message,
            }
            for stage, one, _ in located
        ]
        values = {
            "ok": not failures,
            "problems": failures,
            "notes": notes,
            "stages": [vars(one) for one in tried.stages],
        }
        typer.echo(to_json({**values, "folder": None if tried.folder is None else str(tried.folder)}, indent=2))
        raise typer.Exit(2 if failures else 0)
    for line in (*map(str, tried.stages), *(f"note: {note}" for note in notes)):
        typer.echo(line)
    if tried.folder is not None:
        typer.echo(f"kept: {tried.folder}")
    if located:
        forget_read()  # these have their places, after the stage that found them
        raise UserError(*(f"{stage}: {one if one.key else problem}" for stage, one, problem in located))
    typer.echo(f"OK, tried: {_summary(loaded.config)}")


def _problems(error: UserError) -> list[dict[str, Any]]:
    from quintet.config.provenance import RunFileError

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
