"""`quintet prepare` and `data`: tokenise the sources of a run, and describe them."""

from __future__ import annotations

import re
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quintet import api
from quintet.cli.inputs import AsJson, Inputs, echo, fail, in_words, load
from quintet.config.names import local_path
from quintet.files import to_json

if TYPE_CHECKING:
    from quintet.config.dialects.native import Output
    from quintet.config.schema import RunConfig
    from quintet.track.console import Reporter


class Format(StrEnum):
    """The formats of `--output`."""

    store = "store"
    huggingface = "huggingface"
    npy = "npy"
    tatm = "tatm"


def prepare(
    inputs: Inputs,
    output: Annotated[
        Path | None,
        typer.Option(help="write the store of the only source to this folder, for use by a source of kind store"),
    ] = None,
    form: Annotated[
        Format,
        typer.Option(
            "--format", help="format of --output; formats other than store hold the training and validation data"
        ),
    ] = Format.store,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="do only share I of N, from 0 on, while other processes or machines do theirs"
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="read all token stores again and check their checksums")
    ] = False,
) -> None:
    """Tokenise the sources of a run into its cache. A second call, or one after a kill, does only what is missing."""
    if verify:
        from quintet.data.verify import forget_all

        forget_all()
    config = load(inputs, "prepare")
    loaded = api.loaded_of(config)
    assert loaded is not None
    from quintet.data.prepare import prepare_to
    from quintet.track.console import Reporter

    reporter = Reporter(words=in_words)
    try:
        if loaded.prepare_to is not None and output is None and form is Format.store and shard is None:
            _write_samples(config, loaded.prepare_to, reporter)
            return
        if form is not Format.store:
            _write(config, form, output, shard, reporter)
            return
        if shard is not None and _others_are_left(config, shard, output, reporter):
            return
        if output is not None:
            _, notes = prepare_to(config, output, progress=reporter.preparing)
            _say(reporter, f"wrote {output}", *notes)
            return
    finally:
        reporter.close()
    prepared = api.prepare(config, reporter=reporter)
    train, held_out = prepared.train, prepared.validation
    reporter.say(f"tokenizer: {prepared.tokenizer.vocab_size:,} ids, fingerprint {prepared.tokenizer.fingerprint}")
    reporter.say(f"training: {train.tokens:,} tokens, {train.epoch_samples:,} samples of {config.data.sequence_length}")
    if held_out is not None:
        reporter.say(f"validation: {held_out.tokens:,} tokens")
    _say(reporter, *prepared.lines())


def _say(reporter: Reporter, *lines: str) -> None:
    for line in lines:
        reporter.say(line)


def _write(config: RunConfig, form: Format, output: Path | None, shard: str | None, reporter: Reporter) -> None:
    """Write the training and validation data of the run to ``output``."""
    from quintet.data.formats import check_new, write_format

    if output is None or shard is not None:
        fail(f"--format {form.value}: name the folder to write to with --output, and leave --shard out")
    check_new(output)
    prepared = api.prepare(config, reporter=reporter)
    write_format(prepared, form.value, output)
    _say(reporter, f"wrote {output}", *prepared.notes)


def _write_samples(config: RunConfig, target: Output, reporter: Reporter) -> None:
    """Write the samples that a dialect's file asks for, to the folder that it names."""
    from quintet.data.formats import check_new, write_samples

    folder = local_path(target.folder)
    check_new(folder)
    prepared = api.prepare(config, reporter=reporter)
    write_samples(prepared, folder, target.ignore_index)
    _say(reporter, f"wrote {folder}", *prepared.notes)


def _others_are_left(config: RunConfig, shard: str, output: Path | None, reporter: Reporter) -> bool:
    """Make the share ``shard``, print the number of missing shards, and return True if there are any."""
    from quintet.data.build import Share
    from quintet.data.prepare import prepare_share

    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not int(match[1]) < int(match[2]):
        fail(f"--shard {shard}: give the number of the share and how many there are, 0/8 to 7/8 for eight")
    share = Share(int(match[1]), int(match[2]))
    missing = prepare_share(config, share, output, progress=reporter.preparing)
    if missing:
        reporter.say(f"share {shard} is done; {missing:,} shards of other shares are missing")
    return missing > 0


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
    seed: Annotated[int, typer.Option(help="chooses the documents to show")] = 0,
    samples: Annotated[int, typer.Option(min=0, help="documents to show of each store")] = 3,
    as_json: AsJson = False,
) -> None:
    """Describe the prepared data: documents, tokens, lengths, what was dropped, some texts. Nothing is tokenised."""
    from quintet.data.describe import report_run, report_store
    from quintet.data.manifest import MANIFEST

    if len(inputs) == 1 and (local_path(inputs[0]) / MANIFEST).is_file():
        reports = [report_store(local_path(inputs[0]), seed, samples)]
    else:
        reports = report_run(load(inputs), seed, samples)
    if as_json:
        echo(to_json([asdict(report) for report in reports], indent=2, ascii=False), exact=True)
        return
    for report in reports:
        for line in report.lines():
            echo(in_words(line))
