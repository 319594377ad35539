"""`quintet evaluate`: measure a trained model on held-out data, benchmarks or texts."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

import typer

from quintet import api
from quintet.cli.inputs import WRITER, AsJson, Checkpoint, Weights, WeightsOption, echo, fail, load
from quintet.config.names import local_path
from quintet.errors import one_line
from quintet.files import to_json

if TYPE_CHECKING:
    from quintet.evaluate.language_model import LanguageModel

_HELD_OUT, _OWN = "held-out", "own"


Run = Annotated[str, typer.Argument(help=f"{WRITER}; or the run file of a run")]
Samples = Annotated[
    int | None,
    typer.Option(min=1, help="held-out samples to use; all when not given, for music as many as in training"),
]


class Products(StrEnum):
    """Number formats of matrix products."""

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"


PrecisionOption = Annotated[
    Products | None,
    typer.Option(help="of the matrix products; as in training when not given, fp32 for a Hugging Face checkpoint"),
]
Records = Annotated[
    int | None, typer.Option(min=1, help="held-out records to answer, 48 when not given", rich_help_panel="Piano")
]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="of the answers: divides the logits; 0 when not given, which takes the likeliest token",
        rich_help_panel="Piano",
    ),
]
Text = Annotated[
    str | None,
    typer.Option(
        help="file or folder of .txt and .jsonl to model, each file a topic; held-out: the held-out text of the run",
        rich_help_panel="Text modelling",
    ),
]
TopicField = Annotated[
    str | None, typer.Option(help="field of a line of .jsonl that names its topic", rich_help_panel="Text modelling")
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="file with one prompt per line; the continuations are measured. own: the prompts of the run file, or the "
        "default ones",
        rich_help_panel="Text generation",
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(
        help="benchmarks of lm-evaluation-harness to measure instead, by name with commas between them",
        rich_help_panel="Benchmarks",
    ),
]
NumSamples = Annotated[
    int | None,
    typer.Option(
        min=1, help="items of each benchmark, spread evenly; all when not given", rich_help_panel="Benchmarks"
    ),
]
FewShot = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="examples with their answers before each item; as many as the task says when not given",
        rich_help_panel="Benchmarks",
    ),
]
DataDir = Annotated[
    str | None,
    typer.Option(
        help="folder of .jsonl files with the items, instead of the Hugging Face hub", rich_help_panel="Benchmarks"
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="texts as long as the context in one forward pass, at most; 16 when not given",
        rich_help_panel="Benchmarks",
    ),
]


def evaluate(
    run: Run,
    samples: Samples = None,
    checkpoint: Checkpoint = "latest",
    precision: PrecisionOption = None,
    weights: WeightsOption = Weights.NARROW,
    as_json: AsJson = False,
    records: Records = None,
    temperature: Temperature = None,
    text: Text = None,
    topic_field: TopicField = None,
    prompts: Prompts = None,
    tasks: Tasks = None,
    num_samples: NumSamples = None,
    few_shot: FewShot = None,
    data_dir: DataDir = None,
    batch_size: BatchSize = None,
) -> None:
    """Measure loss, perplexity and bits per byte of a trained model on its held-out data; for piano music also how
    close its answers are to the true ones, compared with copies of the prompt and with token counts. With --tasks
    measure benchmarks instead, with --text texts of your own, with --prompts the texts that the model writes."""
    others = {"tasks": tasks, "text": text, "prompts": prompts}
    given = [name for name, value in others.items() if value is not None]
    if len(given) > 1:
        fail(f"--{given[1]}: is measured by itself, without --{given[0]}; give the command twice")
    benchmarks = {"num-samples": num_samples, "few-shot": few_shot, "data-dir": data_dir, "batch-size": batch_size}
    own = {"samples": samples, "records": records, "temperature": temperature}
    _refuse(tasks is None, benchmarks, "goes with --tasks; leave it out, or name the benchmarks")
    _refuse(text is None, {"topic-field": topic_field}, "goes with --text; leave it out, or name the text")
    _refuse(bool(given), own, "is for the held-out data of the run, and is not used here; leave it out")
    if local_path(run).is_file():
        from quintet.train.run_folder import run_folder

        run = str(run_folder(load([run])))
    how: _How = {"precision": None if precision is None else precision.value, "weights": weights.value}
    if tasks is not None:
        names = tuple(filter(None, (one.strip() for one in tasks.split(","))))
        _ask_benchmarks(run, checkpoint, names, num_samples, few_shot, data_dir, batch_size or 16, as_json, how)
    elif text is not None:
        _model_texts(run, checkpoint, text, topic_field, as_json, how)
    elif prompts is not None:
        _measure_writing(run, checkpoint, prompts, as_json, how)
    else:
        _measure_held_out(run, checkpoint, samples, records, temperature, as_json, how)


class _How(TypedDict):
    """The precision of the matrix products and the form of their weights."""

    precision: Literal["fp32", "tf32", "bf16", "fp16"] | None
    weights: Literal["narrow", "int8", "float8"]


def _refuse(when: bool, options: Mapping[str, object], why: str) -> None:
    """Raise UserError for the first of ``options`` that is given although it would not be used."""
    for name, value in options.items():
        if when and value is not None:
            fail(f"--{name}: {why}")


def _ask_benchmarks(
    run: str,
    checkpoint: str,
    names: tuple[str, ...],
    samples: int | None,
    shots: int | None,
    data_dir: str | None,
    batch_size: int,
    as_json: bool,
    how: _How,
) -> None:
    """Measure the model on benchmarks and print the table. Raises UserError, after the table, if nothing could be
    measured."""
    from quintet.evaluate.harness.items import check_data_dir
    from quintet.evaluate.harness.names import check_tasks

    if not names:
        fail("--tasks: names no benchmark, for instance arc_easy,blimp")
    check_tasks(names, "--tasks")  # before the model is loaded
    if data_dir is not None:
        check_data_dir(data_dir, "--data-dir")
    model = api.load(run, checkpoint, **how)
    result = model.benchmarks(names, samples=samples, shots=shots, data_dir=data_dir, batch_size=batch_size)
    if as_json:
        echo(to_json({**_step(model), **result.figures()}, indent=2))
    else:
        echo(f"{model}: benchmarks")
        for line in result.lines():
            echo(line)
    if not result.metrics():
        fail(f"--tasks: nothing of {', '.join(names)} could be measured, for the reasons above")


def _model_texts(run: str, checkpoint: str, text: str, topic_field: str | None, as_json: bool, how: _How) -> None:
    """Measure the model on the texts at ``text``, or on the held-out text of its run, and print the table."""
    from rich.console import Console

    from quintet.track.console import Reporter

    model = api.load(run, checkpoint, **how)
    model.check_writes()
    held_out = text == _HELD_OUT
    result = model.text_modeling(
        None if held_out else text,
        topic_field=topic_field,
        where=f"--text {_HELD_OUT}" if held_out and not _step(model) else "--text",
        reporter=Reporter(Console(stderr=True, highlight=False, soft_wrap=True)),
    )
    if as_json:
        echo(to_json({"precision": model.compute.precision, **result.as_json()}, indent=2))
        return
    echo(f"{model}: text modelling, in {model.compute.precision}")
    for line in result.lines():
        echo(line)


def _measure_writing(run: str, checkpoint: str, prompts: str, as_json: bool, how: _How) -> None:
    """Continue ``prompts`` and print the figures of the texts; JSON has the texts too."""
    if prompts == _OWN:
        lines = None
    else:
        try:
            lines = [line for line in local_path(prompts).read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            fail(f"--prompts: {prompts} cannot be read ({one_line(error)}); name a text file, or {_OWN}")
    model = api.load(run, checkpoint, **how)
    result = model.text_generation(lines, where="--prompts")
    if as_json:
        figures = {"precision": model.compute.precision, **result.figures(), "texts": list(result.texts)}
        echo(to_json(_step(model) | figures, indent=2))
        return
    echo(f"{model}: text generation, in {model.compute.precision}")
    for line in result.lines():
        echo(line)


def _step(model: LanguageModel) -> dict[str, Any]:
    """Return the step of the model's checkpoint for JSON; empty if the model does not come from a run."""
    progress = getattr(model, "progress", None)
    return {} if progress is None else {"step": progress.step}


