"""Where the weights of a new run come from when they are not drawn."""

from __future__ import annotations

from pathlib import Path

from quintet.config.model import PretrainedInitConfig, TransformerConfig
from quintet.config.names import run_named
from quintet.config.schema import RunConfig
from quintet.data.prepare import Prepared, find_prepared, validated_and_seen
from quintet.errors import UserError
from quintet.model.families import Start, fitted, pretrained_weights
from quintet.tokenize import Tokenizer
from quintet.train.model import context_length, extra_rows, model_vocabulary
from quintet.train.run_folder import read_run_config
from quintet.train.trained import load_trained


def starting_weights(config: RunConfig, tokenizer: Tokenizer) -> Start | None:
    """The trained weights that the run of ``config`` starts from; None where it starts from random ones.

    Raises UserError when they do not exist or are those of another architecture.
    """
    model = config.model
    if not isinstance(model, TransformerConfig) or not isinstance(model.init, PretrainedInitConfig):
        return None
    rows = model.rows(model_vocabulary(config, tokenizer) + extra_rows(config))
    path = model.init.path
    if (folder := run_named(path)) is not None:
        return _from_run(str(folder), model, rows, context_length(config), tokenizer)
    return pretrained_weights(path, model, rows, context_length(config), model.init.revision)


def seen_before(config: RunConfig, prepared: Prepared) -> list[str]:
    """A line for each run that the run of ``config`` begins with, and that this begins with in turn, which was trained
    on some of what it validates on, or of which that cannot be told."""
    lines: list[str] = []
    model, passed = config.model, set[Path]()
    while isinstance(model, TransformerConfig) and isinstance(model.init, PretrainedInitConfig):
        folder = run_named(model.init.path)
        if folder is None or folder.resolve() in passed or prepared.validation is None:
            break
        passed.add(folder.resolve())
        other = read_run_config(folder)
        theirs = find_prepared(other)
        if theirs is None or theirs.tokenizer.fingerprint != prepared.tokenizer.fingerprint:
            why = "its data is not here" if theirs is None else "its tokens are of another tokenizer"
            lines.append(f"validation: whether {folder} was trained on what is held out cannot be told ({why})")
        else:
            held, seen = validated_and_seen(config, prepared.stores, other, theirs.stores)
            if seen:
                lines.append(
                    f"validation: {folder}, which this run begins with, had {seen:,} of the {held:,} documents that "
                    "are held out in its training; hold out the same (its seed, sources and data.validation), or name "
                    "data.validation_sources"
                )
        model = other.model
    return lines


def _from_run(run: str, model: TransformerConfig, rows: int, positions: int, tokenizer: Tokenizer) -> Start:
    trained = load_trained(run)
    theirs = trained.config.model
    if not isinstance(theirs, TransformerConfig):
        raise UserError(f"model.init.path: {run} trained a model of kind {theirs.kind}; `quintet export` it first")
    other = trained.tokenizer.fingerprint != tokenizer.fingerprint
    own = f"its own is tokenizer={{kind: saved, path: {run}}}"
    if other and rows < trained.model.vocab_size:
        raise UserError(f"tokenizer: has fewer ids than that of {run}, which is another one; {own}")
    start = fitted(trained.model.state_dict(), theirs, model, trained.model.vocab_size, rows, positions, run)
    if other:
        start.notes.append(f"tokenizer: {run} was trained with another one, so that its ids meant other texts; {own}")
    return start
