"""What STLM measures: the keys of `trainer.eval` in files of all generations, and the rules for them."""

from __future__ import annotations

from collections.abc import Iterator

from quintet.config.dialects.dialect import DialectSection
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.stlm import names
from quintet.config.dialects.stlm.names import TEACHERS, TEXT_GENERATION, TEXT_MODELING
from quintet.config.dialects.types import Positive, Text
from quintet.config.section import key

MODELLING = "trainer.eval.text_modeling_eval"


class Evaluator(DialectSection):
    """A set of benchmarks in older files."""

    evaluator: names.Evaluator = key("mcq", "what asks", affects="evaluate.tasks", documented=False)
    benchmarks: names.Benchmarks = key((), "mcq, ft_qa: benchmarks", affects="evaluate.tasks", documented=False)
    num_samples: Positive | None = key(
        None, "samples of each; those of trainer.eval when not given", affects="evaluate.tasks", documented=False
    )
    max_train_samples: Positive | None = key(
        None,
        "samples to fit a classifier to",
        no_effect="no classifier is fitted to the features of the model",
        documented=False,
    )
    max_eval_samples: Positive | None = key(None, "glue: samples", affects="evaluate.tasks", documented=False)


class Evaluation(DialectSection):
    """Validations, and the benchmarks with them."""

    mcq_benchmarks: names.Benchmarks = key(
        (),
        "benchmarks with several answers to choose from",
        affects=("evaluate.tasks", "evaluate.tasks_every"),
    )
    benchmarks: names.Benchmarks = key(
        (),
        "benchmarks, newer name",
        affects=("evaluate.tasks", "evaluate.tasks_every"),
        aliases="trainer.benchmarks",
        documented=False,
    )
    num_samples: Positive = key(1000, "samples of a benchmark", to="evaluate.task_samples", aliases="mcq_num_samples")
    dataset_loss_eval_iters: Positive = key(
        1000,
        "micro-batches of held-out data that a validation reads",
        affects="evaluate.samples",
        aliases=("eval_iters", "trainer.eval_iters", "trainer.training.eval_iters"),
    )
    val_loss_iters: Positive | None = key(
        None, "dataset_loss_eval_iters where that is not given", affects="evaluate.samples", documented=False
    )
    text_modeling_eval: bool = key(True, "text modelling of what is held out", affects="evaluate.text_modeling")
    text_generation_eval: bool = key(
        False,
        "figures of texts that the model writes",
        affects=("evaluate.text_generation", "evaluate.tasks_every"),
        documented=False,
    )
    evaluator: names.Evaluator | None = key(
        None, "what asks the benchmarks", affects="evaluate.tasks", documented=False
    )
    evaluators: tuple[Evaluator, ...] = key((), "older list of benchmarks", documented=False)
    eval_byte_metrics: bool | None = key(
        None, "validation loss a byte", no_effect="every validation reports bits per byte", documented=False
    )
    text_modeling_topics: tuple[Text, ...] | None = key(
        None, "topics of text_modeling_eval", no_effect="STLM reads it nowhere", documented=False
    )


def measurements(section: Evaluation, every: int, masked: bool, native: NativeBuilder) -> None:
    """Set benchmarks, and the modelling and the writing of texts, which come ``every`` so many steps.

    A model that sees what it is to predict has none of them, as a ``masked`` one that fills in hidden tokens.
    """
    lists = tuple(f"trainer.eval.{name}" for name in ("mcq_benchmarks", "benchmarks", "evaluators", "evaluator"))
    keys = [key for key in native.within("trainer.eval") if key.startswith(lists)]  # what says which tasks there are
    tasks = list(dict.fromkeys(_tasks(section, native)))
    models = native.has(MODELLING) and section.text_modeling_eval
    writes = section.text_generation_eval or TEXT_GENERATION in tasks
    reads_ahead = masked or native.get("model.attention.kind") == "bidirectional"
    if reads_ahead:
        if tasks or writes:
            native.say(
                "trainer.eval: benchmarks and written texts need a model that reads from left to right, and "
                "this one does not: they are not measured"
            )
        if section.text_modeling_eval:  # by default, it is left out with a note
            native.set("evaluate.text_modeling", {}, MODELLING)
        return
    if TEACHERS in tasks:
        native.say("trainer.eval: Teacher-Text-Modeling needs three other models to judge texts, and is not measured")
    if section.text_modeling_eval or TEXT_MODELING in tasks:
        native.set("evaluate.text_modeling", {}, MODELLING, *keys)
        if not models and TEXT_MODELING not in tasks:
            native.say(f"{MODELLING}: not given, and taken as true, as the document says; STLM's code takes false")
    if writes:
        native.set("evaluate.text_generation", {}, "trainer.eval.text_generation_eval", *keys)
        native.say(
            "trainer.eval.text_generation_eval: errors_per_100_words, which a service that reads the texts counts, is "
            "not measured; the other figures are"
        )
    tasks = [task for task in tasks if task not in (TEXT_MODELING, TEXT_GENERATION, TEACHERS)]
    if tasks:
        native.set("evaluate.tasks", tasks, *(keys or lists[:1]))
    if tasks or writes:
        native.set("evaluate.tasks_every", every, "trainer.eval_interval", *keys)


def _tasks(section: Evaluation, native: NativeBuilder) -> Iterator[str]:
    """The benchmarks that the lists of the newer and of the older files ask for."""
    asked = [(section.evaluator or "mcq", (*section.mcq_benchmarks, *section.benchmarks), None)]
    asked += [
        (one.evaluator, one.benchmarks, one.max_eval_samples if one.evaluator == "glue" else one.num_samples)
        for one in section.evaluators
    ]
    for kind, benchmarks, samples in asked:
        if kind == "ft_qa":
            native.say(
                "trainer.eval: ft_qa fits a classifier to the model's features; its benchmarks are measured by "
                "the likelihood of their answers, as mcq"
            )
        if kind in ("prog", "glue"):
            benchmarks = ({"prog": "tinystories_progress"}.get(kind, kind),)
        if "glue" in benchmarks:
            native.say(
                "trainer.eval: glue is measured by the likelihood of its answers, as in lm-evaluation-harness, "
                "and not by a classifier that is fitted to the model's features"
            )
        for name in benchmarks:
            own = samples not in (None, section.num_samples) and ":" not in name
            yield f"{name}:{samples}" if own else name
