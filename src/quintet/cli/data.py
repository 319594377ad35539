"""`quintet data`: what the sources of a run, or a token store, hold."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from quintet.cli.inputs import AsJson, in_words, load
from quintet.config.names import local_path
from quintet.files import to_json

Described = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE... [KEY=VALUE...] | STORE",
        help="run files, as for prepare, or the folder of one token store",
        show_default=False,
    ),
]


def data(
    inputs: Described,
    seed: Annotated[int, typer.Option(help="chooses the documents that are shown")] = 0,
    samples: Annotated[int, typer.Option(min=0, help="documents that are shown of each store")] = 3,
    as_json: AsJson = False,
) -> None:
    """Describe what is prepared: documents, tokens, lengths, what was dropped, some texts. Nothing is tokenised."""
    from quintet.data.describe import report_run, report_store
    from quintet.data.manifest import MANIFEST

    if len(inputs) == 1 and (local_path(inputs[0]) / MANIFEST).is_file():
        reports = [report_store(local_path(inputs[0]), seed, samples)]
    else:
        reports = report_run(load(inputs), seed, samples)
    if as_json:
        typer.echo(to_json([asdict(report) for report in reports], indent=2, ascii=False))
        return
    for report in reports:
        for line in report.lines():
            typer.echo(in_words(line))
