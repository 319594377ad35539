"""Where the weights of a new run come from when they are not drawn."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from quintet.config.model import PretrainedInitConfig, TransformerConfig
from quintet.config.schema import RunConfig
from quintet.tokenize import Tokenizer
from quintet.train.model import extra_rows, model_vocabulary
from quintet.train.trained import is_run, load_trained


def starting_weights(config: RunConfig, tokenizer: Tokenizer) -> dict[str, Tensor] | None:
    """The trained weights that the run of ``config`` starts from, by name; None where it starts from random ones.

    Raises UserError when they do not exist or are those of another architecture.
    """
    model = config.model
    if not isinstance(model, TransformerConfig) or not isinstance(model.init, PretrainedInitConfig):
        return None
    for folder in (Path(model.init.path).expanduser(), Path("runs") / model.init.path):
        if is_run(folder):
            return load_trained(str(folder)).model.state_dict()
    from quintet.model.families import pretrained_weights

    return pretrained_weights(
        model.init.path, model, model.rows(model_vocabulary(config, tokenizer) + extra_rows(config))
    )
