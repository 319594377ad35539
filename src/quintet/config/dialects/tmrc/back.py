"""From a native run file back to the keys of TMRC that several native keys decide."""

from quintet.config.dialects.dialect import Put
from quintet.config.model import TransformerConfig
from quintet.config.schema import RunConfig


def back(config: RunConfig, put: Put) -> None:
    """Put the keys of TMRC that several native keys decide."""
    source = config.data.sources[0]
    put("datasets.path", getattr(source, "path", "???"))
    put("tokenizer.name", getattr(source, "tokenizer", None) or getattr(config.tokenizer, "path", "???"))
    if isinstance(config.model, TransformerConfig):
        put("model.dropout_p", config.model.residual_dropout)
        put("model.flash", config.model.attention.backend == "flash")
        put("model.flex", config.model.attention.backend in ("auto", "flex"))
    put("model.compile_flex", config.train.compile is not False)
    if config.checkpoint.every_seconds is not None:
        put("training.save_every", config.checkpoint.every_seconds)
    if any(tracker.kind == "wandb" for tracker in config.track):
        put("wandb_log.name", config.name)
