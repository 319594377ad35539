"""`quintet plan`: what a run costs, before it is started."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from quintet.cli.inputs import Inputs, load


def plan(inputs: Inputs, as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Say what a run costs: parameters, FLOPs, tokens, steps, memory and disk. Nothing is trained."""
    config = load(inputs).config
    from quintet.plan import make_plan
    from quintet.track.console import Reporter

    found = make_plan(config)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    reporter = Reporter()
    for line in found.lines():
        reporter.say(line)
