"""What `quintet evaluate --tasks` does: benchmarks of a run, or of a Hugging Face checkpoint."""

from __future__ import annotations

import typer

from quintet.cli.inputs import fail, load
from quintet.files import to_json


def folder_of(file: str) -> str:
    """The folder of the run that the run file ``file`` makes."""
    from quintet.train.run_folder import run_folder

    return str(run_folder(load([file]).config))


def ask_benchmarks(
    name: str,
    checkpoint: str,
    tasks: str,
    samples: int | None,
    shots: int | None,
    data_dir: str | None,
    batch_size: int,
    as_json: bool,
    precision: str | None,
) -> None:
    """Measure the model ``name`` on ``tasks``, names with commas between them, and print the table.

    ``shots`` examples stand before each item, as many as its task says for None; ``precision`` None is the model's own.
    Raises UserError, after the table of reasons, where nothing could be measured.
    """
    from quintet.evaluate.harness.items import check_data_dir
    from quintet.evaluate.harness.names import check_tasks
    from quintet.evaluate.harness.run import EvalOptions, run_benchmarks
    from quintet.evaluate.model_and_tokenizer import check_likelihood
    from quintet.train.trained import TrainedRun, load_measured

    names = tuple(filter(None, (one.strip() for one in tasks.split(","))))
    if not names:
        fail("--tasks: names no benchmark, for instance arc_easy,blimp")
    check_tasks(names, "--tasks")
    if data_dir is not None:
        check_data_dir(data_dir, "--data-dir")
    trained = load_measured(name, checkpoint, precision)
    run = trained if isinstance(trained, TrainedRun) else None
    check_likelihood(trained)
    found = run_benchmarks(trained, EvalOptions(names, samples, shots, data_dir, batch_size))
    if as_json:
        step = {"step": run.progress.step} if run else {}
        typer.echo(to_json({**step, **found.figures()}, indent=2))
    else:
        typer.echo(f"{run.folder if run else name}{f' at step {run.progress.step}' if run else ''}: benchmarks")
        for line in found.lines():
            typer.echo(line)
    if not found.metrics():
        fail(f"--tasks: nothing of {', '.join(names)} could be measured, for the reasons above")
