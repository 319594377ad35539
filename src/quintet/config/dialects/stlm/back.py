"""From a native run file back to the keys of STLM that several native keys decide."""

from collections.abc import Sequence
from typing import Any

from quintet.config.dialects.dialect import Put
from quintet.config.dialects.stlm.translate_model import OF_INIT
from quintet.config.dialects.stlm.values import HUB_TOKENIZERS, TASKS, names_of
from quintet.config.embedding_and_head import ByteEmbeddingConfig, ByteHeadConfig
from quintet.config.loss import MaskedLossConfig
from quintet.config.model import HuggingFaceConfig, TransformerConfig
from quintet.config.optimizer import as_class
from quintet.config.schema import RunConfig
from quintet.config.sources import SourceConfig
from quintet.config.tokenizer import BPETokenizerConfig, HuggingFaceTokenizerConfig, TiktokenTokenizerConfig

_NEVER = 10**9


def back(config: RunConfig, put: Put) -> None:
    """Put the keys of STLM that several native keys decide."""
    micro, evaluate = config.batch.micro_batch_size, config.evaluate
    is_mlm = isinstance(config.loss, MaskedLossConfig) and config.loss.predict_at == "own"
    values = {
        "trainer.dataset": _names(config.data.sources),
        "trainer.dataloader.name": "mlm" if is_mlm else None,
        "trainer.loss_fn.name": "next_token" if is_mlm else None,
        "trainer.batch_size": micro,
        "trainer.gradient_accumulation_steps": config.batch.accumulation,
        "trainer.optimizer.grad_clip": config.train.clip_norm or 0.0,
        "trainer.eval_interval": _NEVER if evaluate.every is None else evaluate.every,
        "trainer.eval.dataset_loss_eval_iters": evaluate.samples and max(1, evaluate.samples // micro),
        "trainer.eval.mcq_benchmarks": [task for task in evaluate.tasks if task in TASKS] or None,
        "trainer.eval.text_modeling_eval": evaluate.text_modeling is not None,
        "trainer.checkpoint_interval": _NEVER if config.checkpoint.every is None else config.checkpoint.every,
        "general.device": None if config.train.device == "auto" else config.train.device,
    }
    for track in config.track:
        if track.kind == "wandb":
            values |= {"general.logging.wandb_log": True}
            values |= {"general.logging.wandb_project": track.arguments.get("project", config.name)}
    values |= _model(config) | _tokenizer(config) | _optimizer(config) | _schedule(config) | _byte_level(config)
    for path, value in values.items():
        if value is not None:
            put(path, value)


def _names(sources: Sequence[SourceConfig]) -> str | list[str]:
    names = names_of(sources)
    return names if len(names) > 1 else names[0] if names else "???"


def _model(config: RunConfig) -> dict[str, Any]:
    model = config.model
    if isinstance(model, HuggingFaceConfig):
        values = {
            "core_model_type": "hf_core",
            "model_string": model.name_or_path,
            "embedding_model_type": "hf_embedder",
            "lm_head_type": "hf_head",
            "freeze_core": model.freeze == "core",
            "use_lora": True if model.lora else None,
            "lora_targets": model.lora and model.lora.targets,
            "flash_attention": True if model.attention_backend == "flash_attention_2" else None,
        }
    else:
        values = {
            "core_model_type": "generic",
            "lm_head_normalization": model.last_norm.kind,
            "positional_encoding_type": model.position.kind,
            "ffn.ffn_dim": model.hidden,
            "ffn.normalization": model.feedforward_norm.kind,
            "attn.attn_type": model.attention.kind,
            "attn.num_q_heads": model.heads,
            "attn.num_kv_heads": model.kv_heads,
            "attn.normalization": model.attention_norm.kind,
            **{name: getattr(model.init, name, None) for name in OF_INIT},
        }
    return {f"model.{name}": value for name, value in values.items()}


def _tokenizer(config: RunConfig) -> dict[str, Any]:
    tokenizer = config.tokenizer
    rows = config.model.vocab_size if isinstance(config.model, TransformerConfig) else None
    values: dict[str, Any] = {"model.tokenizer_type": "???", "model.vocab_size": rows}
    if isinstance(tokenizer, TiktokenTokenizerConfig):
        values["model.tokenizer_type"] = tokenizer.name
    elif isinstance(tokenizer, HuggingFaceTokenizerConfig):
        names = [name for name, path in HUB_TOKENIZERS.items() if path == tokenizer.path]
        values["model.tokenizer_type"] = names[0] if names else "hf"
    elif isinstance(tokenizer, BPETokenizerConfig):
        values = {
            "model.tokenizer_type": "bpe",
            "model.vocab_size": rows or tokenizer.vocab_size,
            "model.tokenizer_simplify": tokenizer.simplify,
            "model.tokenizer_dataset_name": _names(tokenizer.sources) if tokenizer.sources else None,
            "model.tokenizer_num_reserved_tokens": rows and rows - tokenizer.vocab_size,
        }
    return values


def _optimizer(config: RunConfig) -> dict[str, Any]:
    optimizer = as_class(config.optimizer)
    if optimizer is None:
        return {}
    values: dict[str, Any] = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    if config.optimizer.kind == "adamw":  # with params STLM's AdamW is of kind torch
        values["beta1"], values["beta2"] = optimizer.arguments["betas"]
        values["optimizer_name"] = "AdamW" if optimizer.decay == "all" else "nanoGPTadamW"
    else:
        values = {"optimizer_name": optimizer.name, "params": values | optimizer.arguments}
    return {f"trainer.optimizer.{name}": value for name, value in values.items()}


def _schedule(config: RunConfig) -> dict[str, Any]:
    schedule, warmup = config.schedule, getattr(config.schedule, "warmup_steps", 0)
    if schedule.kind == "torch":
        params = {"warmup_steps": warmup} | schedule.arguments
        return {"trainer.lr_scheduler.name": schedule.name, "trainer.lr_scheduler.params": params}
    values: dict[str, Any] = {}
    if schedule.kind in ("cosine", "constant"):
        values = {"trainer.lr_scheduler.name": "cosine", "trainer.decay_lr": schedule.kind == "cosine"}
        values |= {"trainer.warmup_iters": warmup} if isinstance(warmup, int) else {}
    if schedule.kind == "cosine" and isinstance(warmup, int):
        values["trainer.optimizer.min_lr"] = schedule.min_lr
        last = schedule.decay_steps or config.train.steps
        values["trainer.lr_decay_iters"] = last - warmup if last is not None and last > warmup else None
    return values


def _byte_level(config: RunConfig) -> dict[str, Any]:
    model = config.model
    if not isinstance(model, TransformerConfig) or not model.byte_parts:
        return {}
    part, head = model.byte_parts[0], model.head
    values: dict[str, Any] = {"model.byte_context_window": part.bytes, "model.byte_embedding_dim": part.width}
    if isinstance(model.embedding, ByteEmbeddingConfig):
        values |= {"model.embedding_model_type": "bytes", "model.model_shell_type": "byte_enc_shell"}
    if isinstance(head, ByteHeadConfig):
        values |= {"model.lm_head_type": "bytes", "model.lm_head_normalization": None}
        values |= {"model.model_shell_type": "byte_shell" if head.reconstruction else "standard"}
        values |= {"trainer.optimizer.grad_clip": (config.train.clip_norm or 0.0) / head.bytes}
    return values
