"""`quintet check`: find the mistakes in a run file before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from quintet import api
from quintet.cli.inputs import AsJson, Inputs, echo, forget_read, load
from quintet.errors import UserError
from quintet.files import to_json

if TYPE_CHECKING:
    from quintet.config.provenance import Problem
    from quintet.config.schema import RunConfig


def check(
    inputs: Inputs,
    as_json: AsJson = False,
    tries: Annotated[
        bool,
        typer.Option(
            "--try",
            help="also try everything that the run will do, with small counts: two steps, validation, samples, "
            "benchmarks, checkpoint, resume, report, export",
        ),
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="with --try: keep the folder of the trial")] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="count what is not on this machine, as data, checkpoints and libraries, as a mistake"
        ),
    ] = False,
) -> None:
    """Report the mistakes in a run file, all at once and each with its line, and what it needs that is not on this
    machine. Without --try only the file itself is read."""
    if keep and not tries:
        raise UserError("--keep: goes with --try; leave it out, or try the run")
    try:
        config = _loaded(inputs, may_lack=not tries)
        if tries:
            _try(config, as_json=as_json, keep=keep)
            return
        checked = api.check(config, strict=strict)
    except UserError as error:
        from quintet.config.provenance import RunFileError

        if not as_json:
            raise
        absent = list(map(str, error.not_here)) if isinstance(error, RunFileError) else []
        echo(to_json({"ok": False, "problems": _problems(error), "not_here": absent}, indent=2))
        raise typer.Exit(2) from None
    if as_json:
        values: dict[str, Any] = {"ok": True, "problems": [], "notes": checked.notes, "not_here": checked.not_here}
        echo(to_json(values, indent=2))
        return
    echo(str(checked))


def _loaded(inputs: list[str], *, may_lack: bool) -> RunConfig:
    """Return the run config that a command line names. Raises UserError with its mistakes and all that is missing
    here."""
    from quintet.config.load import Refused

    try:
        return load(inputs, may_lack=may_lack)
    except Refused as error:
        raise api.beside_mistakes(error) from None


def _try(config: RunConfig, *, as_json: bool, keep: bool) -> None:
    """Try the run and print its stages. Raises UserError, or typer.Exit after JSON, if something failed."""
    tried, loaded = api.try_run(config, keep=keep), api.loaded_of(config)
    assert loaded is not None
    notes = [*loaded.notes, *tried.notes]
    located = [(stage, loaded.located(UserError(problem)).details[0], problem) for stage, problem in tried.failures]
    if as_json:
        failures = [{"stage": stage, **_place(detail)} for stage, detail, _ in located]
        values = {
            "ok": not failures,
            "problems": failures,
            "notes": notes,
            "stages": [vars(stage) for stage in tried.stages],
        }
        echo(to_json({**values, "folder": None if tried.folder is None else str(tried.folder)}, indent=2))
        raise typer.Exit(2 if failures else 0)
    for line in (*map(str, tried.stages), *(f"note: {note}" for note in notes)):
        echo(line)
    if tried.folder is not None:
        echo(f"kept: {tried.folder}")
    if located:
        forget_read()  # the details have their lines already
        raise UserError(*(f"{stage}: {detail if detail.key else problem}" for stage, detail, problem in located))
    echo(f"OK, tried: {api.summary(config)}")


def _problems(error: UserError) -> list[dict[str, Any]]:
    from quintet.config.provenance import RunFileError

    if isinstance(error, RunFileError):
        return [_place(detail) for detail in error.details]
    return [{"file": None, "line": None, "key": None, "message": problem} for problem in error.problems]


def _place(problem: Problem) -> dict[str, Any]:
    return {
        "file": problem.origin.file,
        "line": problem.origin.line,
        "key": problem.key or None,
        "message": problem.message,
    }
