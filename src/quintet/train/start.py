"""Where the weights of a new run come from when they are not drawn."""

from __future__ import annotations

from quintet.config.model import PretrainedInitConfig, TransformerConfig
from quintet.config.names import run_named
from quintet.config.schema import RunConfig
from quintet.errors import UserError
from quintet.model.families import Start, fitted, pretrained_weights
from quintet.tokenize import Tokenizer
from quintet.train.model import context_length, extra_rows, model_vocabulary
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
