"""`quintet prepare`: tokenise the sources of a run before it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quintet.cli.inputs import Inputs, load


def prepare(
    inputs: Inputs,
    output: Annotated[
        Path | None, typer.Option(help="write the store of the only source to this folder, for a source of kind store")
    ] = None,
) -> None:
    """Tokenise the sources of a run into its cache. A second call, or one after a kill, does only what is left."""
    config = load(inputs).config
    from quintet.data.prepare import prepare as prepare_run
    from quintet.data.prepare import prepare_to
    from quintet.track.console import Reporter

    reporter = Reporter()
    try:
        if output is not None:
            prepare_to(config, output, progress=reporter.preparing)
            reporter.say(f"wrote {output}")
            return
        prepared = prepare_run(config, progress=reporter.preparing)
    finally:
        reporter.close()
    train, held_out = prepared.train, prepared.validation
    reporter.say(f"tokenizer: {prepared.tokenizer.vocab_size:,} ids, fingerprint {prepared.tokenizer.fingerprint}")
    reporter.say(f"training: {train.tokens:,} tokens, {train.epoch_samples:,} samples of {config.data.sequence_length}")
    if held_out is not None:
        reporter.say(f"validation: {held_out.tokens:,} tokens")
