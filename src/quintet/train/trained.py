"""A trained model with all that belongs to it, read from a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quintet.config.schema import RunConfig
from quintet.config.training import TrainConfig
from quintet.errors import UserError
from quintet.model import Model
from quintet.tokenize import Tokenizer, load_tokenizer
from quintet.train.checkpoint import Progress, checkpoint_path, checkpoint_steps, load_weights, read_progress
from quintet.train.compute import Compute, choose_compute
from quintet.train.model import make_model, make_objective
from quintet.train.objective import Objective
from quintet.train.run_folder import read_run_config


@dataclass(frozen=True)
class TrainedRun:
    """What a run folder holds: run file, tokenizer, model in evaluation mode, and the facts of its checkpoint."""

    folder: Path
    config: RunConfig
    tokenizer: Tokenizer
    model: Model
    objective: Objective
    compute: Compute
    progress: Progress


def load_trained(run: str, which: str = "latest") -> TrainedRun:
    """Read the run in the folder ``run``, or of that name under ``runs/``.

    ``which`` is ``latest``, ``best`` (lowest validation loss) or a step. Raises UserError when there is no such run or
    checkpoint, or when the checkpoint is damaged.
    """
    folder = find_run(run)
    config = read_run_config(folder)
    path = checkpoint_path(folder / "checkpoints", _step(folder / "checkpoints", which))
    progress = read_progress(path)
    tokenizer = load_tokenizer(folder / "tokenizer")
    compute = choose_compute(TrainConfig(steps=1, device="auto", precision=config.train.precision))
    model = make_model(config, tokenizer)
    load_weights(path, model)
    objective = make_objective(config, tokenizer)
    return TrainedRun(folder, config, tokenizer, model.to(compute.device).eval(), objective, compute, progress)


def find_run(run: str) -> Path:
    """The folder that ``run`` names: a run folder, or the name of a run under ``runs/``."""
    candidates = [Path(run).expanduser(), Path("runs") / run]
    for folder in candidates:
        if is_run(folder):
            return folder
    raise UserError(f"{run}: no run there (neither {candidates[0]}/run.yaml nor {candidates[1]}/run.yaml exists)")


def is_run(folder: Path) -> bool:
    """Whether ``folder`` is the folder of a run."""
    return (folder / "run.yaml").is_file()


def _step(checkpoints: Path, which: str) -> int:
    steps = checkpoint_steps(checkpoints)
    if not steps:
        raise UserError(f"{checkpoints}: holds no checkpoint yet")
    if which == "latest":
        return steps[-1]
    if which == "best":
        which = str(read_progress(checkpoint_path(checkpoints, steps[-1])).best_step)
    if which.isdigit() and int(which) in steps:
        return int(which)
    raise UserError(f"{checkpoints}: holds no step {which}; there are {', '.join(map(str, steps))}")
