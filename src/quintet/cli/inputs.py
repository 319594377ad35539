"""Run files and overrides on the command line, and what else the verbs have in common."""

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

# Options of the verbs' own are known to typer; what it does not know comes here, among the run files.
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
    """How a model that is no longer trained holds the weights of its matrix products."""

    NARROW = "narrow"
    INT8 = "int8"
    FLOAT8 = "float8"


class Precision(StrEnum):
    """Types of numbers: of matrix products, or of the weights that are written."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


WeightsOption = Annotated[
    Weights,
    typer.Option("--weights", help="held in the precision of the products (narrow), or rounded to a byte each"),
]


@dataclass
class Line:
    """A command line, taken apart: files, overrides ``key=value``, and what options of ours and of Hydra's say."""

    files: list[Path] = field(default_factory=list[Path])
    overrides: list[str] = field(default_factory=list[str])
    options: dict[str, str] = field(default_factory=dict[str, str])


def split(inputs: list[str]) -> Line:
    """Files, overrides and options of a command line: what holds ``=`` and is no file is an override, and so is
    ``--key.path value`` or ``--key.path=value``, as PhyAGI writes them, where a value with commas is a list and a key
    without a value is true.

    Raises UserError for an option that nobody knows, and when there is no file.
    """
    line, left = Line(), list(inputs)
    while left:
        text = left.pop(0)
        name, equals, value = text.partition("=")
        if name in _NAMES:
            if not equals and not left:
                fail(f"{name}: needs a value")
            line.options[_NAMES[name]] = value if equals else left.pop(0)
        elif text.startswith("--") and "." in name:
            if not equals and (not left or left[0].startswith("--")):
                value = "true"
            value = value if equals or value else left.pop(0)
            line.overrides.append(f"{name[2:]}={f'[{value}]' if ',' in value and value[0] not in '[{' else value}")
        elif text.startswith("-") and not is_path(text):
            fail(f"{name}: no such option")
        elif ("=" in text and not is_path(text)) or (text.startswith("~") and "/" not in text):
            line.overrides.append(text)
        else:
            line.files.append(local_path(text))
    _name_files(line)
    return line


def _name_files(line: Line) -> None:
    """Add the file that Hydra's options name."""
    folder = local_path(line.options.get("config_path", "."))
    if "config_name" in line.options:
        name = line.options["config_name"].removesuffix(".yaml")
        line.files.append(folder / f"{name}.yaml")
    if not line.files:
        fail("no run file given; name at least one, for instance examples/quickstart.yaml")


def load(inputs: list[str], purpose: Literal["train", "prepare"] = "train", *, may_lack: bool = False) -> RunConfig:
    """Return the run config that a command line names. Raises UserError for everything that is wrong with it, and for
    what its file does without, as it is not on this machine, unless it ``may_lack`` that."""
    line = split(inputs)
    named = line.options
    config = api.load_config(
        line.files,
        line.overrides,
        dialect=named.get("dialect"),
        config_folder=named.get("config_path") or None,
        purpose=purpose,
    )
    loaded = api.loaded_of(config)
    _read.set(loaded)
    if not may_lack:
        api.check_here(config)
    return config


def in_words_of_file(error: UserError) -> UserError:
    """``error``, which stopped a verb, with the keys and lines of the dialect's file that it read, if it read one: what
    is said of data, model or training after `load` speaks of native keys."""
    loaded = _read.get()
    return error if loaded is None or loaded.dialect is None else loaded.located(error)


def in_words(line: str) -> str:
    """``line``, which tells something of a run with native keys, with the keys and lines of the dialect's file that the
    verb read, if it read one."""
    loaded = _read.get()
    return line if loaded is None else loaded.in_words(line)


def forget_read() -> None:
    """Begin a command line, which has read no file yet."""
    _read.set(None)


@contextmanager
def as_options(*names: str) -> Generator[None]:
    """Within, raise a UserError that begins with one of ``names`` as one that begins with the option of that name."""
    try:
        yield
    except UserError as error:
        found = [f"--{one.replace('_', '-', 1)}" if one.partition(":")[0] in names else one for one in error.problems]
        if found == list(error.problems):
            raise  # which knows the file and line of each problem
        raise UserError(*found) from error


def echo(text: str, *, err: bool = False, nl: bool = True, exact: bool = False) -> None:
    """Print ``text`` without what steers a terminal; ``exact`` leaves it as it is for a file or another program."""
    stream = sys.stderr if err else sys.stdout
    typer.echo(text if exact and not stream.isatty() else printable(text, lines=True), err=err, nl=nl, color=True)


def fail(problem: str) -> NoReturn:
    """Refuse what the user asked for: raises UserError with the line ``problem``."""
    raise UserError(problem)
