"""What the verbs have in common: run files and overrides on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from quintet.errors import UserError

if TYPE_CHECKING:
    from quintet.config.load import Loaded

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE... [KEY=VALUE...]",
        help="run files, merged from left to right, then single values; a run folder stands for the run file in it",
        show_default=False,
    ),
]

WRITER = "run folder, name of a run under runs/, folder of a Hugging Face checkpoint, or its name on the hub"


def split(inputs: list[str]) -> tuple[list[Path], list[str]]:
    """Files and overrides of a command line: what holds ``=`` and is no file is an override."""
    overrides = [text for text in inputs if "=" in text and not Path(text).exists()]
    files = [Path(text) for text in inputs if text not in overrides]
    if not files:
        fail("no run file given; name at least one, for instance examples/quickstart.yaml")
    return [file / "run.yaml" if (file / "run.yaml").is_file() else file for file in files], overrides


def load(inputs: list[str]) -> Loaded:
    """The run config that a command line names. Raises UserError for everything that is wrong with it."""
    from quintet.config.load import load_run_config

    files, overrides = split(inputs)
    return load_run_config(files, overrides)


def fail(problem: str) -> NoReturn:
    """Refuse what the user asked for, in one line."""
    raise UserError(problem)
