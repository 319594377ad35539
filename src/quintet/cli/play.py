"""`quintet play`: a page in the browser to hear a model of piano music."""

from __future__ import annotations

from typing import Annotated

import typer

from quintet.cli.inputs import WRITER, Checkpoint


def play(
    run: Annotated[str, typer.Argument(help=WRITER)],
    checkpoint: Checkpoint = "latest",
    host: Annotated[
        str, typer.Option(help="address to serve on; with 0.0.0.0 whoever reaches this machine can use the page")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to serve on; 0 takes a free one")] = 8501,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="only serve the page, do not open it")] = False,
) -> None:
    """Give a model of piano music a MIDI file on a local page: see, hear and download what it writes."""
    from quintet.play import serve

    serve(run, checkpoint, host, port, browser=not no_browser)
