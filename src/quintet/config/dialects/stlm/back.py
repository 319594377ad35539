"""A native run file in STLM's words, where the table alone has none."""

from __future__ import annotations

from collections.abc import Iterable

from quintet.config.dialects.stlm.datasets import name_of
from quintet.config.dialects.stlm.words import ON_THE_HUB, TASKS
from quintet.config.dialects.table import Put
from quintet.config.model import HuggingFaceConfig, TransformerConfig
from quintet.config.optimizer import AdamWConfig
from quintet.config.schema import RunConfig
from quintet.config.sources import SourceConfig
from quintet.config.tokenizer import BPETokenizerConfig, HuggingFaceTokenizerConfig, TiktokenTokenizerConfig


def back(config: RunConfig, put: Put) -> None:
    """Put what rules made of several keys."""
    put("model.core_model_type", "generic" if isinstance(config.model, TransformerConfig) else "hf_core")
    put("model.context_window", config.data.sequence_length)
    _tokenizer(config, put)
    if isinstance(config.model, TransformerConfig):
        _transformer(config.model, put)
    else:
        _pretrained(config.model, put)
    datasets = _names(config.data.sources)
    put("trainer.dataset", datasets or ["???"])
    put("trainer.batch_size", config.batch.micro_batch_size)
    put("trainer.gradient_accumulation_steps", config.batch.accumulation)
    _optimizer(config, put)
    _schedule(config, put)
    if config.evaluate.every is None:
        put("trainer.eval_interval", 10**9)
    if config.evaluate.samples is not None:
        put("trainer.eval.dataset_loss_eval_iters", max(1, config.evaluate.samples // config.batch.micro_batch_size))
    known = [task for task in config.evaluate.tasks if task in TASKS]
    if known:
        put("trainer.eval.mcq_benchmarks", known)
    put("trainer.eval.text_modeling_eval", config.evaluate.text_modeling is not None)
    if config.checkpoint.every is None:
        put("trainer.checkpoint_interval", 10**9)
    if config.train.device != "auto":
        put("general.device", config.train.device)
    put("general.logging.wandb_run_name", config.name)
    for track in config.track:
        if track.kind == "wandb":
            put("general.logging.wandb_log", True)
            put("general.logging.wandb_project", track.arguments.get("project", config.name))


def _names(sources: Iterable[SourceConfig]) -> list[str]:
    return [name for name in map(name_of, sources) if name is not None]


def _tokenizer(config: RunConfig, put: Put) -> None:
    match config.tokenizer:
        case TiktokenTokenizerConfig(name=name):
            put("model.tokenizer_type", name)
        case HuggingFaceTokenizerConfig(path=path):
            known = [name for name, hub in ON_THE_HUB.items() if hub == path]
            put("model.tokenizer_type", known[0] if known else "hf")
        case BPETokenizerConfig() as bpe:
            put("model.tokenizer_type", "bpe")
            put("model.vocab_size", bpe.vocab_size)
            put("model.tokenizer_simplify", bpe.simplify)
            if bpe.sources:
                put("model.tokenizer_dataset_name", _names(bpe.sources))
        case _:
            put("model.tokenizer_type", "???")
    if isinstance(config.model, TransformerConfig) and config.model.vocab_size is not None:
        put("model.vocab_size", config.model.vocab_size)
        if isinstance(config.tokenizer, BPETokenizerConfig):
            put("model.tokenizer_num_reserved_tokens", config.model.vocab_size - config.tokenizer.vocab_size)


def _transformer(model: TransformerConfig, put: Put) -> None:
    attention, feedforward, init = model.attention, model.feedforward, model.init
    for path, value in {
        "num_layers": model.layers,
        "hidden_dim": model.width,
        "embedding_weight_tying": model.tie_embeddings,
        "ffn_weight_tying": model.tie_feedforward,
        "c_proj_weight_tying": model.tie_attention_output,
        "embedding_dropout": model.embedding_dropout,
        "lm_head_normalization": model.last_norm.kind,
        "lm_head_bias": model.head.bias,
        "lm_head_dropout": model.head.dropout,
        "positional_encoding_type": model.position.kind,
        "ffn.ffn_type": feedforward.kind,
        "ffn.ffn_dim": model.hidden,
        "ffn.bias": feedforward.bias,
        "ffn.ffn_dropout": feedforward.input_dropout,
        "ffn.normalization": model.feedforward_norm.kind,
        "attn.attn_type": attention.kind,
        "attn.num_q_heads": model.heads,
        "attn.num_kv_heads": model.kv_heads,
        "attn.bias": attention.bias,
        "attn.attn_dropout": attention.input_dropout,
        "attn.normalization": model.attention_norm.kind,
        "initialization_fn": init.kind,
    }.items():
        put(f"model.{path}", value)
    if feedforward.kind == "plain":
        put("model.ffn.activation", feedforward.activation)
    for name in ("gain", "mode", "nonlinearity"):
        if hasattr(init, name):
            put(f"model.{name}", getattr(init, name))


def _pretrained(model: HuggingFaceConfig, put: Put) -> None:
    put("model.model_string", model.name_or_path)
    put("model.embedding_model_type", "hf_embedder")
    put("model.lm_head_type", "hf_head")
    put("model.freeze_core", model.freeze == "core")
    if model.lora is not None:
        put("model.use_lora", True)
        if model.lora.targets is not None:
            put("model.lora_targets", list(model.lora.targets))
    if model.attention_backend == "flash_attention_2":
        put("model.flash_attention", True)


def _optimizer(config: RunConfig, put: Put) -> None:
    optimizer = config.optimizer
    put("trainer.optimizer.grad_clip", config.train.clip_norm or 0.0)
    if isinstance(optimizer, AdamWConfig):
        put("trainer.optimizer.optimizer_name", "AdamW" if optimizer.decay == "all" else "nanoGPTadamW")
        put("trainer.optimizer.lr", optimizer.lr)
        put("trainer.optimizer.weight_decay", optimizer.weight_decay)
        put("trainer.optimizer.beta1", optimizer.betas[0])
        put("trainer.optimizer.beta2", optimizer.betas[1])
        return
    put("trainer.optimizer.optimizer_name", optimizer.name)
    own = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    put("trainer.optimizer.params", own | optimizer.arguments)


def _schedule(config: RunConfig, put: Put) -> None:
    schedule = config.schedule
    warmup = getattr(schedule, "warmup_steps", 0)
    if schedule.kind == "torch":
        put("trainer.lr_scheduler.name", schedule.name)
        put("trainer.lr_scheduler.params", {"warmup_steps": warmup} | schedule.arguments)
        return
    if schedule.kind not in ("cosine", "constant"):
        return
    put("trainer.lr_scheduler.name", "cosine")
    put("trainer.decay_lr", schedule.kind == "cosine")
    if isinstance(warmup, int):
        put("trainer.warmup_iters", warmup)
    if schedule.kind == "cosine" and isinstance(warmup, int):
        put("trainer.optimizer.min_lr", schedule.min_lr)
        last = schedule.decay_steps or config.train.steps
        if last is not None and last > warmup:
            put("trainer.lr_decay_iters", last - warmup)
