"""`quintet check`: find what is wrong with a run file before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from quintet import api
from quintet.cli.inputs import AsJson, Inputs, echo, forget_read, load
from quintet.errors import UserError
from quintet.files import to_json

if TYPE_CHECKING:
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
    strict: Annotated[
        bool,
        typer.Option("--strict", help="what is not on this machine, as data, checkpoints and libraries, is a mistake"),
    ] = False,
) -> None:
    """Say what is wrong with a run file: every mistake at once, with its line; and what it needs that is not on this
    machine. Without --try nothing is read but the file itself."""
    if keep and not tries:
        raise UserError("--keep: goes with --try; leave it out, or try the run")
    try:
        config = _loaded(inputs, may_lack=not tries)
        if tries:
            _try(config, as_json=as_json, keep=keep)
            return
        found = api.check(config, strict=strict)
    except UserError as error:
        from quintet.config.provenance import RunFileError

        if not as_json:
            raise
        absent = list(map(str, error.not_here)) if isinstance(error, RunFileError) else []
        echo(to_json({"ok": False, "problems": _problems(error), "not_here": absent}, indent=2))
        raise typer.Exit(2) from None
    if as_json:
        values: dict[str, Any] = {"ok": True, "problems": [], "notes": found.notes, "not_here": found.not_here}
        echo(to_json(values, indent=2))
        return
    echo(str(found))


def _loaded(inputs: list[str], *, may_lack: bool) -> RunConfig:
    """The run config that a command line names. Raises UserError with its mistakes and all that is not here."""
    from quintet.config.load import Refused

    try:
        return load(inputs, may_lack=may_lack)
    except Refused as error:
        raise api.beside_mistakes(error) from None


def _try(config: RunConfig, *, as_json: bool, keep: bool) -> None:
    """Go through the run and print what was done. Raises UserError, or typer.Exit with JSON, when something failed."""
    tried, loaded = api.try_run(config, keep=keep), api.loaded_of(config)
    assert loaded is not None
    notes = [*loaded.notes, *tried.notes]
    located = [(stage, loaded.located(UserError(problem)).details[0], problem) for stage, problem in tried.failures]
    if as_json:
        failures = [
            {
                "stage": stage,
                "file": one.origin.file,
                "line": one.origin.line,
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
        echo(to_json({**values, "folder": None if tried.folder is None else str(tried.folder)}, indent=2))
        raise typer.Exit(2 if failures else 0)
    for line in (*map(str, tried.stages), *(f"note: {note}" for note in notes)):
        echo(line)
    if tried.folder is not None:
        echo(f"kept: {tried.folder}")
    if located:
        forget_read()  # these have their places, after the stage that found them
        raise UserError(*(f"{stage}: {one if one.key else problem}" for stage, one, problem in located))
    echo(f"OK, tried: {api.summary(config)}")


def _problems(error: UserError) -> list[dict[str, Any]]:
    from quintet.config.provenance import RunFileError

    if isinstance(error, RunFileError):
        return [
            {"file": one.origin.file, "line": one.origin.line, "key": one.key or None, "message": one.message}
            for one in error.details
        ]
    return [{"file": None, "line": None, "key": None, "message": problem} for problem in error.problems]
