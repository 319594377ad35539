"""Rules for the validations, benchmarks and checkpoints of an STLM file."""

from collections.abc import Iterator

from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.stlm.schema import Evaluation, File
from quintet.config.dialects.stlm.values import TEACHERS, TEXT_GENERATION, TEXT_MODELING

_EVAL, _MODELING = "trainer.eval", "trainer.eval.text_modeling_eval"


def set_evaluation(theirs: File, native: NativeBuilder) -> None:
    """Set validations and checkpoints, after the model and the loss."""
    trainer, section = theirs.trainer, theirs.trainer.eval
    path, other = f"{_EVAL}.dataset_loss_eval_iters", f"{_EVAL}.val_loss_iters"
    count, unread = section.dataset_loss_eval_iters, section.val_loss_iters
    if unread is not None and not native.has(path):
        count, path = unread, other
    elif unread not in (None, count):
        native.say(f"{other}: STLM does not read it; a validation reads the {count} micro-batches of eval_iters")
    native.set("evaluate.samples", count * trainer.batch_size, path, "trainer.batch_size")
    validates = trainer.run_eval is not False
    native.set("evaluate.at_start", validates, "trainer.run_eval", "trainer.eval_interval")
    native.set("evaluate.at_end", False, "trainer.eval_interval")
    if trainer.trainer_type == "mock_trainer":
        native.set("evaluate.only", True, "trainer.trainer_type")
    if validates:
        _set_benchmarks(section, trainer.eval_interval, native)
    else:
        native.set("evaluate.every", None, "trainer.run_eval")
    native.set("sample.prompts", [])
    native.set("checkpoint.at_end", True, "trainer.checkpoint_interval")
    native.set("checkpoint.keep", None, "trainer.checkpoint_interval")
    native.set("checkpoint.keep_best", False, "trainer.checkpoint_interval")


def _set_benchmarks(section: Evaluation, every: int, native: NativeBuilder) -> None:
    """Set benchmarks, text modelling and text generation, ``every`` steps.

    A model that sees later tokens, as a bidirectional one or one that fills in masked tokens, can have none of them.
    """
    lists = tuple(f"{_EVAL}.{name}" for name in ("mcq_benchmarks", "benchmarks", "evaluators", "evaluator"))
    keys = [key for key in native.within(_EVAL) if key.startswith(lists)]
    tasks = list(dict.fromkeys(_tasks(section, native)))
    generates = section.text_generation_eval or TEXT_GENERATION in tasks
    if native.get("loss.kind") == "masked" or native.get("model.attention.kind") == "bidirectional":
        if tasks or generates:
            native.say(
                f"{_EVAL}: benchmarks and text generation need a model that reads from left to right, and this one "
                "does not: they are not measured"
            )
        if section.text_modeling_eval:  # Quintet skips it and says so
            native.set("evaluate.text_modeling", {}, _MODELING)
        return
    if TEACHERS in tasks:
        native.say(f"{_EVAL}: Teacher-Text-Modeling needs three other models to judge texts, and is not measured")
    if section.text_modeling_eval or TEXT_MODELING in tasks:
        native.set("evaluate.text_modeling", {}, _MODELING, *keys)
        if not native.has(_MODELING) and TEXT_MODELING not in tasks:
            native.say(f"{_MODELING}: not given; true, as the document says, although STLM's code takes false")
    if generates:
        native.set("evaluate.text_generation", {}, f"{_EVAL}.text_generation_eval", *keys)
        native.say(
            f"{_EVAL}.text_generation_eval: errors_per_100_words, which a web service counts, is not measured; the "
            "other figures are"
        )
    tasks = [task for task in tasks if task not in (TEXT_MODELING, TEXT_GENERATION, TEACHERS)]
    if tasks:
        native.set("evaluate.tasks", tasks, *(keys or lists[:1]))
    if tasks or generates:
        native.set("evaluate.tasks_every", every, "trainer.eval_interval", *keys)


def _tasks(section: Evaluation, native: NativeBuilder) -> Iterator[str]:
    """Yield the benchmarks in the lists of newer and older files, with ":SAMPLES" if they have their own number."""
    lists = [(section.evaluator or "mcq", (*section.mcq_benchmarks, *section.benchmarks), None)]
    lists += [
        (older.evaluator, older.benchmarks, older.max_eval_samples if older.evaluator == "glue" else older.num_samples)
        for older in section.evaluators
    ]
    for evaluator, benchmarks, samples in lists:
        if evaluator == "ft_qa":
            native.say(
                f"{_EVAL}: ft_qa fits a classifier to the model's features; here its benchmarks are measured by the "
                "likelihood of their answers, as with mcq"
            )
        if evaluator == "prog":
            benchmarks = ("tinystories_progress",)
        if evaluator == "glue":
            benchmarks = ("glue",)
        if "glue" in benchmarks:
            native.say(
                f"{_EVAL}: glue is measured by the likelihood of its answers, as in lm-evaluation-harness, and not by "
                "a classifier that is fitted to the model's features"
            )
        for name in benchmarks:
            has_own = samples not in (None, section.num_samples) and ":" not in name
            yield f"{name}:{samples}" if has_own else name
