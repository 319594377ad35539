"""`quintet runs`, `compare` and `report`: the results of runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quintet.cli.inputs import AsJson, Checkpoint, echo, fail
from quintet.config.names import find_run, is_path
from quintet.errors import printable
from quintet.files import to_json

if TYPE_CHECKING:
    from quintet.report.compare import Row
    from quintet.report.facts import RunFacts
    from quintet.report.paired import Paired


def runs(
    folder: Annotated[Path, typer.Argument(help="folder that holds run folders")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder, with the step, losses and speed of each."""
    from quintet.report.facts import find_runs

    if not is_path(folder) or not folder.is_dir():
        fail(f"{folder}: no such folder; `quintet train` makes runs/ where it is called")
    summaries = find_runs(folder)
    if as_json:
        echo(to_json([asdict(run) for run in summaries], indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("run", "step", "train loss", "validation loss", "bits per byte", "tokens/s", "last change", box=None)
    for run in summaries:
        figures = (run.train_loss, run.validation_loss, run.bits_per_byte)
        shown = ("" if value is None else f"{value:.4f}" for value in figures)
        speed = "" if run.tokens_per_second is None else f"{run.tokens_per_second:,.0f}"
        table.add_row(Text(printable(run.name)), f"{run.step}/{run.steps or '?'}", *shown, speed, run.changed)
    Console().print(table)
    for run in summaries:
        if run.problem is not None:
            echo(f"{run.name}: its run file cannot be read: {run.problem}", err=True)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="run folders, or names of runs under runs/")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="also draw the losses over tokens into this PNG")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="file or folder of .txt and .jsonl to measure on; the held-out data of the runs when not given"
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="held-out samples; evaluate.samples of each run when not given")
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="bytes of text at most, of all topics together")] = 200_000,
    checkpoint: Checkpoint = "latest",
    recorded: Annotated[
        bool, typer.Option("--recorded", help="only what was recorded during training; load no model")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare runs: settings, figures, curves, and confidence intervals of the differences of their losses on the same
    data.

    Each run is compared with the first.
    """
    from rich.console import Console

    from quintet.report.compare import figure_rows, setting_rows
    from quintet.report.facts import read_facts
    from quintet.track.console import Reporter

    if len(runs) < 2:
        fail("compare: needs two runs or more; `quintet runs` lists them")
    if recorded and (text, samples) != (None, None):
        fail("--recorded: measures nothing and ignores --text and --samples; leave them out")
    facts = [read_facts(find_run(run)) for run in runs]
    settings, figures = setting_rows(facts), figure_rows(facts)
    if output is not None:
        _draw(output, facts)
    paired = None
    if not recorded:
        from quintet.report.paired import CompareOptions, compare_models

        reporter = Reporter(Console(stderr=True, highlight=False, soft_wrap=True))
        paired = compare_models(runs, CompareOptions(checkpoint, samples, text, max_bytes, reporter=reporter))
    if as_json:
        echo(to_json(_as_json(runs, settings, figures, paired), indent=2))
        return
    _print(facts, settings, figures)
    for line in paired.lines([run.name for run in facts]) if paired else ():
        echo(line)
    if output is not None:
        echo(f"curves: {output}")


def _draw(output: Path, facts: list[RunFacts]) -> None:
    from quintet.report.plots import compared

    if output.suffix.lower() != ".png":
        fail(f"-o {output}: is drawn as PNG; let its name end with .png")
    if not output.absolute().parent.is_dir():
        fail(f"-o {output}: its folder does not exist; make it first")
    output.write_bytes(compared(facts))


def _print(facts: list[RunFacts], settings: list[Row], figures: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from quintet.report.compare import setting

    table = Table("", box=None)
    for run in facts:
        table.add_column(Text(printable(run.name)))
    for row in settings:
        table.add_row(Text(printable(row.name)), *(Text(printable(setting(value))) for value in row.values))
    table.add_section()
    for row in figures:
        styles = ["bold" if index == row.better else "" for index in range(len(row.values))]
        values = (Text(cell, style) for cell, style in zip(row.cells(), styles, strict=True))
        table.add_row(Text(printable(row.name)), *values)
    Console().print(table)


def _as_json(runs: list[str], settings: list[Row], figures: list[Row], paired: Paired | None) -> dict[str, Any]:
    return {
        "runs": runs,
        "settings": {row.name: row.values for row in settings},
        "figures": {row.name: row.values for row in figures},
        "standard_errors": {row.name: row.errors for row in figures if any(e is not None for e in row.errors)},
        "paired": None if paired is None else asdict(paired),
    }


def report(
    run: Annotated[str, typer.Argument(help="run folder, or name of a run under runs/")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="file to write; report.html in the run's folder if not given")
    ] = None,
    sound: Annotated[
        bool, typer.Option("--sound", help="render the last sample of each piece or task of music: 5 MB a minute")
    ] = False,
) -> None:
    """Write the report of a run, one HTML page: its settings, curves, figures, and samples of text or music."""
    from quintet.report.page import write_report

    folder = find_run(run)
    file = output or folder / "report.html"
    if not file.absolute().parent.is_dir():
        fail(f"-o {file}: its folder does not exist; make it first")
    write_report(folder, file, sound=sound)
    echo(f"{file}: {file.stat().st_size / 1e6:,.1f} MB")
