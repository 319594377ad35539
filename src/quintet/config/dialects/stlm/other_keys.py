"""The keys of `trainer.eval` and of `general`, and those that are refused."""

from __future__ import annotations

from quintet.config.dialects.stlm.words import EXPERIMENT, NEWER, TASKS, device
from quintet.config.dialects.table import Key
from quintet.config.dialects.values import anything, choice, flag, listed, mapping, number, text, whole

_JUDGED = "the judgement of written texts"
_OLDER = "the older list of evaluators, in whose place mcq_benchmarks names benchmarks,"

EVAL = (
    Key(
        "trainer.eval.mcq_benchmarks",
        listed(choice(by=TASKS), single=True),
        "benchmarks with several answers to choose from",
        default=[],
        affects=("evaluate.tasks", "evaluate.tasks_every"),
    ),
    Key(
        "trainer.eval.num_samples",
        whole(1),
        "samples of each benchmark",
        default=1000,
        aliases=("trainer.eval.mcq_num_samples",),
        to="evaluate.task_samples",
    ),
    Key(
        "trainer.eval.dataset_loss_eval_iters",
        whole(1),
        "micro-batches of held-out data that a validation reads",
        default=1000,
        aliases=(
            "trainer.eval_iters",
            "trainer.training.eval_iters",
            "trainer.eval.val_loss_iters",
            "trainer.eval.eval_iters",
        ),
        affects=("evaluate.samples",),
    ),
    Key(
        "trainer.eval.text_modeling_eval",
        flag(),
        "text modelling of what is held out",
        default=True,
        affects=("evaluate.text_modeling",),
    ),
    Key(
        "trainer.eval.text_generation_eval",
        flag(),
        "judgements of written texts",
        documented=False,
        pending=_JUDGED,
        noop_values=(False,),
    ),
    Key(
        "trainer.eval.benchmarks",
        listed(choice(by=NEWER), single=True),
        "benchmarks by their newer names",
        default=[],
        documented=False,
        aliases=("trainer.benchmarks",),
        affects=("evaluate.tasks", "evaluate.tasks_every"),
    ),
    Key("trainer.eval.evaluator", text(), "older name of a set of benchmarks", documented=False, pending=_OLDER),
    *(
        Key(f"trainer.eval.evaluators[].{name}", value, "older list of benchmarks", documented=False, pending=_OLDER)
        for name, value in (
            ("evaluator", text()),
            ("benchmarks", listed(text())),
            ("num_samples", whole(1)),
            ("max_train_samples", whole(1)),
            ("max_eval_samples", whole(1)),
        )
    ),
    Key(
        "trainer.eval.eval_byte_metrics",
        flag(),
        "validation loss a byte",
        documented=False,
        no_effect="every validation reports bits per byte",
    ),
    Key(
        "trainer.eval.text_modeling_topics",
        listed(text()),
        "topics of text_modeling_eval",
        documented=False,
        no_effect="STLM reads it nowhere",
    ),
)

GENERAL = (
    Key("general.logging.wandb_log", flag(), "metrics to Weights & Biases", default=False, affects=("track",)),
    Key(
        "general.logging.wandb_project", text(), "project there", default="SuperTinyLanguageModels", affects=("track",)
    ),
    Key(
        "general.logging.wandb_run_name",
        text(),
        "name of the run, there and of its folder; the file's when not given",
        aliases=("general.logging.run_name",),
        affects=("name", "track"),
    ),
    Key("general.logging.group_name", text(), "group there", documented=False, affects=("track",)),
    Key("general.paths.output_dir", text(), "folder in which the run's folder is made", to="runs_dir"),
    Key("general.paths.data_dir", text(), "folder of tokenized data and of trained tokenizers", to="data.cache_dir"),
    Key(
        "general.paths.checkpoint_dir",
        text(),
        "folder of checkpoints; in the run's folder when not given",
        to="checkpoint.dir",
    ),
    Key(
        "general.paths.eval_dir",
        text(),
        "folder of evaluation files",
        no_effect="STLM's own benchmarks lie on the hub since the document; nothing is read from it or written to it",
    ),
    Key("general.seed", whole(0), "seed of everything random", to="seed"),
    Key(
        "general.device",
        device(),
        "where to train; the default is CUDA where there is one",
        default="cuda",
        affects=("train.device",),
    ),
    Key("general.max_num_cores", whole(1), "processes that tokenise", documented=False, to="data.processes"),
)

_CHECKPOINT_PATH = (
    "a checkpoint of STLM's is a pickle that cannot be read safely; export the model to a Hugging Face folder and name "
    "it in quintet: {model: {init: {kind: pretrained, path: FOLDER}}}"
)
_PARTS = {
    "embedder": (
        *("byte_tokenizer_type", "byte_context_window", "context_window", "num_heads", "pooling_layers"),
        *("pooling_dims", "pooling_pct_per_layer", "pct_pool_per_layer"),
    ),
    "lm_head": ("latent_decoded_into", "num_layers"),
}
REFUSED = (
    *(
        Key(f"model.{name}", text(), "experiment", documented=False, refused=EXPERIMENT)
        for name in (
            *("k_interior_layers", "lora_rank", "lora_alpha", "lm_head_num_classes", "latent_dim", "embedding_dim"),
            *("byte_context_window", "byte_embedding_dim", "byte_hidden", "byte_vocab_size", "global_byte_projection"),
            *("chunk_len_loss_weight", "chunk_len_penalty", "max_chunk_length", "max_num_chunks", "target_chunk_len"),
            *("num_byte_decoder_layers", "num_delimiter_layers", "ffn.num_experts", "ffn.top_k"),
        )
    ),
    *(
        Key(f"model.{part}.{name}", anything(), "experiment", documented=False, refused=EXPERIMENT)
        for part, names in _PARTS.items()
        for name in (*names, "standard_ffn_block", "standard_attn_block")
    ),
    *(
        Key(f"trainer.{name}", text(), "experiment", documented=False, refused=EXPERIMENT)
        for name in ("use_collate_fn", "optimizer.gradient_filter", "optimizer.decoupled_weight_decay")
    ),
    Key(
        "trainer.dropout_scheduler.cycle_factor",
        number(),
        "triangle",
        documented=False,
        refused="no version of STLM reads it; give dropout_trough, dropout_peak, num_iterations and num_cycles",
    ),
    Key("teachermodel", mapping(), "distillation", documented=False, refused=EXPERIMENT),
    Key("model.checkpoint_path", text(), "checkpoint to go on from", documented=False, refused=_CHECKPOINT_PATH),
)
