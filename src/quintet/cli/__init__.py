"""The command `quintet`: its verbs, and how it reports errors.

The table of verbs is `VERBS` below. A verb is a function that reads its arguments, calls another package and prints:

- ``train.py``: `train`, `slurm`. ``data.py``: `prepare`, `data`. ``show_batch.py``: `show-batch`.
- ``plan.py``: `plan`. ``check.py``: `check`. ``explain.py``: `explain`, `schema`, `translate`.
- ``generate.py``: `generate`. ``chat.py``: `chat`, `play`. ``evaluate.py``: `evaluate`.
- ``runs.py``: `runs`, `compare`, `report`. ``export.py``: `import`, `export`.

``inputs.py`` has what several verbs share: run files and overrides as arguments, options such as --checkpoint, and
output. The same functions for Python are in `quintet.api`. `main` below turns a UserError into lines on standard error
and exit code 2.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, NoReturn

import typer

from quintet.api import lines_not_here
from quintet.cli.chat import chat, play
from quintet.cli.check import check
from quintet.cli.data import data, prepare
from quintet.cli.evaluate import evaluate
from quintet.cli.explain import explain, schema, translate
from quintet.cli.export import export, import_
from quintet.cli.generate import generate
from quintet.cli.inputs import TAKES_MORE, echo, forget_read, in_words_of_file
from quintet.cli.plan import plan
from quintet.cli.runs import compare, report, runs
from quintet.cli.show_batch import show_batch
from quintet.cli.train import slurm, train
from quintet.errors import UserError, printable, without_secrets
from quintet.files import problem_of_path
from quintet.system import __version__, write_utf8
from quintet.train.parallel.failures import end, end_with_launcher, is_launched, leave

VERBS = (
    train,
    slurm,
    prepare,
    data,
    show_batch,
    plan,
    check,
    translate,
    explain,
    schema,
    generate,
    chat,
    play,
    evaluate,
    compare,
    report,
    import_,
    export,
    runs,
)

USER_ERROR = 2


def _version(asked: bool) -> None:
    if asked:
        echo(f"quintet {__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Train language models from one typed YAML file."""


def command_name(verb: Callable[..., None]) -> str:
    """Return the name of a verb on the command line."""
    return verb.__name__.rstrip("_").replace("_", "-")


def _make_app() -> typer.Typer:
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
    app.callback()(_top)
    for verb in VERBS:
        takes_files = "inputs" in inspect.signature(verb).parameters
        app.command(command_name(verb), context_settings=TAKES_MORE if takes_files else None)(verb)
    return app


app = _make_app()


@cache
def _command() -> Callable[..., None]:
    """Return the parser of the command line; building it takes 25 ms."""
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command with ``arguments`` (None: those of the process) and exit with its code.

    0: done. 2: a mistake of the user's, with a line for each problem on standard error. 130: interrupted. A bug ends
    with a traceback.
    """
    end_with_launcher()
    write_utf8()
    forget_read()
    try:
        _command()(list(arguments) if arguments is not None else None, prog_name="quintet")
    except KeyboardInterrupt:
        end(130)
    except SystemExit as leaving:
        end(leaving.code)
    except BaseException as error:
        problems = _problems(error)
        if is_launched():
            leave(error, problems, USER_ERROR if problems else 1)
        if not problems:
            raise
        for problem in problems:
            echo(f"error: {printable(without_secrets(problem))}", err=True)
        for line in lines_not_here(map(str, getattr(error, "not_here", ()))):
            echo(printable(without_secrets(line)), err=True)
        sys.exit(USER_ERROR)
    sys.exit(0)


def _problems(error: BaseException) -> list[str]:
    """Return a line for each problem that the user can mend; none for a bug."""
    if isinstance(error, UserError):
        return list(in_words_of_file(error).problems)
    if isinstance(error, OSError) and (problem := problem_of_path(error)) is not None:
        return [problem]
    return []
