"""Measurements during a run: validation, benchmarks, text modelling, text generation."""

from quintet.config.generation import TextGenerationConfig
from quintet.config.section import ConfigErrors, ConfigSection, config_error, key
from quintet.config.train import fraction_errors


class TextModelingConfig(ConfigSection):
    """Bits per byte, byte perplexity, accuracy and calibration on held-out text, by topic; see
    docs/guide/text-modeling.md."""

    path: str | None = key(
        None,
        "file or folder of .txt and .jsonl files, each file a topic; null: the run's held-out data, by label",
        min_length=1,
    )
    text_field: str = key("text", "field of the text in .jsonl files", min_length=1)
    topic_field: str | None = key(
        None, "field of the topic in .jsonl files; the file's name when not given", min_length=1
    )
    separator: str | None = key(
        None, "text between two documents of a .txt file; when not given, a file is one document", min_length=1
    )
    max_bytes: int = key(200_000, "text that is used of each topic, from its start", unit="bytes", ge=1)
    stride: int | None = key(
        None,
        "new tokens in each window of a document that is longer than the context; half the context when not given",
        unit="tokens",
        ge=1,
    )


class EvaluateConfig(ConfigSection):
    """Validation during training, always of the same samples, in evaluation mode and in the precision of training."""

    every: int | float | None = key(
        250,
        "steps between validations, or, with a point, a fraction of the run's steps; null: none during the run",
        unit="steps or fraction",
        gt=0,
    )
    offset: int = key(
        0, "step of the first validation, from which `every` is counted; 0: at step `every`", unit="step", ge=0
    )
    only: bool = key(False, "only validate the weights of the last checkpoint, or the initial ones, and do not train")
    at_start: bool = key(False, "also validate before the first step")
    at_end: bool = key(True, "also validate after the last step")
    samples: int | None = key(
        256, "held-out samples to use, spread evenly; null takes all of them", unit="samples", ge=1
    )
    samples_each: bool = key(False, "use `samples` of each source; false divides them among the sources by size")
    batch_size: int | None = key(
        None, "samples in one forward pass; the micro-batch's when not given", unit="samples", ge=1
    )
    best_by: str | None = key(
        None,
        "label of the sources whose loss decides which checkpoint is the best, and which schedule.kind: plateau "
        "follows; all held-out samples when not given",
        min_length=1,
    )
    tasks: tuple[str, ...] = key(
        (),
        "benchmarks of lm-evaluation-harness, by name (arc_easy, blimp …), optionally with a number of items "
        "(blimp:100); see docs/guide/evaluation.md",
    )
    tasks_every: int | float | None = key(
        None,
        "steps between measurements of `tasks`, `text_modeling` and `text_generation`, or, with a point, a fraction "
        "of the run's steps; null: only after the last step",
        unit="steps or fraction",
        gt=0,
    )
    task_samples: int | None = key(
        1000, "items of each of `tasks`, spread evenly; null takes all of them", unit="items", ge=1
    )
    few_shot: int | None = key(
        None,
        "examples with answers before each item of `tasks`; null: as many as each task defines",
        unit="examples",
        ge=0,
    )
    data_dir: str | None = key(
        None,
        "folder of .jsonl files with the items of `tasks`; null: load them from the Hugging Face hub",
        min_length=1,
    )
    text_modeling: TextModelingConfig | None = key(
        None,
        "also measure text modelling by topic whenever `tasks` are measured; {} uses the run's held-out data",
    )
    text_generation: TextGenerationConfig | None = key(
        None, "also measure variety and readability of generated texts whenever `tasks` are measured"
    )
    required: bool = key(
        False,
        "end the run when a sample, text modelling, text generation or a benchmark fails, after the checkpoint of that "
        "step; otherwise the failure is reported and counted, and training continues",
    )

    @property
    def never(self) -> bool:
        """True if the run has no validation."""
        return self.every is None and not self.at_start and not self.at_end

    @property
    def measures(self) -> bool:
        """True if there are measurements for `tasks_every`."""
        return bool(self.tasks) or self.text_modeling is not None or self.text_generation is not None

    def errors(self) -> ConfigErrors:
        """Yield errors for intervals of measurements that there are not, and for fractions above 1."""
        yield from fraction_errors(self, "every", "tasks_every")
        if self.tasks_every is not None and not self.measures:
            yield config_error(
                "tasks_every",
                "needs one of `tasks`, `text_modeling` and `text_generation`; set one of them",
            )
        if self.offset and self.every is None:
            yield config_error("offset", "needs `every`, which is null; set it, or remove offset")
