"""A trained model with all that belongs to it, read from a run folder or from a checkpoint of Hugging Face's form."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from quintet.config.evaluate import TextModelingConfig
from quintet.config.generation import TextGenerationConfig
from quintet.config.load import read_run_config
from quintet.config.model import HuggingFaceConfig, PretrainedInitConfig, TransformerConfig
from quintet.config.names import find_run, is_hub_name, local_path, run_named
from quintet.config.schema import RunConfig
from quintet.config.train import TrainConfig
from quintet.data.prepare import Prepared, prepare
from quintet.errors import UserError, printable
from quintet.evaluate.language_model import LanguageModel
from quintet.evaluate.text_modeling import TextModeling
from quintet.export.huggingface import Exported, export_huggingface
from quintet.model import build_model
from quintet.model.build import Weights, narrow_weights
from quintet.model.hf.files import building, find_checkpoint, positions_of, read_config
from quintet.model.hf.settings import model_section
from quintet.model.hf.weights import pretrained_weights
from quintet.tokenize import Tokenizer, load_tokenizer
from quintet.tokenize.bounds import checkpoint_bounds
from quintet.tokenize.huggingface import huggingface_tokenizer
from quintet.tokenize.tokenizer_files import ChatRules
from quintet.track.console import Reporter
from quintet.train.checkpoint import load_weights
from quintet.train.checkpoint_files import Progress, checkpoint_path, checkpoint_steps, newest_whole, read_progress
from quintet.train.compute import Compute, choose_compute, choose_device, multiplies_tf32, set_products, use_gpu
from quintet.train.loss import Objective, build_objective
from quintet.train.model import build_run_model, run_bounds
from quintet.train.run_folder import check_inputs
from quintet.train.validation import ValidationResult, validate

_NARROW = {torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn}
_CONTEXT = 2048  # tokens, where a checkpoint has no limit of its own


@dataclass(frozen=True, repr=False)
class TrainedRun(LanguageModel):
    """The model of a run, with the run's folder, run file and objective, and the facts of the checkpoint."""

    folder: Path
    config: RunConfig
    objective: Objective
    progress: Progress
    compute: Compute

    def __str__(self) -> str:
        return f"{self.folder} at step {self.progress.step}"

    def evaluate(self, samples: int | None = None, reporter: Reporter | None = None) -> ValidationResult:
        """Measure the model on ``samples`` samples of what the run holds out, on all of them without a number.

        ``reporter`` is told what has to be prepared. Raises UserError when nothing is held out, and when the sources
        are no longer the same.
        """
        return loss_on(self, own_data(self, reporter or Reporter(Console(quiet=True))), samples)

    def loss(self, texts: str | Sequence[str] | None = None) -> float:
        return self.evaluate().loss if texts is None else super().loss(texts)

    def bits_per_byte(self, texts: str | Sequence[str] | None = None) -> float:
        return self.evaluate().bits_per_byte if texts is None else super().bits_per_byte(texts)

    def text_modeling(
        self,
        path: str | Path | None = None,
        *,
        topic_field: str | None = None,
        where: str = "path",
        reporter: Reporter | None = None,
    ) -> TextModeling:
        reporter = reporter or Reporter(Console(quiet=True))
        held_out = own_data(self, reporter).validation if path is None else None
        section = self.config.evaluate.text_modeling or TextModelingConfig()
        return self._model_topics(section, path, held_out, topic_field, where, reporter)

    @property
    def _writing(self) -> tuple[TextGenerationConfig, int]:
        return self.config.evaluate.text_generation or TextGenerationConfig(), self.config.seed

    def check_writes(self) -> None:
        if self.config.loss.kind == "masked":
            raise UserError(
                f"{self.name}: learnt to fill in hidden tokens (loss.kind: masked) and not to write on; there is no "
                "text of it"
            )

    def export(self, folder: str | Path, dtype: str = "fp32") -> Exported:
        narrow = any(weight.dtype in _NARROW for weight in self.model.state_dict().values())
        exact = load_trained(str(self.folder), str(self.progress.step), "fp32") if narrow else self
        return export_huggingface(exact, Path(folder), dtype)


