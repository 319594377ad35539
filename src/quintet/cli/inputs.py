"""Run files, overrides and other arguments that several verbs share."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from quintet import api
from quintet.config.names import is_path, local_path
from quintet.errors import UserError, printable

if TYPE_CHECKING:
    from quintet.config.load import Loaded
    from quintet.config.schema import RunConfig

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE... [KEY=VALUE...]",
        help="run files, of Quintet or of a dialect, merged from left to right, then single values; a run folder "
        "stands for the run file in it. A dialect is found out, or named: --dialect phyagi, vectorlm, stlm, tmrc or "
        "piano. Files with a defaults list take Hydra's --config-path and --config-name",
        show_default=False,
    ),
]

# typer knows the options of the verbs; unknown ones are passed on among the run files.
TAKES_MORE = {"ignore_unknown_options": True}

_read: ContextVar[Loaded | None] = ContextVar("the run file that the command line read", default=None)

Checkpoint = Annotated[str, typer.Option(help="latest, best, or a step")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
WRITER = "run folder, name of a run under runs/, folder of a Hugging Face checkpoint, or its name on the hub"

_NAMES = {
    "--dialect": "dialect",
    "--config-path": "config_path",
    "-cp": "config_path",
    "--config-dir": "config_path",
    "-cd": "config_path",
    "--config-name": "config_name",
    "-cn": "config_name",
}


class Weights(StrEnum):
    """How the weights of matrix products are held when a model is not trained."""

    NARROW = "narrow"
    INT8 = "int8"
    FLOAT8 = "float8"


class Precision(StrEnum):
    """Number formats of matrix products, or of exported weights."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


WeightsOption = Annotated[
    Weights,
    typer.Option("--weights", help="held in the precision of the products (narrow), or rounded to a byte each"),
]


@dataclass
class Line:
    """A parsed command line: files, overrides ``key=value``, and the values of options, some of which are Hydra's."""

    files: list[Path] = field(default_factory=list[Path])
    overrides: list[str] = field(default_factory=list[str])
    options: dict[str, str] = field(default_factory=dict[str, str])


def split(inputs: list[str]) -> Line:
    """Split a command line into files, overrides and options.

    An argument with ``=`` that is no file is an override. So is ``--key.path value`` or ``--key.path=value``, as in
    PhyAGI, with a list for a value with commas and true for a missing value. Raises UserError for an unknown option,
    and if there is no file.
    """
    line, remaining = Line(), list(inputs)
    while remaining:
        text = remaining.pop(0)
        name, equals, value = text.partition("=")
        if name in _NAMES:
            if not equals and not remaining:
                fail(f"{name}: needs a value")
            line.options[_NAMES[name]] = value if equals else remaining.pop(0)
        elif text.startswith("--") and "." in name:
            if not equals and (not remaining or remaining[0].startswith("--")):
                value = "true"
            value = value if equals or value else remaining.pop(0)
            line.overrides.append(f"{name[2:]}={f'[{value}]' if ',' in value and value[0] not in '[{' else value}")
        elif text.startswith("-") and not is_path(text):
            fail(f"{name}: no such option")
        elif ("=" in text and not is_path(text)) or (text.startswith("~") and "/" not in text):
            line.overrides.append(text)
        else:
            line.files.append(local_path(text))
    if "config_name" in line.options:
        folder = local_path(line.options.get("config_path", "."))
        name = line.options["config_name"].removesuffix(".yaml")
        line.files.append(folder / f"{name}.yaml")
    if not line.files:
        fail("no run file given; name at least one, for instance examples/quickstart.yaml")
    return line


def load(inputs: list[str], purpose: Literal["train", "prepare"] = "train", *, may_lack: bool = False) -> RunConfig:
    """Return the run config that a command line names. Raises UserError for all its mistakes, and for what is not on
    this machine, unless it ``may_lack`` that."""
    line = split(inputs)
    config = api.load_config(
        line.files,
        line.overrides,
        dialect=line.options.get("dialect"),
        config_folder=line.options.get("config_path") or None,
        purpose=purpose,
    )
    loaded = api.loaded_of(config)
    _read.set(loaded)
    if not may_lack:
        api.check_here(config)
    return config


def in_words_of_file(error: UserError) -> UserError:
    """Return ``error``, which has native keys, with the keys and lines of the dialect's file that the verb has read, if
    any."""
    loaded = _read.get()
    return error if loaded is None or loaded.dialect is None else loaded.located(error)


def in_words(line: str) -> str:
    """Return ``line``, which has native keys, with the keys and lines of the dialect's file that the verb has read, if
    any."""
    loaded = _read.get()
    return line if loaded is None else loaded.in_words(line)


def forget_read() -> None:
    """Forget the file that an earlier command line has read."""
    _read.set(None)


@contextmanager
def as_options(*names: str) -> Generator[None]:
    """Raise a UserError of the context with options, as --device-memory, for the ``names`` that its problems begin
    with."""
    try:
        yield
    except UserError as error:
        problems = [
            f"--{problem.replace('_', '-', 1)}" if problem.partition(":")[0] in names else problem
            for problem in error.problems
        ]
        if problems == list(error.problems):
            raise  # it may know the file and line of each problem
        raise UserError(*problems) from error


def echo(text: str, *, err: bool = False, nl: bool = True, exact: bool = False) -> None:
    """Print ``text`` with control characters escaped; ``exact`` prints it unchanged to a file or another program."""
    stream = sys.stderr if err else sys.stdout
    typer.echo(text if exact and not stream.isatty() else printable(text, lines=True), err=err, nl=nl, color=True)


def fail(problem: str) -> NoReturn:
    """Raise UserError with the line ``problem``."""
    raise UserError(problem)
