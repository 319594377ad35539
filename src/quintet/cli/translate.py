"""`quintet translate`: a dialect's file as a native run file, and the other way."""

from __future__ import annotations

from typing import Annotated

import typer

from quintet import api
from quintet.cli.inputs import Inputs, load


def translate(
    inputs: Inputs,
    to: Annotated[
        str | None, typer.Option(metavar="DIALECT", help="write a file of this dialect instead of a native one")
    ] = None,
) -> None:
    """Print a run file as Quintet understands it: native, with the key and line of the file that set each value.

    With --to it is written in a dialect; what that dialect cannot express is listed on standard error.
    """
    config = load(inputs)
    if to is None:
        from quintet.config.dump import dump_with_origins

        loaded = api.loaded_of(config)
        assert loaded is not None
        for note in loaded.notes:
            typer.echo(f"note: {note}", err=True)
        typer.echo(dump_with_origins(config, loaded.places), nl=False)
        return
    from quintet.config.dialects import dialect_named
    from quintet.config.dialects.back import translate_back

    written = translate_back(dialect_named(to), config)
    typer.echo(written.text, nl=False)
    for line in written.lost:
        typer.echo(f"not expressed in {to}: {line}", err=True)