def _to_stderr(line: str) -> None:
    print(printable(line, lines=True), file=sys.stderr)


def load_trained(
    run: str,
    which: str = "latest",
    precision: str | None = None,
    say: Callable[[str], object] = _to_stderr,
    *,
    weights: Weights = "wide",
) -> TrainedRun:
    """Read the run in the folder ``run``, or of that name under ``runs/``.

    ``which`` is ``latest``, ``best`` (lowest validation loss) or a step. It is computed in ``precision``, and without
    one in that of its training; ``weights`` says how those of matrix products are held. Where the latest is damaged,
    ``say`` gets a line and the newest whole one is read. Raises UserError when there is no such run or checkpoint, or
    when the checkpoint is damaged.
    """
    folder = find_run(run)
    config = read_run_config(folder)
    progress = _progress(folder / "checkpoints", which, say)
    path = checkpoint_path(folder / "checkpoints", progress.step)
    check_inputs(config, progress.inputs, folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    compute = _compute(precision, progress.precision or config.train.precision)
    model = build_run_model(config, tokenizer)
    load_weights(path, model)
    narrow_weights(model, weights, compute.dtype)
    objective = build_objective(config, tokenizer)
    return TrainedRun(
        run,
        tokenizer,
        model.to(compute.device).eval(),
        compute,
        run_bounds(config, tokenizer),
        folder,
        config,
        objective,
        progress,
        sampling=_sampling(tokenizer) if _from_checkpoint(config) else {},
    )


def _from_checkpoint(config: RunConfig) -> bool:
    """Return True if the run began with the weights of a checkpoint, whose way to write it keeps."""
    return isinstance(config.model, HuggingFaceConfig) or isinstance(config.model.init, PretrainedInitConfig)


def _sampling(tokenizer: Tokenizer) -> Mapping[str, Any]:
    return getattr(tokenizer, "chat", ChatRules()).generation


def load_model(
    name: str,
    which: str = "latest",
    precision: str | None = None,
    say: Callable[[str], object] = _to_stderr,
    *,
    weights: Weights = "wide",
) -> LanguageModel:
    """Read a run, a folder checkpoints/step-… of one, or a checkpoint of Hugging Face's form in the folder ``name`` or
    of that name on the hub.

    A run is read as by `load_trained`. A checkpoint of others is computed in fp32 where no ``precision`` is given, so
    that its figures are the same on every machine, and for "auto" in the fastest that is safe here. ``weights`` is as
    in `load_trained`. ``say`` gets a line for each thing in which a checkpoint is not taken as it is. Raises UserError
    when there is none.
    """
    folder, above = local_path(name), str(local_path(name).parent.parent)
    step = re.fullmatch(r"step-(\d+)", folder.name) if folder.parent.name == "checkpoints" else None
    if step is not None and which == "latest" and run_named(above) is not None:
        name, which = above, str(int(step[1]))
    if run_named(name) is None and _is_checkpoint(name):
        if which != "latest":
            raise UserError(f"--checkpoint {which}: {name} is no run and holds one set of weights; leave it out")
        return _load_checkpoint(name, _compute(precision, "fp32"), say, weights)
    trained = load_trained(name, which, None if precision == "auto" else precision, say, weights=weights)
    for note in getattr(trained.model, "notes", []):
        say(note)
    return trained


def load_writer(
    name: str,
    which: str = "latest",
    say: Callable[[str], object] = _to_stderr,
    *,
    precision: str | None = "auto",
    weights: Weights = "wide",
) -> LanguageModel:
    """`load_model` for what writes. Raises UserError for a model that fills in hidden tokens instead."""
    found = load_model(name, which, precision, say, weights=weights)
    found.check_writes()
    return found


def _compute(asked: str | None, usual: str) -> Compute:
    """On what is there, in the precision ``asked`` for or else ``usual``. Raises UserError for one that is asked for
    and not to be had."""
    device = choose_device("auto")
    use_gpu(device)
    if "tf32" in (asked, usual) and not multiplies_tf32(device.type):
        if asked == "tf32":
            raise UserError("--precision: tf32 is for NVIDIA GPUs from Ampere on, and there is none here; use fp32")
        usual = "fp32"
    if device.type == "cpu" and "fp16" in (asked, usual):
        if asked == "fp16":
            raise UserError("--precision: fp16 is hundreds of times slower than fp32 on a CPU; use fp32 or bf16")
        usual = "fp32"  # what was trained in fp16 on a GPU is computed in the next wider type
    compute = choose_compute(TrainConfig.model_validate({"steps": 1, "device": "auto", "precision": asked or usual}))
    set_products(compute)
    return compute


def _is_checkpoint(name: str) -> bool:
    if (local_path(name) / "config.json").is_file():
        return True
    # A path to nowhere is none of the hub's names.
    return "/" in name and is_hub_name(name) and not Path(name).parent.is_dir() and not name.startswith("runs/")


def _load_checkpoint(name: str, compute: Compute, say: Callable[[str], object], weights: Weights) -> LanguageModel:
    """Load a checkpoint as our transformer if its parts suffice, and else as the model of Hugging Face's library."""
    folder = find_checkpoint(name)
    tokenizer = huggingface_tokenizer(str(folder))
    values = read_config(folder, say)
    try:
        config = TransformerConfig.model_validate(model_section(values, name))
    except UserError:
        context = positions_of(values)
        if context is None:
            context = _CONTEXT
            say(f"{name}: config.json names no most tokens of a text; {context:,} are the most here")
        model = build_model(
            HuggingFaceConfig(kind="huggingface", name_or_path=str(folder)), tokenizer.vocab_size, context, seed=0
        )
        notes = getattr(model, "notes", [])
    else:
        assert config.vocab_size is not None
        assert config.context_length is not None
        rows, context = config.vocab_size, config.context_length
        start = pretrained_weights(str(folder), config, rows, context)
        with building(name):
            model = build_model(config, rows, context, seed=0, weights=start.weights)
        notes = start.notes
    for note in notes:
        say(note)
    narrow_weights(model, weights, compute.dtype)
    bounds, sampling = checkpoint_bounds(tokenizer), _sampling(tokenizer)
    return LanguageModel(name, tokenizer, model.to(compute.device).eval(), compute, bounds, sampling=sampling)


def _progress(checkpoints: Path, which: str, say: Callable[[str], object]) -> Progress:
    """The facts of the checkpoint that ``which`` names, of which the weights are checked."""
    newest = newest_whole(checkpoints, say, weights_only=True) if which in ("latest", "best") else None
    if newest is not None and which == "latest":
        return newest
    steps = checkpoint_steps(checkpoints)
    if not steps:
        raise UserError(f"{checkpoints}: holds no checkpoint yet")
    if newest is not None:
        if newest.best_step is None:
            raise UserError(f"{checkpoints}: no validation has given a finite loss, so there is no best; take latest")
        which = str(newest.best_step)
    if which.isdecimal() and int(which) in steps:
        return read_progress(checkpoint_path(checkpoints, int(which)), weights_only=True)
    raise UserError(f"{checkpoints}: holds no step {which}; there are {', '.join(map(str, steps))}")


def own_data(run: TrainedRun, reporter: Reporter) -> Prepared:
    """The data that ``run`` was trained on. Raises UserError when the sources are no longer the same."""
    prepared = prepare(run.config, progress=reporter.preparing)
    if prepared.fingerprint != run.progress.corpus or prepared.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise UserError(
            f"{run.folder}: its sources, or what the libraries that read and encode them make of them, have changed "
            "since it was trained, and what was held out with them"
        )
    return prepared


def loss_on(run: TrainedRun, prepared: Prepared, samples: int | None) -> ValidationResult:
    """Loss on ``samples`` samples of what ``prepared`` holds out. Raises UserError when that is nothing."""
    if prepared.validation is None:
        raise UserError(f"{run.folder}: holds nothing out; set data.validation or data.validation_sources")
    found = validate(
        run.model,
        run.objective,
        prepared.validation.batches(run.config.validation_batch_size, samples),
        run.compute,
        bytes_per_token=run.tokenizer.bytes_per_token(),
        labels=prepared.validation.labels,
    )
    if not found.tokens:
        raise UserError(f"{run.folder}: no token that it holds out has a loss, so that nothing can be measured on them")
    return found
