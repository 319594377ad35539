"""Measurements during a run: validation, benchmarks, text modelling, text generation."""

from __future__ import annotations

from quintet.config.generation import TextGenerationConfig
from quintet.config.section import ConfigErrors, ConfigSection, config_error, key
from quintet.config.train import fraction_errors


class TextModelingConfig(ConfigSection):
    """Bits per byte, byte perplexity, accuracy and calibration on held-out text, by topic; see
    docs/guide/text-modeling.md."""

    path: str | None = key(
        None,
        "file or folder of .txt and .jsonl files, each file a topic; null: what the run holds out, by its labels",
        min_length=1,
    )
    text_field: str = key("text", "field of a line of .jsonl that holds its text", min_length=1)
    topic_field: str | None = key(
        None, "field of a line of .jsonl that names its topic; the file's name when not given", min_length=1
    )
    separator: str | None = key(
        None, "what stands between two documents of a .txt file; when not given a file is one document", min_length=1
    )
    max_bytes: int = key(200_000, "of each topic, from its beginning", unit="bytes", ge=1)
    stride: int | None = key(
        None,
        "tokens that a window adds to those before it, in a document longer than the context; half the context when "
        "not given",
        unit="tokens",
        ge=1,
    )


class EvaluateConfig(ConfigSection):
    """Validation during training: always the same samples, in evaluation mode, in the precision of the training."""

    every: int | float | None = key(
        250,
        "steps from one validation to the next, or with a point a fraction of the run's steps; null: none on the way",
        unit="steps or fraction",
        gt=0,
    )
    offset: int = key(
        0, "step of the first validation on the way, from which `every` is counted; 0: `every`", unit="step", ge=0
    )
    only: bool = key(
        False, "validate the weights that there are, those of the last checkpoint or of the start, and do not train"
    )
    at_start: bool = key(False, "also a validation before the first step, of the weights that the run starts from")
    at_end: bool = key(True, "also a validation after the last step")
    samples: int | None = key(
        256, "held-out samples to use, spread evenly; null takes all of them", unit="samples", ge=1
    )
    samples_each: bool = key(
        False, "count `samples` for each source by itself; false shares them out by the sources' sizes"
    )
    batch_size: int | None = key(
        None, "samples in one forward pass; the micro-batch's when not given", unit="samples", ge=1
    )
    best_by: str | None = key(
        None,
        "label of the sources whose loss says which checkpoint is the best, and which schedule.kind: plateau follows; "
        "the loss of all held-out samples when not given",
        min_length=1,
    )
    tasks: tuple[str, ...] = key(
        (),
        "benchmarks of lm-evaluation-harness to measure, by name (arc_easy, blimp …), each with a number "
        "of items of its own where one stands after it (blimp:100); see docs/guide/evaluation.md",
    )
    tasks_every: int | float | None = key(
        None,
        "steps from one measurement of `tasks`, `text_modeling` and `text_generation` to the next, or with a point a "
        "fraction of the run's steps; null: only after the last step",
        unit="steps or fraction",
        gt=0,
    )
    task_samples: int | None = key(
        1000, "items of each of `tasks`, spread evenly; null takes all of them", unit="items", ge=1
    )
    few_shot: int | None = key(
        None,
        "examples with their answers in front of each item of `tasks`; null: as many as each task itself says",
        unit="examples",
        ge=0,
    )
    data_dir: str | None = key(
        None,
        "folder of .jsonl files with the items of `tasks`; null loads them from the Hugging Face hub",
        min_length=1,
    )
    text_modeling: TextModelingConfig | None = key(
        None,
        "also how well the model models text by topic, when `tasks` are due; {} takes what the run holds out",
    )
    text_generation: TextGenerationConfig | None = key(
        None, "also how varied and readable the texts are that the model writes, when `tasks` are due"
    )
    required: bool = key(
        False,
        "end the run when a sample, text modelling, text generation or a benchmark fails, after the checkpoint of its "
        "step; otherwise the failure is reported and counted, and training goes on",
    )

    @property
    def never(self) -> bool:
        """True if nothing is validated at all."""
        return self.every is None and not self.at_start and not self.at_end

    @property
    def measures(self) -> bool:
        """True if there is something to measure by `tasks_every`."""
        return bool(self.tasks) or self.text_modeling is not None or self.text_generation is not None

    def errors(self) -> ConfigErrors:
        """Yield errors for intervals of what is not measured, and for more than the whole run."""
        yield from fraction_errors(self, "every", "tasks_every")
        if self.tasks_every is not None and not self.measures:
            yield config_error(
                "tasks_every",
                "says when `tasks`, `text_modeling` and `text_generation` are measured, and there is none of them",
            )
        if self.offset and self.every is None:
            yield config_error("offset", "says from which step `every` is counted, and there is no `every`")
