"""Trained models, read from a run folder or from a Hugging Face checkpoint."""

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
_CONTEXT = 2048  # tokens, for a checkpoint that names no limit


@dataclass(frozen=True, repr=False)
class TrainedRun(LanguageModel):
    """The model of a run, with its folder, its run file, its objective, and the progress of the checkpoint."""

    folder: Path
    config: RunConfig
    objective: Objective
    progress: Progress
    compute: Compute

    def __str__(self) -> str:
        return f"{self.folder} at step {self.progress.step}"

    def evaluate(self, samples: int | None = None, reporter: Reporter | None = None) -> ValidationResult:
        """Validate the model on ``samples`` held-out samples of its run, all of them if None.

        ``reporter`` prints the progress of preparing data. Raises UserError if the run holds nothing out or its sources
        have changed.
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
                f"{self.name}: was trained to fill in hidden tokens (loss.kind: masked) and cannot generate text"
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
    """Load the run in the folder ``run``, or of that name under ``runs/``.

    ``which`` checkpoint is ``latest``, ``best`` (lowest validation loss) or a step. ``precision`` is that of its
    training if None. ``weights`` is the form in which the weights of matrix products are kept. If the latest checkpoint
    is damaged, ``say`` gets a line and the newest whole one is loaded. Raises UserError if there is no such run or
    checkpoint, or if the chosen checkpoint is damaged.
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
    """Return True if the run started from a checkpoint, whose settings for generation then apply."""
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
    """Load a run, its folder checkpoints/step-…, or a Hugging Face checkpoint in the folder ``name`` or on the hub.

    A run is loaded by `load_trained`. The ``precision`` of a Hugging Face checkpoint is fp32 if None, so that its
    figures are the same on every machine; "auto" is the fastest that is safe here. ``weights`` is that of
    `load_trained`. ``say`` gets a line for each deviation from the checkpoint. Raises UserError if there is no such
    model.
    """
    folder, above = local_path(name), str(local_path(name).parent.parent)
    step = re.fullmatch(r"step-(\d+)", folder.name) if folder.parent.name == "checkpoints" else None
    if step is not None and which == "latest" and run_named(above) is not None:
        name, which = above, str(int(step[1]))
    if run_named(name) is None and _is_checkpoint(name):
        if which != "latest":
            raise UserError(f"--checkpoint {which}: {name} is not a run and has one set of weights; remove the option")
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
    """Load a model that generates text (see `load_model`). Raises UserError for a model that fills in hidden tokens."""
    model = load_model(name, which, precision, say, weights=weights)
    model.check_writes()
    return model


def _compute(asked: str | None, usual: str) -> Compute:
    """Choose the device, with the precision ``asked`` for or else the ``usual`` one.

    Raises UserError if the device lacks the precision that is asked for.
    """
    device = choose_device("auto")
    use_gpu(device)
    if "tf32" in (asked, usual) and not multiplies_tf32(device.type):
        if asked == "tf32":
            raise UserError("--precision: tf32 is for NVIDIA GPUs from Ampere on, and there is none here; use fp32")
        usual = "fp32"
    if device.type == "cpu" and "fp16" in (asked, usual):
        if asked == "fp16":
            raise UserError("--precision: fp16 is hundreds of times slower than fp32 on a CPU; use fp32 or bf16")
        usual = "fp32"  # the next wider type, for a run that was trained in fp16 on a GPU
    compute = choose_compute(TrainConfig.model_validate({"steps": 1, "device": "auto", "precision": asked or usual}))
    set_products(compute)
    return compute


def _is_checkpoint(name: str) -> bool:
    if (local_path(name) / "config.json").is_file():
        return True
    # A path that does not exist is not a name on the hub.
    return "/" in name and is_hub_name(name) and not Path(name).parent.is_dir() and not name.startswith("runs/")


def _load_checkpoint(name: str, compute: Compute, say: Callable[[str], object], weights: Weights) -> LanguageModel:
    """Load a checkpoint as Quintet's transformer if that can express it, otherwise as a model of transformers."""
    folder = find_checkpoint(name)
    tokenizer = huggingface_tokenizer(str(folder))
    values = read_config(folder, say)
    try:
        config = TransformerConfig.model_validate(model_section(values, name))
    except UserError:
        context = positions_of(values)
        if context is None:
            context = _CONTEXT
            say(f"{name}: config.json names no maximum number of tokens; {context:,} is used")
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
    """Return the progress of the checkpoint that ``which`` names, with its weights checked."""
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
    """Prepare the data that ``run`` was trained on. Raises UserError if its sources have changed."""
    prepared = prepare(run.config, progress=reporter.preparing)
    if prepared.fingerprint != run.progress.corpus or prepared.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise UserError(
            f"{run.folder}: its sources, or the libraries that read and encode them, have changed since it was "
            "trained, so that its held-out data is not the same"
        )
    return prepared


def loss_on(run: TrainedRun, prepared: Prepared, samples: int | None) -> ValidationResult:
    """Validate ``run`` on ``samples`` held-out samples of ``prepared``. Raises UserError if there are none."""
    if prepared.validation is None:
        raise UserError(f"{run.folder}: holds nothing out; set data.validation or data.validation_sources")
    result = validate(
        run.model,
        run.objective,
        prepared.validation.batches(run.config.validation_batch_size, samples),
        run.compute,
        bytes_per_token=run.tokenizer.bytes_per_token(),
        labels=prepared.validation.labels,
    )
    if not result.tokens:
        raise UserError(f"{run.folder}: none of its held-out tokens has a loss, so nothing can be measured")
    return result