def _measure_held_out(
    run: str,
    checkpoint: str,
    samples: int | None,
    records: int | None,
    temperature: float | None,
    as_json: bool,
    how: _How,
) -> None:
    """Measure the run ``run`` on its held-out data, and print the figures."""
    from rich.console import Console

    from quintet.config.generation import GenerationSettings
    from quintet.track.console import Reporter
    from quintet.train.music import evaluate_music, is_music
    from quintet.train.trained import load_trained, loss_on, own_data

    trained = load_trained(run, checkpoint, **how)
    music = is_music(trained)
    if not music and (records, temperature) != (None, None):
        fail("--records and --temperature: are for music, and this run was trained on text; leave them out")
    if music:
        samples = samples or trained.config.evaluate.samples
    prepared = own_data(trained, Reporter(Console(stderr=True, highlight=False, soft_wrap=True)))
    result = loss_on(trained, prepared, samples)
    counts = {"tokens": result.tokens, "bytes": result.bytes}
    figures: dict[str, Any] = {
        "step": trained.progress.step,
        "precision": trained.compute.precision,
        **counts,
        **result.metrics(),
    }
    lines = result.lines()
    if music:
        settings = GenerationSettings(temperature=temperature or 0.0)
        answers = evaluate_music(trained, prepared, samples, records or 48, settings)
        figures["music"], lines = answers.figures(), [*lines, *answers.lines()]
    if as_json:
        echo(to_json(figures, indent=2))
        return
    size = f", {result.bytes:,} bytes" if result.bytes else ""
    echo(f"{trained}: {result} (over {result.tokens:,} tokens{size}, in {trained.compute.precision})")
    for line in lines:
        echo(line)
