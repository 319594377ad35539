"""`quintet schema`: the JSON Schema of run files, native or of a dialect, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def schema(
    dialect: Annotated[
        str | None, typer.Option(help="of files of this dialect: phyagi, vectorlm, stlm, tmrc or piano")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="write to this file instead of standard output")] = None,
) -> None:
    """Print the JSON Schema of the run file, with which an editor completes and checks it."""
    from quintet.config.dialects import dialect_named
    from quintet.config.json_schema import dialect_schema, run_file_schema

    found = run_file_schema() if dialect is None else dialect_schema(dialect_named(dialect))
    text = json.dumps(found, indent=2, ensure_ascii=False)
    if output is None:
        typer.echo(text)
        return
    output.write_text(text + "\n", encoding="utf-8")
    typer.echo(f"wrote {output}")
